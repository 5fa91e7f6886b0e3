package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/xds"
)

func TestWhatAProxylessClientCannotHonourIsShownWithIt(t *testing.T) {
	p := newPair(t)
	asked := ""
	warn := func(group string, listeners []string) []string {
		asked = group + ": " + strings.Join(listeners, " ")
		var all []string
		for _, l := range listeners {
			for i := range len(l) { // as many as the name is long
				all = append(all, fmt.Sprintf("%s %d", l, i))
			}
		}
		return all
	}
	// Only the first server has what the warnings are made of.
	p.a.cfg.Warn = warn
	p.a.existing("g").warn = warn
	grpc := func(id uint64, listeners ...string) *dp {
		d := connect(p.a, id, "shop", func(s *xds.Stream) { s.UserAgent = "gRPC Go/1.85.0" })
		p.a.Subscribed(d.s, xds.Subscribed{TypeURL: compile.ListenerType, Names: len(listeners), Listeners: listeners})
		return d
	}
	check := func(want ...string) {
		t.Helper()
		p.tell()
		for name, r := range map[string]*Registry{"its own server": p.a, "another": p.b} {
			if got := one(t, r, "shop").GetWarnings(); !slices.Equal(got, want) {
				t.Errorf("%s shows %q, want %q", name, got, want)
			}
		}
	}
	first := grpc(1, "b")
	check("b 0")
	second := grpc(2, "a", "b") // a stream for each target
	check("a 0", "b 0")
	if asked != "g: a b" {
		t.Errorf("asked for %q", asked)
	}
	first.disconnect()
	second.disconnect()
	check()

	long := strings.Repeat("x", warningLimit+7)
	d := grpc(3, long)
	if got := one(t, p.a, "shop").GetWarnings(); len(got) != warningLimit+1 || got[warningLimit] != "and 7 more" {
		t.Errorf("%d warnings, the last %q", len(got), got[len(got)-1])
	}
	d.disconnect()
	connect(p.a, 4, "envoy").subscribe(compile.ListenerType)
	if got := one(t, p.a, "envoy").GetWarnings(); len(got) > 0 {
		t.Errorf("an Envoy is warned: %q", got)
	}
}
