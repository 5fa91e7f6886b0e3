package snapshot

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
)

var relayView = View{Relay: true}

func relayKey(typeURL, name string) compile.Key { return compile.Key{TypeURL: typeURL, Name: name} }

func TestARelayIsToldEveryResourceOfEveryView(t *testing.T) {
	s := Empty("g", 1).Next(Version{1, 1}, compile.Delta{Upsert: []compile.Resource{
		{Key: relayKey(compile.ClusterType, "a"), Body: []byte("a1")},
		{Key: relayKey(compile.ListenerType, "svc"), Body: []byte("for gRPC"), View: compile.ViewGRPC},
		{Key: relayKey(compile.ListenerType, "http"), Body: []byte("for all")},
		{Key: relayKey("example.com/my.Type", "x|y"), Body: []byte("raw")},
	}})
	set := s.Set(RelayType, relayView)
	var names []string
	for r := range set.All() {
		names = append(names, r.Name)
		if view, key, ok := ParseRelayName(r.Name); !ok || relayName(view, key) != r.Name {
			t.Errorf("%q does not come apart: %v %v", r.Name, view, key)
		}
	}
	want := []string{
		"all|envoy.config.cluster.v3.Cluster|a", "all|envoy.config.listener.v3.Listener|http",
		"all|example.com/my.Type|x|y", "grpc|envoy.config.listener.v3.Listener|svc",
	}
	if !slices.Equal(names, want) {
		t.Errorf("a relay is told %q", names)
	}
	if n := s.Set(RelayType, View{Client: compile.ViewDelta}).Len(); n != 0 {
		t.Errorf("a data plane is told %d resources of all views", n)
	}
	m := s.Manifest(relayView)
	if len(m.GetTypes()) != 1 || m.GetTypes()[0].GetCount() != 4 {
		t.Errorf("the manifest of a relay: %v", m)
	}
}

func TestRelayNamesOfOthersAreRefused(t *testing.T) {
	for _, name := range []string{"", "all", "all|x", "none|x|y", "all||y", "|x|y"} {
		if _, _, ok := ParseRelayName(name); ok {
			t.Errorf("%q was taken for a name", name)
		}
	}
}

// TestARelaysSetIsTheSameHoweverItWasMade: made at once or step by step, and made
// again below a relay that applied it in leaps.
func TestARelaysSetIsTheSameHoweverItWasMade(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		lazy, eager := Empty("g", 1), Empty("g", 1)
		eager.Set(RelayType, relayView)
		below := Empty("g", 1)
		var belowSet *Set
		for rev := uint64(1); rev <= uint64(rapid.IntRange(1, 12).Draw(t, "revisions")); rev++ {
			d := drawDelta(t)
			v := Version{1, rev}
			lazy, eager = lazy.Next(v, d), eager.Next(v, d)
			one := eager.Set(RelayType, relayView)
			if rapid.Bool().Draw(t, "the relay skips") {
				continue
			}
			below, belowSet = follow(below, one, belowSet, v)
			for _, view := range []compile.View{compile.ViewDelta, compile.ViewSotW, compile.ViewGRPC} {
				for _, typeURL := range eager.Types() {
					a, b := eager.Set(typeURL, View{Client: view}), below.Set(typeURL, View{Client: view})
					if a.Digest() != b.Digest() || a.Len() != b.Len() {
						t.Fatalf("revision %d: %s in view %d differs below the relay: %v against %v", rev, typeURL, view, contents(b), contents(a))
					}
				}
			}
			if a, b := one.Digest(), below.Set(RelayType, relayView).Digest(); a != b {
				t.Fatalf("revision %d: a relay below the relay would be told something else", rev)
			}
		}
		a, b := lazy.Set(RelayType, relayView), eager.Set(RelayType, relayView)
		// Which resource shows a removal of another view's may differ; contents may not.
		if a.Digest() != b.Digest() || a.print != b.print || a.Names() != b.Names() {
			t.Fatalf("made at once: %v\nstep by step: %v", contents(a), contents(b))
		}
		for rev := range lazy.Version().Revision {
			if missed := missing(a, b, rev); len(missed) > 0 {
				t.Fatalf("made at once, changes since %d do not hold %q", rev, missed)
			}
		}
	})
}

func drawDelta(t *rapid.T) compile.Delta {
	var d compile.Delta
	seen := map[compile.Key]bool{}
	for range rapid.IntRange(0, 5).Draw(t, "changes") {
		key := relayKey(rapid.SampledFrom([]string{"t.example/A", "type.googleapis.com/B"}).Draw(t, "type"), rapid.SampledFrom([]string{"x", "y", "z"}).Draw(t, "name"))
		if seen[key] {
			continue
		}
		seen[key] = true
		if rapid.IntRange(0, 3).Draw(t, "remove") == 0 {
			d.Remove = append(d.Remove, key)
			continue
		}
		d.Upsert = append(d.Upsert, compile.Resource{
			Key: key, View: compile.View(rapid.IntRange(0, 3).Draw(t, "view")),
			Body: fmt.Appendf(nil, "%d", rapid.IntRange(0, 2).Draw(t, "body")),
		})
	}
	return d
}

// follow applies to a relay's snapshot what it is told.
func follow(s *Snapshot, now, before *Set, v Version) (*Snapshot, *Set) {
	var up []Upsert
	var remove []compile.Key
	for name, r := range now.Changes(before) {
		view, key, _ := ParseRelayName(name)
		if r == nil {
			remove = append(remove, key)
			// A removal takes a name out of every view: those that are left come again.
			for view := range viewCount {
				if left, ok := now.Get(relayName(view, key)); ok {
					up = append(up, Upsert{Key: key, Version: left.Version, Body: left.Body, View: view})
				}
			}
			continue
		}
		up = append(up, Upsert{Key: key, Version: r.Version, Body: r.Body, View: view})
	}
	return s.Apply(v, up, remove), now
}

func contents(t *Set) map[string]string {
	m := map[string]string{}
	for r := range t.All() {
		m[r.Name] = r.Version + " " + string(r.Body)
	}
	return m
}

// missing returns what changed in b since a revision, in content, and not in a.
func missing(a, b *Set, rev uint64) []string {
	changed := map[string]bool{}
	seq, _ := a.ChangedSince(rev)
	for name := range seq {
		changed[name] = true
	}
	var out []string
	seq, _ = b.ChangedSince(rev)
	for name, r := range seq {
		// A removal from one view that is hidden by the others' is not remembered by a
		// set made at once; the Manifest tells, and then everything is sent again.
		if !changed[name] && r != nil && r.untouched == nil {
			out = append(out, name)
		}
	}
	return out
}

func TestARelayComesBackWithADigest(t *testing.T) {
	s := Empty("g", 1)
	var digests []Digest
	for rev := uint64(1); rev <= 40; rev++ {
		s = s.Next(Version{1, rev}, compile.Delta{Upsert: []compile.Resource{
			{Key: relayKey(compile.ClusterType, "c"), Body: fmt.Appendf(nil, "%d", rev)},
		}})
		digests = append(digests, s.Set(RelayType, relayView).Digest())
	}
	set := s.Set(RelayType, relayView)
	for i, d := range digests {
		rev, ok := set.RevisionOf(d)
		if !ok || rev != uint64(i+1) {
			t.Errorf("the content of revision %d was found at %d, %v", i+1, rev, ok)
		}
	}
	if _, ok := set.RevisionOf(Digest{1}); ok {
		t.Error("a content that never was is known")
	}
}

func TestASignatureAndAPassedManifestStay(t *testing.T) {
	signed := Empty("g", 1).Signed(func(m *musterv1.Manifest) { m.Signature = []byte{byte(m.GetRevision())} })
	next := signed.Next(Version{1, 5}, compile.Delta{}).Next(Version{2, 1}, compile.Delta{})
	if got := next.Manifest(relayView).GetSignature(); len(got) != 1 || got[0] != 1 {
		t.Errorf("the snapshot that follows, in another epoch, is signed with %v", got)
	}
	passed := &musterv1.Manifest{Epoch: 1, Revision: 9, Signature: []byte("theirs")}
	if got := signed.WithManifest(passed).Manifest(relayView); got != passed {
		t.Errorf("a relay passes on %v", got)
	}
	if got := signed.WithManifest(passed).Manifest(View{Client: compile.ViewDelta}); string(got.GetSignature()) == "theirs" {
		t.Error("the signature of the relays' manifest stands on another")
	}
	if n := signed.Partial().Set(ManifestType, View{}).Len(); n != 0 {
		t.Error("a snapshot without revisions has a manifest")
	}
}
