//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/load"
	"github.com/musterhq/muster/test/e2e/pki"
	"github.com/musterhq/muster/test/e2e/upstream"
)

// churnChanges is how many transactions change the group under load.
const churnChanges = 200

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
	for i := range churnChanges {
		revision, err = s.commit(ctx, "busy", c.change(i)...)
		if err != nil {
			t.Fatalf("change %d: %v", i, err)
		}
		// Some changes come one on another's heels, some when all have settled.
		if i%5 == 0 {
			if err := s.wait(ctx, "busy", revision, len(planes)); err != nil {
				t.Fatalf("change %d: %v", i, err)
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
		report.Sent, report.Connections, len(planes), churnChanges, report.Slowest)
	if report.Failed > 0 {
		t.Errorf("%d requests failed that no configuration asked to fail:", report.Failed)
		for _, f := range report.Failures {
			t.Error(f)
		}
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
	return []load.Request{
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
		consumer("stable"), keyOf("stable", "key-of-stable"),
		certificate("stable", "stable.example.com", c.leaf),
	}
}

func certificate(id, sni string, leaf *pki.Leaf) *musterv1.Change {
	return put(&musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{
		Id: id, Snis: []string{sni}, Cert: leaf.CertPEM, Key: leaf.KeyPEM,
	}}})
}

// change is the i-th transaction.
func (c *churn) change(i int) []*musterv1.Change {
	round := i / 12
	extra := fmt.Sprintf("extra-%d", round)
	switch i % 12 {
	case 0: // nodes, by EDS
		return []*musterv1.Change{serviceOn("nodes", "api.example.com", "/nodes", [][]*upstream.Backend{{c.a}, {c.b}, {c.a, c.b}}[round%3]...)}
	case 1: // plugins of a service
		s := serviceOn("plugins", "api.example.com", "/plugins", c.a)
		s.GetPut().GetService().Plugins = []map[string]*structpb.Struct{
			{"proxy-rewrite": plugin(map[string]any{"headers": map[string]any{"set": map[string]any{"x-round": fmt.Sprint(round)}}})},
			{"cors": plugin(map[string]any{"allow_origins": "https://app.example.com"})},
			{"ip-restriction": plugin(map[string]any{"whitelist": []any{"127.0.0.0/8"}})},
			{"limit-count": plugin(map[string]any{"count": 1000000, "time_window": 1})},
			nil,
		}[round%5]
		return []*musterv1.Change{s}
	case 2: // a service and its route come
		return []*musterv1.Change{serviceOn(extra, "api.example.com", "/"+extra, c.b), routeOf(extra, "/*")}
	case 3: // a consumer comes
		return []*musterv1.Change{consumer(extra), keyOf(extra, "key-of-"+extra)}
	case 4: // a certificate comes
		return []*musterv1.Change{certificate(extra, extra+".example.com", c.fresh(extra+".example.com"))}
	case 5: // the certificate in use is renewed
		return []*musterv1.Change{certificate("stable", "stable.example.com", c.fresh("stable.example.com"))}
	case 6: // a route changes its cluster
		r := routeOf("routes", "/*")
		if round%2 == 0 {
			r.GetPut().GetRoute().Upstream = upstreamOf(c.b)
		}
		return []*musterv1.Change{r}
	case 7: // a service gets and loses a host
		s := serviceOn("hosts", "always.example.com", "/hosts", c.a)
		if round%2 == 0 {
			s.GetPut().GetService().Hosts = append(s.GetPut().GetService().Hosts, "sometimes.example.com")
		}
		return []*musterv1.Change{s}
	case 8: // a cluster changes: timeouts, balancing, checks
		s := serviceOn("nodes", "api.example.com", "/nodes", c.a, c.b)
		u := s.GetPut().GetService().Upstream
		u.Type = []string{"roundrobin", "least_conn"}[round%2]
		u.Timeout = &musterv1.Timeout{Connect: float64(2 + round%3), Send: 30, Read: 30}
		return []*musterv1.Change{s}
	case 9: // the service goes
		return []*musterv1.Change{remove(musterv1.Kind_KIND_SERVICE, extra)}
	case 10: // the consumer and the certificate go
		return []*musterv1.Change{remove(musterv1.Kind_KIND_CONSUMER, extra), remove(musterv1.Kind_KIND_SSL, extra)}
	default: // a global rule comes and goes
		if round%2 == 1 {
			return []*musterv1.Change{remove(musterv1.Kind_KIND_GLOBAL_RULE, "headers")}
		}
		return []*musterv1.Change{put(&musterv1.Resource{Kind: &musterv1.Resource_GlobalRule{GlobalRule: &musterv1.GlobalRule{
			Id:      "headers",
			Plugins: map[string]*structpb.Struct{"proxy-rewrite": plugin(map[string]any{"headers": map[string]any{"set": map[string]any{"x-global": "1"}}})},
		}}})}
	}
}

func (c *churn) fresh(name string) *pki.Leaf {
	leaf, err := authority.Fresh(name)
	if err != nil {
		panic(err)
	}
	return leaf
}
