package state

import (
	"bytes"
	"errors"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// rich is a state with everything a snapshot can hold.
func rich(t testing.TB) *State {
	s := base(t)
	cmd := command(commit("g", put(service("n", "")), del("consumer/al")))
	cmd.RequestId = "r1"
	s = do(t, s, cmd, &musterv1.Group{Id: "empty"}, &musterv1.Group{Id: "short", HistoryLimit: 2})
	for i := range 5 {
		s = do(t, s, commit("short", put(service("a", itoa(i)))))
	}
	create := command(&musterv1.Group{Id: "gone"})
	create.RequestId = "r2"
	s = do(t, s, create, commit("gone", put(service("a", ""))), &musterv1.DeleteGroupCommand{Id: "gone", Force: true})
	raise := command(&musterv1.RaiseEpochCommand{})
	raise.RequestId = "r3"
	return do(t, s, raise).At(42, 7)
}

func records(t testing.TB, s *State) [][]byte {
	var out [][]byte
	for data, err := range s.Encoded() {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, data)
	}
	return out
}

func restore(data [][]byte) (*State, error) {
	return RestoreEncoded(func(yield func([]byte, error) bool) {
		for _, d := range data {
			if !yield(d, nil) {
				return
			}
		}
	})
}

func TestASnapshotRestoresEverything(t *testing.T) {
	s := rich(t)
	again, err := restore(records(t, s))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded(t, s), encoded(t, again)) {
		t.Error("the restored state's snapshot differs")
	}
	if again.Index() != 42 || again.Term() != 7 || again.Epoch() != s.Epoch() {
		t.Errorf("index %d, term %d, epoch %d", again.Index(), again.Term(), again.Epoch())
	}
	a, b := group(t, s, "g"), group(t, again, "g")
	for e := range a.View().Entries() {
		f, found := b.View().Get(e.Key)
		if !found || f.Revision != e.Revision || f.Author != e.Author || !proto.Equal(e.Resource, f.Resource) {
			t.Errorf("%s differs: %+v", e.Key, f)
		}
	}
	sum, _ := s.Checksum()
	if other, _ := again.At(9, 9).Checksum(); other != sum {
		t.Error("the checksum depends on the index")
	}
	if other, _ := do(t, again, commit("g", put(service("zz", "")))).Checksum(); other == sum {
		t.Error("the checksum does not depend on the content")
	}
	// Requests are remembered across the restore.
	cmd := command(commit("g", put(service("n", "")), del("consumer/al")))
	cmd.RequestId = "r1"
	if _, result := again.Apply(cmd); !result.Replayed || result.Commit.GetRevision() != 2 || len(result.Commit.GetChanges()) != 3 {
		t.Errorf("got %v", result)
	}
}

func TestRecordsAndTheirEncodingsAgree(t *testing.T) {
	s := rich(t)
	again, err := Restore(s.Snapshot())
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded(t, s), encoded(t, again)) {
		t.Error("they differ")
	}
}

func TestADamagedSnapshotIsRefusedWhole(t *testing.T) {
	good := records(t, rich(t))
	if _, err := restore(good); err != nil {
		t.Fatal(err)
	}
	check := func(name string, data [][]byte) {
		t.Helper()
		s, err := restore(data)
		if !errors.Is(err, ErrSnapshot) || s != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	check("nothing", nil)
	for i := range good {
		check("cut short", good[:i])
		check("a record missing", slices.Delete(slices.Clone(good), i, i+1))
		check("a record twice", slices.Insert(slices.Clone(good), i, good[i]))
		for _, bit := range []int{0, len(good[i]) / 2, len(good[i]) - 1} {
			data := slices.Clone(good)
			data[i] = bytes.Clone(good[i])
			data[i][bit] ^= 0x10
			check("a bit flipped", data)
		}
		if i > 0 {
			data := slices.Clone(good)
			data[i-1], data[i] = data[i], data[i-1]
			check("two records swapped", data)
		}
	}
	check("more after the trailer", append(slices.Clone(good), good[1]))
}

// TestASnapshotMustHoldTogether forges snapshots whose checksum is right and
// whose content is not.
func TestASnapshotMustHoldTogether(t *testing.T) {
	forge := func(change func(*musterv1.SnapshotRecord) *musterv1.SnapshotRecord) [][]byte {
		sum := newChecksum()
		var out [][]byte
		for r := range rich(t).records() {
			r = change(proto.CloneOf(r))
			if r == nil {
				continue
			}
			data, _ := marshal.Marshal(r)
			sum.add(data)
			out = append(out, data)
		}
		data, _ := marshal.Marshal(sum.trailer())
		return append(out, data)
	}
	if _, err := restore(forge(func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord { return r })); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*musterv1.SnapshotRecord) *musterv1.SnapshotRecord{
		"format": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetHeader() != nil {
				r.GetHeader().Format = 2
			}
			return r
		},
		"is of epoch": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetHeader() != nil {
				r.GetHeader().Epoch = 9
			}
			return r
		},
		"has epoch": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetHeader() != nil {
				r.GetHeader().Epoch = math.MaxUint64 // a restore raises it
			}
			return r
		},
		"is at revision": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetGroup().GetControlPlaneKeyPrefix() != "" {
				r.GetGroup().Revision = math.MaxUint64 // the next commit counts on
			}
			return r
		},
		"that does not hold": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if g := r.GetGroup(); g != nil && g.GetControlPlaneKeyPrefix() == "" {
				g.Revision = math.MaxUint64
			}
			return r
		},
		"holds a resource of revision": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetResource() != nil {
				r.GetResource().Stored.Revision += 100
			}
			return r
		},
		"is of revision 0": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetResource() != nil {
				r.GetResource().Stored.Revision = 0
			}
			return r
		},
		", made in": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetResource() != nil {
				r.GetResource().Stored.CreatedRevision = r.GetResource().Stored.GetRevision() + 1
			}
			return r
		},
		"collides": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if g := r.GetGroup(); g.GetControlPlaneKeyPrefix() != "" {
				g.ControlPlaneKeyPrefix = "/same"
			}
			return r
		},
		"under the key": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetResource() != nil {
				r.GetResource().Key.Id += "x"
			}
			return r
		},
		"resources, which should have": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetGroup().GetControlPlaneKeyPrefix() != "" {
				r.GetGroup().Resources++
			}
			return r
		},
		"which should be at": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetGroup().GetId() == "short" {
				r.GetGroup().Revision++
			}
			return r
		},
		"was not as the revision says": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetRevision().GetGroup() == "short" {
				r.GetRevision().Revision.Changes[0].Before = service("a", "forged")
			}
			return r
		},
		"out of place": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetRevision().GetGroup() == "short" {
				r.GetRevision().Group = "g"
			}
			return r
		},
		"lacks service": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetGroup().GetId() == "g" {
				r.GetGroup().Resources--
			}
			if rev := r.GetRevision().GetRevision(); r.GetRevision().GetGroup() == "g" && rev.GetRevision() == 1 {
				rev.Changes = slices.DeleteFunc(rev.Changes, func(c *musterv1.ResourceChange) bool {
					return resource.KeyFromProto(c.GetKey()) == key2("service/a")
				})
			}
			return r
		},
		"after 1": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if rev := r.GetRevision().GetRevision(); r.GetRevision().GetGroup() == "g" && rev.GetRevision() == 2 {
				rev.Revision = 3
			}
			return r
		},
		"answer does not decode": func(r *musterv1.SnapshotRecord) *musterv1.SnapshotRecord {
			if r.GetRequest() != nil {
				r.GetRequest().Result = []byte("c\xff")
			}
			return r
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := restore(forge(change))
			if !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), name) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func FuzzRestore(f *testing.F) {
	for _, s := range []*State{New(), base(f), rich(f)} {
		var all []byte
		for _, r := range records(f, s) {
			all = append(append(all, byte(len(r)>>8), byte(len(r))), r...)
		}
		f.Add(all)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var split [][]byte
		for len(data) >= 2 {
			n := min(int(data[0])<<8|int(data[1]), len(data)-2)
			split, data = append(split, data[2:2+n]), data[2+n:]
		}
		s, err := restore(split)
		if err != nil {
			if s != nil {
				t.Error("an error and a state")
			}
			return
		}
		// What restores must restore to the same again.
		again, err := restore(records(t, s))
		if err != nil {
			t.Fatalf("a restored state does not restore: %v", err)
		}
		if !bytes.Equal(encoded(t, s), encoded(t, again)) {
			t.Error("restoring twice differs")
		}
	})
}

// FuzzApply feeds arbitrary commands to a state: it must not panic, and what it
// accepts must survive a snapshot.
func FuzzApply(f *testing.F) {
	for _, c := range []any{&musterv1.Group{Id: "h"}, commit("g", put(service("x", "")), del("service/a")), &musterv1.CommitCommand{Group: "g", RollbackTo: 1}, &musterv1.DeleteGroupCommand{Id: "g", Force: true}, &musterv1.RaiseEpochCommand{AtLeast: 5}} {
		data, _ := proto.Marshal(command(c))
		f.Add(data)
	}
	s := base(f)
	f.Fuzz(func(t *testing.T, data []byte) {
		cmd := &musterv1.Command{}
		if proto.Unmarshal(data, cmd) != nil {
			return
		}
		next, result := s.Apply(cmd)
		if result.Err != nil && next != s {
			t.Fatal("refused and changed")
		}
		if _, err := restore(records(t, next)); err != nil {
			t.Fatalf("accepted %v, which does not restore: %v", cmd, err)
		}
	})
}
