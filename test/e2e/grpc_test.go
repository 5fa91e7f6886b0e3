//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strconv"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/grpcclient"
)

// followTimeout bounds how long a change may take to be seen in calls.
const followTimeout = 20 * time.Second

// mesh is the group of these tests.
const mesh = "mesh"

// newMesh starts a server with the group.
func newMesh(t *testing.T) *site {
	t.Helper()
	s := newSite(t, 0)
	s.group(t, mesh)
	return s
}

// startHealth runs a gRPC server that names itself in every answer.
func startHealth(t *testing.T, name string) *musterv1.Node {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
		if err := grpc.SetHeader(ctx, metadata.Pairs("x-backend", name)); err != nil {
			return nil, err
		}
		return next(ctx, req)
	}))
	healthpb.RegisterHealthServer(server, health.NewServer())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(lis) // ends with Stop
	}()
	t.Cleanup(func() {
		server.Stop()
		<-done
	})
	_, port, err := net.SplitHostPort(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return &musterv1.Node{Host: "127.0.0.1", Port: int32(n)}
}

func grpcUpstream(nodes ...*musterv1.Node) *musterv1.Upstream {
	return &musterv1.Upstream{Scheme: "grpc", Nodes: nodes}
}

func grpcService(id string, nodes ...*musterv1.Node) *musterv1.Change {
	return service(&musterv1.Service{Id: id, Name: id, Upstream: grpcUpstream(nodes...)})
}

// startClient runs a client against the site, and ends it with the test.
func (s *site) startClient(t *testing.T, c grpcclient.Client, group, nodeID, target string, change func(*grpcclient.Config)) *grpcclient.Run {
	t.Helper()
	return s.startClientAt(t, c, group, nodeID, target, s.XDSAddr(), change)
}

// startClientAt is startClient with the addresses of the xDS servers.
func (s *site) startClientAt(t *testing.T, c grpcclient.Client, group, nodeID, target, servers string, change func(*grpcclient.Config)) *grpcclient.Run {
	t.Helper()
	bootstrap, err := s.CLI(t.Context(), "", "bootstrap", "grpc", "--group", group, "--node-id", nodeID, "--xds-address", servers)
	if err != nil {
		t.Fatal(err)
	}
	cfg := grpcclient.Config{Bootstrap: bootstrap, Target: "xds:///" + target, Rate: 100, Timeout: 20 * time.Second, Dir: t.TempDir()}
	if change != nil {
		change(&cfg)
	}
	run, err := c.Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !run.Running() {
			t.Errorf("the %s client ended by itself: %v", c.Name, run.Err())
		}
		run.Stop()
		if t.Failed() {
			t.Logf("the %s client said:\n%s", c.Name, tailOf(run.Stderr(), 2000))
		}
	})
	return run
}

// answered waits for calls that are answered by a backend, 20 in a row.
func answered(t *testing.T, run *grpcclient.Run, mark int, backend string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), followTimeout)
	defer cancel()
	if _, err := run.Next(ctx, mark, func(rs []grpcclient.Result) bool {
		if len(rs) < 20 {
			return false
		}
		for _, r := range rs[len(rs)-20:] {
			if !r.OK() || r.Backend != backend {
				return false
			}
		}
		return true
	}); err != nil {
		t.Fatalf("no answers from %s: %v", backend, err)
	}
}

// noneLost wants every call since the mark to have succeeded.
func noneLost(t *testing.T, run *grpcclient.Run, mark int, during string) {
	t.Helper()
	lost, first := 0, ""
	all := run.Since(mark)
	for _, r := range all {
		if !r.OK() {
			lost++
			if first == "" {
				first = fmt.Sprintf("%s: %s", r.Code, r.Detail)
			}
		}
	}
	if lost > 0 {
		t.Errorf("%s: %d of %d calls were lost, the first with %s", during, lost, len(all), first)
	}
}

// eachClient runs a test for each client, with a site of its own.
func eachClient(t *testing.T, f func(t *testing.T, s *site, c grpcclient.Client)) {
	for _, c := range clients {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			f(t, newMesh(t), c)
		})
	}
}

// TestGRPCClientsFollowEveryChange drives each client with steady calls through
// changes of endpoints and routes and a restart of the server.
func TestGRPCClientsFollowEveryChange(t *testing.T) {
	eachClient(t, func(t *testing.T, s *site, c grpcclient.Client) {
		ctx := t.Context()
		a, b := startHealth(t, "a"), startHealth(t, "b")
		commit := func(changes ...*musterv1.Change) {
			t.Helper()
			if _, err := s.commit(ctx, mesh, changes...); err != nil {
				t.Fatal(err)
			}
		}
		commit(grpcService("shop", a), routeOf("shop", "/*"))
		run := s.startClient(t, c, mesh, "shop-client", "shop", func(cfg *grpcclient.Config) { cfg.Header = "x-canary=yes" })
		answered(t, run, 0, "a")
		noneLost(t, run, 0, "first connect")

		mark := run.Mark()
		commit(grpcService("shop", b))
		answered(t, run, mark, "b")
		noneLost(t, run, mark, "change of endpoints")

		// A more specific route that asks for a header, with an upstream of its own.
		canary := &musterv1.Route{
			Id: "canary", ServiceId: "shop", Uris: []string{"/grpc.health.v1.Health/*"},
			Vars:     vars(t, `[["http_x_canary", "==", "yes"], ["http_x_canary", "in", ["yes", "no"]], ["http_x_canary", "~~", "^y|never$"]]`),
			Upstream: grpcUpstream(a),
		}
		mark = run.Mark()
		commit(route(canary))
		answered(t, run, mark, "a")
		noneLost(t, run, mark, "change of routes")
		canary.Vars = vars(t, `[["http_x_canary", "~=", "yes"]]`)
		mark = run.Mark()
		commit(route(canary))
		answered(t, run, mark, "b")
		noneLost(t, run, mark, "change of a condition")

		revision, err := s.commit(ctx, mesh, remove(musterv1.Kind_KIND_ROUTE, "canary"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.wait(ctx, mesh, revision, 1); err != nil {
			t.Error(err)
		}

		mark = run.Mark()
		s.Kill()
		time.Sleep(time.Second)
		if err := s.Restart(ctx); err != nil {
			t.Fatal(err)
		}
		noneLost(t, run, mark, "restart of the server")
		commit(grpcService("shop", a))
		answered(t, run, mark, "a")
		noneLost(t, run, mark, "change after the restart")
	})
}

// vars reads a route's conditions.
func vars(t *testing.T, text string) *structpb.ListValue {
	t.Helper()
	v := &structpb.ListValue{}
	if err := protojson.Unmarshal([]byte(text), v); err != nil {
		t.Fatal(err)
	}
	return v
}

// TestGRPCClientsLoseNoCallWhenRoutesSwitchClusters moves the calls of each client
// to one new cluster after another.
func TestGRPCClientsLoseNoCallWhenRoutesSwitchClusters(t *testing.T) {
	const switches = 15
	eachClient(t, func(t *testing.T, s *site, c grpcclient.Client) {
		ctx := t.Context()
		backends := []*musterv1.Node{startHealth(t, "0"), startHealth(t, "1")}
		if _, err := s.commit(ctx, mesh, grpcService("shop", backends[1]), routeOf("shop", "/*")); err != nil {
			t.Fatal(err)
		}
		run := s.startClient(t, c, mesh, "shop-client", "shop", nil)
		answered(t, run, 0, "1")
		mark := run.Mark()
		for i := range switches {
			id := fmt.Sprintf("to-%d", i)
			changes := []*musterv1.Change{route(&musterv1.Route{
				Id: id, ServiceId: "shop", Uris: []string{"/grpc.health.v1.Health/*"}, Upstream: grpcUpstream(backends[i%2]),
			})}
			if i > 0 {
				changes = append(changes, remove(musterv1.Kind_KIND_ROUTE, fmt.Sprintf("to-%d", i-1)))
			}
			before := run.Mark()
			if _, err := s.commit(ctx, mesh, changes...); err != nil {
				t.Fatal(err)
			}
			answered(t, run, before, fmt.Sprint(i%2))
		}
		noneLost(t, run, mark, fmt.Sprintf("%d switches", switches))
	})
}

// TestGRPCClientsComeBackWhenAServiceIsMadeAgain deletes a service and makes it
// again exactly as it was, which leaves grpc-js without it for ever unless what
// comes back differs.
func TestGRPCClientsComeBackWhenAServiceIsMadeAgain(t *testing.T) {
	eachClient(t, func(t *testing.T, s *site, c grpcclient.Client) {
		ctx := t.Context()
		a := startHealth(t, "a")
		make := []*musterv1.Change{grpcService("shop", a), routeOf("shop", "/*")}
		if _, err := s.commit(ctx, mesh, make...); err != nil {
			t.Fatal(err)
		}
		run := s.startClient(t, c, mesh, "shop-client", "shop", func(cfg *grpcclient.Config) { cfg.Timeout = time.Second })
		answered(t, run, 0, "a")
		for range 3 {
			mark := run.Mark()
			if _, err := s.commit(ctx, mesh, remove(musterv1.Kind_KIND_SERVICE, "shop")); err != nil {
				t.Fatal(err)
			}
			fails(t, run, mark)
			mark = run.Mark()
			if _, err := s.commit(ctx, mesh, make...); err != nil {
				t.Fatal(err)
			}
			answered(t, run, mark, "a")
		}
	})
}

// fails waits for calls that fail, 20 in a row.
func fails(t *testing.T, run *grpcclient.Run, mark int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), followTimeout)
	defer cancel()
	if _, err := run.Next(ctx, mark, func(rs []grpcclient.Result) bool {
		if len(rs) < 20 {
			return false
		}
		for _, r := range rs[len(rs)-20:] {
			if r.OK() {
				return false
			}
		}
		return true
	}); err != nil {
		t.Fatalf("calls go on: %v", err)
	}
}

// TestGRPCClientsTakeEverythingThatAnUpstreamSays gives each client an upstream
// with weights, retries, timeouts and passive checks, and outlives the interval
// after which grpc-js would end of the wrong outlier detection.
func TestGRPCClientsTakeEverythingThatAnUpstreamSays(t *testing.T) {
	eachClient(t, func(t *testing.T, s *site, c grpcclient.Client) {
		ctx := t.Context()
		light, heavy, spare := startHealth(t, "light"), startHealth(t, "heavy"), startHealth(t, "spare")
		light.Weight, heavy.Weight, spare.Priority = proto.Int32(1), proto.Int32(4), proto.Int32(-1)
		u := grpcUpstream(light, heavy, spare)
		u.Retries, u.Timeout = proto.Int32(2), &musterv1.Timeout{Read: 10}
		u.Checks = &musterv1.Checks{
			Active: &musterv1.ActiveCheck{Type: "tcp"},
			// So many that no call lost in a slow start ejects a node.
			Passive: &musterv1.PassiveCheck{Unhealthy: &musterv1.UnhealthyThreshold{HttpFailures: proto.Int32(200)}},
		}
		hashed := grpcUpstream(light, heavy)
		hashed.Type, hashed.HashOn, hashed.Key = "chash", "header", "x-user"
		if _, err := s.commit(ctx, mesh,
			service(&musterv1.Service{Id: "shop", Name: "The shop", Upstream: u}), routeOf("shop", "/*"),
			service(&musterv1.Service{Id: "hashed-4711", Name: "hashed", Upstream: hashed}), routeOf("hashed-4711", "/*"),
		); err != nil {
			t.Fatal(err)
		}
		run := s.startClient(t, c, mesh, "shop-client", "shop", func(cfg *grpcclient.Config) { cfg.Rate = 20 })
		// By its name, and every call with one key.
		one := s.startClient(t, c, mesh, "hashed-client", "hashed", func(cfg *grpcclient.Config) { cfg.Header, cfg.Rate = "x-user=ada", 20 })
		enough, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		// A client that starts sends to the node that it has reached.
		reached := func(backends ...string) func([]grpcclient.Result) bool {
			return func(rs []grpcclient.Result) bool {
				for _, b := range backends {
					if !slices.ContainsFunc(rs, func(r grpcclient.Result) bool { return r.Backend == b }) {
						return false
					}
				}
				return true
			}
		}
		if _, err := run.Next(enough, 0, reached("light", "heavy")); err != nil {
			t.Fatal(err)
		}
		mark := run.Mark()
		rs, err := run.Next(enough, mark, func(rs []grpcclient.Result) bool { return len(rs) >= 240 })
		if err != nil {
			t.Fatal(err)
		}
		noneLost(t, run, mark, "an upstream with everything")
		got := map[string]int{}
		for _, r := range rs {
			got[r.Backend]++
		}
		if share := float64(got["heavy"]) / float64(len(rs)); share < 0.65 || share > 0.93 || got["spare"] > 0 {
			t.Errorf("weights 1 and 4 gave %v", got)
		}
		mark = one.Mark()
		keyed, err := one.Next(enough, mark, func(rs []grpcclient.Result) bool { return len(rs) >= 50 })
		if err != nil {
			t.Fatal(err)
		}
		noneLost(t, one, mark, "hashing")
		for _, r := range keyed {
			if r.Backend != keyed[0].Backend {
				t.Fatalf("calls with one key went to %s and to %s", keyed[0].Backend, r.Backend)
			}
		}
	})
}
