// Package xds serves the xDS resources of gateway groups to data planes: ADS and
// the per-type services, incremental and state-of-the-world.
//
// A session, one stream of one data plane, is a pure state machine: requests, new
// snapshots and the passing of time go in, responses and events come out. It
// knows no I/O, clock or goroutine; testdata holds conversations with it as
// scripts. [Server] is the only I/O: it reads requests, feeds the session and
// sends what the session says, without a goroutine of its own per stream.
//
// DESIGN.md tells the order in which things are sent, what a refusal does, and
// why.
package xds
