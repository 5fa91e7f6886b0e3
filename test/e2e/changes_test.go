//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/load"
)

// TestEachChangeIsAcknowledgedByAll makes one change of each kind after the
// other, by the command line, in a group with real Envoys and the embedded
// gateway: each must be acknowledged by all, and answered alike by all.
func TestEachChangeIsAcknowledgedByAll(t *testing.T) {
	a, b := startBackend(t, "a"), startBackend(t, "b")
	s := newSite(t, 0)
	ctx := t.Context()
	if _, err := s.CLI(ctx, "", "group", "create", "edge"); err != nil {
		t.Fatal(err)
	}
	sotw := envoys[0]
	sotw.SotW = true
	planes := append(s.planes(t, "edge"), s.startEnvoy(t, "edge", sotw))
	leaf := mustLeaf(t, "api.example.com")

	config := func(nodes, timeout, more string) string {
		return fmt.Sprintf(`
services:
- name: orders
  hosts: [api.example.com]
  upstream:
    nodes: {%s: 1}
    timeout: {connect: 1, send: %s, read: %s}
    retries: 0
  routes:
  - name: orders
    uris: ["/orders/*"]
  - name: closed
    uris: ["/closed/*"]
    plugins: {key-auth: {}}
%s`, nodes, timeout, timeout, more)
	}
	ssl := fmt.Sprintf("ssls:\n- snis: [api.example.com]\n  certificates:\n  - {certificate: %q, key: %q}\n", leaf.CertPEM, leaf.KeyPEM)
	consumers := "consumers:\n- username: alice\n  credentials:\n  - {name: main, type: key-auth, config: {key: alice-secret}}\n"
	global := "global_rules:\n  ip-restriction: {blacklist: [127.0.0.0/8]}\n"
	nodeA, nodeB := fmt.Sprintf("%q", a.Addr()), fmt.Sprintf("%q", b.Addr())

	orders := "api.example.com/orders/1"
	for _, step := range []struct {
		name   string
		config string
		proof  func(ctx context.Context, p *plane) error
	}{
		{"create a service and routes", config(nodeA, "5", ""), func(ctx context.Context, p *plane) error {
			return errors.Join(p.answeredBy(ctx, orders, "a"), p.answers(ctx, "api.example.com/other", 404))
		}},
		{"change nodes", config(nodeB, "5", ""), func(ctx context.Context, p *plane) error {
			return p.answeredBy(ctx, orders, "b")
		}},
		{"change a timeout", config(nodeB, "0.3", ""), func(ctx context.Context, p *plane) error {
			return p.answers(ctx, "api.example.com/orders/slow", 504)
		}},
		{"add a consumer", config(nodeA, "5", consumers), func(ctx context.Context, p *plane) error {
			return errors.Join(
				p.answers(ctx, "api.example.com/closed/1", 401),
				p.answers(ctx, "api.example.com/closed/1", 200, "apikey", "alice-secret"))
		}},
		{"add a certificate", config(nodeA, "5", consumers+ssl), func(ctx context.Context, p *plane) error {
			return p.answersTLS(ctx, "api.example.com", "/orders/1")
		}},
		{"add a global rule", config(nodeA, "5", consumers+ssl+global), func(ctx context.Context, p *plane) error {
			return errors.Join(p.answers(ctx, orders, 403), p.answers(ctx, "api.example.com/other", 403))
		}},
		{"remove the global rule", config(nodeA, "5", consumers+ssl), func(ctx context.Context, p *plane) error {
			return p.answeredBy(ctx, orders, "a")
		}},
		{"delete everything", "{}", func(ctx context.Context, p *plane) error {
			return p.answers(ctx, orders, 404)
		}},
	} {
		ok := t.Run(step.name, func(t *testing.T) {
			slow := map[bool]time.Duration{true: time.Second}[step.name == "change a timeout"]
			setDelay(t, b, slow)
			revision, err := s.sync(ctx, "edge", step.config)
			if err != nil {
				t.Fatal(err)
			}
			if out, err := s.CLI(ctx, "", "wait", "--group", "edge", "--for", "acked=100%",
				"--revision", fmt.Sprint(revision), "--timeout", "30s"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			for _, p := range planes {
				if err := p.settled(ctx); err != nil {
					t.Error(err)
				}
				dp, err := s.status(ctx, "edge", p.id)
				if err != nil {
					t.Fatal(err)
				}
				if dp.Revision != revision || dp.State != musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED || len(dp.Refusals) > 0 {
					t.Errorf("%s is %v at revision %d, want SYNCED at %d; refusals: %v", p.name, dp.State, dp.Revision, revision, dp.Refusals)
				}
				// An Envoy acknowledges a moment before its workers have the change.
				if err := eventually(ctx, time.Second, func() error { return step.proof(ctx, p) }); err != nil {
					t.Error(err)
				}
			}
		})
		if !ok {
			break
		}
	}
}

// TestGroupsDoNotMix gives two groups the same ids, hosts and keys.
func TestGroupsDoNotMix(t *testing.T) {
	a, b := startBackend(t, "a"), startBackend(t, "b")
	s := newSite(t, 0)
	ctx := t.Context()
	var planes [2][]*plane
	for i, group := range []string{"one", "two"} {
		s.group(t, group)
		backend, key := a, "key-of-one"
		if group == "two" {
			backend, key = b, "key-of-two"
		}
		closed := routeOf("closed", "/closed")
		closed.GetPut().GetRoute().Plugins = keyAuth()
		planes[i] = []*plane{s.startEnvoy(t, group, envoys[0]), s.startGateway(t, group)}
		revision, err := s.commit(ctx, group,
			serviceOn("same", "same.example.com", "", backend), routeOf("same", "/same"),
			serviceOn("closed", "same.example.com", "", backend), closed,
			serviceOn("only-"+group, group+".example.com", "", backend), routeOf("only-"+group, "/x"),
			consumer("caller"), keyOf("caller", key))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.wait(ctx, group, revision, 2); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []string{"a", "b"} {
		own := []string{"one", "two"}[i]
		other := []string{"two", "one"}[i]
		for _, p := range planes[i] {
			if err := p.settled(ctx); err != nil {
				t.Error(err)
			}
			if err := eventually(ctx, time.Second, func() error {
				return errors.Join(
					p.answeredBy(ctx, "same.example.com/same", want),
					p.answeredBy(ctx, own+".example.com/x", want),
					p.answers(ctx, other+".example.com/x", 404),
					p.answers(ctx, "same.example.com/closed", 200, "apikey", "key-of-"+own),
					p.answers(ctx, "same.example.com/closed", 401, "apikey", "key-of-"+other),
				)
			}); err != nil {
				t.Errorf("group %s: %v", own, err)
			}
		}
	}
}

// answeredBy wants a 200 from one backend.
func (p *plane) answeredBy(ctx context.Context, url, backend string) error {
	status, body, err := p.get(ctx, url)
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	if status != http.StatusOK || !strings.Contains(body, fmt.Sprintf(`"from":%q`, backend)) {
		return fmt.Errorf("%s answered %s with %d %s, want 200 from %s", p.name, url, status, body, backend)
	}
	return nil
}

// answersTLS wants a 200 over https, with a certificate of the authority.
func (p *plane) answersTLS(ctx context.Context, host, path string) error {
	return eventually(ctx, 5*time.Second, func() error {
		probe := load.Start(ctx, 5*time.Millisecond, load.Request{
			Name: p.name, Addr: p.gate.HTTPS, Host: host, Path: path,
			TLS: &tls.Config{ServerName: host, RootCAs: authority.Pool()},
		})
		time.Sleep(50 * time.Millisecond)
		if report := probe.Stop(); report.Sent == 0 || report.Failed > 0 {
			return fmt.Errorf("%d of %d https requests failed: %v", report.Failed, report.Sent, report.Failures)
		}
		return nil
	})
}
