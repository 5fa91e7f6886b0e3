package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/musterhq/muster/raftstore/state"
)

func TestASnapshotIsRestoredIntoTheSameCluster(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	for i := range 20 {
		mustApply(t, c.members[i%3].Store, putService("g", fmt.Sprint("kept", i), ""))
	}
	var file bytes.Buffer
	saved, err := c.followers()[0].SaveSnapshot(testCtx(t), &file)
	if err != nil || saved.Resources != 20 || saved.Bytes != int64(file.Len()) {
		t.Fatalf("%v %+v", err, saved)
	}
	if inspected, err := InspectSnapshot(bytes.NewReader(file.Bytes())); err != nil || inspected != saved {
		t.Errorf("%v\n%+v\n%+v", err, inspected, saved)
	}
	for i := range 10 {
		mustApply(t, c.members[i%3].Store, putService("g", fmt.Sprint("later", i), ""))
	}
	before := c.leader().State().Epoch()
	for _, via := range []*member{c.followers()[0], c.leader()} {
		info, err := via.RestoreSnapshot(testCtx(t), bytes.NewReader(file.Bytes()))
		if err != nil {
			t.Fatal(err)
		}
		if info.Epoch <= before || info.Resources != 20 {
			t.Errorf("restored %+v", info)
		}
		before = info.Epoch
		c.converge()
		for _, m := range c.members {
			eventually(t, m.id+" to be restored", func() bool { return m.State().Epoch() == info.Epoch })
			g, _ := m.State().Group("g")
			if g.View().Len() != 20 || g.Revision() != 20 || g.Epoch() != info.Epoch {
				t.Errorf("%s: %d resources at %d.%d", m.id, g.View().Len(), g.Epoch(), g.Revision())
			}
		}
		mustApply(t, c.members[1].Store, putService("g", "after", ""))
		c.converge()
	}
	// And it survives restarts of all.
	sum, _ := c.leader().State().Checksum()
	for _, m := range c.members {
		m.stop()
	}
	for _, m := range c.members {
		c.restart(m)
	}
	c.converge()
	if again, _ := c.leader().State().Checksum(); again != sum {
		t.Error("the restored state is gone after a restart")
	}
}

func TestASnapshotIsRestoredIntoAFreshCluster(t *testing.T) {
	source, _ := one(t, t.TempDir())
	mustApply(t, source, groupG())
	for i := range 30 {
		mustApply(t, source, putService("g", fmt.Sprint("s", i), ""))
	}
	var file bytes.Buffer
	saved, err := source.SaveSnapshot(testCtx(t), &file)
	if err != nil {
		t.Fatal(err)
	}
	fresh, _ := one(t, t.TempDir())
	mustApply(t, fresh, createGroup("other"))
	info, err := fresh.RestoreSnapshot(testCtx(t), &file)
	if err != nil {
		t.Fatal(err)
	}
	if info.Epoch != saved.Epoch+1 {
		t.Errorf("epoch %d after %d", info.Epoch, saved.Epoch)
	}
	if err := fresh.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if _, found := fresh.State().Group("other"); found {
		t.Error("what was there before is still there")
	}
	if result := mustApply(t, fresh, putService("g", "next", "")); result.Commit.GetRevision() != 31 || result.Commit.GetEpoch() != info.Epoch {
		t.Errorf("answer %v", result.Commit)
	}
}

func TestADamagedSnapshotReplacesNothing(t *testing.T) {
	c := newCluster(t, 2, nil)
	mustApply(t, c.members[0].Store, groupG())
	mustApply(t, c.members[0].Store, putService("g", "a", ""))
	var file bytes.Buffer
	if _, err := c.members[0].SaveSnapshot(testCtx(t), &file); err != nil {
		t.Fatal(err)
	}
	mustApply(t, c.members[0].Store, putService("g", "b", ""))
	index := c.leader().raft.LastIndex()
	good := file.Bytes()
	damaged := [][]byte{nil, []byte("not a snapshot at all"), good[:len(good)-1], append(slices.Clone(good), 0)}
	for _, at := range []int{len(snapshotMagic), len(good) / 2, len(good) - 1} {
		d := slices.Clone(good)
		d[at] ^= 0x40
		damaged = append(damaged, d)
	}
	for i, d := range damaged {
		for _, m := range c.members {
			if _, err := m.RestoreSnapshot(testCtx(t), bytes.NewReader(d)); !errors.Is(err, state.ErrSnapshot) {
				t.Errorf("case %d: got %v", i, err)
			}
		}
		if _, err := InspectSnapshot(bytes.NewReader(d)); !errors.Is(err, state.ErrSnapshot) {
			t.Errorf("case %d: inspected: %v", i, err)
		}
	}
	if c.leader().raft.LastIndex() != index || c.leader().State().Epoch() != 1 {
		t.Error("something was touched")
	}
	if left, _ := filepath.Glob(filepath.Join(c.leader().cfg.DataDir, "restore-*")); len(left) != 0 {
		t.Errorf("left behind %v", left)
	}
}

func TestWritesGoOnAroundARestoreAndNoneIsTorn(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	var file bytes.Buffer
	if _, err := c.members[0].SaveSnapshot(testCtx(t), &file); err != nil {
		t.Fatal(err)
	}
	l := c.load(4, c.members...)
	for range 3 {
		l.await(t, 20)
		if _, err := c.leader().RestoreSnapshot(testCtx(t), bytes.NewReader(file.Bytes())); err != nil {
			t.Fatal(err)
		}
	}
	l.await(t, 20)
	l.cancel()
	l.wg.Wait()
	c.converge()
}

func TestACorruptOwnSnapshotIsNamedAtTheStart(t *testing.T) {
	dir := t.TempDir()
	s, stop := one(t, dir)
	mustApply(t, s, groupG())
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	stop()
	files, _ := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	if len(files) != 1 {
		t.Fatal(files)
	}
	data, _ := os.ReadFile(files[0])
	data[len(data)/2] ^= 1
	if err := os.WriteFile(files[0], data, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{DataDir: dir, Logger: quiet()}); !errors.Is(err, ErrCorrupt) {
		t.Errorf("got %v", err)
	}
}
