package server

import (
	"context"
	"net"
)

// Server is one muster server. Make it with [New] and run it with [Server.Run].
type Server struct {
	cfg            Config
	adminLn, xdsLn net.Listener
}

// New opens the store and the listeners; nothing is served before Run. The
// caller must call Run, or Close.
func New(cfg Config) (*Server, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Server{cfg: cfg}, nil
}

// Run serves until ctx ends or a part fails, and returns after everything it
// started has ended: nil after ctx, else the first failure.
func (s *Server) Run(ctx context.Context) error {
	<-ctx.Done()
	return nil
}

// Close releases what New opened, for a server that is never run.
func (s *Server) Close() error { return nil }

// AdminAddr is the address of the admin port.
func (s *Server) AdminAddr() net.Addr { return s.adminLn.Addr() }

// XDSAddr is the address of the xDS port.
func (s *Server) XDSAddr() net.Addr { return s.xdsLn.Addr() }

// Ready returns nil once the server has caught up with the cluster and serves
// xDS.
func (s *Server) Ready() error { return nil }
