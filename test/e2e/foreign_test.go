//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	resourcev3 "github.com/envoyproxy/go-control-plane/pkg/resource/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/test/e2e/control"
	"github.com/musterhq/muster/test/e2e/envoy"
	"github.com/musterhq/muster/test/e2e/upstream"
)

// perCluster makes the nodes of a cluster share a snapshot, as gateway groups do.
type perCluster struct{}

func (perCluster) ID(n *corev3.Node) string { return n.GetCluster() }

// otherPlane is go-control-plane's server with a SnapshotCache.
type otherPlane struct {
	t       *testing.T
	addr    string
	cache   cachev3.SnapshotCache
	version int
	end     func()
}

func startOtherPlane(t *testing.T, addr string) *otherPlane {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &otherPlane{t: t, addr: ln.Addr().String(), cache: cachev3.NewSnapshotCache(false, perCluster{}, nil)}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	srv := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(srv, serverv3.NewServer(ctx, p.cache, nil))
	done := make(chan struct{})
	go func() { defer close(done); _ = srv.Serve(ln) }()
	p.end = func() { cancel(); srv.Stop(); <-done }
	return p
}

// routes sends the paths below each prefix to a backend.
func (p *otherPlane) routes(to map[string]*upstream.Backend) {
	p.t.Helper()
	ads := &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
	packed := func(m proto.Message) *anypb.Any {
		a, err := anypb.New(m)
		if err != nil {
			p.t.Fatal(err)
		}
		return a
	}
	host := &routev3.VirtualHost{Name: "all", Domains: []string{"*"}}
	all := map[resourcev3.Type][]types.Resource{}
	for prefix, b := range to {
		name := "to" + prefix
		addr, port, _ := net.SplitHostPort(b.Addr())
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			p.t.Fatal(err)
		}
		all[resourcev3.ClusterType] = append(all[resourcev3.ClusterType], &clusterv3.Cluster{
			Name: name, ConnectTimeout: durationpb.New(time.Second),
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads},
		})
		all[resourcev3.EndpointType] = append(all[resourcev3.EndpointType], &endpointv3.ClusterLoadAssignment{
			ClusterName: name,
			Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{{
				HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socket(addr, uint32(n))}},
			}}}},
		})
		host.Routes = append(host.Routes, &routev3.Route{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: prefix}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}},
		})
	}
	all[resourcev3.RouteType] = []types.Resource{&routev3.RouteConfiguration{Name: "routes", VirtualHosts: []*routev3.VirtualHost{host}}}
	all[resourcev3.ListenerType] = []types.Resource{&listenerv3.Listener{
		// Of this name, for the bootstrap says where to listen in its place.
		Name: compile.ListenerHTTP, Address: socket("127.0.0.1", 9080),
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "http",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(&hcmv3.HttpConnectionManager{
				StatPrefix:     "http",
				RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{RouteConfigName: "routes", ConfigSource: ads}},
				HttpFilters: []*hcmv3.HttpFilter{{
					Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&routerv3.Router{})},
				}},
			})},
		}}}},
	}}
	p.version++
	snap, err := cachev3.NewSnapshot(strconv.Itoa(p.version), all)
	if err != nil {
		p.t.Fatal(err)
	}
	if err := p.cache.SetSnapshot(p.t.Context(), "default", snap); err != nil {
		p.t.Fatal(err)
	}
}

func socket(addr string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: addr, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// TestEnvoysBelowARelayOfAnotherControlPlane follows go-control-plane through a relay:
// what it adds, changes and removes arrives, and when it goes away the Envoys and the
// relay are started again without it.
func TestEnvoysBelowARelayOfAnotherControlPlane(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b := startBackend(t, "a"), startBackend(t, "b")
	other := startOtherPlane(t, "127.0.0.1:0")
	defer func() { other.end() }()
	other.routes(map[string]*upstream.Backend{"/one": a})
	dir := t.TempDir()
	relay := startRelay(t, func() (*control.Relay, error) {
		return control.StartRelay(muster, dir, "region", other.addr, "--groups", "default")
	})
	api := control.API{Binary: muster, Home: t.TempDir(), XDSAddrs: []string{relay.XDSAddr}}
	s := &site{Dev: &control.Dev{API: &api}}
	delta := envoys[0]
	delta.SotW, delta.PerType = false, false
	sotw, perType := delta, delta
	sotw.SotW, perType.PerType = true, true
	var planes []*plane
	for _, binary := range []envoy.Binary{delta, sotw, perType} {
		planes = append(planes, s.startEnvoy(t, "default", binary))
	}
	answers := func(what, path string, status int, from string) {
		t.Helper()
		for _, p := range planes {
			if err := eventually(ctx, 30*time.Second, func() error {
				got, body, err := p.get(ctx, "any"+path)
				if err == nil && (got != status || !strings.Contains(body, from)) {
					err = fmt.Errorf("%s was answered with %d: %s", path, got, body)
				}
				return err
			}); err != nil {
				t.Fatalf("%s: %s: %v", p.name, what, err)
			}
		}
	}
	answers("at first", "/one", 200, `"from":"a"`)
	other.routes(map[string]*upstream.Backend{"/one": a, "/two": b})
	answers("a cluster and a route more", "/two", 200, `"from":"b"`)
	other.routes(map[string]*upstream.Backend{"/one": b, "/two": b})
	answers("other endpoints", "/one", 200, `"from":"b"`)
	other.routes(map[string]*upstream.Backend{"/two": b})
	answers("a cluster and a route less", "/one", 404, "")

	addr := other.addr
	other.end()
	relay.Kill()
	answers("without relay and control plane", "/two", 200, `"from":"b"`)
	if err := relay.Start(); err != nil {
		t.Fatal(err)
	}
	planes = append(planes, s.startEnvoy(t, "default", delta))
	answers("a new Envoy, a relay from its disk, no control plane", "/two", 200, `"from":"b"`)
	other = startOtherPlane(t, addr)
	other.version = 100
	other.routes(map[string]*upstream.Backend{"/three": a, "/two": b})
	answers("the control plane is back", "/three", 200, `"from":"a"`)
}
