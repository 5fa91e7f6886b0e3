package server

import (
	"context"
	"errors"
	"net"
	"net/http"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"

	"github.com/musterhq/muster/server/auth"
)

// ports are the servers behind the listeners.
type ports struct {
	mux       *portMux
	admin     *grpc.Server
	adminHTTP *http.Server
	xds       *grpc.Server
	ops       *http.Server // nil without an ops port
	health    *health.Server
	running   []*child
}

// Run serves until ctx ends or a part fails, and returns after everything it
// started has ended: nil after ctx, else the first failure.
func (s *Server) Run(ctx context.Context) error {
	parts := newChildren(ctx)
	// The store comes first: nothing can be answered without it.
	store := parts.start("store", s.store.Run)
	// Certificates and keys are followed before a port is open that uses them.
	files := s.followFiles(parts)
	// The publisher waits for the store to catch up. Until it has, the ports
	// refuse with UNAVAILABLE, which sends clients to another server.
	publisher := parts.start("publisher", s.pub.run)
	// What was remembered of the data planes is of groups, so it waits for them.
	present := parts.start("presence", func(ctx context.Context) error {
		if !s.pub.waitPublished(ctx) {
			return nil
		}
		return s.present.run(ctx)
	})
	p := s.openPorts(parts)
	readiness := parts.start("readiness", func(ctx context.Context) error { return s.reportReadiness(ctx, p.health) })
	s.cfg.Logger.Info("server runs", "server", s.cfg.ServerID, "admin", s.adminLn.Addr().String(), "xds", s.xdsLn.Addr().String())

	var failure error
	select {
	case <-ctx.Done():
	case failure = <-parts.failed:
		s.cfg.Logger.Error("a part of the server failed; stopping", "error", failure)
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.ShutdownGrace)
	defer cancel()

	// 1. Not ready, so that load balancers and clients turn elsewhere while
	// everything still works.
	p.health.Shutdown()
	readiness.stop()
	// 2. Leadership: writes that arrive now are forwarded to the new leader, and
	// the others need not miss this one before they elect another.
	if err := s.store.Drain(grace); err != nil && failure == nil {
		s.cfg.Logger.Warn("leadership was not handed over before the stop", "error", err)
	}
	// 3. The ports: calls under way finish and data planes are sent elsewhere,
	// before what they are served from goes away.
	s.closePorts(grace, p)
	// 4. The data planes' streams have ended: what is kept of them is final.
	present.stop()
	// 5. The publisher follows the store, so it goes before it.
	publisher.stop()
	for _, c := range files {
		c.stop()
	}
	// 6. The store last: until here a call under way could still be answered.
	store.stop()
	parts.wg.Wait()
	return parts.outcome(failure)
}

// httpIdle is how long an HTTP connection may stay open between two requests.
const httpIdle = 2 * time.Minute

// openPorts serves on every listener.
func (s *Server) openPorts(parts *children) *ports {
	checks := health.NewServer()
	checks.SetServingStatus("", grpc_health_v1.HealthCheckResponse_NOT_SERVING)
	p := &ports{
		mux:       newPortMux(s.adminLn, tlsConfig(s.adminTLS)),
		admin:     s.adminServer(checks),
		adminHTTP: &http.Server{Handler: s.httpHandler(), ReadHeaderTimeout: sniffTimeout, IdleTimeout: httpIdle},
		xds:       s.xdsServer(),
		health:    checks,
	}
	p.running = []*child{
		parts.start("xDS port", serving(func() error { return p.xds.Serve(s.xds.Listener(s.xdsLn)) })),
		parts.start("admin gRPC", serving(func() error { return p.admin.Serve(p.mux.grpc) })),
		parts.start("admin HTTP", serving(func() error { return p.adminHTTP.Serve(p.mux.http) })),
		parts.start("admin port", serving(p.mux.serve)),
	}
	if s.opsLn != nil {
		p.ops = &http.Server{Handler: s.opsHandler(auth.PermissionPublic), ReadHeaderTimeout: sniffTimeout, IdleTimeout: httpIdle}
		p.running = append(p.running, parts.start("ops port", serving(func() error { return p.ops.Serve(s.opsLn) })))
	}
	return p
}

// closePorts ends every port, with what is under way until grace ends.
func (s *Server) closePorts(grace context.Context, p *ports) {
	for _, c := range p.running {
		// They end when their servers are stopped, below; from here on that is no
		// failure.
		c.cancel()
	}
	s.admin.Drain()
	s.relays.Drain()
	xdsDone := make(chan struct{})
	go func() {
		defer close(xdsDone)
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			p.xds.GracefulStop()
		}()
		// GracefulStop waits for streams, which never end by themselves: the xDS
		// server ends them, spread over the time, so that data planes do not all
		// arrive at the next server at once.
		spread, cancel := context.WithTimeout(grace, s.goAwayTime())
		defer cancel()
		if err := s.xds.Shutdown(spread); err != nil {
			s.cfg.Logger.Debug("the last data planes were cut off at once", "error", err)
		}
		stopWithin(grace, p.xds, stopped)
	}()
	adminDone := make(chan struct{})
	go func() {
		defer close(adminDone)
		p.admin.GracefulStop()
	}()
	if err := p.adminHTTP.Shutdown(grace); err != nil {
		_ = p.adminHTTP.Close()
	}
	stopWithin(grace, p.admin, adminDone)
	if p.ops != nil {
		_ = p.ops.Close()
	}
	_ = p.mux.close()
	<-xdsDone
	for _, c := range p.running {
		<-c.done
	}
}

// goAwayTime is over how long data planes are sent elsewhere: a few need no
// spreading, and thousands should not all arrive at the next server at once.
func (s *Server) goAwayTime() time.Duration {
	const each = 4 * time.Millisecond
	return 20*time.Millisecond + each*time.Duration(s.Status().DataPlanes)
}

// stopWithin waits for a graceful stop, and cuts the rest off after grace.
func stopWithin(grace context.Context, srv *grpc.Server, stopped <-chan struct{}) {
	select {
	case <-stopped:
	case <-grace.Done():
		srv.Stop()
		<-stopped
	}
}

// serving adapts a Serve call: it ends when its server is stopped, not with ctx.
func serving(serve func() error) func(context.Context) error {
	return func(ctx context.Context) error {
		err := serve()
		if ctx.Err() != nil && (errors.Is(err, http.ErrServerClosed) || errors.Is(err, grpc.ErrServerStopped) || errors.Is(err, net.ErrClosed)) {
			return nil
		}
		return err
	}
}

// followFiles follows the certificates and API keys.
func (s *Server) followFiles(parts *children) (running []*child) {
	if s.cfg.KeysFile != "" {
		running = append(running, parts.start("API key reload", func(ctx context.Context) error {
			return s.cfg.Keys.Follow(ctx, s.cfg.KeysFile, reloadInterval, s.cfg.Logger)
		}))
	}
	for _, t := range []*auth.TLS{s.adminTLS, s.xdsTLS} {
		if t != nil {
			running = append(running, parts.start("certificate reload", func(ctx context.Context) error {
				return t.Run(ctx, reloadInterval)
			}))
		}
	}
	return running
}

// readinessInterval is how often readiness is looked at.
const readinessInterval = 50 * time.Millisecond

// reportReadiness keeps the health service in step with Ready.
func (s *Server) reportReadiness(ctx context.Context, checks *health.Server) error {
	ticker := time.NewTicker(readinessInterval)
	defer ticker.Stop()
	serving := false
	for {
		if now := s.Ready() == nil; now != serving {
			serving = now
			st := grpc_health_v1.HealthCheckResponse_NOT_SERVING
			if now {
				st = grpc_health_v1.HealthCheckResponse_SERVING
			}
			checks.SetServingStatus("", st)
			s.cfg.Logger.Info("readiness changed", "ready", now)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}
