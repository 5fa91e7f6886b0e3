package main

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
)

// memberFaults change the cluster, restore it and recover it.
func memberFaults() []fault {
	return []fault{
		{row: "12", name: "restored into the same cluster", weight: 4, run: restoreSame},
		{row: "12", name: "restored into a fresh cluster", weight: 3, run: restoreFresh},
		{row: "13", name: "server added and removed", weight: 3, run: addRemove},
		{row: "13", name: "lost server replaced", weight: 3, run: replace},
		{row: "13", name: "leader removed", weight: 3, run: removeLeader},
		{row: "13", name: "server loses its data", weight: 2, run: amnesia},
		{row: "13", name: "recovered by peers.json", weight: 3, run: recoverPeers},
	}
}

// undoing runs something that takes writes back on purpose: while nobody writes,
// and after everything before it was checked. The histories begin anew after it.
func (w *world) undoing(ctx context.Context, do func() error) error {
	resume := w.writers.quiesce()
	defer resume()
	if err := w.inspect(ctx, &recovery{}); err != nil {
		return err
	}
	before := w.writers.epoch.Load()
	if err := do(); err != nil {
		return err
	}
	for _, g := range groups {
		if err := w.rebase(ctx, g); err != nil {
			return violated("I4: %v", err)
		}
		now, err := w.writers.readAll(ctx, g)
		if err != nil {
			return violated("I4: %v", err)
		}
		if now.Epoch <= before {
			return violated("I2: the epoch was %d and is %d after a restore or recovery", before, now.Epoch)
		}
	}
	return nil
}

// restore puts a backup in place of what the cluster holds, by any server.
func (w *world) restore(ctx context.Context, n *node, data []byte) error {
	conn, err := w.conn(n)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(w.auth(ctx), 45*time.Second)
	defer cancel()
	stream, err := musterv1.NewClusterServiceClient(conn).RestoreSnapshot(ctx)
	if err != nil {
		return err
	}
	for r := bytes.NewBuffer(data); r.Len() > 0; {
		if err := stream.Send(&musterv1.RestoreSnapshotRequest{Chunk: r.Next(64 << 10)}); err != nil {
			break // CloseAndRecv tells why
		}
	}
	if _, err := stream.CloseAndRecv(); err != nil {
		return violated("row 12: restore at %s: %v", n.id, err)
	}
	return nil
}

func restoreSame(ctx context.Context, w *world, random *rand.Rand) error {
	from, to := pick(random, w.members()), pick(random, w.members())
	data, _, err := w.backup(ctx, from)
	if err != nil {
		return violated("row 12: backup at %s: %v", from.id, err)
	}
	kept, err := w.contents(data)
	if err != nil {
		return err
	}
	sleep(ctx, between(random, 100*time.Millisecond, 600*time.Millisecond))
	return w.undoing(ctx, func() error {
		if err := w.restore(ctx, to, data); err != nil {
			return err
		}
		return w.holds(ctx, kept)
	})
}

func restoreFresh(ctx context.Context, w *world, random *rand.Rand) error {
	data, _, err := w.backup(ctx, pick(random, w.members()))
	if err != nil {
		return violated("row 12: %v", err)
	}
	kept, err := w.contents(data)
	if err != nil {
		return err
	}
	sleep(ctx, between(random, 100*time.Millisecond, 600*time.Millisecond))
	return w.undoing(ctx, func() error {
		for _, n := range w.members() {
			if err := w.drop(n); err != nil {
				return err
			}
		}
		if err := w.form(ctx); err != nil {
			return err
		}
		if err := w.restore(ctx, pick(random, w.members()), data); err != nil {
			return err
		}
		return w.holds(ctx, kept)
	})
}

// contents is what a backup says of itself; the restored cluster must say the same.
func (w *world) contents(data []byte) (raftstore.SnapshotInfo, error) {
	return raftstore.InspectSnapshot(bytes.NewReader(data))
}

// holds checks that the cluster holds what a backup did.
func (w *world) holds(ctx context.Context, kept raftstore.SnapshotInfo) error {
	_, now, err := w.backup(ctx, w.members()[0])
	if err != nil {
		return violated("row 12: %v", err)
	}
	if now.GetResources() != uint64(kept.Resources) || now.GetGroups() != uint64(kept.Groups) {
		return violated("row 12: the backup has %d groups and %d resources, the restored cluster %d and %d", kept.Groups, kept.Resources, now.GetGroups(), now.GetResources())
	}
	return nil
}

func addRemove(ctx context.Context, w *world, random *rand.Rand) error {
	n, err := w.add(false)
	if err != nil {
		return err
	}
	if err := w.settle(ctx, healLimit); err != nil {
		return violated("row 13: a server was added: %v", err)
	}
	// The new one goes, or one of those before.
	if random.IntN(2) == 0 {
		_, followers, err := w.followers(ctx)
		if err != nil {
			return err
		}
		n = pick(random, followers)
	}
	if err := w.remove(ctx, n); err != nil {
		return err
	}
	return w.drop(n)
}

func replace(ctx context.Context, w *world, random *rand.Rand) error {
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	n := pick(random, followers)
	n.kill()
	if err := w.remove(ctx, n); err != nil {
		return err
	}
	if err := w.drop(n); err != nil {
		return err
	}
	_, err = w.add(false)
	return err
}

func removeLeader(ctx context.Context, w *world, _ *rand.Rand) error {
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	if err := w.remove(ctx, leader); err != nil {
		return err
	}
	if err := w.drop(leader); err != nil {
		return err
	}
	_, err = w.add(false)
	return err
}

// amnesia takes a follower's data away. It must not come back as the voter that
// it was: it has forgotten what it acknowledged.
func amnesia(ctx context.Context, w *world, random *rand.Rand) error {
	_, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	n := pick(random, followers)
	n.kill()
	if err := n.wipe(); err != nil {
		return err
	}
	n.boot, n.join = false, w.raftAddrs(n)
	if err := w.start(n); err != nil {
		return err
	}
	sleep(ctx, 700*time.Millisecond)
	if st, err := w.status(ctx, n); err == nil && st.GetReady() {
		return violated("row 13: %s lost its data, and came back with a vote", n.id)
	}
	n.kill()
	return w.reseed(ctx, n)
}

// raftAddrs are the raft addresses of the members but one.
func (w *world) raftAddrs(but *node) string {
	var out []string
	for _, m := range w.members() {
		if m != but {
			out = append(out, m.host.addr(raftPort))
		}
	}
	return strings.Join(out, ",")
}

func recoverPeers(ctx context.Context, w *world, random *rand.Rand) error {
	survivor := pick(random, w.members())
	return w.undoing(ctx, func() error {
		for _, n := range w.members() {
			n.kill()
		}
		for _, n := range w.members() {
			if n != survivor {
				if err := w.drop(n); err != nil {
					return err
				}
			}
		}
		peers := raftstore.PeersFile([]raftstore.Peer{{ID: survivor.id, Address: survivor.host.addr(raftPort), Voter: true}})
		if err := os.WriteFile(filepath.Join(survivor.backingDir(), "raft", "peers.json"), peers, 0o600); err != nil {
			return err
		}
		if err := w.start(survivor); err != nil {
			return err
		}
		if err := w.settle(ctx, healLimit); err != nil {
			return violated("row 13: recovery by peers.json: %v", err)
		}
		for range 2 {
			if _, err := w.add(false); err != nil {
				return err
			}
		}
		return nil
	})
}
