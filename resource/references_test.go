package resource_test

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// group is a group's resources by key.
type group map[resource.Key]*musterv1.Resource

// decodeGroup reads a file as a group.
func decodeGroup(t *testing.T, text string) group {
	t.Helper()
	file, problems := resource.DecodeFile("f", []byte(text))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	g := group{}
	for _, r := range file.Resources {
		g[resource.KeyOf(r)] = r
	}
	return g
}

func (g group) lookup(key resource.Key) (*musterv1.Resource, bool) {
	r, found := g[key]
	return r, found
}

func (g group) all() func(yield func(*musterv1.Resource) bool) {
	keys := slices.SortedFunc(maps.Keys(g), func(a, b resource.Key) int {
		if a.Less(b) {
			return -1
		}
		return 1
	})
	return func(yield func(*musterv1.Resource) bool) {
		for _, key := range keys {
			if !yield(g[key]) {
				return
			}
		}
	}
}

func keys(t *testing.T, texts ...string) []resource.Key {
	t.Helper()
	var out []resource.Key
	for _, text := range texts {
		key, err := resource.ParseKey(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, key)
	}
	return out
}

const referring = `
services:
  - {id: s, name: s, upstream: {scheme: https, nodes: [], tls: {client_cert_id: c}}, upstreams: [{id: u, nodes: [], scheme: https, tls: {client_cert_id: c}}]}
  - {id: db, name: db, upstream: {scheme: tcp, nodes: []}}
routes:
  - {id: r, uris: [/a], service_id: s, upstream: {nodes: [], tls: {client_cert_id: c}}}
  - {id: own, uris: [/b], upstream: {nodes: []}}
stream_routes:
  - {id: sr, service_id: db}
ssls:
  - {id: c, type: client, cert: x, key: x}
  - {id: web, snis: [a.example.com], cert: x, key: x}
consumers:
  - {username: alice, credentials: [{id: k, type: key-auth, config: {key: a}}]}
`

func TestReferencesOfEveryKind(t *testing.T) {
	g := decodeGroup(t, referring)
	for text, want := range map[string]string{
		"service/s":          "[{upstream.tls.client_cert_id ssl/c} {upstreams[0].tls.client_cert_id ssl/c}]",
		"route/r":            "[{service_id service/s} {upstream.tls.client_cert_id ssl/c}]",
		"route/own":          "[]",
		"stream_route/sr":    "[{service_id service/db}]",
		"credential/alice/k": "[{consumer consumer/alice}]",
		"ssl/c":              "[]",
	} {
		if got := fmt.Sprint(resource.References(g[keys(t, text)[0]])); got != want {
			t.Errorf("%s: got %s, want %s", text, got, want)
		}
	}
}

func TestAGroupIsWholeAsLongAsItsReferencesAre(t *testing.T) {
	for name, test := range map[string]struct {
		change func(group)
		keys   []string
		want   string
	}{
		"as it is": {func(group) {}, []string{"service/s", "route/r", "stream_route/sr", "credential/alice/k"}, ""},
		"a service that is not there": {func(g group) { g[keys(t, "route/r")[0]].GetRoute().ServiceId = "t" }, []string{"route/r"},
			`service_id reference: service "t" does not exist`},
		"a deleted consumer": {func(g group) { delete(g, keys(t, "consumer/alice")[0]) }, []string{"consumer/alice", "credential/alice/k"},
			`consumer referenced: consumer "alice" is deleted, but is still referred to`},
		"a deleted certificate": {func(g group) { delete(g, keys(t, "ssl/c")[0]) }, []string{"ssl/c", "service/s"},
			"upstream.tls.client_cert_id referenced: ssl \"c\" is deleted, but is still referred to\nupstreams[0].tls.client_cert_id referenced: ssl \"c\" is deleted, but is still referred to"},
		"a server certificate for a client": {func(g group) { g[keys(t, "route/r")[0]].GetRoute().GetUpstream().GetTls().ClientCertId = "web" }, []string{"route/r"},
			`upstream.tls.client_cert_id reference: ssl "web" is not of type client`},
		"a route of a stream service": {func(g group) { g[keys(t, "route/r")[0]].GetRoute().ServiceId = "db" }, []string{"route/r"},
			`service_id reference: service "db" is of type stream, which has stream routes only`},
		"a stream route of an http service": {func(g group) { g[keys(t, "stream_route/sr")[0]].GetStreamRoute().ServiceId = "s" }, []string{"stream_route/sr"},
			`service_id reference: service "s" is not of type stream`},
		"a service that changes its type": {func(g group) { g[keys(t, "service/s")[0]].GetService().Type = "stream" }, []string{"service/s", "route/r"},
			`service_id reference: service "s" is of type stream, which has stream routes only`},
		"everything deleted": {func(g group) { clear(g) }, []string{"service/s", "route/r"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			g := decodeGroup(t, referring)
			test.change(g)
			problems := resource.Validator{}.Group(g.lookup, keys(t, test.keys...))
			if got := describe(problems); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}

func TestADanglingReferenceSuggestsWhatIsThere(t *testing.T) {
	g := decodeGroup(t, referring)
	g[keys(t, "route/r")[0]].GetRoute().ServiceId = "bd"
	v := resource.Validator{IDs: func(kind musterv1.Kind) []string { return []string{"db", "other"} }}
	problems := v.Group(g.lookup, keys(t, "route/r"))
	if len(problems) != 1 || problems[0].Hint != `did you mean "db"?` || problems[0].Object != keys(t, "route/r")[0] {
		t.Errorf("got %+v", problems)
	}
}

func TestObjectsThatExcludeEachOther(t *testing.T) {
	g := decodeGroup(t, `
ssls:
  - {id: a, snis: [a.example.com, "*.example.com"], cert: x, key: x}
  - {id: b, snis: [b.example.com, A.Example.com], cert: x, key: x}
  - {id: c, snis: [a.example.com], cert: x, key: x, status: 0}
  - {id: d, snis: [a.example.com], type: client, cert: x, key: x}
consumers:
  - {username: alice, plugins: {key-auth: {key: same}}, credentials: [{id: k, type: basic-auth, config: {username: u, password: p}}]}
  - {username: bob, plugins: {limit-count: {key: same}}, credentials: [{id: k, type: key-auth, config: {key: same}}, {id: l, type: basic-auth, config: {username: u, password: q}}]}
`)
	want := []string{
		`credential/bob/k: plugins.key-auth.key: consumer/alice has the same key (give each consumer its own)`,
		`credential/bob/l: plugins.basic-auth.username: credential/alice/k has the same username (give each consumer its own)`,
		`ssl/b: snis[1]: "A.Example.com" is served by ssl/a already (remove the name from one of them)`,
	}
	var got []string
	for _, p := range (resource.Validator{}).Conflicts(g.all()) {
		got = append(got, p.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

func TestAFileMayReferToWhatTheGroupHolds(t *testing.T) {
	outside := decodeGroup(t, referring)
	file, problems := resource.DecodeFile("f", []byte(`routes: [{name: x, uris: [/x], service_id: s}]`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if problems := (resource.Validator{}).File(file, nil); len(problems) != 1 || problems[0].Line != 1 || problems[0].Within != "routes[0]" {
		t.Errorf("got %v", problems)
	}
	if problems := (resource.Validator{}).File(file, outside.lookup); len(problems) != 0 {
		t.Errorf("got %v", problems)
	}
}
