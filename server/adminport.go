package server

import (
	"context"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	channelz "google.golang.org/grpc/channelz/service"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/ops"
)

const (
	// maxAdminMessage bounds one request of the admin API, in bytes.
	maxAdminMessage = 8 << 20
	// maxAdminStreams bounds the calls under way on one connection.
	maxAdminStreams = 256
)

// adminServer is the gRPC half of the admin port.
func (s *Server) adminServer(checks *health.Server) *grpc.Server {
	srv := grpc.NewServer(
		grpc.Creds(auth.CutAtExpiry(handshaken{})),
		grpc.MaxRecvMsgSize(maxAdminMessage),
		grpc.MaxConcurrentStreams(maxAdminStreams),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: 10 * time.Second, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: time.Minute, Timeout: 20 * time.Second}),
		// The metrics see what callers see, refusals and panics included; the
		// recovery stands before everything that could panic.
		grpc.ChainUnaryInterceptor(s.calls.unary, s.recoverUnary, s.auth.Unary),
		grpc.ChainStreamInterceptor(s.calls.stream, s.recoverStream, s.auth.Stream),
	)
	s.admin.Register(srv)
	grpc_health_v1.RegisterHealthServer(srv, checks)
	channelz.RegisterChannelzServiceToServer(srv)
	// The interceptors stand before it, as before every service of this port.
	s.xds.RegisterStatus(srv, func(context.Context) error { return nil })
	// Last: it describes what is registered.
	reflection.Register(srv)
	return srv
}

// xdsServer is the gRPC server of the xDS port.
func (s *Server) xdsServer() *grpc.Server {
	opts := s.xds.ServerOptions()
	if s.xdsTLS != nil {
		opts = append(opts, grpc.Creds(auth.CutAtExpiry(credentials.NewTLS(tlsConfig(s.xdsTLS, "h2")))))
	}
	srv := grpc.NewServer(opts...)
	s.xds.Register(srv)
	s.relays.Register(srv)
	return srv
}

func (s *Server) recoverUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (resp any, err error) {
	defer s.recovered(info.FullMethod, &err)
	return next(ctx, req)
}

func (s *Server) recoverStream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) (err error) {
	defer s.recovered(info.FullMethod, &err)
	return next(srv, ss)
}

// recovered answers a panic with INTERNAL: one bad call must not end the
// process, and with it every data plane's stream.
func (s *Server) recovered(method string, err *error) {
	if r := recover(); r != nil {
		s.cfg.Logger.Error("a call panicked", "method", method, "panic", r, "stack", string(debug.Stack()))
		*err = status.Error(codes.Internal, "the server failed on this call; its log says more")
	}
}

// httpHandler is the HTTP half of the admin port.
func (s *Server) httpHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/metrics", s.opsHandler(auth.PermissionRead))
	mux.Handle("/healthz", s.opsHandler(auth.PermissionRead))
	mux.Handle("/readyz", s.opsHandler(auth.PermissionRead))
	if s.cfg.HTTP != nil {
		mux.Handle("/", s.cfg.HTTP(s))
	}
	return mux
}

// opsHandler serves what operators' machines ask for, the metrics to callers with
// the permission.
func (s *Server) opsHandler(metrics auth.Permission) http.Handler {
	exposition := promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{})
	return ops.Handler(s.Ready, s.auth.HTTP(metrics, exposition))
}
