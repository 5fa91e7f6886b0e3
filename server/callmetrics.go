package server

import (
	"context"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/auth"
)

// callMetrics count the calls of the admin API. They stand before the
// authentication, so that refused callers are counted too.
type callMetrics struct {
	calls   *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	logger  *slog.Logger
	known   auth.Policy
}

func newCallMetrics(r prometheus.Registerer, logger *slog.Logger, known auth.Policy) *callMetrics {
	m := &callMetrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_admin_calls_total",
			Help: "Calls of the admin API by method and gRPC code.",
		}, []string{"method", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "muster_admin_call_seconds",
			Help:    "Duration of unary calls of the admin API.",
			Buckets: []float64{0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 5},
		}, []string{"method"}),
		logger: logger,
		known:  known,
	}
	r.MustRegister(m.calls, m.seconds)
	return m
}

func (m *callMetrics) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	began := time.Now()
	resp, err := next(ctx, req)
	m.seconds.WithLabelValues(m.label(info.FullMethod)).Observe(time.Since(began).Seconds())
	m.done(ctx, info.FullMethod, err)
	return resp, err
}

func (m *callMetrics) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	err := next(srv, ss)
	m.done(ss.Context(), info.FullMethod, err)
	return err
}

func (m *callMetrics) done(ctx context.Context, method string, err error) {
	code := status.Code(err)
	m.calls.WithLabelValues(m.label(method), code.String()).Inc()
	switch code {
	case codes.Unauthenticated, codes.PermissionDenied:
		m.logger.WarnContext(ctx, "a call was refused", "method", method, "code", code.String(), "reason", status.Convert(err).Message(), "peer", peerAddress(ctx))
	case codes.Internal, codes.Unknown, codes.ResourceExhausted:
		m.logger.ErrorContext(ctx, "a call failed", "method", method, "code", code.String(), "error", err)
	}
}

// label bounds the values of the label to the methods that there are.
func (m *callMetrics) label(method string) string {
	if _, ok := m.known[method]; ok {
		return method
	}
	return "other"
}

func peerAddress(ctx context.Context) string {
	if p, ok := peer.FromContext(ctx); ok {
		return p.Addr.String()
	}
	return ""
}
