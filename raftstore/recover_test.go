package raftstore

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestOneSurvivorGoesOnAfterPeersJSON is the runbook for a majority that is
// lost for good.
func TestOneSurvivorGoesOnAfterPeersJSON(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	mustApply(t, c.members[0].Store, putService("g", "a", ""))
	c.converge()
	survivor := c.followers()[0]
	for _, m := range c.members {
		m.stop()
	}
	c.members = []*member{survivor}
	peers := PeersFile([]Peer{{ID: survivor.id, Address: survivor.cfg.RaftAddr, Voter: true}})
	path := filepath.Join(survivor.cfg.DataDir, "peers.json")
	if err := os.WriteFile(path, peers, 0o600); err != nil {
		t.Fatal(err)
	}
	c.restart(survivor)
	if err := survivor.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	st := survivor.State()
	if st.Epoch() != 2 {
		t.Errorf("epoch %d", st.Epoch())
	}
	if g, found := st.Group("g"); !found || g.View().Len() != 1 || g.Epoch() != 2 {
		t.Error("the data is gone, or of the old epoch")
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("peers.json is still there: the next start would recover again")
	}
	// The next restart is an ordinary one, and others can join.
	c.restart(survivor)
	c.add(false, nil)
	c.add(false, nil)
	c.waitVoters(3)
	c.converge()
	if survivor.State().Epoch() != 2 {
		t.Error("the epoch rose again")
	}
}

func TestARecoveryOfSeveralSurvivorsLeadsToOneEpoch(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	mustApply(t, c.members[0].Store, putService("g", "a", ""))
	c.converge()
	a, b := c.members[0], c.members[1]
	peers := PeersFile([]Peer{{ID: a.id, Address: a.cfg.RaftAddr, Voter: true}, {ID: b.id, Address: b.cfg.RaftAddr, Voter: true}})
	for _, m := range c.members {
		m.stop()
	}
	c.members = c.members[:2]
	for _, m := range c.members {
		if err := os.WriteFile(filepath.Join(m.cfg.DataDir, "peers.json"), peers, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// One of them was cut short in the middle of a first try.
	opened, err := Open(withLogger(a.cfg))
	if err != nil {
		t.Fatal(err)
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(a.cfg.DataDir, "peers.json.done"), filepath.Join(a.cfg.DataDir, "peers.json")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.cfg.DataDir, recoveryEpoch), []byte{0, 0, 0, 0, 0, 0, 0, 2}, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, m := range c.members {
		c.restart(m)
	}
	c.converge()
	for _, m := range c.members {
		if m.State().Epoch() != 2 {
			t.Errorf("%s is at epoch %d", m.id, m.State().Epoch())
		}
	}
	mustApply(t, b.Store, putService("g", "b", ""))
}

func TestABadPeersJSONIsRefusedAndTouchesNothing(t *testing.T) {
	dir := t.TempDir()
	s, stop := one(t, dir)
	mustApply(t, s, groupG())
	sum, _ := s.State().Checksum()
	stop()
	path := filepath.Join(dir, "peers.json")
	for _, bad := range []string{"", "[]", "{}", `[{"id":"a"}]`, `[{"id":"a","address":"x:1","non_voter":true}]`} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if s, err := Open(Config{DataDir: dir, Logger: quiet()}); err == nil {
			s.Close()
			t.Errorf("%q was taken", bad)
		}
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	s, _ = one(t, dir)
	if err := s.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.State().Checksum(); again != sum {
		t.Error("the state changed")
	}
}

func withLogger(cfg Config) Config {
	cfg.Logger = quiet()
	cfg.ApplyTimeout = 10 * time.Second
	return cfg
}
