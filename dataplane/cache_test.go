package dataplane

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// disk is a cache directory with what its log said.
type disk struct {
	*testing.T
	dir string
	log bytes.Buffer
}

func newDisk(t *testing.T) *disk { return &disk{T: t, dir: t.TempDir()} }

func (d *disk) open(group string, key []byte) *cache {
	d.Helper()
	d.log.Reset()
	c, err := openCache(d.dir, group, key, slog.New(slog.NewTextHandler(&d.log, nil)))
	if err != nil {
		d.Fatal(err)
	}
	return c
}

// load opens the cache, loads and closes it.
func (d *disk) load(group string, key []byte) (*State, bool) {
	d.Helper()
	c := d.open(group, key)
	defer d.shut(c)
	return c.load()
}

func (d *disk) shut(c *cache) {
	d.Helper()
	if err := c.close(); err != nil {
		d.Error(err)
	}
}

// step writes a change from one state to the next.
func (d *disk) step(c *cache, from *State, revision uint64, entries ...string) *State {
	d.Helper()
	r := response(ClusterType, entries...)
	to := applyChange(from, r).at(1, revision)
	u := &Update{Types: map[string]TypeUpdate{ClusterType: {Upsert: map[string]*anypb.Any{}, Remove: r.GetRemovedResources()}}}
	for _, res := range r.GetResources() {
		u.Types[ClusterType].Upsert[res.GetName()] = res.GetResource()
	}
	if w := c.write(from, to, u); w.Err != nil {
		d.Fatal(w.Err)
	}
	return to
}

// history writes revisions 1 to n, which add r1 to rn, and begins a new generation
// at each of the given revisions.
func (d *disk) history(n int, rotate ...int) *State {
	d.Helper()
	c := d.open("g", nil)
	defer d.shut(c)
	s := emptyState()
	for i := 1; i <= n; i++ {
		if slices.Contains(rotate, i) {
			c.dropJournal()
		}
		s = d.step(c, s, uint64(i), fmt.Sprintf("r%d@1.%d.aaaaaaaa", i, i))
	}
	return s
}

func (d *disk) files(pattern string) []string {
	d.Helper()
	out, err := filepath.Glob(filepath.Join(d.dir, pattern))
	if err != nil {
		d.Fatal(err)
	}
	return out
}

// edit changes the bytes of a file.
func (d *disk) edit(path string, f func([]byte) []byte) {
	d.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		d.Fatal(err)
	}
	if err := os.WriteFile(path, f(b), 0o600); err != nil {
		d.Fatal(err)
	}
}

func sameState(a, b *State) bool {
	if a.Epoch() != b.Epoch() || a.Revision() != b.Revision() || !slices.Equal(a.Types(), b.Types()) {
		return false
	}
	for _, typeURL := range a.Types() {
		if a.types[typeURL].digest != b.types[typeURL].digest || a.Len(typeURL) != b.Len(typeURL) {
			return false
		}
		for r := range a.All(typeURL) {
			if other, ok := b.Get(typeURL, r.Name); !ok || !sameResource(r, other) {
				return false
			}
		}
	}
	return true
}

func TestWhatWasWrittenIsLoaded(t *testing.T) {
	d := newDisk(t)
	wrote := d.history(5, 3)
	got, ok := d.load("g", nil)
	if !ok || !sameState(got, wrote) {
		t.Errorf("loaded revision %d, wrote %d", got.Revision(), wrote.Revision())
	}
	if d.log.Len() > 0 {
		t.Errorf("the log says: %s", &d.log)
	}
}

func TestRemovalsAreJournaled(t *testing.T) {
	d := newDisk(t)
	c := d.open("g", nil)
	s := d.step(c, emptyState(), 1, "a@1", "b@1")
	s = d.step(c, s, 2, "-a", "c@1")
	d.shut(c)
	got, _ := d.load("g", nil)
	if !sameState(got, s) {
		t.Errorf("loaded %s", names(got, ClusterType))
	}
}

func TestCacheFilesAreForTheOwnerAlone(t *testing.T) {
	d := newDisk(t)
	d.history(3)
	for _, path := range d.files("*") {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
}

func TestADamagedBaseIsRefusedAndTheOneBeforeIsUsed(t *testing.T) {
	for name, damage := range map[string]func([]byte) []byte{
		"a flipped bit":      func(b []byte) []byte { b[len(b)/2] ^= 1; return b },
		"a truncated file":   func(b []byte) []byte { return b[:len(b)*2/3] },
		"an empty file":      func([]byte) []byte { return nil },
		"something else":     func([]byte) []byte { return []byte("something else altogether") },
		"the end is missing": func(b []byte) []byte { return b[:len(b)-60] },
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			d.history(6, 4) // the second generation begins with revision 4
			bases := d.files("g.*.base")
			d.edit(bases[len(bases)-1], damage)
			got, ok := d.load("g", nil)
			if !ok || got.Revision() != 3 {
				t.Fatalf("loaded %v %v, want revision 3, where the generation before ends", got, ok)
			}
			want(t, "content", names(got, ClusterType), "r1@1.1.aaaaaaaa r2@1.2.aaaaaaaa r3@1.3.aaaaaaaa")
			if !strings.Contains(d.log.String(), "cached configuration refused") {
				t.Errorf("the log says: %s", &d.log)
			}
		})
	}
}

func TestADamagedJournalIsUsedUpToTheDamage(t *testing.T) {
	d := newDisk(t)
	d.history(6)
	d.edit(d.files("g.*.journal")[0], func(b []byte) []byte { return b[:len(b)-3] })
	got, ok := d.load("g", nil)
	if !ok || got.Revision() != 5 {
		t.Fatalf("loaded %v, want revision 5", got)
	}
	if !strings.Contains(d.log.String(), "rest of the cached changes refused") {
		t.Errorf("the log says: %s", &d.log)
	}
}

// A process may die, or a machine lose its power, at any byte that it writes.
func TestACacheThatEndsAnywhereIsWholeUpToSomeRevision(t *testing.T) {
	const last = 5
	d := newDisk(t)
	d.history(last, 3) // the second generation begins with revision 3
	bases, journals := d.files("g.*.base"), d.files("g.*.journal")
	kept := map[string][]byte{}
	for _, path := range append(slices.Clone(bases), journals...) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kept[path] = b
	}
	check := func(what string, least, most uint64) {
		t.Helper()
		got, ok := d.load("g", nil)
		if !ok || got.Revision() < least || got.Revision() > most {
			t.Fatalf("%s: %v %v, want a revision from %d to %d", what, got, ok, least, most)
		}
		var all []string
		for r := uint64(1); r <= got.Revision(); r++ {
			all = append(all, fmt.Sprintf("r%d@1.%d.aaaaaaaa", r, r))
		}
		want(t, what, names(got, ClusterType), strings.Join(all, " "))
	}
	cut := func(path string, n int) { d.edit(path, func([]byte) []byte { return kept[path][:n] }) }
	newest := len(bases) - 1
	before := uint64(0)
	for n := range len(kept[journals[newest]]) + 1 {
		cut(journals[newest], n)
		check(fmt.Sprint("a journal of ", n, " bytes"), max(3, before), last)
		got, _ := d.load("g", nil)
		before = got.Revision() // more bytes, never less of them
	}
	check("all of it", last, last)
	for n := range len(kept[bases[newest]]) {
		cut(bases[newest], n)
		check(fmt.Sprint("a base of ", n, " bytes"), 2, 2)
	}
}

func TestNoByteOfACacheCanBeChangedUnnoticed(t *testing.T) {
	d := newDisk(t)
	wrote := d.history(3)
	for _, path := range append(d.files("g.*.base"), d.files("g.*.journal")...) {
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for i := range whole {
			d.edit(path, func(b []byte) []byte { b[i] ^= 0x20; return b })
			if got, ok := d.load("g", nil); ok && sameState(got, wrote) {
				t.Errorf("byte %d of %s was changed and the state is the same", i, filepath.Base(path))
			} else if ok && got.Revision() > wrote.Revision() {
				t.Errorf("byte %d of %s: revision %d", i, filepath.Base(path), got.Revision())
			}
			d.edit(path, func([]byte) []byte { return whole })
		}
	}
}

func TestAFileOfAnotherGroupIsRefused(t *testing.T) {
	d := newDisk(t)
	d.history(2)
	for _, path := range d.files("g.*") {
		if err := os.Rename(path, strings.Replace(path, "/g.", "/other.", 1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := d.load("other", nil); ok {
		t.Error("it was loaded")
	}
	if !strings.Contains(d.log.String(), "belongs to another group") {
		t.Errorf("the log says: %s", &d.log)
	}
}

func TestAFileOfAnOlderEpochIsRefused(t *testing.T) {
	d := newDisk(t)
	d.history(2)
	kept := map[string][]byte{}
	for _, path := range append(d.files("g.*.base"), d.files("g.*.journal")...) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		kept[path] = b
	}
	c := d.open("g", nil)
	s, _ := c.load()
	if w := c.write(s, s.at(2, 1), &Update{}); w.Err != nil {
		t.Fatal(w.Err)
	}
	d.shut(c)
	for _, path := range append(d.files("g.*.base"), d.files("g.*.journal")...) {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for path, b := range kept {
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c = d.open("g", nil)
	defer d.shut(c)
	if _, ok := c.load(); ok {
		t.Error("it was loaded")
	}
	if !strings.Contains(d.log.String(), "epoch is older") {
		t.Errorf("the log says: %s", &d.log)
	}
	if c.floor != (version{2, 1}) {
		t.Errorf("the floor is %v", c.floor)
	}
}

func TestAnEncryptedCacheNeedsItsKey(t *testing.T) {
	key := []byte("a key that is long enough")
	d := newDisk(t)
	c := d.open("g", key)
	s := d.step(c, emptyState(), 1, "secret@v")
	s = d.step(c, s, 2, "secret@w")
	d.shut(c)
	for _, path := range append(d.files("g.*.base"), d.files("g.*.journal")...) {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("secret")) {
			t.Errorf("%s shows its content", filepath.Base(path))
		}
	}
	if got, ok := d.load("g", key); !ok || !sameState(got, s) {
		t.Error("it is not loaded with the key")
	}
	for name, other := range map[string][]byte{"without a key": nil, "with another key": []byte("another key that is long enough")} {
		if _, ok := d.load("g", other); ok {
			t.Errorf("it is loaded %s", name)
		}
	}
	plain := newDisk(t)
	plain.history(2)
	if _, ok := plain.load("g", key); ok {
		t.Error("a plain file is loaded although a key is configured")
	}
}

func TestSealedFramesCannotBeMovedBetweenFiles(t *testing.T) {
	aead, err := cacheAEAD([]byte("a key that is long enough"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(h cacheHeader, frames ...string) []byte {
		var b bytes.Buffer
		fw, err := newFrameWriter(&b, h, aead)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range frames {
			if err := fw.write([]byte(f)); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	one := write(cacheHeader{Kind: "base", Group: "g", Generation: 1}, "x")
	two := write(cacheHeader{Kind: "base", Group: "g", Generation: 2}, "y")
	head := len(write(cacheHeader{Kind: "base", Group: "g", Generation: 1}))
	mixed := append(slices.Clone(two[:head]), one[head:]...)
	fr, _, err := newFrameReader(bytes.NewReader(mixed), "g", aead)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := fr.read(); !errors.Is(err, errWrongKey) {
		t.Errorf("a frame of another file is read: %v", err)
	}
}

func TestGenerationsAreFoldedAndOldOnesRemoved(t *testing.T) {
	d := newDisk(t)
	c := d.open("g", nil)
	s := emptyState()
	big := strings.Repeat("x", 300<<10)
	for i := 1; i <= 20; i++ {
		s = d.step(c, s, uint64(i), fmt.Sprintf("r@1.%d.%s", i, big))
	}
	d.shut(c)
	if n := len(d.files("g.*.base")); n != 2 {
		t.Errorf("%d generations are kept, want the newest and the one before", n)
	}
	total := int64(0)
	for _, path := range d.files("g.*.journal") {
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		total += info.Size()
	}
	if total > 5<<20 {
		t.Errorf("the journals have %d bytes", total)
	}
	if got, ok := d.load("g", nil); !ok || !sameState(got, s) {
		t.Error("the newest state is not loaded")
	}
}

func TestLeftoversOfADeadProcessAreRemoved(t *testing.T) {
	d := newDisk(t)
	if err := os.WriteFile(filepath.Join(d.dir, "g.7.base.tmp123"), []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	d.shut(d.open("g", nil))
	if left := d.files("*.tmp*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestGroupsShareADirectory(t *testing.T) {
	d := newDisk(t)
	for i, group := range []string{"g", "g.1", "../g", "g/h", "g*"} {
		c := d.open(group, nil)
		d.step(c, emptyState(), uint64(i+1), "a@1")
		d.shut(c)
	}
	for i, group := range []string{"g", "g.1", "../g", "g/h", "g*"} {
		got, ok := d.load(group, nil)
		if !ok || got.Revision() != uint64(i+1) {
			t.Errorf("group %q: %v", group, got)
		}
	}
	if entries, err := os.ReadDir(filepath.Dir(d.dir)); err != nil || len(entries) != 1 {
		t.Errorf("beside the directory: %v %v", entries, err)
	}
}

func TestAFailedWriteBeginsANewGeneration(t *testing.T) {
	d := newDisk(t)
	c := d.open("g", nil)
	s := d.step(c, emptyState(), 1, "a@1")
	if err := c.journal.Close(); err != nil { // the disk goes away
		t.Fatal(err)
	}
	next := applyChange(s, response(ClusterType, "b@1")).at(1, 2)
	u := &Update{Types: map[string]TypeUpdate{ClusterType: {Upsert: map[string]*anypb.Any{"b": {}}}}}
	if w := c.write(s, next, u); w.Err == nil {
		t.Fatal("the write succeeded")
	}
	s = d.step(c, next, 3, "c@1")
	d.shut(c)
	if got, ok := d.load("g", nil); !ok || !sameState(got, s) {
		t.Error("what was written after the failure is not loaded")
	}
}

func TestSnapshotsTravel(t *testing.T) {
	s := stateOf(2, 7, "a@1", "b@2")
	for _, key := range []string{"", "a key that is long enough"} {
		var b bytes.Buffer
		if err := WriteSnapshot(&b, "g", s, []byte(key)); err != nil {
			t.Fatal(err)
		}
		got, err := ReadSnapshot(bytes.NewReader(b.Bytes()), "g", []byte(key))
		if err != nil || !sameState(got, s) {
			t.Errorf("key %q: %v", key, err)
		}
		if _, err := ReadSnapshot(bytes.NewReader(b.Bytes()), "h", []byte(key)); !errors.Is(err, errForeignGroup) {
			t.Errorf("key %q, another group: %v", key, err)
		}
		if _, err := ReadSnapshot(bytes.NewReader(b.Bytes()[:b.Len()-1]), "g", []byte(key)); !errors.Is(err, errTruncated) {
			t.Errorf("key %q, truncated: %v", key, err)
		}
	}
	if err := WriteSnapshot(io.Discard, "g", s, []byte("short")); !errors.Is(err, ErrCacheKey) {
		t.Errorf("short key: %v", err)
	}
}

func FuzzReadSnapshot(f *testing.F) {
	var b bytes.Buffer
	if err := WriteSnapshot(&b, "g", stateOf(2, 7, "a@1", "b@2"), nil); err != nil {
		f.Fatal(err)
	}
	f.Add(b.Bytes())
	f.Add([]byte(cacheMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := ReadSnapshot(bytes.NewReader(data), "g", nil)
		if (s == nil) == (err == nil) {
			t.Fatalf("%v %v", s, err)
		}
	})
}

func FuzzDecodeRecord(f *testing.F) {
	b, err := cacheRecord{Epoch: 1, Revision: 2, Changes: []*discoveryv3.DeltaDiscoveryResponse{response(ClusterType, "a@1", "-b")}}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, data []byte) {
		rec, err := decodeRecord(data)
		if err != nil {
			return
		}
		again, err := rec.encode()
		if err != nil {
			t.Fatal(err)
		}
		second, err := decodeRecord(again)
		if err != nil || second.Epoch != rec.Epoch || second.Revision != rec.Revision || len(second.Changes) != len(rec.Changes) {
			t.Fatalf("%v: %v then %v", err, rec, second)
		}
	})
}

func BenchmarkColdStart(b *testing.B) {
	s := emptyState()
	for i := range 10_000 {
		s = s.with(ClusterType, []*Resource{{
			Name: fmt.Sprintf("service/%d", i), Version: fmt.Sprintf("1.%d.aaaaaaaa", i),
			Body: &anypb.Any{TypeUrl: ClusterType, Value: bytes.Repeat([]byte{byte(i)}, 300)},
		}}, nil)
	}
	var buf bytes.Buffer
	if err := WriteSnapshot(&buf, "g", s, nil); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := ReadSnapshot(bytes.NewReader(buf.Bytes()), "g", nil); err != nil {
			b.Fatal(err)
		}
	}
}

func TestADamagedFloorIsRefused(t *testing.T) {
	whole, err := json.Marshal(floorFile{version{1, 280}, version{1, 280}.sum()})
	if err != nil {
		t.Fatal(err)
	}
	if v, err := parseFloor(whole); err != nil || v != (version{1, 280}) {
		t.Fatalf("%s is read as %v, %v", whole, v, err)
	}
	if v, err := parseFloor([]byte(`{"epoch":3,"revision":57}`)); err != nil || v != (version{3, 57}) {
		t.Errorf("one of an earlier release is read as %v, %v", v, err)
	}
	for at := range whole {
		for bit := range 8 {
			b := slices.Clone(whole)
			b[at] ^= 1 << bit
			if v, err := parseFloor(b); err == nil && v != (version{1, 280}) {
				t.Errorf("%s is read as %v", b, v)
			}
		}
	}
}
