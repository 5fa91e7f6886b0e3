// Package plugin holds API7's plugins, one file each: what a plugin's
// configuration may hold, and which Envoy filters, route actions and filter
// states it becomes.
//
// A configuration is judged strictly. A field that API7 does not know, and one
// that Envoy cannot honour, is refused with the reason; nothing is ignored.
//
// The package is pure, and everything in it is safe for concurrent use.
package plugin
