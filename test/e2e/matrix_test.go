//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/control"
	"github.com/musterhq/muster/test/e2e/load"
	"github.com/musterhq/muster/test/e2e/upstream"
)

// matrix is three servers, and an Envoy of each sort that the tests were given:
// each version with delta ADS, and the others with state-of-the-world ADS or a
// stream for each type.
type matrix struct {
	*site
	cluster *control.Cluster
	planes  []*plane
	a, b    *upstream.Backend
}

const matrixGroup = "matrix"

// TestEveryEnvoyTakesEveryKindOfChange leads all of them through what happens to a
// data plane, with real requests after each step.
func TestEveryEnvoyTakesEveryKindOfChange(t *testing.T) {
	cluster, err := control.StartCluster(t.Context(), muster, t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, m := range cluster.Members {
			if t.Failed() {
				t.Logf("%s said:\n%s", m.ID, tailOf(m.Output(), 3000))
			}
		}
		cluster.Close()
	})
	m := &matrix{
		site: &site{Dev: &control.Dev{API: cluster.API}}, cluster: cluster,
		a: startBackend(t, "a"), b: startBackend(t, "b"),
	}
	if _, err := m.Admin.CreateGroup(t.Context(), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: matrixGroup}}); err != nil {
		t.Fatal(err)
	}
	m.commitOnly(t, m.begin()...)
	for _, binary := range envoys {
		m.planes = append(m.planes, m.startEnvoy(t, matrixGroup, binary))
	}
	for _, step := range []struct {
		name string
		run  func(*matrix, *testing.T)
	}{
		{"first connect", (*matrix).firstConnect},
		{"endpoint change", (*matrix).endpointChange},
		{"route change", (*matrix).routeChange},
		{"deletion and re-creation", (*matrix).deletionAndRecreation},
		{"NACK", (*matrix).nack},
		{"restart of every server", (*matrix).restart},
		{"failover to another server", (*matrix).failover},
	} {
		if !t.Run(step.name, func(t *testing.T) { step.run(m, t) }) {
			break
		}
	}
}

// begin is a group that needs every type: clusters with endpoints, routes, a key in
// a filter that is discovered, and a certificate.
func (m *matrix) begin() []*musterv1.Change {
	closed := routeOf("closed", "/*")
	closed.GetPut().GetRoute().Plugins = keyAuth()
	leaf, err := authority.Leaf("api.example.com")
	if err != nil {
		panic(err)
	}
	return []*musterv1.Change{
		serviceOn("orders", "api.example.com", "/orders", m.a), routeOf("orders", "/*"),
		serviceOn("closed", "api.example.com", "/closed", m.a), closed,
		consumer("alice"), keyOf("alice", "key-of-alice"),
		certificate("api", "api.example.com", leaf),
	}
}

func (m *matrix) commitOnly(t *testing.T, changes ...*musterv1.Change) uint64 {
	t.Helper()
	revision, err := m.commit(t.Context(), matrixGroup, changes...)
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// change commits, waits for every Envoy's acknowledgement, and demands the proof of each.
func (m *matrix) change(t *testing.T, proof func(ctx context.Context, p *plane) error, changes ...*musterv1.Change) {
	t.Helper()
	revision := m.commitOnly(t, changes...)
	if err := m.wait(t.Context(), matrixGroup, revision, len(m.planes)); err != nil {
		t.Error(err)
	}
	m.prove(t, proof)
}

// prove runs a subtest for each Envoy.
func (m *matrix) prove(t *testing.T, proof func(ctx context.Context, p *plane) error) {
	t.Helper()
	for _, p := range m.planes {
		t.Run(p.name, func(t *testing.T) {
			if err := eventually(t.Context(), 20*time.Second, func() error { return proof(t.Context(), p) }); err != nil {
				t.Error(err)
			}
		})
	}
}

func (m *matrix) firstConnect(t *testing.T) {
	m.change(t, func(ctx context.Context, p *plane) error {
		return errors.Join(
			p.answeredBy(ctx, "api.example.com/orders/1", "a"),
			p.answers(ctx, "api.example.com/closed/1", http.StatusUnauthorized),
			p.answers(ctx, "api.example.com/closed/1", http.StatusOK, "apikey", "key-of-alice"),
			p.answers(ctx, "api.example.com/other", http.StatusNotFound),
			p.answersTLS(ctx, "api.example.com", "/orders/1"),
		)
	}, consumer("bob"))
}

func (m *matrix) endpointChange(t *testing.T) {
	m.change(t, func(ctx context.Context, p *plane) error {
		return p.answeredBy(ctx, "api.example.com/orders/1", "b")
	}, serviceOn("orders", "api.example.com", "/orders", m.b))
}

func (m *matrix) routeChange(t *testing.T) {
	m.change(t, func(ctx context.Context, p *plane) error {
		return errors.Join(
			p.answeredBy(ctx, "api.example.com/orders/new/1", "b"),
			p.answers(ctx, "api.example.com/orders/1", http.StatusNotFound))
	}, routeOf("orders", "/new/*"))
	m.change(t, func(ctx context.Context, p *plane) error {
		return p.answeredBy(ctx, "api.example.com/orders/1", "b")
	}, routeOf("orders", "/*"))
}

// deletionAndRecreation brings back the very content that was deleted, twice.
func (m *matrix) deletionAndRecreation(t *testing.T) {
	there := []*musterv1.Change{
		serviceOn("again", "again.example.com", "", m.a), routeOf("again", "/*"), consumer("carol"), keyOf("carol", "key-of-carol"),
	}
	gone := []*musterv1.Change{
		remove(musterv1.Kind_KIND_ROUTE, "again"), remove(musterv1.Kind_KIND_SERVICE, "again"), remove(musterv1.Kind_KIND_CONSUMER, "carol"),
	}
	for round := range 3 {
		t.Run(fmt.Sprint("there ", round), func(t *testing.T) {
			m.change(t, func(ctx context.Context, p *plane) error {
				return errors.Join(
					p.answeredBy(ctx, "again.example.com/x", "a"),
					p.answers(ctx, "api.example.com/closed/1", http.StatusOK, "apikey", "key-of-carol"))
			}, there...)
		})
		t.Run(fmt.Sprint("gone ", round), func(t *testing.T) {
			m.change(t, func(ctx context.Context, p *plane) error {
				return errors.Join(
					p.answers(ctx, "again.example.com/x", http.StatusNotFound),
					p.answers(ctx, "api.example.com/closed/1", http.StatusUnauthorized, "apikey", "key-of-carol"))
			}, gone...)
		})
	}
}

// nack commits good changes with one that every Envoy refuses.
func (m *matrix) nack(t *testing.T) {
	revision := m.commitOnly(t,
		serviceOn("good-1", "good.example.com", "/1", m.a), routeOf("good-1", "/*"),
		refused("broken"),
		serviceOn("good-2", "good.example.com", "/2", m.b), routeOf("good-2", "/*"))
	m.prove(t, func(ctx context.Context, p *plane) error {
		dp, err := m.status(ctx, matrixGroup, p.id)
		if err != nil {
			return err
		}
		if dp.State != musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED || len(dp.Refusals) != 1 || dp.Refusals[0].ResourceName != "broken" {
			return fmt.Errorf("%s is %v with refusals %v, want NACKED because of broken", p.name, dp.State, dp.Refusals)
		}
		if dp.Revision != revision {
			return fmt.Errorf("%s has revision %d, want %d, the refused resource apart", p.name, dp.Revision, revision)
		}
		return errors.Join(p.answeredBy(ctx, "good.example.com/1/x", "a"), p.answeredBy(ctx, "good.example.com/2/x", "b"))
	})
	m.change(t, func(ctx context.Context, p *plane) error {
		dp, err := m.status(ctx, matrixGroup, p.id)
		if err != nil {
			return err
		}
		if dp.State != musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED || len(dp.Refusals) != 0 {
			return fmt.Errorf("%s is %v with refusals %v", p.name, dp.State, dp.Refusals)
		}
		return p.answeredBy(ctx, "good.example.com/1/x", "a")
	}, rawCluster(&clusterv3.Cluster{Name: "broken", ConnectTimeout: durationpb.New(time.Second)}))
}

// steady sends load through every Envoy until the function it returns is called,
// which demands that none of it failed.
func (m *matrix) steady(t *testing.T) (stop func()) {
	var requests []load.Request
	for _, p := range m.planes {
		requests = append(requests,
			load.Request{Name: p.name, Addr: p.gate.HTTP, Host: "api.example.com", Path: "/orders/1"},
			load.Request{Name: p.name + " key", Addr: p.gate.HTTP, Host: "api.example.com", Path: "/closed/1", Header: http.Header{"Apikey": {"key-of-alice"}}})
	}
	running := load.Start(t.Context(), 20*time.Millisecond, requests...)
	return func() {
		t.Helper()
		report := running.Stop()
		t.Logf("%d requests, the slowest took %v", report.Sent, report.Slowest)
		if report.Failed > 0 || report.Sent == 0 {
			t.Errorf("%d of %d requests failed: %v", report.Failed, report.Sent, report.Failures)
		}
	}
}

// restart ends all servers, with some time in which there is none.
func (m *matrix) restart(t *testing.T) {
	stop := m.steady(t)
	defer stop()
	for i, s := range m.cluster.Members {
		if i == 0 {
			s.Kill()
		} else if err := s.Stop(); err != nil {
			t.Errorf("%s: %v", s.ID, err)
		}
	}
	m.prove(t, func(ctx context.Context, p *plane) error { return p.answeredBy(ctx, "api.example.com/orders/1", "b") })
	for _, s := range m.cluster.Members {
		if err := s.Start(); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range m.cluster.Members {
		if err := m.cluster.Ready(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	m.change(t, func(ctx context.Context, p *plane) error {
		return errors.Join(p.answeredBy(ctx, "restarted.example.com/x", "a"), p.answeredBy(ctx, "api.example.com/orders/1", "b"))
	}, serviceOn("restarted", "restarted.example.com", "", m.a), routeOf("restarted", "/*"))
}

// failover kills one server after the other, so that every Envoy loses its own once.
func (m *matrix) failover(t *testing.T) {
	stop := m.steady(t)
	defer stop()
	for _, s := range m.cluster.Members {
		t.Run(s.ID+" ends", func(t *testing.T) {
			lost := 0
			for _, p := range m.planes {
				dp, err := m.status(t.Context(), matrixGroup, p.id)
				if err != nil {
					t.Fatal(err)
				}
				if dp.Server == s.ID {
					lost++
				}
			}
			t.Logf("%d of %d data planes hang on it", lost, len(m.planes))
			s.Kill()
			host := s.ID + ".example.com"
			// The first write may meet a cluster without a leader.
			var revision uint64
			if err := eventually(t.Context(), 20*time.Second, func() (err error) {
				revision, err = m.commit(t.Context(), matrixGroup, serviceOn(s.ID, host, "", m.b), routeOf(s.ID, "/*"))
				return err
			}); err != nil {
				t.Fatal(err)
			}
			if err := m.wait(t.Context(), matrixGroup, revision, len(m.planes)); err != nil {
				t.Error(err)
			}
			m.prove(t, func(ctx context.Context, p *plane) error { return p.answeredBy(ctx, host+"/x", "b") })
			if err := s.Start(); err != nil {
				t.Fatal(err)
			}
			if err := m.cluster.Ready(t.Context(), s); err != nil {
				t.Fatal(err)
			}
		})
	}
}
