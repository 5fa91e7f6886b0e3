//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/load"
	"github.com/musterhq/muster/test/e2e/pki"
	"github.com/musterhq/muster/test/e2e/upstream"
)

// changesVariable names what says how many transactions change the group under
// load: 200 unless it is set, 2,000 in `make e2e-all`.
const changesVariable = "MUSTER_E2E_CHANGES"

func churnChanges(t *testing.T) int {
	t.Helper()
	text := os.Getenv(changesVariable)
	if text == "" {
		return 200
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s is %q, want a number of changes", changesVariable, text)
	}
	return n
}

// TestChangesUnderLoadFailNoRequest sends steady load through Envoys and the
// embedded gateway while everything that can change does. Every request is one
// that each of the configurations answers with 200.
func TestChangesUnderLoadFailNoRequest(t *testing.T) {
	a, b := startBackend(t, "a"), startBackend(t, "b")
	s := newSite(t, 0)
	s.group(t, "busy")
	ctx := t.Context()
	c := &churn{site: s, a: a, b: b, leaf: mustLeaf(t, "stable.example.com")}

	revision, err := s.commit(ctx, "busy", c.first()...)
	if err != nil {
		t.Fatal(err)
	}
	planes := s.planes(t, "busy")
	if err := s.wait(ctx, "busy", revision, len(planes)); err != nil {
		t.Fatal(err)
	}
	var requests []load.Request
	for _, p := range planes {
		if err := p.settled(ctx); err != nil {
			t.Fatal(err)
		}
		requests = append(requests, churnRequests(p)...)
	}
	// Everything must answer before the load begins to count.
	for _, r := range requests {
		if err := eventually(ctx, 20*time.Second, func() error {
			probe := load.Start(ctx, time.Millisecond, r)
			time.Sleep(30 * time.Millisecond)
			if report := probe.Stop(); report.Failed > 0 || report.Sent == 0 {
				return fmt.Errorf("%s: %v", r.Name, report.Failures)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	before := make([]map[string]int64, len(planes))
	for i, p := range planes {
		before[i] = p.draining(ctx, t)
	}

	running := load.Start(ctx, 40*time.Millisecond, requests...)
	changes, restarts := churnChanges(t), 0
	var log []string // what was done when, for failures
	began, up := time.Now(), time.Now()
	for i := range changes {
		kind := c.kind(i)
		// Every seventieth change or so comes when the server has just restarted, by
		// turns asked to stop and killed.
		if i%70 == 35 {
			// The embedded gateway comes back at once to a server that did it well for
			// five seconds, and later to one that did not.
			time.Sleep(time.Until(up.Add(6 * time.Second)))
			if restarts++; restarts%2 == 0 {
				s.Kill()
			} else if err := s.Stop(); err != nil {
				t.Errorf("restart %d: %v", restarts, err)
			}
			if err := s.Restart(ctx); err != nil {
				t.Fatalf("restart %d: %v", restarts, err)
			}
			up = time.Now()
			log = append(log, fmt.Sprintf("%v: restart", time.Since(began).Round(time.Millisecond)))
		}
		revision, err = s.commit(ctx, "busy", kind.change(c, i/len(churnKinds))...)
		if err != nil {
			t.Fatalf("change %d, %s: %v", i, kind.name, err)
		}
		log = append(log, fmt.Sprintf("%v: change %d, revision %d: %s", time.Since(began).Round(time.Millisecond), i, revision, kind.name))
		// Some changes come one on another's heels, some when all have settled.
		if i%5 == 0 {
			if err := s.wait(ctx, "busy", revision, len(planes)); err != nil {
				t.Fatalf("change %d, %s: %v", i, kind.name, err)
			}
		} else {
			time.Sleep(time.Duration(i%4) * 15 * time.Millisecond)
		}
	}
	if err := s.wait(ctx, "busy", revision, len(planes)); err != nil {
		t.Error(err)
	}
	time.Sleep(time.Second)
	report := running.Stop()

	t.Logf("%d requests over %d connections through %d data planes during %d changes; the slowest took %v",
		report.Sent, report.Connections, len(planes), changes, report.Slowest)
	t.Logf("%d server restarts, %.0f requests/s", restarts, float64(report.Sent)/time.Since(began).Seconds())
	if report.Failed > 0 {
		t.Errorf("%d requests failed that no configuration asked to fail:", report.Failed)
		for _, f := range report.Failures {
			t.Error(f)
		}
		t.Logf("the changes:\n%s", strings.Join(log, "\n"))
	}
	if report.Connections != len(requests) {
		t.Errorf("%d connections were made for %d clients: some were closed under them", report.Connections, len(requests))
	}
	if report.Sent < 1000 {
		t.Errorf("only %d requests were sent", report.Sent)
	}
	for i, p := range planes {
		after := p.draining(ctx, t)
		for stat, n := range after {
			if n != before[i][stat] {
				t.Errorf("%s: %s rose from %d to %d", p.name, stat, before[i][stat], n)
			}
		}
	}
}

func mustLeaf(t *testing.T, name string) *pki.Leaf {
	t.Helper()
	leaf, err := authority.Leaf(name)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

// draining reads what Envoy counts when it drains a listener or asks a client
// to go; nothing for the embedded gateway, whose connections are counted.
func (p *plane) draining(ctx context.Context, t *testing.T) map[string]int64 {
	t.Helper()
	if p.envoy == nil {
		return nil
	}
	stats, err := p.envoy.Stats(ctx, `^listener_manager\.(total_listeners_draining|listener_removed|listener_stopped|listener_create_failure)$|downstream_cx_drain_close$`)
	if err != nil {
		t.Fatal(err)
	}
	return stats
}

func churnRequests(p *plane) []load.Request {
	roots := authority.Pool()
	request := func(name, host, path string, header ...string) load.Request {
		h := http.Header{}
		for i := 0; i+1 < len(header); i += 2 {
			h.Set(header[i], header[i+1])
		}
		return load.Request{Name: p.name + " " + name, Addr: p.gate.HTTP, Host: host, Path: path, Header: h}
	}
	secure := request("https", "stable.example.com", "/stable/x")
	secure.Addr, secure.TLS = p.gate.HTTPS, &tls.Config{ServerName: "stable.example.com", RootCAs: roots}
	missing := request("not found", "nowhere.example.com", "/")
	missing.Want = http.StatusNotFound
	// By turns there and not, so both answers are right; but an upstream's absence
	// (503) or half a plugin (500) never are.
	again := request("again", "api.example.com", "/again/x")
	again.Or = http.StatusNotFound
	return []load.Request{
		request("renamed", "api.example.com", "/renamed/x"),
		request("moved", "moved.example.com", "/moved/x"),
		request("wandering", "wandering.example.com", "/wandering/x"),
		request("replaced", "api.example.com", "/replaced/x"),
		again,
		request("stable", "stable.example.com", "/stable/x"),
		request("nodes", "api.example.com", "/nodes/x"),
		request("plugins", "api.example.com", "/plugins/x", "origin", "https://app.example.com"),
		request("routes", "api.example.com", "/routes/x"),
		request("hosts", "always.example.com", "/hosts/x"),
		request("key", "api.example.com", "/closed/x", "apikey", "key-of-stable"),
		secure,
		missing,
	}
}

// churn makes the changes.
type churn struct {
	*site
	a, b *upstream.Backend
	leaf *pki.Leaf
}

func (c *churn) first() []*musterv1.Change {
	closed := routeOf("closed", "/*")
	closed.GetPut().GetRoute().Plugins = keyAuth()
	return []*musterv1.Change{
		serviceOn("stable", "stable.example.com", "/stable", c.a), routeOf("stable", "/*"),
		serviceOn("nodes", "api.example.com", "/nodes", c.a), routeOf("nodes", "/*"),
		serviceOn("plugins", "api.example.com", "/plugins", c.a), routeOf("plugins", "/*"),
		serviceOn("routes", "api.example.com", "/routes", c.a), routeOf("routes", "/*"),
		serviceOn("hosts", "always.example.com", "/hosts", c.a), routeOf("hosts", "/*"),
		serviceOn("closed", "api.example.com", "/closed", c.a), closed,
		serviceOn("replaced", "api.example.com", "/replaced", c.a), routeOf("replaced", "/*"),
		serviceOn("renamed-0", "api.example.com", "/renamed", c.a), routeOf("renamed-0", "/*"),
		serviceOn("left", "moved.example.com", "", c.a), serviceOn("right", "moved.example.com", "", c.b),
		route(&musterv1.Route{Id: "moved", Name: "moved", ServiceId: "left", Uris: []string{"/moved/*"}}),
		hostsOf("wanderer-0", c.a, "wandering.example.com"), routeOf("wanderer-0", "/*"),
		hostsOf("wanderer-1", c.b, "elsewhere.example.com"), routeOf("wanderer-1", "/*"),
		consumer("stable"), keyOf("stable", "key-of-stable"),
		certificate("stable", "stable.example.com", c.leaf),
	}
}

func certificate(id, sni string, leaf *pki.Leaf) *musterv1.Change {
	return put(&musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{
		Id: id, Snis: []string{sni}, Cert: leaf.CertPEM, Key: leaf.KeyPEM,
	}}})
}

// hostsOf is a service of some hosts.
func hostsOf(id string, b *upstream.Backend, hosts ...string) *musterv1.Change {
	s := serviceOn(id, "", "", b)
	s.GetPut().GetService().Hosts = hosts
	return s
}

// churnKind is a kind of change; round counts how often it was made before.
type churnKind struct {
	name   string
	change func(c *churn, round int) []*musterv1.Change
}

// kind is the kind of the i-th transaction.
func (c *churn) kind(i int) churnKind { return churnKinds[i%len(churnKinds)] }

func extraOf(round int) string { return fmt.Sprintf("extra-%d", round) }

// one is for the kinds that change one object.
func one(change *musterv1.Change) []*musterv1.Change { return []*musterv1.Change{change} }

// churnKinds are made in turn. None takes away what a request needs.
var churnKinds = []churnKind{
	{"the nodes of a service change", func(c *churn, round int) []*musterv1.Change {
		return one(serviceOn("nodes", "api.example.com", "/nodes", [][]*upstream.Backend{{c.a}, {c.b}, {c.a, c.b}}[round%3]...))
	}},
	{"the plugins of a service change", func(c *churn, round int) []*musterv1.Change {
		s := serviceOn("plugins", "api.example.com", "/plugins", c.a)
		s.GetPut().GetService().Plugins = []map[string]*structpb.Struct{
			{"proxy-rewrite": plugin(map[string]any{"headers": map[string]any{"set": map[string]any{"x-round": fmt.Sprint(round)}}})},
			{"cors": plugin(map[string]any{"allow_origins": "https://app.example.com"})},
			{"ip-restriction": plugin(map[string]any{"whitelist": []any{"127.0.0.0/8"}})},
			{"limit-count": plugin(map[string]any{"count": 1000000, "time_window": 1})},
			nil,
		}[round%5]
		return one(s)
	}},
	{"a service is renamed, and its route", func(c *churn, round int) []*musterv1.Change {
		before, after := fmt.Sprintf("renamed-%d", round), fmt.Sprintf("renamed-%d", round+1)
		return []*musterv1.Change{
			remove(musterv1.Kind_KIND_ROUTE, before), remove(musterv1.Kind_KIND_SERVICE, before),
			serviceOn(after, "api.example.com", "/renamed", []*upstream.Backend{c.a, c.b}[round%2]), routeOf(after, "/*"),
		}
	}},
	{"a service and its route come", func(c *churn, round int) []*musterv1.Change {
		id := extraOf(round)
		return []*musterv1.Change{serviceOn(id, "api.example.com", "/"+id, c.b), routeOf(id, "/*")}
	}},
	{"a route moves to another service", func(c *churn, round int) []*musterv1.Change {
		to := []string{"right", "left"}[round%2]
		return one(route(&musterv1.Route{Id: "moved", Name: "moved", ServiceId: to, Uris: []string{"/moved/*"}}))
	}},
	{"a consumer comes", func(c *churn, round int) []*musterv1.Change {
		id := extraOf(round)
		return []*musterv1.Change{consumer(id), keyOf(id, "key-of-"+id)}
	}},
	{"a host moves to another service", func(c *churn, round int) []*musterv1.Change {
		hosts := []string{"wandering.example.com", "elsewhere.example.com"}
		return []*musterv1.Change{
			hostsOf("wanderer-0", c.a, hosts[(round+1)%2]), hostsOf("wanderer-1", c.b, hosts[round%2]),
		}
	}},
	{"a certificate comes", func(c *churn, round int) []*musterv1.Change {
		id := extraOf(round)
		return one(certificate(id, id+".example.com", c.fresh(id+".example.com")))
	}},
	{"a service that may be missing goes or comes back", func(c *churn, round int) []*musterv1.Change {
		if round%2 == 1 {
			return []*musterv1.Change{remove(musterv1.Kind_KIND_ROUTE, "again"), remove(musterv1.Kind_KIND_SERVICE, "again")}
		}
		return []*musterv1.Change{serviceOn("again", "api.example.com", "/again", c.a), routeOf("again", "/*")}
	}},
	{"the certificate in use is renewed", func(c *churn, round int) []*musterv1.Change {
		return one(certificate("stable", "stable.example.com", c.fresh("stable.example.com")))
	}},
	{"a route gets or loses an upstream of its own", func(c *churn, round int) []*musterv1.Change {
		r := routeOf("routes", "/*")
		if round%2 == 0 {
			r.GetPut().GetRoute().Upstream = upstreamOf(c.b)
		}
		return one(r)
	}},
	{"a service gets or loses a host", func(c *churn, round int) []*musterv1.Change {
		s := serviceOn("hosts", "always.example.com", "/hosts", c.a)
		if round%2 == 0 {
			s.GetPut().GetService().Hosts = append(s.GetPut().GetService().Hosts, "sometimes.example.com")
		}
		return one(s)
	}},
	{"the cluster of a service changes", func(c *churn, round int) []*musterv1.Change {
		s := serviceOn("nodes", "api.example.com", "/nodes", c.a, c.b)
		u := s.GetPut().GetService().Upstream
		u.Type = []string{"roundrobin", "least_conn"}[round%2]
		u.Timeout = &musterv1.Timeout{Connect: float64(2 + round%3), Send: 30, Read: 30}
		return one(s)
	}},
	{"every endpoint of a service is replaced, and its cluster changes", func(c *churn, round int) []*musterv1.Change {
		s := serviceOn("replaced", "api.example.com", "/replaced", []*upstream.Backend{c.b, c.a}[round%2])
		retries := int32(round % 3)
		s.GetPut().GetService().Upstream.Retries = &retries
		return one(s)
	}},
	{"a service moves to other paths", func(c *churn, round int) []*musterv1.Change {
		id := extraOf(round)
		return []*musterv1.Change{serviceOn(id, "api.example.com", "/other-"+id, c.a), routeOf(id, "/a/*", "/b/*")}
	}},
	{"a service goes", func(c *churn, round int) []*musterv1.Change {
		return one(remove(musterv1.Kind_KIND_SERVICE, extraOf(round)))
	}},
	{"a consumer and a certificate go", func(c *churn, round int) []*musterv1.Change {
		id := extraOf(round)
		return []*musterv1.Change{remove(musterv1.Kind_KIND_CONSUMER, id), remove(musterv1.Kind_KIND_SSL, id)}
	}},
	{"a global rule comes or goes", func(c *churn, round int) []*musterv1.Change {
		if round%2 == 1 {
			return one(remove(musterv1.Kind_KIND_GLOBAL_RULE, "headers"))
		}
		return one(put(&musterv1.Resource{Kind: &musterv1.Resource_GlobalRule{GlobalRule: &musterv1.GlobalRule{
			Id:      "headers",
			Plugins: map[string]*structpb.Struct{"proxy-rewrite": plugin(map[string]any{"headers": map[string]any{"set": map[string]any{"x-global": "1"}}})},
		}}}))
	}},
}

func (c *churn) fresh(name string) *pki.Leaf {
	leaf, err := authority.Fresh(name)
	if err != nil {
		panic(err)
	}
	return leaf
}
