package compile_test

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
)

// Every file in testdata/proxyless is a declarative file; the .grpc file beside
// it tells what gRPC clients of it get, and what they cannot honour.
func TestServicesCompileToTheirGoldenGRPC(t *testing.T) {
	files, err := filepath.Glob("testdata/proxyless/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal("no golden files", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".yaml"), func(t *testing.T) {
			view, changes := commitFile(t, file)
			if _, _, problems := compile.Full(view); len(problems) > 0 {
				t.Fatal(problems)
			}
			p, delta := compile.EmptyProxyless().Next(view, changes)
			var b strings.Builder
			for e := range view.All(musterv1.Kind_KIND_SERVICE) {
				warnings, _ := p.Warnings(e.Key.ID)
				for _, w := range warnings {
					fmt.Fprintf(&b, "warning for %s: %s\n", e.Key.ID, w)
				}
			}
			compareGolden(t, strings.TrimSuffix(file, ".yaml")+".grpc", b.String()+printed(t, delta, nil))
		})
	}
}

// grpcWorld is what a client holds that got every delta.
type grpcWorld struct {
	compiled *compile.Proxyless
	client   map[compile.Key]compile.Resource
}

func (w *grpcWorld) step(t testing.TB, view state.View, changes []state.Change) {
	next, delta := w.compiled.Next(view, changes)
	for _, r := range delta.Upsert {
		if have, found := w.client[r.Key]; found && string(have.Body) == string(r.Body) {
			t.Fatalf("%v is in the delta although its bytes did not change", r.Key)
		}
		w.client[r.Key] = r
	}
	for _, k := range delta.Remove {
		if _, found := w.client[k]; !found {
			t.Fatalf("%v is removed although it was not there", k)
		}
		delete(w.client, k)
	}
	w.compiled = next
}

func TestAnySequenceOfNextEndsWhereFullDoesForGRPC(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{newStore(t), compile.Empty(), map[compile.Key]compile.Resource{}}
		g := &grpcWorld{compile.EmptyProxyless(), map[compile.Key]compile.Resource{}}
		for range rapid.IntRange(1, 12).Draw(rt, "steps") {
			view, changes := w.change(rt, t)
			g.step(t, view, changes)
		}
		view := w.store.group().View()
		full, delta := compile.FullProxyless(view)
		for _, r := range delta.Upsert {
			have, found := g.client[r.Key]
			if !found || string(have.Body) != string(r.Body) {
				rt.Fatalf("%v differs: by steps\n%v\nby Full\n%v", r.Key, have, message(t, r))
			}
			delete(g.client, r.Key)
		}
		for k := range g.client {
			rt.Fatalf("%v is there by steps only", k)
		}
		for e := range view.All(musterv1.Kind_KIND_SERVICE) {
			for _, name := range []string{e.Key.ID, e.Resource.GetService().GetName()} {
				a, known := g.compiled.Warnings(name)
				b, alsoKnown := full.Warnings(name)
				if known != alsoKnown || fmt.Sprint(a) != fmt.Sprint(b) {
					rt.Fatalf("warnings of %s by steps: %v, by Full: %v", name, a, b)
				}
			}
		}
		references(rt, t, delta)
	})
}

// references checks that everything a client is told to ask for is there, and
// holds what gRPC clients demand.
func references(rt *rapid.T, t testing.TB, delta compile.Delta) {
	has := map[compile.Key]bool{}
	for _, r := range delta.Upsert {
		has[r.Key] = true
	}
	for _, r := range delta.Upsert {
		switch m := message(t, r).(type) {
		case *routev3.RouteConfiguration:
			if r.Name == compile.ServerRoutes {
				continue
			}
			for _, route := range m.GetVirtualHosts()[0].GetRoutes() {
				names := []string{route.GetRoute().GetCluster()}
				if w := route.GetRoute().GetWeightedClusters(); w != nil {
					names = nil
					for _, c := range w.GetClusters() {
						names = append(names, c.GetName())
					}
				}
				for _, name := range names {
					if !has[compile.Key{TypeURL: compile.ClusterType, Name: name}] {
						rt.Fatalf("%s routes to %q, which is not there", r.Name, name)
					}
				}
				if len(route.GetMatch().GetQueryParameters()) > 0 || route.GetNonForwardingAction() != nil {
					rt.Fatalf("%s holds what ends or hangs a grpc-js process: %v", r.Name, route)
				}
				if p := route.GetRoute().GetRetryPolicy(); p != nil && p.GetNumRetries().GetValue() < 1 {
					rt.Fatalf("%s has a policy of no retries", r.Name)
				}
			}
		case *endpointv3.ClusterLoadAssignment:
			localities, addresses := map[string]bool{}, map[string]bool{}
			for _, l := range m.GetEndpoints() {
				if key := l.GetLocality().String(); l.GetLocality() == nil || localities[key] || l.GetLoadBalancingWeight().GetValue() == 0 {
					rt.Fatalf("%s: a locality without a name of its own, or a weight: %v", r.Name, l)
				} else {
					localities[key] = true
				}
				for _, e := range l.GetLbEndpoints() {
					if key := e.GetEndpoint().GetAddress().String(); addresses[key] {
						rt.Fatalf("%s holds %s twice", r.Name, key)
					} else {
						addresses[key] = true
					}
				}
			}
		case *clusterv3.Cluster:
			if m.GetType() == clusterv3.Cluster_EDS && strings.HasPrefix(r.Name, "grpc/") && !has[compile.Key{TypeURL: compile.EndpointType, Name: r.Name}] {
				rt.Fatalf("%s has no endpoints", r.Name)
			}
		}
	}
}

func grpcService(id, name string, node string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
		Id: id, Name: name, Upstream: &musterv1.Upstream{Scheme: "grpc", Nodes: []*musterv1.Node{{Host: node, Port: 50051}}},
	}}}
}

func grpcRoute(id, service string, uris ...string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{Id: id, ServiceId: service, Uris: uris}}}
}

func keyOf(t testing.TB, s string) resource.Key {
	t.Helper()
	k, err := resource.ParseKey(s)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// names lists what a delta sends, short.
func sent(delta compile.Delta) []string {
	var out []string
	for _, r := range delta.Upsert {
		out = append(out, "+"+short(r.TypeURL)+" "+r.Name)
	}
	for _, k := range delta.Remove {
		out = append(out, "-"+short(k.TypeURL)+" "+k.Name)
	}
	slices.Sort(out)
	return out
}

func TestAChangeSendsGRPCClientsOnlyWhatItMust(t *testing.T) {
	st := newStore(t)
	view, changes := st.commit([]*musterv1.Resource{grpcService("a", "a", "10.0.0.1"), grpcRoute("a", "a", "/*"), grpcService("b", "b", "10.0.0.1"), grpcRoute("b", "b", "/*")})
	p, _ := compile.EmptyProxyless().Next(view, changes)
	own := grpcRoute("a", "a", "/*")
	own.GetRoute().Upstream = &musterv1.Upstream{Scheme: "grpc", Nodes: []*musterv1.Node{{Host: "10.0.0.3", Port: 1}}}
	for _, c := range []struct {
		change string
		put    *musterv1.Resource
		remove string
		sends  []string
	}{
		{"a node", grpcService("a", "a", "10.0.0.2"), "", []string{"+ClusterLoadAssignment grpc/service/a"}},
		{"a route", grpcRoute("a", "a", "/x/*"), "", []string{"+RouteConfiguration grpc/service/a"}},
		{"a route's own upstream", own, "", []string{
			"+Cluster grpc/route/a", "+ClusterLoadAssignment grpc/route/a", "+RouteConfiguration grpc/service/a",
			"-Cluster grpc/service/a", "-ClusterLoadAssignment grpc/service/a",
		}},
		{"a consumer", consumer(t, "alice"), "", nil},
		{"a name", grpcService("b", "stock", "10.0.0.1"), "", []string{"+Listener stock"}},
		{"another service of the name", grpcService("c", "stock", "10.0.0.1"), "", []string{"+Listener c", "+RouteConfiguration grpc/service/c"}},
		{"the first of the name away", nil, "service/b", []string{
			"+Listener stock", "-Cluster grpc/service/b", "-ClusterLoadAssignment grpc/service/b", "-Listener b", "-RouteConfiguration grpc/service/b",
		}},
		{"a service whose id is the name", grpcService("stock", "", "10.0.0.1"), "", []string{"+Listener stock", "+RouteConfiguration grpc/service/stock"}},
	} {
		t.Run(c.change, func(t *testing.T) {
			var put []*musterv1.Resource
			var remove []resource.Key
			if c.put != nil {
				put = append(put, c.put)
			}
			if c.remove != "" {
				remove = append(remove, keyOf(t, c.remove))
			}
			view, changes := st.commit(put, remove...)
			next, delta := p.Next(view, changes)
			p = next
			if got := sent(delta); !slices.Equal(got, c.sends) {
				t.Errorf("sends %q, want %q", got, c.sends)
			}
		})
	}
}

// grpc-js takes a Listener or Cluster that was deleted and comes back as it was
// for unchanged, and never uses it.
func TestWhatIsMadeAgainDiffersFromWhatWasDeleted(t *testing.T) {
	all := func() []*musterv1.Resource {
		own := grpcRoute("own", "a", "/own/*")
		own.GetRoute().Upstream = grpcService("", "", "10.0.0.9").GetService().Upstream
		return []*musterv1.Resource{grpcService("a", "by-name", "10.0.0.1"), grpcRoute("r", "a", "/*"), own}
	}
	st := newStore(t)
	g := &grpcWorld{compile.EmptyProxyless(), map[compile.Key]compile.Resource{}}
	view, changes := st.commit(all())
	g.step(t, view, changes)
	first := map[compile.Key]string{}
	for k, r := range g.client {
		first[k] = string(r.Body)
	}
	view, changes = st.commit(nil, keyOf(t, "service/a"))
	g.step(t, view, changes)
	view, changes = st.commit(all())
	g.step(t, view, changes)
	for _, k := range []compile.Key{
		{TypeURL: compile.ListenerType, Name: "a"}, {TypeURL: compile.ListenerType, Name: "by-name"},
		{TypeURL: compile.ClusterType, Name: "grpc/service/a"}, {TypeURL: compile.ClusterType, Name: "grpc/route/own"},
	} {
		again, there := g.client[k]
		switch {
		case !there || first[k] == "":
			t.Errorf("%v is missing", k)
		case string(again.Body) == first[k]:
			t.Errorf("%v came back as it was", k)
		}
	}
}

func TestAGRPCServerGetsAListenerForWhereItListens(t *testing.T) {
	for name, want := range map[string]string{
		"127.0.0.1:50051": "127.0.0.1 50051", "[::]:50051": ":: 50051", "[fe80::1]:1": "fe80::1 1",
		"127.0.0.1": "", "127.0.0.1:0": "", "localhost:50051": "", "127.0.0.1:99999": "", "": "", strings.Repeat("1", 100): "",
	} {
		body, ok := compile.ServerListener(compile.ServerListenerPrefix + name)
		if ok != (want != "") {
			t.Errorf("%q: %v", name, ok)
			continue
		}
		l := &listenerv3.Listener{}
		if err := proto.Unmarshal(body, l); err != nil {
			t.Fatal(err)
		}
		a := l.GetAddress().GetSocketAddress()
		if got := fmt.Sprint(a.GetAddress(), " ", a.GetPortValue()); ok && (got != want || l.GetName() != compile.ServerListenerPrefix+name) {
			t.Errorf("%q: %q %s", name, l.GetName(), got)
		}
	}
	if _, ok := compile.ServerListener("orders"); ok {
		t.Error("a client's listener is taken for a server's")
	}
}

func TestRawListenersAreForGRPCClientsTooAndNeverHideAService(t *testing.T) {
	raw := func(name string) *musterv1.Resource {
		body, err := anypb.New(&listenerv3.Listener{Name: name})
		if err != nil {
			t.Fatal(err)
		}
		return &musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{Id: name, Resource: body}}}
	}
	st := newStore(t)
	view, changes := st.commit([]*musterv1.Resource{raw("raw"), raw("a"), grpcService("a", "", "10.0.0.1"), grpcRoute("r", "a", "/*")})
	p, delta := compile.EmptyProxyless().Next(view, changes)
	for _, r := range delta.Upsert {
		if r.TypeURL == compile.ListenerType && (message(t, r).(*listenerv3.Listener).GetApiListener() != nil) != (r.Name == "a") {
			t.Errorf("%s: %v", r.Name, message(t, r))
		}
	}
	if warnings, known := p.Warnings("raw"); !known || len(warnings) > 0 {
		t.Errorf("raw: %v, %v", warnings, known)
	}
	if _, known := p.Warnings("nothing"); known {
		t.Error("a service that is not there is known")
	}
}
