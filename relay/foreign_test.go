package relay

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// foreign is a control plane that is not muster: go-control-plane's server with one
// of its caches.
type foreign struct {
	t    testing.TB
	kind string
	addr string
	srv  *grpc.Server
	end  context.CancelFunc
	done chan struct{}

	mu       sync.Mutex
	content  map[string]map[string]types.Resource // by type and name
	snapshot cachev3.SnapshotCache
	linear   map[string]*cachev3.LinearCache
	version  int
	nacks    []string
	requests int
}

// kindsOfForeign are the caches that answer for a whole group. In a MuxCache of
// LinearCaches a type without a cache ends the stream of all types.
var kindsOfForeign = []string{"SnapshotCache", "LinearCache of every type", "LinearCache of some types"}

// byCluster makes the nodes of a cluster share a snapshot, as gateway groups do.
type byCluster struct{}

func (byCluster) ID(n *corev3.Node) string { return n.GetCluster() }

func newForeign(t testing.TB, kind string) *foreign {
	f := &foreign{t: t, kind: kind, addr: "127.0.0.1:0", content: map[string]map[string]types.Resource{}}
	f.start()
	t.Cleanup(f.stop)
	return f
}

// start starts it with caches that hold nothing.
func (f *foreign) start() {
	f.t.Helper()
	ln, err := net.Listen("tcp", f.addr)
	if err != nil {
		f.t.Fatal(err)
	}
	f.addr = ln.Addr().String()
	var cache cachev3.Cache
	f.mu.Lock()
	f.snapshot, f.linear = nil, map[string]*cachev3.LinearCache{}
	if f.kind == "SnapshotCache" {
		f.snapshot = cachev3.NewSnapshotCache(false, byCluster{}, nil)
		cache = f.snapshot
	} else {
		mux := &cachev3.MuxCache{
			Classify:      func(r *cachev3.Request) string { return r.GetTypeUrl() },
			ClassifyDelta: func(r *cachev3.DeltaRequest) string { return r.GetTypeUrl() },
			Caches:        map[string]cachev3.Cache{},
		}
		for _, typeURL := range f.types() {
			f.linear[typeURL] = cachev3.NewLinearCache(typeURL)
			mux.Caches[typeURL] = f.linear[typeURL]
		}
		cache = mux
	}
	f.mu.Unlock()
	ctx, cancel := context.WithCancel(context.WithoutCancel(f.t.Context()))
	f.end, f.srv, f.done = cancel, grpc.NewServer(), make(chan struct{})
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(f.srv, serverv3.NewServer(ctx, cache, serverv3.CallbackFuncs{
		StreamDeltaRequestFunc: func(_ int64, r *discoveryv3.DeltaDiscoveryRequest) error {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.requests++
			if r.GetErrorDetail() != nil {
				f.nacks = append(f.nacks, r.GetErrorDetail().GetMessage())
			}
			return nil
		},
	}))
	go func() { defer close(f.done); _ = f.srv.Serve(ln) }()
}

func (f *foreign) types() []string {
	if f.kind == "LinearCache of some types" {
		return []string{compile.ListenerType, compile.ClusterType, compile.EndpointType, compile.RouteConfigurationType}
	}
	return dataplane.DefaultTypes()
}

func (f *foreign) stop() {
	f.end()
	f.srv.Stop()
	<-f.done
}

// set changes resources; a nil one is removed.
func (f *foreign) set(resources map[string]types.Resource) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, r := range resources {
		typeURL, name, _ := strings.Cut(key, " ")
		if f.content[typeURL] == nil {
			f.content[typeURL] = map[string]types.Resource{}
		}
		if r == nil {
			delete(f.content[typeURL], name)
		} else {
			f.content[typeURL][name] = r
		}
	}
	f.publish()
}

// publish fills the caches; f.mu is held.
func (f *foreign) publish() {
	f.t.Helper()
	for typeURL, c := range f.linear {
		c.SetResources(f.content[typeURL])
	}
	if f.snapshot == nil {
		return
	}
	f.version++
	all := map[string][]types.Resource{}
	for typeURL, of := range f.content {
		for _, r := range of {
			all[typeURL] = append(all[typeURL], r)
		}
	}
	snap, err := cachev3.NewSnapshot(strconv.Itoa(f.version), all)
	if err != nil {
		f.t.Fatal(err)
	}
	if err := f.snapshot.SetSnapshot(context.Background(), "edge", snap); err != nil {
		f.t.Fatal(err)
	}
}

// fill fills the caches of one that was started again.
func (f *foreign) fill() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.publish()
}

// text is what the function of that name gives for a data plane that holds what it has.
func (f *foreign) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var lines []string
	for typeURL, of := range f.content {
		for name, r := range of {
			body, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
			if err != nil {
				f.t.Fatal(err)
			}
			lines = append(lines, fmt.Sprintf("%s %s %x", typeURL, name, body))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// holds is everything that a data plane holds, in the same form.
func holds(p *plane) string {
	var lines []string
	s := p.State()
	for _, typeURL := range s.Types() {
		for r := range s.All(typeURL) {
			lines = append(lines, fmt.Sprintf("%s %s %x", typeURL, r.Name, r.Body.GetValue()))
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (f *foreign) isHeldBy(p *plane) func() bool { return func() bool { return holds(p) == f.text() } }

func foreignCluster(name string, counter int) (string, types.Resource) {
	return compile.ClusterType + " " + name, &clusterv3.Cluster{
		Name: name, ConnectTimeout: durationpb.New(time.Duration(counter) * time.Millisecond),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig: &clusterv3.Cluster_EdsClusterConfig{EdsConfig: &corev3.ConfigSource{
			ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
		}},
	}
}

// foreignContent is a configuration with a resource of each type that its kind has.
func (f *foreign) foreignContent(counter int) map[string]types.Resource {
	out := map[string]types.Resource{}
	for _, name := range []string{"service/a", "service/b", "service/counter"} {
		key, c := foreignCluster(name, 1)
		if name == "service/counter" {
			key, c = foreignCluster(name, counter)
		}
		out[key] = c
		out[compile.EndpointType+" "+name] = &endpointv3.ClusterLoadAssignment{ClusterName: name}
	}
	out[compile.ListenerType+" http"] = &listenerv3.Listener{Name: "http"}
	out[compile.RouteConfigurationType+" routes"] = &routev3.RouteConfiguration{
		Name:         "routes",
		VirtualHosts: []*routev3.VirtualHost{{Name: "all", Domains: []string{"*"}}},
	}
	if slices.Contains(f.types(), compile.SecretType) {
		out[compile.SecretType+" cert"] = &tlsv3.Secret{Name: "cert"}
	}
	return out
}

func (f *foreign) refused() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.nacks)
}

func TestARelayInFrontOfAControlPlaneThatIsNotMuster(t *testing.T) {
	for _, kind := range kindsOfForeign {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := newForeign(t, kind)
			f.set(f.foreignContent(1))
			dir := t.TempDir()
			inDir := func(cfg *Config) { cfg.DataDir, cfg.Groups = dir, []string{"edge"} }
			r := newRelay(t, "region", []string{f.addr}, inDir)
			front := newLink(t, r.addr())
			stable := []string{"service/a"}
			delta := newStockPlane(t, "delta", false, stable, front.addr())
			sotw := newStockPlane(t, "sotw", true, stable, front.addr())
			p := newPlane(t, "p", "edge", []string{front.addr()})
			refuses := newPlane(t, "refuses", "edge", []string{front.addr()})
			at := func(what string, counter int) {
				t.Helper()
				for _, x := range []*stockPlane{delta, sotw} {
					eventually(t, x.id+": "+what, func() bool { return x.at(time.Duration(counter) * time.Millisecond) })
				}
				eventually(t, "the data plane of all types: "+what, f.isHeldBy(p))
			}
			at("everything is there", 1)

			f.set(f.foreignContent(2))
			at("a change arrives", 2)

			gone, _ := foreignCluster("service/b", 0)
			f.set(map[string]types.Resource{gone: nil, compile.EndpointType + " service/b": nil})
			at("a removal arrives", 2)
			eventually(t, "the removal reaches stock data planes", func() bool {
				return !delta.has("service/b") && !sotw.has("service/b")
			})

			refuses.mu.Lock()
			refuses.refuse = "service/counter"
			refuses.mu.Unlock()
			f.set(f.foreignContent(3))
			at("a change that one data plane refuses arrives at the others", 3)
			eventually(t, "it was refused", func() bool { return len(refuses.Status().Refused) == 1 })

			// The upstream goes away: nothing is removed, and data planes come and go.
			f.stop()
			late := newPlane(t, "late", "edge", []string{front.addr()})
			eventually(t, "a data plane that comes while the upstream is gone", f.isHeldBy(late))

			// So when the relay is started again meanwhile, from its disk.
			if err := r.run.stop(); err != nil {
				t.Fatal(err)
			}
			r = newRelay(t, "region", []string{f.addr}, inDir)
			front.to(r.addr())
			later := newPlane(t, "later", "edge", []string{front.addr()})
			eventually(t, "a data plane of a relay that was started from its disk", f.isHeldBy(later))

			// The upstream is started again, with empty caches that are filled later.
			f.start()
			eventually(t, "the relay has asked", func() bool {
				f.mu.Lock()
				defer f.mu.Unlock()
				return len(f.linear) == 0 || f.linear[compile.ClusterType].NumCacheWatches()+f.linear[compile.ClusterType].NumWildcardWatches() > 0
			})
			time.Sleep(300 * time.Millisecond)
			if got := holds(p); got != f.text() {
				t.Errorf("an upstream whose caches are not filled yet took away:\n%s", got)
			}
			f.fill()
			f.set(f.foreignContent(4))
			at("what the upstream brings afterwards arrives", 4)
			if got := f.refused(); len(got) > 0 {
				t.Errorf("refused upstream: %q", got)
			}
			for _, x := range []*stockPlane{delta, sotw} {
				if x.mu.Lock(); len(x.breach) > 0 {
					t.Errorf("%s: %q", x.id, x.breach)
				}
				x.mu.Unlock()
			}
		})
	}
}

// published keeps what a carrier publishes.
type published struct {
	mu  sync.Mutex
	all []*snapshot.Snapshot
}

func (p *published) publish(s *snapshot.Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, s)
}

// names are those of the resources that are served; "nothing" when nothing is.
func (p *published) names() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.all) == 0 {
		return "nothing"
	}
	s := p.all[len(p.all)-1]
	var names []string
	for _, typeURL := range s.Types() {
		for r := range s.Set(typeURL, snapshot.View{}).All() {
			names = append(names, r.Name)
		}
	}
	return strings.Join(names, " ")
}

func TestWhatAForeignUpstreamSaysIsGoneWhenItComesBackIsBelievedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out published
		c := newForeignCarrier("edge", &out, 2, slog.New(slog.DiscardHandler))
		defer c.close()
		say := func(typeURL string, upsert []string, remove ...string) {
			u := dataplane.TypeUpdate{Upsert: map[string]*anypb.Any{}, Versions: map[string]string{}, Remove: remove}
			for _, name := range upsert {
				u.Upsert[name], u.Versions[name] = &anypb.Any{TypeUrl: typeURL}, "v"
			}
			c.received(typeURL)
			if err := c.Apply(t.Context(), &dataplane.Update{Types: map[string]dataplane.TypeUpdate{typeURL: u}}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		want := func(what, names string) {
			t.Helper()
			if got := out.names(); got != names {
				t.Errorf("%s: %q is served, want %q", what, got, names)
			}
		}
		c.connected()
		say(compile.ClusterType, []string{"a", "b", "c"})
		want("half of it", "nothing")
		say(compile.EndpointType, nil)
		want("answered", "a b c")
		say(compile.ClusterType, nil, "c")
		want("removed on the same stream", "a b")
		c.connected()
		say(compile.ClusterType, nil, "a", "b")
		want("an empty upstream", "a b")
		say(compile.ClusterType, []string{"a", "d"})
		want("it is being filled", "a b d")
		say(compile.ClusterType, nil, "d")
		want("removed on purpose", "a b")
		time.Sleep(doubtTime)
		synctest.Wait()
		want("it had its time", "a")
	})
}
