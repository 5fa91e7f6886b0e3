package dataplane

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"
)

// picky stands in front of a fakeADS and refuses what some control planes refuse:
// compressed requests.
type picky struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	ads     *fakeADS
	refused atomic.Int64
}

type compression struct{ name string }

func (p *picky) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	return context.WithValue(ctx, compression{}, &compression{})
}

func (p *picky) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if h, ok := s.(*stats.InHeader); ok {
		ctx.Value(compression{}).(*compression).name = h.Compression
	}
}

func (p *picky) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (p *picky) HandleConn(context.Context, stats.ConnStats)                       {}

func (p *picky) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	if c := stream.Context().Value(compression{}).(*compression); c.name != "" {
		p.refused.Add(1)
		return status.Errorf(codes.Unimplemented, "grpc: Decompressor is not installed for grpc-encoding %q", c.name)
	}
	return p.ads.DeltaAggregatedResources(stream)
}

func (p *picky) serve(t *testing.T) (addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := grpc.NewServer(grpc.StatsHandler(p))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, p)
	var serving sync.WaitGroup
	serving.Go(func() { _ = srv.Serve(ln) }) // ends with Stop
	t.Cleanup(func() { srv.Stop(); serving.Wait() })
	return ln.Addr().String()
}

func TestAServerThatCannotDecompressIsAskedWithoutCompression(t *testing.T) {
	p := &picky{ads: newFakeADS(t)}
	cfg := config(&gatherer{})
	cfg.Servers, cfg.Compress = []string{p.serve(t)}, true
	c, _ := run(t, cfg)
	eventually(t, "configured", func() bool { return c.Status().Configured })
	if n := p.refused.Load(); n != 1 {
		t.Errorf("it was asked with compression %d times", n)
	}
}
