package gateway

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"

	"github.com/musterhq/muster/dataplane"
)

// plainADS is an upstream that is not muster: it answers each first request of a
// type with all it has of it, and knows no manifests.
type plainADS struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	resources []named

	mu    sync.Mutex
	nacks []string
}

func (p *plainADS) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return nil
		}
		if d := req.GetErrorDetail(); d != nil {
			p.mu.Lock()
			p.nacks = append(p.nacks, d.GetMessage())
			p.mu.Unlock()
		}
		if req.GetResponseNonce() != "" || req.GetTypeUrl() == dataplane.ManifestType {
			continue
		}
		resp := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: req.GetTypeUrl(), Nonce: req.GetTypeUrl()}
		for _, r := range p.resources {
			if r.kind == req.GetTypeUrl() {
				resp.Resources = append(resp.Resources, &discoveryv3.Resource{Name: r.name, Version: "1", Resource: pack(r.msg)})
			}
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (p *plainADS) refusals() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.nacks...)
}

// serveADS serves p until stop is called.
func serveADS(t *testing.T, p *plainADS) (addr string, stop func()) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, p)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) }) // ends with Stop
	stop = sync.OnceFunc(func() {
		server.Stop()
		serving.Wait()
	})
	t.Cleanup(stop)
	return ln.Addr().String(), stop
}

// runGateway runs a gateway until stop is called, which waits.
func runGateway(t *testing.T, cacheDir string, servers ...string) (g *Gateway, stop func()) {
	t.Helper()
	g, err := New(Config{
		HTTPAddr: "127.0.0.1:0", HTTPSAddr: "127.0.0.1:0", StatusAddr: "127.0.0.1:0", DrainTimeout: time.Second,
		Servers: servers, Insecure: true, Group: "g", NodeID: "n", Version: "0", CacheDir: cacheDir,
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		Timing: dataplane.Timing{Manifest: 20 * time.Millisecond, BackoffMin: 5 * time.Millisecond, BackoffMax: 20 * time.Millisecond},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := g.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	stop = sync.OnceFunc(func() {
		cancel()
		running.Wait()
	})
	t.Cleanup(stop)
	eventually(t, "the status listener is bound", func() bool { return g.Addr("status") != nil })
	return g, stop
}

// status asks a path of the status listener.
func statusOf(t *testing.T, g *Gateway, path string) (code int, report statusReport) {
	t.Helper()
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Get("http://" + g.Addr("status").String() + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&report); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, report
}

func TestAGatewayFollowsAControlPlaneAndOutlivesIt(t *testing.T) {
	up := echo(t, "a")
	dir := t.TempDir()
	bad := clusterOf("bad")
	bad.LbPolicy = clusterv3.Cluster_MAGLEV
	ads := &plainADS{resources: append(edsCluster("c", up.URL), res("bad", bad), res("http", httpListener()), res("muster", routeConfiguration()), catchAll(to("/", "c")))}
	addr, stopADS := serveADS(t, ads)

	g, stop := runGateway(t, dir, addr)
	eventually(t, "ready", func() bool { code, _ := statusOf(t, g, "/status/ready"); return code == 200 })
	l := &lab{T: t, gw: g}
	serves := func() bool {
		if g.Addr("http") == nil {
			return false
		}
		l.base = "http://" + g.Addr("http").String()
		a, err := l.try("GET", "/x")
		return err == nil && a.status == 200
	}
	eventually(t, "it serves", serves)
	eventually(t, "the refusal reaches the control plane", func() bool {
		n := ads.refusals()
		return len(n) > 0 && n[0] == `Cluster "bad": lb_policy MAGLEV is not supported`
	})
	if code, s := statusOf(t, g, "/status"); code != 200 || s.Status != "ok" || !s.Connected || s.Server != addr || s.Group != "g" || s.Refused != 1 {
		t.Errorf("status: %d %+v", code, s)
	}
	stopADS()
	eventually(t, "the loss is noticed", func() bool { _, s := statusOf(t, g, "/status"); return !s.Connected })
	if !serves() {
		t.Error("it does not serve without the control plane")
	}
	stop()

	began := time.Now()
	g, _ = runGateway(t, dir, addr)
	l.gw = g
	eventually(t, "it serves from disk", serves)
	if d := time.Since(began); d > time.Second {
		t.Errorf("it took %v", d)
	}
	if code, s := statusOf(t, g, "/status/ready"); code != 200 || s.Status != "ok" {
		t.Errorf("ready: %d %+v", code, s)
	}
	if _, s := statusOf(t, g, "/status"); !s.Cached || s.Connected {
		t.Errorf("status: %+v", s)
	}
}

func TestAGatewayWithoutConfigurationIsNotReady(t *testing.T) {
	g, _ := runGateway(t, "", "127.0.0.1:1")
	if code, s := statusOf(t, g, "/status/ready"); code != 503 || s.Status != "error" || s.Error == "" {
		t.Errorf("ready: %d %+v", code, s)
	}
	if code, s := statusOf(t, g, "/status"); code != 200 || s.Status != "ok" {
		t.Errorf("status: %d %+v", code, s)
	}
	if g.Addr("http") != nil {
		t.Error("the listener is bound before there is a configuration")
	}
}

func TestAStatusAddressThatIsTakenEndsRun(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	g, err := New(Config{StatusAddr: taken.Addr().String(), Servers: []string{"127.0.0.1:1"}, Insecure: true, Group: "g", NodeID: "n", Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Run(t.Context()); err == nil {
		t.Error("run succeeded")
	}
}

func TestAGatewayNeedsWhatItsClientNeeds(t *testing.T) {
	if _, err := New(Config{Servers: []string{"x"}, Insecure: true, Group: "g"}); err == nil {
		t.Error("no node id is accepted")
	}
}
