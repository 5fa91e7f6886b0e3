package compile_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
)

var (
	someHosts = []string{"a.com", "b.a.com", "c.b.a.com", "A.com", "*.a.com", "*.b.a.com", "*.com"}
	someURIs  = []string{"/", "/*", "/x", "/x/*", "/x/", "/x*", "/X/*", "/x/y", "/x/y/*", "/x/y/z/*", "/y/*", "/y|z/*"}
	someIDs   = []string{"1", "2", "3", "4", "5", "6"}
)

func object(t testing.TB, fields map[string]any) *structpb.Struct {
	t.Helper()
	s, err := structpb.NewStruct(fields)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// draw makes a random resource of a small world, in which things collide.
func draw(t *rapid.T, tb testing.TB) *musterv1.Resource {
	pick := func(from []string, label string) string { return rapid.SampledFrom(from).Draw(t, label) }
	some := func(from []string, label string) []string {
		return rapid.SliceOfNDistinct(rapid.SampledFrom(from), 0, 2, func(s string) string { return s }).Draw(t, label)
	}
	plugins := func() map[string]*structpb.Struct {
		out := map[string]*structpb.Struct{}
		if rapid.IntRange(0, 2).Draw(t, "with plugins") > 0 {
			return out
		}
		for _, name := range some([]string{"limit-count", "key-auth", "ip-restriction", "cors"}, "plugins") {
			switch name {
			case "limit-count":
				out[name] = object(tb, map[string]any{"count": float64(rapid.IntRange(1, 3).Draw(t, "count")), "time_window": 60.0, "rejected_code": rapid.SampledFrom([]any{503.0, 429.0}).Draw(t, "code")})
			case "ip-restriction":
				out[name] = object(tb, map[string]any{"whitelist": []any{pick([]string{"10.0.0.0/8", "10.0.0.1", "10.0.0.2", "bad"}, "range")}})
			default:
				out[name] = object(tb, map[string]any{"_meta": map[string]any{"disable": rapid.Bool().Draw(t, "disable")}})
			}
		}
		return out
	}
	upstream := func() *musterv1.Upstream {
		if rapid.IntRange(0, 4).Draw(t, "upstream") == 0 {
			return nil
		}
		return &musterv1.Upstream{
			Type: pick([]string{"", "", "", "chash", "least_conn", "odd"}, "type"),
			Nodes: []*musterv1.Node{
				{Host: pick([]string{"10.0.0.1", "10.0.0.2", "up.example.com"}, "node"), Port: 80},
				{Host: pick([]string{"10.0.0.3", "10.0.0.4", "down.example.com"}, "other node"), Port: 80, Weight: proto.Int32(2), Priority: proto.Int32(int32(rapid.IntRange(-1, 0).Draw(t, "node priority")))},
			},
		}
	}
	id := pick(someIDs, "id")
	switch pick([]string{"service", "route", "route", "route", "route", "route", "route", "ssl", "consumer", "credential", "rule", "xds"}, "kind") {
	case "service":
		return &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
			Id: id, Name: pick([]string{"", "1", "2", "shop", "stock"}, "service name"), Hosts: some(someHosts, "hosts"), PathPrefix: pick([]string{"", "/", "/x", "/y/"}, "prefix"),
			Upstream: upstream(), Plugins: plugins(),
			Upstreams: []*musterv1.Upstream{{Name: pick([]string{"blue", "green"}, "name")}},
		}}}
	case "route":
		r := &musterv1.Route{
			Id: id, ServiceId: pick(append([]string{""}, someIDs[:3]...), "service"), Uris: some(someURIs, "uris"), Hosts: some(someHosts, "hosts"),
			Priority: proto.Int32(int32(rapid.IntRange(-1, 1).Draw(t, "priority"))), Upstream: upstream(), Plugins: plugins(),
			Status: proto.Int32(int32(rapid.SampledFrom([]int{1, 1, 1, 0}).Draw(t, "status"))),
		}
		if rapid.Bool().Draw(t, "timeout") {
			r.Timeout = &musterv1.Timeout{Connect: 1}
		}
		if rapid.Bool().Draw(t, "methods") {
			r.Methods = []string{pick([]string{"GET", "POST"}, "method")}
		}
		return &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: r}}
	case "ssl":
		return &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{
			Id: id, Snis: some(someHosts, "snis"), Cert: pick([]string{"c1", "c2"}, "cert"), Key: "k", Type: pick([]string{"", "client"}, "type"),
		}}}
	case "consumer":
		return &musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{
			Username: id, Plugins: map[string]*structpb.Struct{"key-auth": object(tb, map[string]any{"key": pick([]string{"k1", "k2", "k3", ""}, "key")})},
		}}}
	case "credential":
		return &musterv1.Resource{Kind: &musterv1.Resource_Credential{Credential: &musterv1.Credential{
			Id: pick(someIDs[:2], "credential"), Consumer: id, Plugins: map[string]*structpb.Struct{"key-auth": object(tb, map[string]any{"key": pick([]string{"k1", "k2", "k4"}, "key")})},
		}}}
	case "rule":
		return &musterv1.Resource{Kind: &musterv1.Resource_GlobalRule{GlobalRule: &musterv1.GlobalRule{Id: id, Plugins: plugins()}}}
	}
	raw, err := anypb.New(&clusterv3.Cluster{Name: pick([]string{"service/1", "service/2", "raw"}, "name")})
	if err != nil {
		tb.Fatal(err)
	}
	return &musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{Id: id, Resource: raw}}}
}

// world is a store, its compilation, and what a client has that got every delta.
type world struct {
	store    *store
	compiled *compile.Compiled
	client   map[compile.Key]compile.Resource
}

func (w *world) step(t *rapid.T, view state.View, changes []state.Change) {
	next, delta, _ := w.compiled.Next(view, changes)
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

func TestAnySequenceOfNextEndsWhereFullDoes(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{newStore(t), compile.Empty(), map[compile.Key]compile.Resource{}}
		w.step(rt, state.View{}, nil)
		steps := rapid.IntRange(1, 12).Draw(rt, "steps")
		for range steps {
			view, changes := w.change(rt, t)
			w.step(rt, view, changes)
		}
		view := w.store.group().View()
		_, delta, problems := compile.Full(view)
		full := map[compile.Key]compile.Resource{}
		for _, r := range delta.Upsert {
			full[r.Key] = r
		}
		for k, r := range full {
			have, found := w.client[k]
			if !found {
				rt.Fatalf("%v is in Full only", k)
			}
			if string(have.Body) != string(r.Body) || have.View != r.View {
				rt.Fatalf("%v differs: by steps\n%v\nby Full\n%v", k, message(t, have), message(t, r))
			}
		}
		for k := range w.client {
			if _, found := full[k]; !found {
				rt.Fatalf("%v is there by steps only", k)
			}
		}
		if len(problems) == 0 {
			return
		}
		for _, p := range problems {
			if p.Object.ID == "" || p.Message == "" || p.Code == "" {
				rt.Fatalf("a problem without object, code or message: %+v", p)
			}
		}
	})
}

// change commits a random transaction.
func (w *world) change(rt *rapid.T, t testing.TB) (state.View, []state.Change) {
	put := map[resource.Key]*musterv1.Resource{}
	for range rapid.IntRange(1, 6).Draw(rt, "puts") {
		r := draw(rt, t)
		put[resource.KeyOf(r)] = r
		// Whatever is referred to must be there.
		if id := r.GetRoute().GetServiceId(); id != "" {
			k := resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: id}
			if _, found := w.store.group().View().Get(k); !found && put[k] == nil {
				put[k] = &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: id}}}
			}
		}
		if name := r.GetCredential().GetConsumer(); name != "" {
			k := resource.Key{Kind: musterv1.Kind_KIND_CONSUMER, ID: name}
			if _, found := w.store.group().View().Get(k); !found && put[k] == nil {
				put[k] = &musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{Username: name}}}
			}
		}
	}
	var remove []resource.Key
	for e := range w.store.group().View().Entries() {
		if put[e.Key] == nil && rapid.IntRange(0, 5).Draw(rt, "remove") == 0 && !referred(w.store.group().View(), put, e.Key) {
			remove = append(remove, e.Key)
		}
	}
	keys := slices.SortedFunc(maps.Keys(put), func(a, b resource.Key) int { return strings.Compare(a.String(), b.String()) })
	var list []*musterv1.Resource
	for _, kind := range resource.Kinds() {
		for _, k := range keys {
			if k.Kind == kind {
				list = append(list, put[k])
			}
		}
	}
	return w.store.commit(list, remove...)
}

// referred tells whether something still needs the object, or goes with it.
func referred(v state.View, put map[resource.Key]*musterv1.Resource, key resource.Key) bool {
	for _, r := range put {
		if key.Kind == musterv1.Kind_KIND_SERVICE && r.GetRoute().GetServiceId() == key.ID ||
			key.Kind == musterv1.Kind_KIND_CONSUMER && r.GetCredential().GetConsumer() == key.ID {
			return true
		}
	}
	switch key.Kind {
	case musterv1.Kind_KIND_ROUTE:
		e, _ := v.Get(key)
		return e.Resource.GetRoute().GetServiceId() != ""
	case musterv1.Kind_KIND_CREDENTIAL:
		return true
	}
	return false
}

// request is one of those that the routing is tried with.
type request struct{ method, host, path string }

func someRequests() []request {
	var out []request
	for _, host := range []string{"a.com", "b.a.com", "c.b.a.com", "d.com", "other"} {
		for _, path := range []string{"/", "/x", "/x/", "/xx", "/X/1", "/x/1", "/x/y", "/x/y/", "/X/Y/1", "/x/y/z/1", "/y/x", "/y|z/1", "/zz"} {
			for _, method := range []string{"GET", "POST"} {
				out = append(out, request{method, host, path})
			}
		}
	}
	return out
}

// What Envoy does with the virtual hosts, and what the routes say, are one.
func TestRequestsReachTheRouteThatPrecedenceNames(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := &world{newStore(t), compile.Empty(), map[compile.Key]compile.Resource{}}
		w.step(rt, state.View{}, nil)
		for range rapid.IntRange(1, 8).Draw(rt, "steps") {
			view, changes := w.change(rt, t)
			w.step(rt, view, changes)
		}
		table := newTable(t, w.client)
		routes := routesOf(w.store.group().View())
		for _, req := range someRequests() {
			want, got := oracle(routes, req), table.route(req)
			if want != got {
				rt.Fatalf("%v is routed by %q, must be by %q", req, got, want)
			}
		}
	})
}

// oracleRoute is a route at one host and URI.
type oracleRoute struct {
	id, host, uri string
	methods       []string
	priority      int32
}

// routesOf lists the routes that are good: those that the compiler would place.
func routesOf(v state.View) []oracleRoute {
	var out []oracleRoute
	_, _, problems := compile.Full(v)
	bad := map[resource.Key]bool{}
	for _, p := range problems {
		bad[p.Object] = true
	}
	for e := range v.All(musterv1.Kind_KIND_ROUTE) {
		r := e.Resource.GetRoute()
		var s *musterv1.Service
		if id := r.GetServiceId(); id != "" {
			entry, _ := v.Get(resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: id})
			s = entry.Resource.GetService()
		}
		if r.Status != nil && r.GetStatus() == 0 || bad[e.Key] || pluginsBad(s, r, problems) {
			continue
		}
		hosts := r.GetHosts()
		if len(hosts) == 0 {
			hosts = s.GetHosts()
		}
		if len(hosts) == 0 {
			hosts = []string{""}
		}
		for _, h := range hosts {
			for _, u := range r.GetUris() {
				out = append(out, oracleRoute{r.GetId(), strings.ToLower(h), strings.TrimRight(s.GetPathPrefix(), "/") + u, r.GetMethods(), r.GetPriority()})
			}
		}
	}
	return out
}

// pluginsBad tells whether a problem of the service is one of the route's too.
func pluginsBad(s *musterv1.Service, r *musterv1.Route, problems resource.Problems) bool {
	for _, p := range problems {
		if p.Object != (resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: s.GetId()}) {
			continue
		}
		if name, found := strings.CutPrefix(p.Path, "plugins."); found {
			name, _, _ = strings.Cut(name, ".")
			if _, replaced := r.GetPlugins()[name]; !replaced {
				return true
			}
		}
		if strings.HasPrefix(p.Path, "upstream.") && r.GetUpstream() == nil && r.GetTimeout().GetConnect() == 1 {
			return true
		}
	}
	return false
}

func oracle(routes []oracleRoute, req request) string {
	rank := func(r oracleRoute) (class, path, exact int) {
		switch {
		case r.host == "":
			class = 0
		case strings.HasPrefix(r.host, "*"):
			class = len(r.host)
		default:
			class = 1 << 20
		}
		if !strings.HasSuffix(r.uri, "*") {
			exact = 1
		}
		return class, len(strings.TrimSuffix(r.uri, "*")), exact
	}
	var matching []oracleRoute
	for _, r := range routes {
		host := r.host == "" || r.host == req.host || strings.HasPrefix(r.host, "*") && strings.HasSuffix(req.host, r.host[1:])
		prefix, wild := strings.CutSuffix(r.uri, "*")
		path := r.uri == req.path || wild && strings.HasPrefix(req.path, prefix)
		method := len(r.methods) == 0 || slices.Contains(r.methods, req.method)
		if host && path && method {
			matching = append(matching, r)
		}
	}
	slices.SortFunc(matching, func(a, b oracleRoute) int {
		ac, ap, ae := rank(a)
		bc, bp, be := rank(b)
		for _, d := range []int{bc - ac, bp - ap, be - ae, int(b.priority - a.priority), len(b.methods) - len(a.methods)} {
			if d != 0 {
				return d
			}
		}
		return strings.Compare(a.id, b.id)
	})
	if len(matching) == 0 {
		return "404"
	}
	return matching[0].id
}

// table chooses virtual hosts and routes as Envoy does.
type table struct {
	t     testing.TB
	hosts map[string]*routev3.VirtualHost
}

func newTable(t testing.TB, client map[compile.Key]compile.Resource) *table {
	out := &table{t, map[string]*routev3.VirtualHost{}}
	for k, r := range client {
		if k.TypeURL != compile.VirtualHostType {
			continue
		}
		if strings.Count(k.Name, "/") != 1 {
			t.Fatalf("%q holds more than one slash", k.Name)
		}
		v := message(t, r).(*routev3.VirtualHost)
		if v.GetName() != k.Name {
			t.Fatalf("%q is named %q inside", k.Name, v.GetName())
		}
		for _, d := range v.GetDomains() {
			if out.hosts[d] != nil {
				t.Fatalf("the domain %q stands in two virtual hosts", d)
			}
			out.hosts[d] = v
		}
	}
	return out
}

func (t *table) route(req request) string {
	key := strings.ToLower(req.host + req.path)
	v := t.hosts[key]
	for i := len(key) - 1; v == nil && i >= 0; i-- {
		v = t.hosts[key[:i]+"*"] // * takes at least one character
	}
	for _, r := range v.GetRoutes() {
		if matches(t.t, r.GetMatch(), req) {
			return r.GetName()
		}
	}
	return fmt.Sprintf("nothing in %s", v.GetName())
}

func matches(t testing.TB, m *routev3.RouteMatch, req request) bool {
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Path:
		if p.Path != req.path {
			return false
		}
	case *routev3.RouteMatch_Prefix:
		if !strings.HasPrefix(req.path, p.Prefix) {
			return false
		}
	default:
		t.Fatalf("unexpected match %v", m)
	}
	for _, h := range m.GetHeaders() {
		switch h.GetName() {
		case ":method":
			if h.GetStringMatch().GetExact() != req.method {
				return false
			}
		case ":authority":
			if !strings.HasSuffix(req.host, h.GetStringMatch().GetSuffix()) {
				return false
			}
		default:
			t.Fatalf("unexpected header %v", h)
		}
	}
	return true
}
