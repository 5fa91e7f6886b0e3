// Package muster is the root of the control plane's module. It holds no code:
// the program is cmd/muster, the public data-plane client is dataplane, and
// docs/architecture.md is the map of the rest. Its test keeps that map true.
package muster
