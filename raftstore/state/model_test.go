package state

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// naive is the state machine written the obvious way: maps that are copied.
type naive struct {
	groups map[string]*naiveGroup
	last   map[string]uint64 // revision of deleted groups
}

type naiveGroup struct {
	revision uint64
	limit    int
	now      content
	was      map[uint64]content // by revision, the first one included
	oldest   uint64
}

type content map[string]string // key -> what distinguishes the resource

func fingerprint(r *musterv1.Resource) string {
	switch k := r.GetKind().(type) {
	case *musterv1.Resource_Service:
		return k.Service.GetDesc()
	case *musterv1.Resource_Route:
		return k.Route.GetServiceId() + "|" + k.Route.GetDesc()
	}
	return ""
}

// apply returns whether the transaction is accepted.
func (g *naiveGroup) apply(changes []*musterv1.Change) bool {
	next := maps.Clone(g.now)
	seen := map[string]bool{}
	swallowed := false // a put by a deletion beside it
	drop := func(belongs func(k, v string) bool) {
		for k, v := range next {
			if belongs(k, v) {
				delete(next, k)
				swallowed = swallowed || seen[k]
			}
		}
	}
	for _, c := range changes {
		key := resource.KeyOf(c.GetPut()).String()
		if c.GetPut() == nil {
			key = resource.KeyFromProto(c.GetDelete()).String()
		}
		if seen[key] {
			return false
		}
		seen[key] = true
		if c.GetPut() != nil {
			next[key] = fingerprint(c.GetPut())
			continue
		}
		_, before := g.now[key]
		if _, there := next[key]; !there && !before {
			return false
		}
		delete(next, key)
		if id, ok := strings.CutPrefix(key, "service/"); ok {
			drop(func(k, v string) bool { return strings.HasPrefix(k, "route/") && strings.HasPrefix(v, id+"|") })
		}
		if name, ok := strings.CutPrefix(key, "consumer/"); ok {
			drop(func(k, _ string) bool { return strings.HasPrefix(k, "credential/"+name+"/") })
		}
	}
	if swallowed {
		return false
	}
	for k, v := range next {
		if strings.HasPrefix(k, "route/") {
			service, _, _ := strings.Cut(v, "|")
			if _, there := next["service/"+service]; service != "" && !there {
				return false
			}
		}
		if rest, ok := strings.CutPrefix(k, "credential/"); ok {
			name, _, _ := strings.Cut(rest, "/")
			if _, there := next["consumer/"+name]; !there {
				return false
			}
		}
	}
	g.become(next)
	return true
}

func (g *naiveGroup) become(next content) {
	if maps.Equal(next, g.now) {
		return
	}
	g.now = next
	g.revision++
	g.was[g.revision] = next
	for g.revision-g.oldest > uint64(g.limit) {
		delete(g.was, g.oldest)
		g.oldest++
	}
}

func contentOf(v View) content {
	c := content{}
	for e := range v.Entries() {
		c[e.Key.String()] = fingerprint(e.Resource)
	}
	return c
}

func drawChange(t *rapid.T) *musterv1.Change {
	id := rapid.SampledFrom([]string{"a", "ab", "b", "c"}).Draw(t, "id")
	desc := rapid.SampledFrom([]string{"", "x", "y"}).Draw(t, "desc")
	var r *musterv1.Resource
	switch rapid.IntRange(0, 4).Draw(t, "kind") {
	case 0:
		r = service(id, desc)
	case 1, 2:
		r = route(id, rapid.SampledFrom([]string{"", "a", "ab", "b"}).Draw(t, "service"), desc)
	case 3:
		r = consumer(id)
	default:
		r = credential(id, rapid.SampledFrom([]string{"k1", "k2"}).Draw(t, "credential"))
	}
	if rapid.IntRange(0, 3).Draw(t, "delete") == 0 {
		return &musterv1.Change{Action: &musterv1.Change_Delete{Delete: resource.KeyOf(r).Proto()}}
	}
	return put(r)
}

func TestTheStateMachineDoesWhatTheObviousOneDoes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s, model := New(), naive{map[string]*naiveGroup{}, map[string]uint64{}}
		restored := s // a second server, which starts over from snapshots
		for range rapid.IntRange(1, 50).Draw(t, "steps") {
			id := rapid.SampledFrom([]string{"g", "h"}).Draw(t, "group")
			m := model.groups[id]
			var cmd *musterv1.Command
			accepted := m != nil
			switch rapid.IntRange(0, 12).Draw(t, "what") {
			case 0:
				limit := rapid.IntRange(1, 6).Draw(t, "limit")
				cmd = command(&musterv1.Group{Id: id, HistoryLimit: uint32(limit)})
				accepted = m == nil
				if accepted {
					first := uint64(0)
					if last := model.last[id]; last > 0 {
						first = last + 1
					}
					model.groups[id] = &naiveGroup{revision: first, limit: limit, now: content{}, was: map[uint64]content{first: {}}, oldest: first}
				}
			case 1:
				force := rapid.Bool().Draw(t, "force")
				cmd = command(&musterv1.DeleteGroupCommand{Id: id, Force: force})
				if accepted = m != nil && (force || len(m.now) == 0); accepted {
					if m.revision > 0 {
						model.last[id] = m.revision
					}
					delete(model.groups, id)
				}
			case 2:
				to := uint64(rapid.IntRange(1, 12).Draw(t, "to"))
				cmd = command(&musterv1.CommitCommand{Group: id, RollbackTo: to})
				if m != nil {
					var target content
					if target, accepted = m.was[to]; accepted {
						m.become(target)
					}
				}
			default:
				changes := rapid.SliceOfN(rapid.Custom(drawChange), 1, 5).Draw(t, "changes")
				cmd = command(commit(id, changes...))
				if m != nil {
					accepted = m.apply(changes)
				}
			}
			next, result := s.Apply(cmd)
			if accepted != (result.Err == nil) {
				t.Fatalf("%v: accepted by the model: %v, error: %v", cmd, accepted, result.Err)
			}
			s = next
			restored, _ = restored.Apply(cmd)
			compare(t, s, model)
			if rapid.IntRange(0, 9).Draw(t, "restart") == 0 {
				var err error
				if restored, err = Restore(restored.Snapshot()); err != nil {
					t.Fatal(err)
				}
			}
			if !bytes.Equal(encoded(t, s), encoded(t, restored)) {
				t.Fatal("a server that restored a snapshot differs from one that did not")
			}
		}
	})
}

func compare(t *rapid.T, s *State, model naive) {
	for id, m := range model.groups {
		g, found := s.Group(id)
		if !found || g.Revision() != m.revision || int(g.Meta().GetResources()) != len(m.now) {
			t.Fatalf("group %q: found %v, %v, model at %d with %d", id, found, g.Meta(), m.revision, len(m.now))
		}
		for rev := uint64(1); rev <= m.revision+1; rev++ {
			v, kept := g.At(rev)
			want, wanted := m.was[rev]
			if kept != wanted || (kept && !maps.Equal(contentOf(v), want)) {
				t.Fatalf("group %q at %d: kept %v, want %v\n%v\n%v", id, rev, kept, wanted, contentOf(v), want)
			}
			if kept {
				compareMembers(t, v)
				compareChanges(t, g, rev, m)
			}
		}
	}
	for g := range s.Groups() {
		if model.groups[g.ID()] == nil {
			t.Fatalf("group %q should not be there", g.ID())
		}
	}
}

// compareMembers checks the second index against the first.
func compareMembers(t *rapid.T, v View) {
	want := map[string][]string{}
	for e := range v.All(musterv1.Kind_KIND_ROUTE) {
		if svc := parentService(e.Resource); svc != "" {
			want[svc] = append(want[svc], e.Key.ID)
		}
	}
	for _, svc := range []string{"a", "ab", "b", "c"} {
		var got []string
		for e := range v.RoutesOf(svc) {
			got = append(got, e.Key.ID)
		}
		if !slices.Equal(got, want[svc]) {
			t.Fatalf("routes of %q: %v, want %v", svc, got, want[svc])
		}
	}
}

// compareChanges checks that the changes between a revision and the current
// one lead from the one to the other.
func compareChanges(t *rapid.T, g *Group, from uint64, m *naiveGroup) {
	changes, ok := g.Changes(from, g.Revision())
	if !ok {
		t.Fatalf("no changes from %d to %d", from, g.Revision())
	}
	got := maps.Clone(m.was[from])
	for i, c := range changes {
		if i > 0 && !changes[i-1].Key.Less(c.Key) {
			t.Fatalf("changes are not in key order")
		}
		if _, had := got[c.Key.String()]; had != (c.Before != nil) {
			t.Fatalf("%s: before is %v", c.Key, c.Before)
		}
		delete(got, c.Key.String())
		if c.After != nil {
			got[c.Key.String()] = fingerprint(c.After.Resource)
		}
	}
	if !maps.Equal(got, m.now) {
		t.Fatalf("changes from %d lead to %v, not %v", from, got, m.now)
	}
}

func encoded(t interface{ Fatal(...any) }, s *State) []byte {
	var out []byte
	for data, err := range s.Encoded() {
		if err != nil {
			t.Fatal(err)
		}
		out = append(append(out, data...), '\n')
	}
	return out
}

func TestApplyDoesNotChangeTheCommand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := do(discard{}, New(), &musterv1.Group{Id: "g"})
		for range rapid.IntRange(1, 10).Draw(t, "steps") {
			cmd := command(commit("g", rapid.SliceOfN(rapid.Custom(drawChange), 1, 5).Draw(t, "changes")...))
			was := proto.CloneOf(cmd)
			s, _ = s.Apply(cmd)
			if !proto.Equal(cmd, was) {
				t.Fatal("the command was changed")
			}
		}
	})
}

// discard lets helpers run inside rapid checks.
type discard struct{ testing.TB }

func (discard) Helper()                        {}
func (discard) Fatalf(format string, a ...any) { panic(fmt.Sprintf(format, a...)) }
