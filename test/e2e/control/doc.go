// Package control runs muster itself for the end-to-end tests: it builds the
// binary, runs `muster dev` and `muster gateway` as processes, and calls the
// command line and the gRPC API as an operator would.
package control
