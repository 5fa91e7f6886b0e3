// Package state is muster's replicated state machine: a command goes in, a new
// immutable state comes out.
//
// It does no I/O, reads no clock and starts no goroutine, so every server that
// applies the same commands in the same order holds the same state, byte for
// byte in its snapshot. Values of this package never change after they were
// returned; all methods may be called concurrently. Messages that they return
// are shared and must not be modified.
//
// DESIGN.md tells how it works and why.
package state
