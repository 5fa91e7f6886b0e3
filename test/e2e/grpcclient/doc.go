// Package grpcclient runs the proxyless gRPC clients of test/grpcclients, one per
// language, and collects what became of each call.
package grpcclient
