//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/test/e2e/control"
)

// seenPlane is what `muster dp status -o json` shows of a data plane.
type seenPlane struct {
	ID, State, Relay, Server string
	Revision                 json.Number
	Hops                     []struct {
		Relay    string
		Revision json.Number
		Lag      string
	}
	Refusals []struct{ Detail, Author string }
}

// TestTheCommandLineShowsEachHop looks at an Envoy below two relays from the centre:
// whole, with the lower relay stopped, and when the Envoy refuses something.
func TestTheCommandLineShowsEachHop(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	a := startBackend(t, "a")
	s := newSite(t, 0)
	dir := t.TempDir()
	region := startRelay(t, func() (*control.Relay, error) { return control.StartRelay(muster, dir, "region", s.XDSAddr()) })
	local := startRelay(t, func() (*control.Relay, error) { return control.StartRelay(muster, dir, "local", region.XDSAddr) })
	delta := envoys[0]
	delta.SotW, delta.PerType = false, false
	rev, err := s.commit(ctx, "default", serviceOn("shop", "shop.example.com", "/shop", a), routeOf("shop", "/*"))
	if err != nil {
		t.Fatal(err)
	}
	p := s.below(local).startEnvoy(t, "default", delta)
	if err := s.wait(ctx, "default", rev, 1); err != nil {
		t.Fatal(err)
	}
	var seen seenPlane
	until := func(what string, is func() bool) {
		t.Helper()
		if err := eventually(ctx, 20*time.Second, func() error {
			out, err := s.CLI(ctx, "", "dp", "status", "-o", "json")
			if err != nil {
				return err
			}
			var all []seenPlane
			if err := json.Unmarshal([]byte(out), &all); err != nil {
				return err
			}
			if len(all) != 1 {
				return fmt.Errorf("%d data planes are seen", len(all))
			}
			if seen = all[0]; !is() {
				return fmt.Errorf("seen is\n%s", out)
			}
			return nil
		}); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	human := func(want ...string) {
		t.Helper()
		out, err := s.CLI(ctx, "", "dp", "status")
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range want {
			if !strings.Contains(out, w) {
				t.Errorf("dp status does not show %q:\n%s", w, out)
			}
		}
	}
	at := func(hop int, relay string, rev uint64, lags bool) bool {
		h := seen.Hops[hop]
		return h.Relay == relay && h.Revision.String() == fmt.Sprint(rev) && (h.Lag != "") == lags
	}
	until("all of it is there", func() bool {
		return seen.ID == p.id && seen.State == "SYNCED" && seen.Relay == "local" && len(seen.Hops) == 2 &&
			at(0, "region", rev, false) && at(1, "local", rev, false)
	})
	human("region > local")

	// The lower relay is stopped, as a process that hangs: the lag is its.
	if err := syscall.Kill(local.Pid(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	next, err := s.commit(ctx, "default", serviceOn("second", "shop.example.com", "/second", a), routeOf("second", "/*"))
	if err != nil {
		t.Fatal(err)
	}
	until("the lower relay lags", func() bool {
		return seen.State == "STALE" && seen.Relay == "local" && len(seen.Hops) == 2 &&
			at(0, "region", next, false) && at(1, "local", rev, true)
	})
	human(fmt.Sprintf("r%d/%d", rev, next))
	if err := syscall.Kill(local.Pid(), syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := s.wait(ctx, "default", next, 1); err != nil {
		t.Fatal(err)
	}

	// What the Envoy refuses is told with its words, object, author and revision.
	bad, err := s.commit(ctx, "default", refused("broken"))
	if err != nil {
		t.Fatal(err)
	}
	until("the refusal is told", func() bool {
		return seen.State == "NACKED" && len(seen.Refusals) == 1 && strings.Contains(seen.Refusals[0].Detail, "ORIGINAL_DST") && seen.Refusals[0].Author != "" &&
			at(0, "region", bad, false) && at(1, "local", bad, false)
	})
	human(p.id+" refused xds_resource/broken", fmt.Sprintf("(r%d by ", bad), "ORIGINAL_DST")
}
