//go:build e2e

package e2e

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/e2e/behaviour"
)

// TestBehaviour runs every case of the behaviour suite on every kind of data
// plane. A case has a group of its own, and its data planes share the group, so
// that what one answers the other must answer too.
func TestBehaviour(t *testing.T) {
	cases, err := behaviour.Load("behaviour/testdata")
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, 0)
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			runCase(t, s, c)
		})
	}
}

func runCase(t *testing.T, s *site, c *behaviour.Case) {
	group := strings.ReplaceAll(c.Name, "_", "-")
	w, err := behaviour.NewWorld(c, authority)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	first, err := w.Expand(c.Configs[behaviour.FirstConfig])
	if err != nil {
		t.Fatal(err)
	}
	s.group(t, group)
	revision, err := s.sync(t.Context(), group, first)
	if err != nil {
		t.Fatal(err)
	}
	planes := s.planes(t, group)
	if err := s.wait(t.Context(), group, revision, len(planes)); err != nil {
		// The steps are run all the same: they tell which data plane is not there.
		t.Error(err)
	}
	current := first
	for _, p := range planes {
		t.Run(p.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
			defer cancel()
			apply := func(ctx context.Context, config string) error {
				revision, err := s.sync(ctx, group, config)
				if err != nil {
					return err
				}
				current = config
				if err := s.wait(ctx, group, revision, len(planes)); err != nil {
					return err
				}
				return p.settled(ctx)
			}
			if current != first {
				if err := apply(ctx, first); err != nil {
					t.Fatal(err)
				}
			}
			if err := p.settled(ctx); err != nil {
				t.Fatal(err)
			}
			if err := c.Run(ctx, w, p.gate, apply); err != nil {
				t.Errorf("%s\n%v", c.Promise, err)
			}
		})
	}
}
