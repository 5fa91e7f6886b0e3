package compile_test

import (
	"fmt"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/compile/plugin"
)

// What cannot be honoured is a problem of the object at fault, by path, with the
// reason. Each case is a declarative file.
func TestWhatCannotBeHonouredIsAProblem(t *testing.T) {
	for _, c := range []struct{ name, file, object, path, message string }{
		{"stream service", `services: [{id: s, name: s, type: stream, upstream: {scheme: tcp, nodes: {"10.0.0.1:1": 1}}}]`, "service/s", "type", "not supported yet"},
		{"no upstream", `services: [{id: s, name: s, routes: [{id: r, name: r, uris: [/a]}]}]`, "route/r", "", "neither the route nor its service has an upstream"},
		{"retry timeout", upstream(`retry_timeout: 3`), "service/s", "upstream.retry_timeout", "does not limit"},
		{"pool size", upstream(`keepalive_pool: {size: 5}`), "service/s", "upstream.keepalive_pool.size", "does not bound"},
		{"hash of an unknown variable", upstream(`type: chash, hash_on: vars, key: server_addr`), "service/s", "upstream.key", "cannot hash"},
		{"named upstream", `services: [{id: s, name: s, upstreams: [{name: u, retry_timeout: 3, nodes: []}]}]`, "service/s", "upstreams[0].retry_timeout", "does not limit"},
		{"tls without TLS", upstream(`tls: {verify: true}`), "service/s", "upstream.tls", "does not use TLS"},
		{"SNI with port", upstream(`scheme: https, pass_host: node, nodes: {"a.com:8443": 1, "b.com:8443": 1}`), "service/s", "upstream.pass_host", "SNI"},
		{"check type", upstream(`scheme: https, checks: {active: {type: http}}`), "service/s", "upstream.checks.active.type", "with or without TLS"},
		{"check concurrency", upstream(`checks: {active: {concurrency: 3}}`), "service/s", "upstream.checks.active.concurrency", "every node"},
		{"check statuses", upstream(`checks: {active: {unhealthy: {http_statuses: [500]}}}`), "service/s", "upstream.checks.active.unhealthy.http_statuses", "every status that is not healthy"},
		{"check counts", upstream(`checks: {active: {unhealthy: {http_failures: 2, timeouts: 7}}}`), "service/s", "upstream.checks.active.unhealthy.timeouts", "one count"},
		{"check verification", upstream(`scheme: https, checks: {active: {type: https, https_verify_certificate: true}}`), "service/s", "upstream.checks.active.https_verify_certificate", "tls.verify"},
		{"OR", route(`vars: [[OR, [arg_a, ==, "1"], [arg_b, ==, "1"]]]`), "route/r", "vars[0][0]", "OR cannot"},
		{"ordering", route(`vars: [[arg_a, ">", 1]]`), "route/r", "vars[0][1]", "operator >"},
		{"unknown variable", route(`vars: [[server_port, ==, "1"]]`), "route/r", "vars[0][0]", `"server_port"`},
		{"negated regex with &", route(`vars: [[arg_a, "!", "~~", "x&y"]]`), "route/r", "vars[0][3]", "ends the value"},
		{"negated regex with an inner anchor", route(`vars: [[arg_a, "!", "~~", "x|^y"]]`), "route/r", "vars[0][3]", "anchor"},
		{"negated range", route(`vars: [[remote_addr, "!", ipmatch, [10.0.0.0/8]]]`), "route/r", "vars[0]", "not negated"},
		{"regex_uri under a stripped prefix", `services: [{id: s, name: s, path_prefix: /p, upstream: {nodes: []}, routes: [{id: r, name: r, uris: [/*], plugins: {proxy-rewrite: {regex_uri: [a, b]}}}]}]`, "route/r", "uris[0]", "cannot both"},
		{"plugin of the service", `services: [{id: s, name: s, upstream: {nodes: []}, plugins: {cors: {timing_allow_origins: "*"}}, routes: [{id: r, name: r, uris: [/a]}]}]`, "service/s", "plugins.cors.timing_allow_origins", "Timing-Allow-Origin"},
		{"one key, two consumers", `consumers: [{username: a, plugins: {key-auth: {key: k}}}, {username: b, plugins: {key-auth: {key: k}}}]`, "consumer/b", "plugins.key-auth.key", "belongs to consumer/a"},
		{"plugin of a consumer", `consumers: [{username: a, plugins: {limit-count: {count: 1, time_window: 1}}}]`, "consumer/a", "plugins.limit-count", "cannot be used on a consumer"},
		{"plugin in two rules", `global_rules: [{id: one, plugins: {cors: {}}}, {id: two, plugins: {cors: {}}}]`, "global_rule/two", "plugins.cors", "stands in global_rule/one already"},
		{"metadata", `plugin_metadata: {cors: {allow_origins: {}}}`, "plugin_metadata/cors", "", "no metadata"},
		{"a compiled name", `{services: [{id: s, name: s, upstream: {nodes: []}}], xds_resources: [{id: x, resource: {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: service/s}}]}`, "xds_resource/x", "name", "compiled from other objects"},
		{"a raw name twice", `xds_resources: [{id: x, name: n, resource: {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster}}, {id: y, resource: {"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: n}}]`, "xds_resource/y", "name", "name of xds_resource/x already"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file, problems := resource.DecodeFile("case.yaml", []byte(c.file))
			if len(problems) > 0 {
				t.Fatal(problems)
			}
			view, _ := newStore(t).commit(file.Resources)
			_, _, problems = compile.Full(view)
			if len(problems) != 1 {
				t.Fatalf("%d problems:\n%v", len(problems), problems)
			}
			p := problems[0]
			if p.Object.String() != c.object || p.Path != c.path || !strings.Contains(p.Message, c.message) || p.Code == "" {
				t.Errorf("%+v", p)
			}
		})
	}
}

func upstream(fields string) string {
	if !strings.Contains(fields, "nodes") {
		fields += ", nodes: []"
	}
	return `services: [{id: s, name: s, upstream: {` + fields + `}}]`
}

func route(fields string) string {
	return `services: [{id: s, name: s, upstream: {nodes: []}, routes: [{id: r, name: r, uris: [/a], ` + fields + `}]}]`
}

// What has a problem is left out, everything else is there.
func TestAnObjectWithAProblemHoldsNothingBack(t *testing.T) {
	file, problems := resource.DecodeFile("case.yaml", []byte(`
services:
  - {id: good, name: good, upstream: {nodes: []}, routes: [{id: r1, name: r1, uris: [/good]}, {id: r2, name: r2, uris: [/bad], vars: [[OR, [arg_a, ==, "1"]]]}]}
  - {id: bad, name: bad, upstream: {nodes: [], retry_timeout: 3}}
`))
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	view, _ := newStore(t).commit(file.Resources)
	_, delta, problems := compile.Full(view)
	if len(problems) != 2 {
		t.Error(problems)
	}
	for _, r := range delta.Upsert {
		switch r.Name {
		case "service/good":
		case "service/bad":
			t.Errorf("%s %s is there", r.TypeURL, r.Name)
		case compile.CatchAll:
			if text := asJSON(t, r); !strings.Contains(text, "/good") || strings.Contains(text, "/bad") {
				t.Error(text)
			}
		}
	}
}

// A resource above the size that data planes take is a problem of the object that
// made it so large, be it by itself or by the part that it has in a shared one.
func TestAResourceAboveTheSizeOfAMessageIsAProblem(t *testing.T) {
	store := newStore(t)
	commit := func(text string) (state.View, []state.Change) {
		t.Helper()
		file, problems := resource.DecodeFile("case.yaml", []byte(text))
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		return store.commit(file.Resources)
	}
	view, changes := commit(`{services: [{id: small, name: small, upstream: {nodes: []}}], xds_resources: [{id: big, resource: {
		"@type": type.googleapis.com/envoy.config.cluster.v3.Cluster, name: big, alt_stat_name: ` + strings.Repeat("x", compile.MaxResource) + `}}]}`)
	compiled, _, problems := compile.Empty().Next(view, changes)
	if len(problems) != 1 || problems[0].Object.String() != "xds_resource/big" || !strings.Contains(problems[0].Message, "data planes take") {
		t.Fatalf("%v", problems)
	}
	// What was so before is no reason to refuse something else.
	view, changes = commit(`{services: [{id: other, name: other, upstream: {nodes: []}}]}`)
	if _, _, problems = compiled.Next(view, changes); len(problems) != 0 {
		t.Errorf("an unrelated change: %v", problems)
	}

	var consumers strings.Builder
	key := strings.Repeat("k", 4000)
	for i, n := 0, 0; n < 1100; i++ {
		if one := fmt.Sprintf("%s%04d", key, i); plugin.KeyShard(one) == 0 {
			fmt.Fprintf(&consumers, "{username: u%04d, plugins: {key-auth: {key: %s}}},", n, one)
			n++
		}
	}
	store = newStore(t)
	view, changes = commit(`{consumers: [` + consumers.String() + `]}`)
	if _, _, problems = compile.Empty().Next(view, changes); len(problems) != 1 || problems[0].Object.Kind != musterv1.Kind_KIND_CONSUMER {
		t.Errorf("credentials of consumers: %v", problems)
	}
}
