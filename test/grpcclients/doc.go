// Package grpcclients holds one proxyless gRPC client per language, all with the
// same options and the same output, for the end-to-end tests: healthclient (Go),
// python/, node/ and java/ send grpc.health.v1 checks to an xds:/// target at a
// steady rate and print one JSON line per call; healthserver is the backend, and
// with -xds an xDS-enabled server.
package grpcclients
