package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/raftstore/atrest"
)

const needle = "needle-4c1d77"

func atRestKey(t testing.TB) string {
	t.Helper()
	text, err := atrest.Generate()
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func atRest(t testing.TB, text ...string) *atrest.Keys {
	t.Helper()
	keys, err := atrest.Parse([]byte(strings.Join(text, "")))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// holding returns the files of a directory in which the needle is.
func holding(t testing.TB, dir string) (found []string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		data, err := os.ReadFile(path)
		if bytes.Contains(data, []byte(needle)) {
			found = append(found, path)
		}
		return err
	})
	if err != nil || files < 2 {
		t.Fatalf("%d files in %s, %v", files, dir, err)
	}
	return found
}

// writeNeedles puts the needle into the log and into snapshots.
func writeNeedles(t testing.TB, s *Store) {
	t.Helper()
	mustApply(t, s, createGroup("g"))
	for i := range 3 {
		mustApply(t, s, putService("g", fmt.Sprint("s", i), needle))
		if err := s.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	mustApply(t, s, putService("g", "last", needle))
}

func TestNothingOnDiskIsInClear(t *testing.T) {
	dir, clear := t.TempDir(), t.TempDir()
	key := atRestKey(t)
	s, stop := start(t, Config{DataDir: dir, Bootstrap: true, AtRest: atRest(t, key)})
	writeNeedles(t, s)
	sum, _ := s.State().Checksum()
	stop()
	if found := holding(t, dir); found != nil {
		t.Errorf("a secret is in clear in %q", found)
	}
	// The search finds what is there: without a key it is in both.
	other, stopOther := one(t, clear)
	writeNeedles(t, other)
	stopOther()
	if found := strings.Join(holding(t, clear), " "); !strings.Contains(found, "raft.db") || !strings.Contains(found, "state.bin") {
		t.Fatalf("without a key the secret is in %q", found)
	}

	s, _ = start(t, Config{DataDir: dir, AtRest: atRest(t, key)})
	if err := s.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.State().Checksum(); again != sum {
		t.Error("the state differs after a restart")
	}
}

func TestWhatWasInClearIsReadAndWhatFollowsIsEncrypted(t *testing.T) {
	dir := t.TempDir()
	s, stop := one(t, dir)
	mustApply(t, s, createGroup("g"))
	mustApply(t, s, putService("g", "a", "plain"))
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	mustApply(t, s, putService("g", "b", "plain"))
	stop()
	s, _ = start(t, Config{DataDir: dir, AtRest: atRest(t, atRestKey(t))})
	mustApply(t, s, putService("g", "c", needle))
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	if g, _ := s.State().Group("g"); g.View().Len() != 3 {
		t.Errorf("%d resources", g.View().Len())
	}
	if found := holding(t, dir); found != nil {
		t.Errorf("a secret is in clear in %q", found)
	}
}

func TestAKeyIsReplacedByPuttingANewOneBeforeIt(t *testing.T) {
	dir := t.TempDir()
	old := atRestKey(t)
	s, stop := start(t, Config{DataDir: dir, Bootstrap: true, AtRest: atRest(t, old)})
	writeNeedles(t, s)
	stop()
	next := atRestKey(t)
	s, stop = start(t, Config{DataDir: dir, AtRest: atRest(t, next, old)})
	for i := range 3 { // as many snapshots as are kept
		mustApply(t, s, putService("g", fmt.Sprint("later", i), needle))
		if err := s.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	sum, _ := s.State().Checksum()
	stop()
	var locked *LockedError
	if _, err := Open(Config{DataDir: dir, Logger: quiet(), AtRest: atRest(t, old)}); !errors.As(err, &locked) {
		t.Errorf("the old key alone: %v, want a LockedError", err)
	}
	s, _ = start(t, Config{DataDir: dir, AtRest: atRest(t, next)})
	if err := s.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.State().Checksum(); again != sum {
		t.Error("the state differs under the new key alone")
	}
}

func TestWithoutItsKeyAServerSaysSoAndChangesNothing(t *testing.T) {
	dir := t.TempDir()
	key := atRestKey(t)
	s, stop := start(t, Config{DataDir: dir, Bootstrap: true, AtRest: atRest(t, key)})
	writeNeedles(t, s)
	stop()
	for name, keys := range map[string]*atrest.Keys{"no key": nil, "another key": atRest(t, atRestKey(t))} {
		_, err := Open(Config{DataDir: dir, Logger: quiet(), AtRest: keys})
		var locked *LockedError
		if !errors.As(err, &locked) || errors.Is(err, ErrCorrupt) || !strings.Contains(err.Error(), "key file") {
			t.Errorf("%s: %v, want a LockedError that says what to do", name, err)
		}
	}
	s, _ = start(t, Config{DataDir: dir, AtRest: atRest(t, key)})
	if g, _ := s.State().Group("g"); g == nil {
		t.Error("the state is gone")
	}
}

func TestAnEncryptedEntryThatWasChangedOrMovedIsNamed(t *testing.T) {
	dir := t.TempDir()
	key := atRestKey(t)
	s, stop := start(t, Config{DataDir: dir, Bootstrap: true, AtRest: atRest(t, key)})
	mustApply(t, s, createGroup("g"))
	mustApply(t, s, putService("g", "a", needle))
	mustApply(t, s, putService("g", "b", needle))
	last, err := s.log.LastIndex()
	if err != nil {
		t.Fatal(err)
	}
	stop()
	damage := map[string]func(kept, other *raft.Log){
		"a changed byte":      func(kept, _ *raft.Log) { kept.Data[len(kept.Data)-1] ^= 1 },
		"an entry of another": func(kept, other *raft.Log) { kept.Data = other.Data },
	}
	for name, do := range damage {
		copied := t.TempDir()
		if err := os.CopyFS(copied, os.DirFS(dir)); err != nil {
			t.Fatal(err)
		}
		l, err := openLog(copied, diskHooks{}, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		var kept, other raft.Log
		if err := errors.Join(l.BoltStore.GetLog(last, &kept), l.BoltStore.GetLog(last-1, &other)); err != nil {
			t.Fatal(err)
		}
		if !atrest.Sealed(kept.Data) || !atrest.Sealed(other.Data) {
			t.Fatal("the entries are not sealed")
		}
		do(&kept, &other)
		if err := errors.Join(l.BoltStore.StoreLog(&kept), l.Close()); err != nil {
			t.Fatal(err)
		}
		_, err = Open(Config{DataDir: copied, Logger: quiet(), AtRest: atRest(t, key)})
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || !strings.Contains(err.Error(), fmt.Sprintf("log entry %d", last)) {
			t.Errorf("%s: %v, want a CorruptError that names entry %d", name, err, last)
		}
	}
}

// Each server has a key of its own, or none: what servers send each other is not
// what lies on their disks.
func TestServersWithDifferentKeysFormACluster(t *testing.T) {
	keys := []*atrest.Keys{atRest(t, atRestKey(t)), nil, atRest(t, atRestKey(t))}
	change := func(i int) func(cfg *Config) {
		return func(cfg *Config) {
			cfg.AtRest = keys[i]
			cfg.TrailingLogs, cfg.SnapshotThreshold = 1, 1<<20
		}
	}
	c := newCluster(t, 2, func(i int, cfg *Config) { change(i)(cfg) })
	mustApply(t, c.members[0].Store, groupG())
	for i := range 30 {
		mustApply(t, c.members[i%2].Store, putService("g", fmt.Sprint("s", i), needle))
	}
	for _, m := range c.members {
		if err := m.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	// What the third needs is not in the logs any more: it gets a snapshot.
	c.add(false, change(2))
	c.waitVoters(3)
	c.converge()

	// And a restore, which goes through a file of the leader's.
	var file bytes.Buffer
	if _, err := c.members[1].SaveSnapshot(testCtx(t), &file); err != nil {
		t.Fatal(err)
	}
	for _, via := range []*member{c.members[0], c.members[2]} {
		if err := c.leader().transfer(testCtx(t), via.id); err != nil && c.leader() != via {
			t.Logf("hand leadership to %s: %v", via.id, err)
		}
		info, err := via.RestoreSnapshot(testCtx(t), bytes.NewReader(file.Bytes()))
		if err != nil || info.Resources != 30 {
			t.Fatalf("restore: %+v, %v", info, err)
		}
		c.converge()
	}
	sum, _ := c.leader().State().Checksum()
	for _, m := range c.members {
		m.stop()
	}
	for i, m := range c.members {
		if found := holding(t, m.cfg.DataDir); (found == nil) != (keys[i] != nil) {
			t.Errorf("%s: a secret is in clear in %q", m.id, found)
		}
	}
	for _, m := range c.members {
		c.restart(m)
	}
	c.converge()
	if again, _ := c.leader().State().Checksum(); again != sum {
		t.Error("the state differs after a restart of all")
	}
}
