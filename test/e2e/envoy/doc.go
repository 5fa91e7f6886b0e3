// Package envoy runs a real Envoy for the end-to-end tests and reads its
// admin interface.
package envoy
