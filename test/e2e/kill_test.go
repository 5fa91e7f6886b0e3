//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/load"
)

// TestKilledServerLosesNoAcknowledgedWrite kills `muster dev` with -9 in the
// middle of 1,000 writes. Envoy must serve throughout and never move back, and
// after the restart every write that was acknowledged must be there.
func TestKilledServerLosesNoAcknowledgedWrite(t *testing.T) {
	const (
		writes  = 1000
		writers = 4
	)
	a := startBackend(t, "a")
	s := newSite(t, 1)
	ctx := t.Context()
	if _, err := s.commit(ctx, "default", serviceOn("stable", "stable.example.com", "/stable", a), routeOf("stable", "/*")); err != nil {
		t.Fatal(err)
	}
	p := s.startEnvoy(t, "default", envoys[0])
	if err := eventually(ctx, 30*time.Second, func() error { return p.answers(ctx, "stable.example.com/stable/x", 200) }); err != nil {
		t.Fatal(err)
	}
	running := load.Start(ctx, 10*time.Millisecond, load.Request{
		Name: p.name, Addr: p.gate.HTTP, Host: "stable.example.com", Path: "/stable/x",
	})
	watched := watchVersions(ctx, p)

	// Each write puts one of 50 services with a description that counts up, so
	// that what is stored tells the last write that arrived.
	var next, acknowledged atomic.Int64
	var mu sync.Mutex
	highest := map[string]int64{} // by service, the last write acknowledged
	var revision uint64
	var down sync.WaitGroup
	killed := make(chan struct{})
	write := func(ctx context.Context, n int64) error {
		id := fmt.Sprintf("w%d-%d", n%writers, n/writers%50)
		ch := serviceOn(id, "writes.example.com", "/"+id, a)
		ch.GetPut().GetService().Desc = fmt.Sprint(n)
		rev, err := s.commit(ctx, "default", ch)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		highest[id], revision = n, max(revision, rev)
		acknowledged.Add(1)
		return nil
	}
	for w := range int64(writers) {
		down.Go(func() {
			for n := w; n < writes; n += writers {
				next.Add(1)
				call, cancel := context.WithTimeout(ctx, 5*time.Second)
				err := write(call, n)
				cancel()
				if err != nil {
					select {
					case <-killed:
					default:
						t.Errorf("write %d failed before the kill: %v", n, err)
					}
					return
				}
			}
		})
	}
	for acknowledged.Load() < writes*2/5 {
		time.Sleep(time.Millisecond)
		if t.Failed() {
			t.FailNow()
		}
	}
	close(killed)
	s.Kill()
	down.Wait()
	done := acknowledged.Load()
	if done >= writes {
		t.Fatal("all writes were done before the kill")
	}
	t.Logf("killed after %d acknowledged writes of %d begun", done, next.Load())

	// Without a control plane Envoy goes on.
	time.Sleep(2 * time.Second)
	if err := s.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		resp, err := s.Admin.ListResources(ctx, &musterv1.ListResourcesRequest{Group: "default", Kinds: []musterv1.Kind{musterv1.Kind_KIND_SERVICE}})
		if err != nil {
			t.Fatal(err)
		}
		stored := map[string]int64{}
		for _, r := range resp.Resources {
			var n int64
			if _, err := fmt.Sscan(r.Resource.GetService().Desc, &n); err == nil {
				stored[r.Resource.GetService().Id] = n
			}
		}
		mu.Lock()
		defer mu.Unlock()
		lost := 0
		for id, n := range highest {
			if stored[id] < n {
				lost++
				t.Errorf("%s: write %d was acknowledged, %d is stored", id, n, stored[id])
			}
		}
		if resp.Revision < revision {
			t.Errorf("the group is at revision %d, %d was acknowledged", resp.Revision, revision)
		}
		t.Logf("%d services hold every acknowledged write, the group is at revision %d", len(highest)-lost, resp.Revision)
	}
	check()

	// The rest of the writes.
	for n := done; n < writes; n++ {
		if err := write(ctx, n); err != nil {
			t.Fatalf("write %d after the restart: %v", n, err)
		}
	}
	check()
	if err := s.wait(ctx, "default", revision, 2); err != nil {
		t.Error(err)
	}
	if err := watched(); err != nil {
		t.Error(err)
	}
	report := running.Stop()
	t.Logf("%d requests, the slowest took %v", report.Sent, report.Slowest)
	if report.Failed > 0 || report.Sent == 0 {
		t.Errorf("%d of %d requests failed: %v", report.Failed, report.Sent, report.Failures)
	}
}

// watchVersions reads an Envoy's /config_dump over and over. The function it
// returns stops that and tells whether any resource ever moved back.
func watchVersions(ctx context.Context, p *plane) func() error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var backwards []error
	samples := 0
	wg.Go(func() {
		held := map[string]version{}
		for ctx.Err() == nil {
			now, err := p.versions(ctx)
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				backwards = append(backwards, err)
				return
			}
			samples++
			for name, v := range now {
				if old, ok := held[name]; ok && v.before(old) {
					backwards = append(backwards, fmt.Errorf("%s went from %v back to %v", name, old, v))
				}
			}
			maps.Copy(held, now)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	})
	return func() error {
		cancel()
		wg.Wait()
		if samples < 10 {
			return fmt.Errorf("only %d samples of /config_dump", samples)
		}
		return errors.Join(backwards...)
	}
}

// versions returns the version of every resource that Envoy serves with.
func (p *plane) versions(ctx context.Context) (map[string]version, error) {
	dump, err := p.envoy.ConfigDump(ctx)
	if err != nil {
		return nil, err
	}
	all := map[string]version{}
	for _, r := range dump {
		if r.Version == "" || r.State != "active" {
			continue
		}
		v, err := parseVersion(r.Version)
		if err != nil {
			return nil, fmt.Errorf("%s %s: %w", r.Type, r.Name, err)
		}
		all[r.Type+" "+r.Name] = v
	}
	if len(all) == 0 {
		return nil, errors.New("Envoy's config dump holds no version")
	}
	return all, nil
}
