package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

func TestServersJoinAndAreGivenAVote(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	c.converge()
	for _, m := range c.members {
		peers, err := m.Peers(testCtx(t))
		if err != nil || len(peers) != 3 {
			t.Fatalf("%v, %d peers", err, len(peers))
		}
		leaders := 0
		for _, p := range peers {
			if !p.Voter || !p.Reachable {
				t.Errorf("%s sees %+v", m.id, p)
			}
			if p.Leader {
				leaders++
			}
		}
		if leaders != 1 {
			t.Errorf("%s sees %d leaders", m.id, leaders)
		}
		eventually(t, "readiness", func() bool { return m.Ready() == nil })
	}
}

func TestWritesGoToAnyServerAndAreReadOnAny(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.followers()[0].Store, groupG())
	for i, m := range c.members {
		id := string(rune('a' + i))
		result := mustApply(t, m.Store, putService("g", id, ""))
		if result.Commit.GetRevision() != uint64(i+1) || result.Group.GetRevision() != uint64(i+1) {
			t.Errorf("answer %v", result)
		}
		for _, reader := range c.members {
			if err := reader.ReadIndex(testCtx(t)); err != nil {
				t.Fatal(err)
			}
			g, found := reader.State().Group("g")
			if !found {
				t.Fatalf("%s: no group", reader.id)
			}
			if _, found := g.View().Get(serviceKey(id)); !found {
				t.Errorf("%s does not show what was acknowledged by %s", reader.id, m.id)
			}
		}
	}
	// Errors keep their types on the way.
	follower := c.followers()[0]
	result, err := follower.Apply(testCtx(t), putService("nope", "a", ""))
	var notFound *state.NotFoundError
	if err != nil || !errors.As(result.Err, &notFound) || notFound.Group != "nope" {
		t.Errorf("got %v, %v", result.Err, err)
	}
	bad := putService("g", "", "")
	var problems resource.Problems
	if result, err = follower.Apply(testCtx(t), bad); err != nil || !errors.As(result.Err, &problems) || len(problems) != 1 {
		t.Errorf("got %v, %v", result.Err, err)
	}
	cmd := putService("g", "again", "")
	cmd.RequestId = "r"
	mustApply(t, c.leader().Store, cmd)
	if result := mustApply(t, follower.Store, cmd); !result.Replayed {
		t.Error("a repeated request was carried out again")
	}
}

func TestNoAcknowledgedWriteIsLostWhenTheLeaderIsCutOff(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	old := c.leader()
	l := c.load(6, c.followers()...)
	l.await(t, 50)
	l.resetGap()
	c.net.isolate(old.id)
	c.leader(old)
	l.await(t, 50)
	t.Logf("writes paused for %s", l.longestGap())

	// The old leader must not answer for the cluster any more.
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	if err := old.ReadIndex(ctx); err == nil {
		t.Error("a linearizable read succeeded on the wrong side")
	}
	if _, err := old.Apply(ctx, putService("g", "wrong-side", "")); !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrUnknown) {
		t.Errorf("a write on the wrong side: %v", err)
	}
	cancel()
	c.net.heal()
	eventually(t, "the old leader to follow", func() bool { id, _, _ := old.Leader(); return id == c.leader().id })
	l.end(c)
}

func TestARestartedServerIsNotReadyBeforeItHasCaughtUp(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	m := c.followers()[0]
	if err := m.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	m.stop()
	mustApply(t, c.leader().Store, putService("g", "while-away", ""))
	c.net.isolate(m.id)
	c.restart(m)
	time.Sleep(300 * time.Millisecond)
	if err := m.Ready(); !errors.Is(err, ErrNotReady) {
		t.Fatalf("ready while cut off: %v", err)
	}
	c.net.heal()
	eventually(t, "readiness", func() bool { return m.Ready() == nil })
	g, _ := m.State().Group("g")
	if _, found := g.View().Get(serviceKey("while-away")); !found {
		t.Error("ready without what was committed while it was away")
	}
}

func TestHandingLeadershipOnInterruptsWritesBriefly(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	l := c.load(6, c.members...)
	l.await(t, 50)
	for range 3 {
		old := c.leader()
		target := c.followers()[0]
		l.await(t, 20)
		l.resetGap()
		if err := c.followers()[1].TransferLeader(testCtx(t), target.id); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the new leader", func() bool { return target.leads() })
		l.await(t, 20)
		gap := l.longestGap()
		t.Logf("%s to %s: writes paused for %s", old.id, target.id, gap)
		if gap > time.Second {
			t.Errorf("writes paused for %s", gap)
		}
	}
	l.end(c)
}

func TestAGracefulStopHandsLeadershipOnFirst(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	leader := c.leader()
	l := c.load(4, c.followers()...)
	l.await(t, 50)
	l.resetGap()
	if err := leader.Drain(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(leader.Ready(), ErrNotReady) {
		t.Error("a draining server is ready")
	}
	// While it drains, it still passes writes on.
	mustApply(t, leader.Store, createGroup("via-draining"))
	leader.stop()
	l.await(t, 20)
	gap := l.longestGap()
	t.Logf("writes paused for %s", gap)
	if gap > time.Second {
		t.Errorf("writes paused for %s", gap)
	}
	c.restart(leader)
	l.end(c)
}

func TestAllServersRestartAndKeepEverything(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	mustApply(t, c.members[1].Store, putService("g", "a", "x"))
	for _, m := range c.members {
		m.stop()
	}
	for _, m := range c.members {
		c.restart(m)
	}
	c.converge()
	g, found := c.members[2].State().Group("g")
	if !found || g.View().Len() != 1 {
		t.Error("something is gone")
	}
	mustApply(t, c.members[2].Store, putService("g", "b", "x"))
}

func TestMessagesBetweenServersAreAnswered(t *testing.T) {
	c := newCluster(t, 2, func(_ int, cfg *Config) {
		id := cfg.ServerID
		cfg.Handle = func(_ context.Context, _ string, m []byte) ([]byte, error) {
			if string(m) == "fail" {
				return nil, errors.New("as you wish")
			}
			return []byte(id + " got " + string(m)), nil
		}
	})
	a, b := c.members[0], c.members[1]
	if answer, err := a.Call(testCtx(t), b.id, []byte("hello")); err != nil || string(answer) != "s1 got hello" {
		t.Errorf("%q, %v", answer, err)
	}
	if _, err := b.Call(testCtx(t), a.id, []byte("fail")); err == nil {
		t.Error("an error became an answer")
	}
	if _, err := a.Call(testCtx(t), "nobody", nil); !errors.Is(err, ErrNotMember) {
		t.Errorf("got %v", err)
	}
}

func TestTheLeaderIsFoundAndAsked(t *testing.T) {
	c := newCluster(t, 3, func(_ int, cfg *Config) {
		id := cfg.ServerID
		cfg.Handle = func(_ context.Context, _ string, m []byte) ([]byte, error) {
			if string(m) == "never" {
				return nil, &NotLeaderError{}
			}
			return []byte(id + " got " + string(m)), nil
		}
	})
	leader := c.leader()
	for _, m := range c.members {
		answer, err := m.CallLeader(testCtx(t), false, []byte("hello"))
		if want := leader.id + " got hello"; err != nil || string(answer) != want {
			t.Errorf("%s: %q, %v; want %q", m.id, answer, err, want)
		}
		// A handler that says that its server does not lead has done nothing: it is
		// asked again until the time is up.
		ctx, cancel := context.WithTimeout(testCtx(t), 200*time.Millisecond)
		if _, err := m.CallLeader(ctx, false, []byte("never")); !errors.Is(err, ErrNoLeader) && !errors.Is(err, ErrUnknown) {
			t.Errorf("%s: got %v", m.id, err)
		}
		cancel()
	}
}

func TestCommandsComeIntoTheLogInTheOrderInWhichTheyWereHandedOver(t *testing.T) {
	c := newCluster(t, 3, nil)
	leader := c.leader()
	mustApply(t, leader.Store, groupG())
	var waits []func() (state.Result, error)
	const n = 600
	for i := range n {
		cmd := putService("g", "a", fmt.Sprint(i))
		cmd.GetCommit().ExpectedRevision = proto.Uint64(uint64(i))
		waits = append(waits, leader.Begin(testCtx(t), cmd))
	}
	for i, wait := range slices.Backward(waits) {
		if result, err := wait(); err != nil || result.Err != nil || result.Commit.GetRevision() != uint64(i+1) {
			t.Fatalf("command %d: %v, %v", i, result, err)
		}
	}
}
