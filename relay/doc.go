// Package relay carries gateway groups to a region: it subscribes to them at a
// server (or at another relay) over one connection and serves them to any number
// of data planes with the server's own session engine, from its own index and disk.
//
// A [Relay] verifies what it is sent against the signed Manifest, makes it durable
// and only then serves it, so that it never serves anything older than it did
// before. It passes resource versions through unchanged: a data plane may move
// between relays and servers and fetches nothing twice. A lost, restarted or
// unreachable upstream removes nothing; what a data plane refuses is reported
// upstream and never refused there.
//
// DESIGN.md tells how all that a server compiles gets to a relay, and why so.
package relay
