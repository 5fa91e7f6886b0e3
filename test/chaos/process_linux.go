package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// processFaults end, stop and hand over.
func processFaults() []fault {
	return []fault{
		{row: "1", name: "SIGKILL of the leader", weight: 20, gap: gapKill, run: killLeader},
		{row: "1", name: "SIGKILL of a follower", weight: 6, run: killFollower},
		{row: "1", name: "SIGKILL of all", weight: 4, run: killAll},
		{row: "1", name: "SIGKILL of the leader and a follower", weight: 3, run: killTwo},
		{row: "2", name: "SIGSTOP of the leader", weight: 7, run: stopLeader},
		{row: "2", name: "SIGSTOP of a follower", weight: 2, run: stopFollower},
		{row: "handover", name: "leadership handed on", weight: 8, gap: gapHandover, run: transfer},
		{row: "handover", name: "SIGTERM of the leader", weight: 6, gap: gapTerm, run: terminateLeader},
		{row: "handover", name: "rolling restart", weight: 2, gap: gapRolling, run: rollingRestart},
	}
}

// The measures of pauses of writes.
const (
	gapKill     = "leader killed"
	gapHandover = "leadership handed on"
	gapTerm     = "leader stopped by SIGTERM"
	gapRolling  = "rolling restart, the longest pause"
	gapDisk     = "leader's disk hung"
)

func allGaps() []string {
	return []string{gapKill, gapCut, gapDisk, gapHandover, gapTerm, gapRolling}
}

// between returns a duration of a range.
func between(random *rand.Rand, from, to time.Duration) time.Duration {
	return from + time.Duration(random.Int64N(int64(to-from)))
}

func pick[T any](random *rand.Rand, list []T) T { return list[random.IntN(len(list))] }

func killLeader(ctx context.Context, w *world, random *rand.Rand) error {
	down := between(random, 0, 1500*time.Millisecond)
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	leader.kill()
	sleep(ctx, down)
	return nil
}

func killFollower(ctx context.Context, w *world, random *rand.Rand) error {
	down := between(random, 0, time.Second)
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	pick(random, followers).kill()
	sleep(ctx, down)
	return nil
}

// killAll also holds the data planes to their promise that they go on, and
// start, without any server.
func killAll(ctx context.Context, w *world, random *rand.Rand) error {
	p := pick(random, w.fleet.planes)
	for _, n := range w.members() {
		_ = n.signal(syscall.SIGKILL)
	}
	for _, n := range w.members() {
		n.kill()
	}
	before, configured := p.version()
	if !configured {
		return violated("I6: data plane %s has no configuration while all servers are down", p.id)
	}
	p.stop()
	if v, _ := p.version(); before.Below(v) {
		before = v // what came last was still being applied
	}
	if err := p.start(); err != nil {
		return err
	}
	deadline := time.Now().Add(convergeLimit)
	for {
		v, configured := p.version()
		if configured && v == before {
			return nil
		}
		if time.Now().After(deadline) {
			return violated("I6: data plane %s was at %s and started again, without a server, at %s (configured: %v)", p.id, before, v, configured)
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// killTwo leaves one server without a majority; it must go on serving data planes.
func killTwo(ctx context.Context, w *world, random *rand.Rand) error {
	leader, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	leader.kill()
	followers[0].kill()
	return w.serves(ctx, followers[1], pick(random, groups))
}

// serves checks that a server answers a new data plane.
func (w *world) serves(ctx context.Context, n *node, group string) error {
	// A name of its own: it has never held anything.
	w.strangers++
	raw, err := newRawPlane(w.cluster, w.fleet.saw, group, fmt.Sprintf("new-%s-%d", group, w.strangers), []string{n.host.addr(xdsPort)})
	if err != nil {
		return err
	}
	raw.start()
	defer raw.stop()
	deadline := time.Now().Add(convergeLimit)
	for raw.answered() == 0 {
		if time.Now().After(deadline) {
			return violated("I6: %s does not serve a new data plane: %v", n.id, raw.lastError())
		}
		if !sleep(ctx, 5*time.Millisecond) {
			return ctx.Err()
		}
	}
	return nil
}

func stopLeader(ctx context.Context, w *world, random *rand.Rand) error {
	long := between(random, 300*time.Millisecond, 4*time.Second)
	if random.IntN(20) == 0 {
		long *= 3
	}
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	return w.freeze(ctx, leader, long)
}

func stopFollower(ctx context.Context, w *world, random *rand.Rand) error {
	long := between(random, 300*time.Millisecond, 3*time.Second)
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	return w.freeze(ctx, pick(random, followers), long)
}

func (w *world) freeze(ctx context.Context, n *node, long time.Duration) error {
	if err := n.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	sleep(ctx, long)
	if err := n.signal(syscall.SIGCONT); err != nil {
		return err
	}
	// Its clients ask it at once: it must not answer from the past.
	sleep(ctx, 200*time.Millisecond)
	return nil
}

func transfer(ctx context.Context, w *world, random *rand.Rand) error {
	leader, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	to := ""
	if random.IntN(2) == 0 {
		to = pick(random, followers).id
	}
	conn, err := w.conn(leader)
	if err != nil {
		return err
	}
	// Raft gives it half a second; a server that is late is asked again, as an
	// operator would.
	for try := 1; ; try++ {
		call, cancel := context.WithTimeout(w.auth(ctx), 5*time.Second)
		_, err := musterv1.NewClusterServiceClient(conn).TransferLeader(call, &musterv1.TransferLeaderRequest{Id: to})
		cancel()
		if err == nil {
			break
		}
		if try == 3 {
			return violated("leadership could not be handed on: %v", err)
		}
	}
	sleep(ctx, 100*time.Millisecond)
	return nil
}

func terminateLeader(ctx context.Context, w *world, _ *rand.Rand) error {
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	if err := leader.stop(ctx); err != nil {
		return violated("%v", err)
	}
	return nil
}

func rollingRestart(ctx context.Context, w *world, _ *rand.Rand) error {
	for _, n := range w.members() {
		if err := n.stop(ctx); err != nil {
			return violated("%v", err)
		}
		if err := w.start(n); err != nil {
			return err
		}
		if err := w.settle(ctx, healLimit); err != nil {
			return violated("I4: %v", err)
		}
	}
	return nil
}
