//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/e2e/behaviour"
	"github.com/musterhq/muster/test/e2e/control"
	"github.com/musterhq/muster/test/e2e/grpcclient"
)

// below makes what the test starts next hang on a relay.
func (s *site) below(r *control.Relay) *site {
	api := *s.API
	api.XDSAddrs = []string{r.XDSAddr}
	dev := *s.Dev
	dev.API = &api
	return &site{Dev: &dev}
}

func startRelay(t *testing.T, start func() (*control.Relay, error)) *control.Relay {
	t.Helper()
	r, err := start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.Kill()
		if t.Failed() {
			t.Logf("%s said:\n%s", r.ID, tailOf(r.Output(), 3000))
		}
	})
	return r
}

// TestEveryKindOfDataPlaneHangsOnARelay puts Envoys of both protocols, the embedded
// gateway and a gRPC client below two relays in a chain, and changes a service: each
// serves the change, and the centre sees the whole tree. Then the server goes away.
func TestEveryKindOfDataPlaneHangsOnARelay(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a, b := startBackend(t, "a"), startBackend(t, "b")
	s := newSite(t, 0)
	dir := t.TempDir()
	region := startRelay(t, func() (*control.Relay, error) { return control.StartRelay(muster, dir, "region", s.XDSAddr()) })
	local := startRelay(t, func() (*control.Relay, error) { return control.StartRelay(muster, dir, "local", region.XDSAddr) })
	below := s.below(local)
	if _, err := s.commit(ctx, "default", serviceOn("shop", "shop.example.com", "/shop", a), routeOf("shop", "/*"), grpcService("health", startHealth(t, "h")), routeOf("health", "/grpc.health.v1.Health/*")); err != nil {
		t.Fatal(err)
	}
	delta := envoys[0]
	sotw := delta
	sotw.SotW, sotw.PerType = true, false
	delta.SotW, delta.PerType = false, false
	planes := []*plane{below.startEnvoy(t, "default", delta), below.startEnvoy(t, "default", sotw), below.startGateway(t, "default")}
	var calls *grpcclient.Run
	if len(clients) > 0 {
		calls = s.startClient(t, clients[0], "default", "grpc-below", "health", func(cfg *grpcclient.Config) {
			cfg.Bootstrap = strings.ReplaceAll(cfg.Bootstrap, s.XDSAddr(), local.XDSAddr)
		})
	}
	serves := func(backend string) {
		t.Helper()
		for _, p := range planes {
			if err := eventually(ctx, 30*time.Second, func() error { return p.answers(ctx, "shop.example.com/shop/x", 200) }); err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
		}
		if calls != nil {
			answered(t, calls, calls.Mark(), backend)
		}
	}
	serves("h")
	rev, err := s.commit(ctx, "default", serviceOn("shop", "shop.example.com", "/shop", b))
	if err != nil {
		t.Fatal(err)
	}
	least := len(planes)
	if calls != nil {
		least++
	}
	if err := s.wait(ctx, "default", rev, least); err != nil {
		t.Fatal(err)
	}

	out, err := s.CLI(ctx, "", "dp", "status", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var tree []struct {
		ID, State, Relay, Server string
		Hops                     []struct{ Relay string }
	}
	if err := json.Unmarshal([]byte(out), &tree); err != nil {
		t.Fatal(err)
	}
	if len(tree) != least {
		t.Errorf("%d data planes are seen, want %d:\n%s", len(tree), least, out)
	}
	for _, dp := range tree {
		if dp.Relay != "local" || len(dp.Hops) != 2 || dp.Hops[0].Relay != "region" || dp.State != "SYNCED" {
			t.Errorf("%s is seen as %+v", dp.ID, dp)
		}
	}
	out, err = s.CLI(ctx, "", "dp", "status")
	if err != nil || !strings.Contains(out, "region > local") {
		t.Errorf("dp status shows no way: %v\n%s", err, out)
	}

	// Without the server, and with the relay in the middle killed and started again.
	s.Kill()
	region.Kill()
	serves("h")
	if err := region.Start(); err != nil {
		t.Fatal(err)
	}
	local.Kill()
	if err := local.Start(); err != nil {
		t.Fatal(err)
	}
	late := below.startGateway(t, "default")
	if err := eventually(ctx, 30*time.Second, func() error { return late.answers(ctx, "shop.example.com/shop/x", 200) }); err != nil {
		t.Errorf("a gateway that starts while the server is gone: %v", err)
	}
	serves("h")
}

// coldStart is how long a data plane may take to serve without any control plane.
const coldStart = 2 * time.Second

// TestColdStartWithoutAControlPlane ends everything and starts only what stands at the
// edge: an Envoy with its agent, and an embedded gateway alone.
func TestColdStartWithoutAControlPlane(t *testing.T) {
	ctx := t.Context()
	a := startBackend(t, "a")
	s := newSite(t, 0)
	dir := t.TempDir()
	if _, err := s.commit(ctx, "default", serviceOn("shop", "shop.example.com", "/shop", a), routeOf("shop", "/*")); err != nil {
		t.Fatal(err)
	}
	agent := startRelay(t, func() (*control.Relay, error) {
		return control.StartAgent(muster, dir, "default", "edge-1", s.XDSAddr())
	})
	below := s.below(agent)
	envoy := envoys[0]
	envoy.SotW, envoy.PerType = false, false
	cache := t.TempDir()
	startGateway := func(t *testing.T) *plane {
		t.Helper()
		g, err := s.StartGateway("default", "alone", "--cache-dir", cache)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(g.Kill)
		return &plane{name: "gateway", gate: behaviour.Gate{HTTP: g.HTTP, HTTPS: g.HTTPS}}
	}
	t.Run("with a control plane", func(t *testing.T) {
		for _, p := range []*plane{below.startEnvoy(t, "default", envoy), startGateway(t)} {
			if err := eventually(ctx, 30*time.Second, func() error { return p.answers(ctx, "shop.example.com/shop/x", 200) }); err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
		}
	})
	s.Kill()
	agent.Kill()

	// The machine may have other things to do: the best of some tries counts.
	best := func(t *testing.T, start func(t *testing.T) *plane) {
		t.Helper()
		least := time.Hour
		for try := 0; try < 5 && least > coldStart; try++ {
			t.Run(fmt.Sprint("try ", try), func(t *testing.T) {
				began := time.Now()
				p := start(t)
				if err := poll(ctx, 30*time.Second, func() error { return p.answers(ctx, "shop.example.com/shop/x", 200) }); err != nil {
					t.Fatalf("%s: %v", p.name, err)
				}
				least = min(least, time.Since(began))
			})
		}
		t.Logf("serving %v after its start", least.Round(time.Millisecond))
		if least > coldStart {
			t.Errorf("serving %v after its start, want %v", least, coldStart)
		}
	}
	t.Run("the gateway alone", func(t *testing.T) { best(t, startGateway) })
	t.Run("an Envoy through its agent", func(t *testing.T) {
		best(t, func(t *testing.T) *plane {
			if err := agent.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(agent.Kill)
			return below.startEnvoy(t, "default", envoy)
		})
	})
}

// poll is eventually that looks more often.
func poll(ctx context.Context, timeout time.Duration, try func() error) error {
	var err error
	for deadline := time.Now().Add(timeout); time.Now().Before(deadline) && ctx.Err() == nil; time.Sleep(5 * time.Millisecond) {
		if err = try(); err == nil {
			return nil
		}
	}
	return err
}
