package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/musterhq/muster/test/chaos/faultfs"
)

// diskFaults are what disks do to servers.
func diskFaults() []fault {
	return []fault{
		{row: "5", name: "leader's disk hangs", weight: 4, gap: gapDisk, run: hangLeader},
		{row: "5", name: "leader's disk hangs for a moment", weight: 3, run: hangShort},
		{row: "5", name: "follower's disk hangs", weight: 2, run: hangFollower},
		{row: "6", name: "writes fail on a follower", weight: 10, run: failFollower},
		{row: "6", name: "writes fail on the leader", weight: 3, run: failLeader},
		{row: "7", name: "one disk full", weight: 3, run: fullOne},
		{row: "7", name: "two disks full", weight: 3, run: fullTwo},
		{row: "8", name: "power lost at the leader's fsync", weight: 10, run: powerLeader},
		{row: "8", name: "power lost at a follower's fsync", weight: 8, run: powerFollower},
		{row: "8", name: "power lost everywhere", weight: 8, run: powerAll},
		{row: "9", name: "bit flipped in raft.db", weight: 5, run: flipLog},
		{row: "9", name: "raft.db cut short", weight: 3, run: cutLog},
		{row: "9", name: "snapshot damaged", weight: 3, run: damageSnapshot},
	}
}

// What servers say that end because of their disk.
const (
	diskHangs = "the disk hangs"
	diskFull  = "no space left on device"
	diskFails = "input/output error"
	corrupt   = "is corrupt"
)

func hangLeader(ctx context.Context, w *world, _ *rand.Rand) error {
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	began := time.Now()
	w.mayEnd = append(w.mayEnd, diskHangs)
	leader.host.disk.Hang()
	// The target is the watchdog's limit and 2 s; what goes beyond is reported by
	// the pause of writes. Nobody leading long after is a broken promise.
	limit := diskTimeout + convergeLimit
	if _, err := w.leader(ctx, limit, leader); err != nil {
		return violated("row 5: the leader's disk hangs and after %s no other leads", time.Since(began))
	}
	select {
	case <-leader.done():
	case <-time.After(convergeLimit):
		return violated("row 5: %s, whose disk hangs, did not end", leader.id)
	}
	if !strings.Contains(leader.lastRun(), diskHangs) {
		return violated("row 5: %s does not say that its disk hangs: %s", leader.id, leader.logTail(1000))
	}
	return nil
}

func hangShort(ctx context.Context, w *world, random *rand.Rand) error {
	long := between(random, 200*time.Millisecond, diskTimeout/2)
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	leader.host.disk.Hang()
	sleep(ctx, long)
	leader.host.disk.Resume()
	if !leader.runs() {
		return violated("row 5: %s ended although its disk hung for %s only", leader.id, long)
	}
	return nil
}

func hangFollower(ctx context.Context, w *world, random *rand.Rand) error {
	long := between(random, 500*time.Millisecond, diskTimeout+2*time.Second)
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	w.mayEnd = append(w.mayEnd, diskHangs)
	pick(random, followers).host.disk.Hang()
	sleep(ctx, long)
	return nil
}

func failFollower(ctx context.Context, w *world, random *rand.Rand) error {
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	return w.failWrites(ctx, pick(random, followers), random)
}

func failLeader(ctx context.Context, w *world, random *rand.Rand) error {
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	return w.failWrites(ctx, leader, random)
}

func (w *world) failWrites(ctx context.Context, n *node, random *rand.Rand) error {
	w.mayEnd = append(w.mayEnd, diskFull, diskFails)
	n.host.disk.FailWrites(1+random.IntN(4), pick(random, []syscall.Errno{syscall.EIO, syscall.ENOSPC}))
	sleep(ctx, between(random, 200*time.Millisecond, 800*time.Millisecond))
	return nil
}

func fullOne(ctx context.Context, w *world, random *rand.Rand) error {
	n := pick(random, w.members())
	return w.full(ctx, between(random, 700*time.Millisecond, 2*time.Second), random.IntN(4) == 0, pick(random, groups), n)
}

func fullTwo(ctx context.Context, w *world, random *rand.Rand) error {
	members := w.members()
	random.Shuffle(len(members), func(i, j int) { members[i], members[j] = members[j], members[i] })
	return w.full(ctx, between(random, 700*time.Millisecond, 2*time.Second), random.IntN(4) == 0, pick(random, groups), members[:2]...)
}

// full fills disks for a while. Every server that runs must go on serving data
// planes, old and new.
func (w *world) full(ctx context.Context, long time.Duration, sudden bool, group string, nodes ...*node) error {
	w.mayEnd = append(w.mayEnd, diskFull)
	// Mostly a disk fills so that it shows: the servers refuse writes in time.
	if !sudden {
		for _, n := range nodes {
			n.host.disk.Shrink(32 << 20)
		}
		sleep(ctx, 700*time.Millisecond)
	}
	for _, n := range nodes {
		n.host.disk.Fill()
	}
	sleep(ctx, long)
	for _, n := range w.members() {
		if st, err := w.status(ctx, n); err != nil || !st.GetReady() {
			continue // it may have ended, because it could not keep its term
		}
		if err := w.serves(ctx, n, group); err != nil {
			return err
		}
	}
	return nil
}

// powerCutLimit is how long the chosen fsync is waited for.
const powerCutLimit = 2 * time.Second

// nthSync stops a disk just before its n-th fsync from now, and returns when it
// has come, or too much time has passed.
func nthSync(ctx context.Context, n *node, nth int) {
	hit := n.host.disk.Break(func(e faultfs.Event) bool {
		if e.Op == faultfs.OpSync {
			nth--
		}
		return nth <= 0
	})
	timer := time.NewTimer(powerCutLimit)
	defer timer.Stop()
	select {
	case <-hit:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// cutPower ends servers and loses what they had not synced.
func cutPower(random *rand.Rand, nodes ...*node) error {
	for _, n := range nodes {
		_ = n.signal(syscall.SIGKILL)
	}
	for _, n := range nodes {
		n.kill()
		if _, err := n.host.disk.PowerCut(random); err != nil {
			return err
		}
		n.host.disk.Resume()
	}
	return nil
}

func powerLeader(ctx context.Context, w *world, random *rand.Rand) error {
	nth := 1 + random.IntN(30)
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	nthSync(ctx, leader, nth)
	return cutPower(random, leader)
}

func powerFollower(ctx context.Context, w *world, random *rand.Rand) error {
	nth := 1 + random.IntN(30)
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	n := pick(random, followers)
	nthSync(ctx, n, nth)
	return cutPower(random, n)
}

func powerAll(ctx context.Context, w *world, random *rand.Rand) error {
	nth := 1 + random.IntN(30)
	nthSync(ctx, pick(random, w.members()), nth)
	return cutPower(random, w.members()...)
}

// raftFiles are the files of a stopped server that match a pattern, newest last.
func raftFiles(n *node, pattern string) ([]string, error) {
	files, err := filepath.Glob(filepath.Join(n.backingDir(), "raft", pattern))
	slices.Sort(files)
	return files, err
}

// flip inverts one bit.
func flip(path string, random *rand.Rand) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(data) == 0 {
		return nil
	}
	data[random.IntN(len(data))] ^= 1 << random.IntN(8)
	return os.WriteFile(path, data, 0o600)
}

// damage stops a follower, damages its data and starts it again: it must run, or
// say what is corrupt.
func (w *world) damage(ctx context.Context, random *rand.Rand, do func(n *node) error) error {
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	return w.damageOf(ctx, pick(random, followers), do)
}

func (w *world) damageOf(ctx context.Context, n *node, do func(n *node) error) error {
	n.kill()
	if err := do(n); err != nil {
		return err
	}
	w.damaged[n] = true
	w.mayEnd = append(w.mayEnd, corrupt)
	if err := w.start(n); err != nil {
		return err
	}
	select {
	case <-n.done():
		if !strings.Contains(n.lastRun(), corrupt) {
			return violated("row 9: %s ended without naming what is corrupt: %s", n.id, n.logTail(2000))
		}
		return w.reseed(ctx, n)
	case <-time.After(500 * time.Millisecond):
	case <-ctx.Done():
	}
	return nil
}

func flipLog(ctx context.Context, w *world, random *rand.Rand) error {
	return w.damage(ctx, random, func(n *node) error {
		return flip(filepath.Join(n.backingDir(), "raft", "raft.db"), random)
	})
}

func cutLog(ctx context.Context, w *world, random *rand.Rand) error {
	return w.damage(ctx, random, func(n *node) error {
		path := filepath.Join(n.backingDir(), "raft", "raft.db")
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return os.Truncate(path, random.Int64N(info.Size()))
	})
}

func damageSnapshot(ctx context.Context, w *world, random *rand.Rand) error {
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	n := pick(random, followers)
	if err := w.snapshotted(ctx, n, random); err != nil {
		return err
	}
	return w.damageOf(ctx, n, func(n *node) error {
		files, err := raftFiles(n, "snapshots/*/*")
		if err != nil {
			return err
		}
		if len(files) == 0 {
			return fmt.Errorf("%s has no snapshot", n.id)
		}
		// The newest, which is what it would start from.
		path := files[len(files)-1-random.IntN(2)]
		if random.IntN(3) == 0 {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			return os.Truncate(path, random.Int64N(max(info.Size(), 1)))
		}
		return flip(path, random)
	})
}

// snapshotted waits until a server has made a snapshot, and writes so that it does.
func (w *world) snapshotted(ctx context.Context, n *node, random *rand.Rand) error {
	for range 10 {
		files, err := raftFiles(n, "snapshots/*/meta.json")
		if err != nil || len(files) > 0 {
			return err
		}
		w.writers.burst(ctx, random, snapshotThreshold)
		sleep(ctx, 500*time.Millisecond)
	}
	return fmt.Errorf("%s makes no snapshot", n.id)
}
