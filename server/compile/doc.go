// Package compile turns the resources of one gateway group into xDS resources.
//
// It is pure: no I/O, clock or goroutine. A Compiled is an immutable value that
// remembers, in persistent trees, everything it needs to tell which xDS
// resources a change touches; Next costs what the change touches and never the
// size of the group, and any sequence of Next ends where Full does.
//
// DESIGN.md is the contract of what is emitted. Envoy and the embedded gateway
// honour it alike.
package compile
