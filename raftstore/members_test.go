package raftstore

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

func TestAServerIsRemovedAndAnotherTakesItsPlace(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	gone := c.followers()[0]
	if err := c.followers()[1].Remove(testCtx(t), gone.id, false); err != nil {
		t.Fatal(err)
	}
	gone.stop()
	c.waitVoters(2)
	mustApply(t, c.leader().Store, putService("g", "a", ""))
	// Its data belongs to a cluster that it is no member of.
	m := c.add(false, func(cfg *Config) { cfg.Join = []string{c.leader().cfg.RaftAddr} })
	c.waitVoters(3)
	if err := m.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	c.converge()
	if err := m.Remove(testCtx(t), "nobody", false); !errors.Is(err, ErrNotMember) {
		t.Errorf("got %v", err)
	}
}

func TestARemovedServerCannotComeBackUnasked(t *testing.T) {
	t.Parallel() // it mostly waits
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	gone := c.followers()[0]
	if err := c.leader().Remove(testCtx(t), gone.id, false); err != nil {
		t.Fatal(err)
	}
	// Whether it has heard of it or not, for raft does not tell it for sure.
	if err := gone.Join(testCtx(t), []string{c.leader().cfg.RaftAddr}); !errors.Is(err, ErrRefused) {
		t.Errorf("got %v", err)
	}
	// It does not disturb those that remain.
	term := c.leader().raft.CurrentTerm()
	time.Sleep(4 * gone.cfg.ElectionTimeout)
	if now := c.leader().raft.CurrentTerm(); now != term {
		t.Errorf("the term went from %d to %d", term, now)
	}
}

func TestALeaderThatIsRemovedHandsLeadershipOnFirst(t *testing.T) {
	for _, from := range []string{"itself", "another server"} {
		t.Run(from, func(t *testing.T) {
			c := newCluster(t, 3, nil)
			mustApply(t, c.members[0].Store, groupG())
			old := c.leader()
			asked := old
			if from == "another server" {
				asked = c.followers()[0]
			}
			if err := asked.Remove(testCtx(t), old.id, false); err != nil {
				t.Fatal(err)
			}
			fresh := c.leader(old)
			eventually(t, "two voters", func() bool { return fresh.voters() == 2 })
			mustApply(t, fresh.Store, putService("g", "a", ""))
		})
	}
}

func TestARemovalThatWouldStopTheClusterIsRefused(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	dead, live := c.followers()[0], c.followers()[1]
	dead.stop()
	if err := c.leader().Remove(testCtx(t), live.id, false); !errors.Is(err, ErrRefused) {
		t.Fatalf("got %v", err)
	}
	if c.leader().voters() != 3 {
		t.Error("it was removed")
	}
	if err := c.leader().Remove(testCtx(t), dead.id, false); err != nil {
		t.Errorf("the dead server could not be removed: %v", err)
	}
}

// TestAServerThatLostItsDataMustBeRemovedFirst guards against amnesia: a voter
// that forgot what it acknowledged would let an entry of a majority vanish.
func TestAServerThatLostItsDataMustBeRemovedFirst(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	m := c.followers()[0]
	m.stop()
	m.cfg.DataDir, m.cfg.Join = t.TempDir(), nil
	m.Store, m.stop = start(t, m.cfg)
	if err := m.Join(testCtx(t), []string{c.leader().cfg.RaftAddr}); !errors.Is(err, ErrRefused) {
		t.Fatalf("got %v", err)
	}
	if err := c.leader().Remove(testCtx(t), m.id, false); err != nil {
		t.Fatal(err)
	}
	if err := m.Join(testCtx(t), []string{c.leader().cfg.RaftAddr}); err != nil {
		t.Fatal(err)
	}
	c.waitVoters(3)
	c.converge()
}

func TestACorruptFollowerIsNamedAndSeededAgain(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) { cfg.SnapshotThreshold, cfg.TrailingLogs = 16, 8 })
	mustApply(t, c.members[0].Store, groupG())
	for i := range 40 {
		mustApply(t, c.leader().Store, putService("g", string(rune('A'+i)), "some content that can be found on disk"))
	}
	c.converge()
	m := c.followers()[0]
	m.stop()
	path := filepath.Join(m.cfg.DataDir, "raft.db")
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	flipped := flip(data, []byte("some content that can be found on disk"))
	if flipped == 0 {
		t.Fatal("nothing to corrupt")
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := m.cfg
	cfg.Logger = quiet()
	_, err = Open(cfg)
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) || corrupt.Path != path {
		t.Fatalf("got %v", err)
	}
	// What the message says to do.
	if err := c.leader().Remove(testCtx(t), m.id, false); err != nil {
		t.Fatal(err)
	}
	m.cfg.DataDir, m.cfg.Join = t.TempDir(), []string{c.leader().cfg.RaftAddr}
	m.Store, m.stop = start(t, m.cfg)
	c.waitVoters(3)
	c.converge()
}

// flip changes one bit in every occurrence of a text.
func flip(data, text []byte) (n int) {
	for i := 0; i+len(text) <= len(data); i++ {
		if string(data[i:i+len(text)]) == string(text) {
			data[i] ^= 1
			n++
		}
	}
	return n
}

func TestDeadServersAreRemovedOnlyAboveTheMinimumQuorum(t *testing.T) {
	t.Parallel() // it mostly waits
	c := newCluster(t, 4, func(_ int, cfg *Config) {
		cfg.Autopilot.MinQuorum, cfg.Autopilot.DeadAfter = 3, 500*time.Millisecond
	})
	mustApply(t, c.members[0].Store, groupG())
	c.followers()[0].stop()
	eventually(t, "the dead server to be removed", func() bool { return c.leader().voters() == 3 })
	c.followers()[0].stop()
	time.Sleep(1500 * time.Millisecond)
	if n := c.leader().voters(); n != 3 {
		t.Errorf("%d voters are left of a minimum of 3", n)
	}
}

func TestAServerThatMovedTellsTheClusterItsAddress(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	m := c.followers()[0]
	old := m.cfg.RaftAddr
	m.cfg.RaftAddr = "127.0.0.1:0"
	c.restart(m)
	if string(m.trans.LocalAddr()) == old {
		t.Skip("the port was given out again")
	}
	eventually(t, "the new address", func() bool { return c.leader().addressOf(m.id) == string(m.trans.LocalAddr()) })
	c.waitVoters(3)
	c.converge()
}

// TestAutopilotDoesNotBringARemovedServerBack asks for what autopilot asks for
// when its view of the cluster is older than a removal.
func TestAutopilotDoesNotBringARemovedServerBack(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	leader, gone := c.leader(), c.followers()[0]
	if err := leader.Remove(testCtx(t), gone.id, false); err != nil {
		t.Fatal(err)
	}
	r := pilotRaft{leader.raft, leader.Store}
	if err := r.AddVoter(raft.ServerID(gone.id), raft.ServerAddress(gone.cfg.RaftAddr), 0, time.Second).Error(); !errors.Is(err, ErrNotMember) {
		t.Errorf("got %v", err)
	}
	if leader.addressOf(gone.id) != "" {
		t.Error("it is back")
	}
	before := leader.raft.LastIndex()
	if err := r.AddVoter(raft.ServerID(leader.id), raft.ServerAddress(leader.cfg.RaftAddr), 0, time.Second).Error(); err != nil || leader.raft.LastIndex() != before {
		t.Errorf("a vote that is there was given again: %v", err)
	}
}
