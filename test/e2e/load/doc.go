// Package load sends steady requests at data planes over kept-alive
// connections, and keeps every answer that is not what was asked for.
package load
