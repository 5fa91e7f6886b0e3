package xds

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// killer returns a function that ends a stream with a status while its handler
// waits for the next request, which then fails. That saves the goroutine that
// would otherwise have to wait in the handler's place. gRPC does the same when a
// handler returns or a deadline passes, but has no name for it: where the
// transport's stream has no such method, killer returns nil.
func killer(ctx context.Context) func(error) {
	s, ok := grpc.ServerTransportStreamFromContext(ctx).(interface {
		WriteStatus(*status.Status) error
	})
	if !ok {
		return nil
	}
	return func(err error) { _ = s.WriteStatus(status.Convert(err)) } // fails when the connection is gone: the stream with it
}
