//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/load"
)

// TestAKeyThatStaysWorksWhileConsumersChange drives each data plane with keys that
// stay, and without one, while other consumers come, go and change their keys, alone
// and many at once.
func TestAKeyThatStaysWorksWhileConsumersChange(t *testing.T) {
	const many, stay, rounds = 300, 6, 120
	a := startBackend(t, "a")
	s := newSite(t, 0)
	s.group(t, "keys")
	ctx := t.Context()
	guarded := func(id string, config map[string]any) *musterv1.Change {
		c := routeOf(id, "/*")
		c.GetPut().GetRoute().Plugins = map[string]*structpb.Struct{"key-auth": plugin(config)}
		return c
	}
	stable := func(i int) string { return fmt.Sprintf("a-key-that-stays-%d", i) }
	changes := []*musterv1.Change{
		serviceOn("usual", "usual.example.com", "", a), guarded("usual", nil),
		serviceOn("own", "own.example.com", "", a), guarded("own", map[string]any{"header": "authorization", "query": "token", "hide_credentials": true}),
	}
	for i := range stay {
		changes = append(changes, consumer(fmt.Sprint("stays-", i)), keyOf(fmt.Sprint("stays-", i), stable(i)))
	}
	rev, err := s.commit(ctx, "keys", changes...)
	if err != nil {
		t.Fatal(err)
	}
	planes := s.planes(t, "keys")
	if err := s.wait(ctx, "keys", rev, len(planes)); err != nil {
		t.Fatal(err)
	}
	var requests []load.Request
	for _, p := range planes {
		if err := p.settled(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range stay {
			requests = append(requests, load.Request{
				Name: fmt.Sprint(p.name, " header ", i), Addr: p.gate.HTTP, Host: "usual.example.com", Path: "/x", Header: http.Header{"Apikey": {stable(i)}},
			})
		}
		requests = append(requests,
			load.Request{Name: p.name + " query", Addr: p.gate.HTTP, Host: "usual.example.com", Path: "/x?apikey=" + stable(0)},
			load.Request{Name: p.name + " bearer", Addr: p.gate.HTTP, Host: "own.example.com", Path: "/x", Header: http.Header{"Authorization": {"Bearer " + stable(1)}}},
			load.Request{Name: p.name + " own query", Addr: p.gate.HTTP, Host: "own.example.com", Path: "/x?token=" + stable(2)},
			load.Request{Name: p.name + " no key", Addr: p.gate.HTTP, Host: "usual.example.com", Path: "/x", Want: http.StatusUnauthorized},
			load.Request{Name: p.name + " unknown key", Addr: p.gate.HTTP, Host: "own.example.com", Path: "/x?token=nobody-s", Want: http.StatusUnauthorized},
		)
	}
	running := load.Start(ctx, 10*time.Millisecond, requests...)
	commit := func(changes ...*musterv1.Change) {
		t.Helper()
		if rev, err = s.commit(ctx, "keys", changes...); err != nil {
			t.Fatal(err)
		}
	}
	name := func(i int) string { return fmt.Sprintf("guest-%03d", i) }
	for round := range rounds {
		i := round % 20
		switch round % 4 {
		case 0:
			commit(consumer(name(i)), keyOf(name(i), fmt.Sprintf("the-key-of-%s-in-%d", name(i), round)))
		case 1:
			commit(keyOf(name(i-1), fmt.Sprintf("a-changed-key-in-%d", round)))
		case 2:
			commit(remove(musterv1.Kind_KIND_CONSUMER, name(i-2)))
		case 3:
			commit(consumer(name(i)), keyOf(name(i), fmt.Sprintf("the-key-of-%s-in-%d", name(i), round)))
		}
		if round%15 == 14 {
			var all []*musterv1.Change
			for n := range many {
				all = append(all, consumer(name(100+n)), keyOf(name(100+n), fmt.Sprintf("many-%d-%d", n, round)))
			}
			commit(all...)
		}
		if round%5 == 0 {
			if err := s.wait(ctx, "keys", rev, len(planes)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := s.wait(ctx, "keys", rev, len(planes)); err != nil {
		t.Error(err)
	}
	report := running.Stop()
	t.Logf("%d requests", report.Sent)
	if report.Failed > 0 {
		t.Errorf("%d of %d failed: %q", report.Failed, report.Sent, report.Failures[:min(5, len(report.Failures))])
	}
	if report.Sent < 1000 {
		t.Errorf("only %d requests were sent", report.Sent)
	}
	for _, p := range planes {
		if err := p.answers(ctx, "usual.example.com/x", 200, "apikey", fmt.Sprintf("many-%d-%d", many-1, rounds-1)); err != nil {
			t.Error(err)
		}
	}
}

// TestAGlobalRuleForKeysComesAndGoesWithoutARefusedKey switches the rule on and off
// while consumers change: a request with a key that stays passes either way.
func TestAGlobalRuleForKeysComesAndGoesWithoutARefusedKey(t *testing.T) {
	const rounds = 60
	a := startBackend(t, "a")
	s := newSite(t, 0)
	s.group(t, "rule")
	ctx := t.Context()
	changes := []*musterv1.Change{serviceOn("open", "open.example.com", "", a), routeOf("open", "/*")}
	for i := range 4 {
		changes = append(changes, consumer(fmt.Sprint("stays-", i)), keyOf(fmt.Sprint("stays-", i), fmt.Sprint("a-key-that-stays-", i)))
	}
	rev, err := s.commit(ctx, "rule", changes...)
	if err != nil {
		t.Fatal(err)
	}
	planes := s.planes(t, "rule")
	if err := s.wait(ctx, "rule", rev, len(planes)); err != nil {
		t.Fatal(err)
	}
	var requests []load.Request
	for _, p := range planes {
		if err := p.settled(ctx); err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			requests = append(requests, load.Request{
				Name: fmt.Sprint(p.name, " ", i), Addr: p.gate.HTTP, Host: "open.example.com", Path: "/x", Header: http.Header{"Apikey": {fmt.Sprint("a-key-that-stays-", i)}},
			})
		}
	}
	running := load.Start(ctx, 5*time.Millisecond, requests...)
	rule := put(&musterv1.Resource{Kind: &musterv1.Resource_GlobalRule{GlobalRule: &musterv1.GlobalRule{
		Id: "keys", Plugins: map[string]*structpb.Struct{"key-auth": plugin(nil)}}}})
	for round := range rounds {
		toggle := rule
		if round%2 == 1 {
			toggle = remove(musterv1.Kind_KIND_GLOBAL_RULE, "keys")
		}
		for _, change := range [][]*musterv1.Change{
			{consumer("guest"), keyOf("guest", fmt.Sprint("the-guests-key-in-", round))},
			{toggle},
			{remove(musterv1.Kind_KIND_CONSUMER, "guest")},
		} {
			if rev, err = s.commit(ctx, "rule", change...); err != nil {
				t.Fatal(err)
			}
		}
		// On and off by turns with and without a pause between.
		if round%4 >= 2 {
			continue
		}
		if err := s.wait(ctx, "rule", rev, len(planes)); err != nil {
			t.Fatal(err)
		}
		want := map[int]int{0: http.StatusUnauthorized, 1: http.StatusOK}[round%2]
		for _, p := range planes {
			if err := p.answers(ctx, "open.example.com/x", want); err != nil {
				t.Error(err)
			}
		}
	}
	if err := s.wait(ctx, "rule", rev, len(planes)); err != nil {
		t.Error(err)
	}
	report := running.Stop()
	t.Logf("%d requests", report.Sent)
	if report.Failed > 0 {
		t.Errorf("%d of %d failed: %q", report.Failed, report.Sent, report.Failures[:min(5, len(report.Failures))])
	}
	if report.Sent < 500 {
		t.Errorf("only %d requests were sent", report.Sent)
	}
}

// TestEnvoyTellsItsConfigurationWithAndWithoutKeys reads the whole dump of each Envoy:
// shards that were asked for and are not there must not be in its way.
func TestEnvoyTellsItsConfigurationWithAndWithoutKeys(t *testing.T) {
	s := newSite(t, 0)
	s.group(t, "dump")
	ctx := t.Context()
	planes := s.planes(t, "dump")
	for _, change := range []*musterv1.Change{consumer("alice"), keyOf("alice", "a-key"), remove(musterv1.Kind_KIND_CONSUMER, "alice")} {
		for _, p := range planes {
			if p.envoy == nil {
				continue
			}
			if err := p.settled(ctx); err != nil {
				t.Fatal(err)
			}
			resp, err := http.Get("http://" + p.envoy.Addr + "/config_dump?include_eds")
			if err != nil {
				t.Fatalf("%s: %v", p.name, err)
			}
			_ = resp.Body.Close()
			if resp.StatusCode != http.StatusOK {
				t.Errorf("%s: %s", p.name, resp.Status)
			}
		}
		rev, err := s.commit(ctx, "dump", change)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.wait(ctx, "dump", rev, len(planes)); err != nil {
			t.Fatal(err)
		}
	}
}
