package upstream

import (
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// GRPCHealth answers grpc.health.v1.Health/Check with SERVING, so that a
// backend with it as its Handler is a gRPC server over HTTP/2 without TLS.
func GRPCHealth() http.Handler {
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	return server
}
