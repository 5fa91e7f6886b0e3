// Package upstream holds the backends of the end-to-end tests. A backend
// answers with the request as it saw it, and misbehaves on demand: it answers
// another status, waits, drops the connection, or stops listening.
package upstream
