package state

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// TestGroupsNeverMix makes groups and resources whose ids and prefixes are
// drawn from few, nasty pieces, and checks that whatever was accepted, every
// path leads to one resource of one group, and every group shows its own
// resources and no others.
func TestGroupsNeverMix(t *testing.T) {
	piece := rapid.SampledFrom([]string{"a", "b", "ab", "service", "route", "credential", ".", "..", "", "a/b", "service/a", "a\x00", "gateway_groups", "A", "a.b", "%2F", "ä"})
	prefix := rapid.Custom(func(t *rapid.T) string {
		return rapid.SampledFrom([]string{"", "/", "//"}).Draw(t, "lead") +
			strings.Join(rapid.SliceOfN(piece, 1, 4).Draw(t, "pieces"), "/") +
			rapid.SampledFrom([]string{"", "", "/"}).Draw(t, "end")
	})
	rapid.Check(t, func(t *rapid.T) {
		s := New()
		owner := map[string]string{} // path -> group
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "what") {
			case 0, 1:
				g := &musterv1.Group{Id: piece.Draw(t, "id")}
				if rapid.Bool().Draw(t, "own prefix") {
					g.ControlPlaneKeyPrefix = prefix.Draw(t, "prefix")
				}
				s, _ = s.Apply(command(g))
			case 2:
				id := piece.Draw(t, "id")
				next, result := s.Apply(command(&musterv1.DeleteGroupCommand{Id: id, Force: true}))
				if result.Err == nil {
					for path, group := range owner {
						if group == id {
							delete(owner, path)
						}
					}
				}
				s = next
			default:
				group, id := piece.Draw(t, "group"), piece.Draw(t, "id")
				var r *musterv1.Resource
				switch rapid.IntRange(0, 3).Draw(t, "kind") {
				case 0:
					r = service(id, group)
				case 1:
					r = consumer(id)
				case 2:
					r = credential(id, piece.Draw(t, "credential"))
				default:
					r = route(id, piece.Draw(t, "service"), group)
				}
				next, result := s.Apply(command(commit(group, put(r))))
				s = next
				if result.Err == nil {
					g, _ := s.Group(group)
					path := g.Path(resource.KeyOf(r))
					if other, taken := owner[path]; taken && other != g.ID() {
						t.Fatalf("%s belongs to group %q and to %q", path, other, g.ID())
					}
					owner[path] = g.ID()
				}
			}
		}
		seen := map[string]bool{}
		for g := range s.Groups() {
			for e := range g.View().Entries() {
				path := g.Path(e.Key)
				if owner[path] != g.ID() {
					t.Fatalf("group %q shows %s of %q", g.ID(), path, owner[path])
				}
				if seen[path] {
					t.Fatalf("%s is there twice", path)
				}
				seen[path] = true
				fg, fe, found := s.Lookup(path)
				if !found || fg != g || fe != e {
					t.Fatalf("%s leads elsewhere", path)
				}
				for other := range s.Groups() {
					if other != g {
						if x, found := other.View().Get(e.Key); found && x == e {
							t.Fatalf("groups %q and %q share %s", g.ID(), other.ID(), e.Key)
						}
					}
				}
			}
		}
		if len(seen) != len(owner) {
			t.Fatalf("%d resources of %d", len(seen), len(owner))
		}
	})
}

func TestLookupTakesOnlyThePathItself(t *testing.T) {
	s := do(t, base(t), &musterv1.Group{Id: "gg"})
	for path, found := range map[string]bool{
		"/gateway_groups/g/service/a":        true,
		"/gateway_groups/g/credential/al/k1": true,
		"/gateway_groups/g/services/a":       false,
		"/gateway_groups/g/Service/a":        false,
		"/gateway_groups/gg/service/a":       false,
		"/gateway_groups/g/../g/service/a":   false,
		"/gateway_groups/g//service/a":       false,
		"/gateway_groups/g/service/a/":       false,
		"/gateway_groups/gg/../g/service/a":  false,
		"/gateway_groups/g":                  false,
		"":                                   false,
	} {
		if _, _, got := s.Lookup(path); got != found {
			t.Errorf("%q: found %v", path, got)
		}
	}
}

func TestAViewHasNoWayToAnotherGroup(t *testing.T) {
	s := do(t, New(), &musterv1.Group{Id: "a"}, &musterv1.Group{Id: "b"},
		commit("a", put(service("only-a", ""))), commit("b", put(service("only-b", ""))))
	v := group(t, s, "a").View()
	for _, id := range []string{"only-b", "../b/service/only-b", "/gateway_groups/b/service/only-b", "only-a/../../../b/service/only-b"} {
		for kind := range musterv1.Kind_name {
			if e, found := v.Get(resource.Key{Kind: musterv1.Kind(kind), ID: id}); found {
				t.Errorf("found %v under %q", e.Key, id)
			}
		}
	}
	if fmt.Sprint(keys(v)) != "service/only-a" {
		t.Errorf("group a shows %s", keys(v))
	}
}
