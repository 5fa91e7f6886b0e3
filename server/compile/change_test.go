package compile_test

import (
	"fmt"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/compile/plugin"
)

func consumer(t testing.TB, name string) *musterv1.Resource { return keyed(t, name, "key-of-"+name) }

func keyed(t testing.TB, name, key string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{
		Username: name, Plugins: map[string]*structpb.Struct{"key-auth": object(t, map[string]any{"key": key})},
	}}}
}

func certificate(id, cert string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: id, Snis: []string{id + ".example.com"}, Cert: cert, Key: "key"}}}
}

func rule(t testing.TB, plugin string, config map[string]any) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_GlobalRule{GlobalRule: &musterv1.GlobalRule{
		Id: plugin, Plugins: map[string]*structpb.Struct{plugin: object(t, config)},
	}}}
}

// Each kind of change of a group of 2,000 services on one host, and all that
// travels for it.
func TestAChangeSendsOnlyWhatItMust(t *testing.T) {
	const n = 2000
	one := shapes[0]
	st := newStore(t)
	st.commit(append(one.group(n), consumer(t, "alice"), certificate("one", "c1")))
	compiled, _, problems := compile.Full(st.group().View())
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	route := one.route(7, 0)
	route.GetRoute().Plugins = map[string]*structpb.Struct{"limit-count": object(t, map[string]any{"count": 1.0, "time_window": 1.0})}
	retries := one.group(8)[7]
	retries.GetService().Upstream.Retries = proto.Int32(3)
	fresh := one.group(n + 1)
	for _, c := range []struct {
		change string
		put    []*musterv1.Resource
		remove []resource.Key
		sends  []string
		most   int // bytes
	}{
		{"nothing", []*musterv1.Resource{one.route(7, 0)}, nil, nil, 0},
		{"a route's timeout", []*musterv1.Resource{one.route(7, 9)}, nil, []string{"+VirtualHost muster/api.example.com|svc7"}, 300},
		{"a node", []*musterv1.Resource{one.service(7, 9)}, nil, []string{"+ClusterLoadAssignment service/s7"}, 60},
		{"an upstream's retries", []*musterv1.Resource{retries}, nil, []string{"+Cluster service/s7", "+ClusterLoadAssignment service/s7"}, 600},
		{"a limit", []*musterv1.Resource{route}, nil, []string{"+TypedExtensionConfig limit-count", "+VirtualHost muster/api.example.com|svc7"}, 700},
		{"the limit away", []*musterv1.Resource{one.route(7, 0)}, nil, []string{"+TypedExtensionConfig limit-count", "+VirtualHost muster/api.example.com|svc7"}, 500},
		{"a consumer", []*musterv1.Resource{consumer(t, "bob")}, nil, []string{"+TypedExtensionConfig " + shardOf("key-of-bob")}, 300},
		{"a consumer's key", []*musterv1.Resource{keyed(t, "bob", "another")}, nil, []string{
			"+TypedExtensionConfig " + shardOf("key-of-bob"), "+TypedExtensionConfig " + shardOf("another"),
		}, 500},
		{"a rotated certificate", []*musterv1.Resource{certificate("one", "c2")}, nil, []string{"+Secret ssl/one"}, 60},
		{"a certificate", []*musterv1.Resource{certificate("two", "c1")}, nil, []string{"+Secret ssl/two", "+Listener https"}, 6500},
		{"a global rule", []*musterv1.Resource{rule(t, "ip-restriction", map[string]any{"blacklist": []any{"192.0.2.1"}})}, nil, []string{"+RouteConfiguration muster"}, 400},
		{"a global rule that asks for keys", []*musterv1.Resource{rule(t, "key-auth", nil)}, nil, []string{"+RouteConfiguration muster"}, 1000},
		{"a service and its route", []*musterv1.Resource{fresh[n], fresh[2*n+1]}, nil, []string{
			"+Cluster service/s2000", "+ClusterLoadAssignment service/s2000", "+VirtualHost muster/api.example.com|svc2000",
		}, 1000},
		{"the same away", nil, []resource.Key{{Kind: musterv1.Kind_KIND_SERVICE, ID: "s2000"}}, []string{
			"-Cluster service/s2000", "-ClusterLoadAssignment service/s2000", "-VirtualHost muster/api.example.com|svc2000",
		}, 0},
	} {
		t.Run(c.change, func(t *testing.T) {
			view, changes := st.commit(c.put, c.remove...)
			next, delta, problems := compiled.Next(view, changes)
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			compiled = next
			var sends []string
			bytes := 0
			for _, r := range delta.Upsert {
				sends = append(sends, "+"+short(r.TypeURL)+" "+r.Name)
				if r.TypeURL != compile.ClusterType || r.Name == "" {
					bytes += len(r.Body)
				}
			}
			for _, k := range delta.Remove {
				sends = append(sends, "-"+short(k.TypeURL)+" "+k.Name)
			}
			if !sameSet(sends, c.sends) {
				t.Errorf("sends %s", strings.Join(sends, ", "))
			}
			if bytes > c.most {
				t.Errorf("sends %d bytes", bytes)
			}
		})
	}
}

func shardOf(key string) string { return plugin.KeyShardName(plugin.KeyShard(key)) }

// With the first key every shard is there, and with the last none.
func TestShardsComeWithTheFirstKeyAndGoWithTheLast(t *testing.T) {
	st := newStore(t)
	st.commit(shapes[0].group(1))
	compiled, _, _ := compile.Full(st.group().View())
	change := func(put []*musterv1.Resource, remove ...resource.Key) (shards, others []string) {
		t.Helper()
		view, changes := st.commit(put, remove...)
		next, delta, problems := compiled.Next(view, changes)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		compiled = next
		sort := func(sign, name string) {
			if strings.HasPrefix(name, "key-auth/") {
				shards = append(shards, sign+name)
			} else {
				others = append(others, sign+name)
			}
		}
		for _, r := range delta.Upsert {
			sort("+", r.Name)
		}
		for _, k := range delta.Remove {
			sort("-", k.Name)
		}
		return shards, others
	}
	alice := resource.Key{Kind: musterv1.Kind_KIND_CONSUMER, ID: "alice"}
	for range 2 {
		shards, others := change([]*musterv1.Resource{consumer(t, "alice")})
		if len(shards) != plugin.KeyShards || shards[0] != "+key-auth/00" || !sameSet(others, []string{"+key-auth", "+global.key-auth"}) {
			t.Errorf("the first key: %d shards and %v", len(shards), others)
		}
		shards, others = change(nil, alice)
		if len(shards) != plugin.KeyShards || shards[0] != "-key-auth/00" || !sameSet(others, []string{"+key-auth", "+global.key-auth"}) {
			t.Errorf("the last key: %d shards and %v", len(shards), others)
		}
	}
}

func sameSet(a, b []string) bool {
	count := map[string]int{}
	for _, s := range a {
		count[s]++
	}
	for _, s := range b {
		count[s]--
	}
	for _, n := range count {
		if n != 0 {
			return false
		}
	}
	return true
}

// A compilation goes on being usable beside the ones made from it.
func TestACompilationIsNeverChangedByItsSuccessors(t *testing.T) {
	st := newStore(t)
	st.commit(shapes[0].group(20))
	base, _, _ := compile.Full(st.group().View())
	view, changes := st.commit([]*musterv1.Resource{shapes[0].route(3, 1)})
	_, first, _ := base.Next(view, changes)
	for i := range 5 {
		base.Next(view, changes)
		_, again, _ := base.Next(view, changes)
		if fmt.Sprint(again) != fmt.Sprint(first) {
			t.Fatalf("run %d differs", i)
		}
	}
}

func TestOriginsNameTheNearestObjectFirst(t *testing.T) {
	st := newStore(t)
	st.commit(append(shapes[0].group(2), &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{
		Id: "fallback", Uris: []string{"/*"}, Hosts: []string{"api.example.com"}, Upstream: &musterv1.Upstream{},
	}}}))
	_, delta, _ := compile.Full(st.group().View())
	want := map[string]string{
		"VirtualHost muster/api.example.com|svc1": "route/r1 service/s1 route/fallback",
		"VirtualHost muster/api.example.com|":     "route/fallback",
		"Cluster service/s1":                      "service/s1",
		"Cluster route/fallback":                  "route/fallback",
	}
	for _, r := range delta.Upsert {
		origins := make([]string, len(r.Origins))
		for i, o := range r.Origins {
			origins[i] = o.String()
		}
		name := short(r.TypeURL) + " " + r.Name
		if w, found := want[name]; found && w != strings.Join(origins, " ") {
			t.Errorf("%s comes of %v, want %s", name, origins, w)
		}
		delete(want, name)
	}
	if len(want) > 0 {
		t.Errorf("not compiled: %v", want)
	}
}
