package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
)

const (
	churnWriters = 8
	churnRate    = 100 // writes a second, of all writers
)

// churner writes to a cluster at a steady rate until it is stopped, and notes when
// each write was acknowledged.
type churner struct {
	c      *cluster
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu   sync.Mutex
	done []time.Time
	err  error
}

func startChurn(ctx context.Context, c *cluster, resources int) *churner {
	ch := &churner{c: c}
	ctx, ch.cancel = context.WithCancel(ctx)
	for w := range churnWriters {
		ch.wg.Go(func() {
			tick := time.NewTicker(time.Second * churnWriters / churnRate)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-tick.C:
				case <-ctx.Done():
					return
				}
				// Each writer has resources of its own, and no write is left with an
				// unknown end: what was begun is finished.
				index := (w + n*churnWriters) % (resources - resources%churnWriters)
				finish, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
				err := c.write(finish, w+n, fmt.Sprintf("w%d-%d", w, n), time.Now(), index)
				cancel()
				ch.mu.Lock()
				ch.done = append(ch.done, time.Now())
				ch.err = errors.Join(ch.err, err)
				ch.mu.Unlock()
				if err != nil {
					return
				}
			}
		})
	}
	return ch
}

func (ch *churner) stop() error {
	ch.cancel()
	ch.wg.Wait()
	return ch.err
}

func (ch *churner) count() int {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return len(ch.done)
}

// gap is the longest time without an acknowledged write, from the last one before a
// moment on.
func (ch *churner) gap(from, to time.Time) time.Duration {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	slices.SortFunc(ch.done, time.Time.Compare)
	longest := time.Duration(0)
	for i := 1; i < len(ch.done); i++ {
		if ch.done[i].After(from) && ch.done[i].Before(to) {
			longest = max(longest, ch.done[i].Sub(ch.done[i-1]))
		}
	}
	return longest
}

// failover is B15: the leader is killed while a hundred changes a second go to a
// thousand streams, several times.
func (r *runner) failover(ctx context.Context) error {
	streams, resources, kills := r.size(1000, 100), r.size(10000, 1000), r.size(5, 2)
	c, err := startCluster(ctx)
	if err != nil {
		return err
	}
	defer c.stop()
	if err := c.load(ctx, streams, resources); err != nil {
		return err
	}
	before, err := c.revision(ctx)
	if err != nil {
		return err
	}
	ch := startChurn(ctx, c, resources)
	var gaps []float64
	for range kills {
		time.Sleep(5 * time.Second)
		gap, err := c.killLeader(ctx, ch)
		if err != nil {
			return errors.Join(err, ch.stop())
		}
		gaps = append(gaps, gap.Seconds())
	}
	if err := ch.stop(); err != nil {
		return err
	}
	end, err := c.oracle(ctx)
	if err != nil {
		return err
	}
	after, err := c.revision(ctx)
	if err != nil {
		return err
	}
	writes := ch.count()
	// Each write is one revision: none was lost, none was carried out twice.
	lost := int64(writes) - int64(after-before)
	timeout := raftstore.Defaults().ElectionTimeout.Seconds()
	what := fmt.Sprintf("leader killed %d times under %d changes/s to %d streams, %d resources", kills, churnRate, streams, resources)
	r.report.row("B15", "longest time without an acknowledged write, "+what+" (floor: the election timeout)", "ms", scale(gaps, 1e3), []float64{1e3 * timeout}, nil)
	r.report.row("B15", fmt.Sprintf("of %d acknowledged writes, lost or made twice", writes), "", []float64{float64(max(lost, -lost))}, nil, nil)
	r.report.row("B15", fmt.Sprintf("times that a data plane moved backwards, in %d reconnects", end.Reconnects), "", []float64{float64(end.Backwards)}, nil, nil)
	r.report.gate("B15 lost", float64(max(lost, -lost)), 0)
	r.report.gate("B15 backwards", float64(end.Backwards), 0)
	if !r.smoke { // milliseconds of a smoke run are those of the machine's other work
		r.report.gate("B15 gap in election timeouts", median(gaps)/timeout, 2)
	}
	return nil
}

// killLeader kills the leader, waits until writes go on, brings it back and returns
// the gap.
func (c *cluster) killLeader(ctx context.Context, ch *churner) (time.Duration, error) {
	i := -1
	if err := until(ctx, "the cluster has a leader", func() bool {
		st, err := c.nodes[0].ops.GetClusterStatus(asBench(ctx), &musterv1.GetClusterStatusRequest{})
		i = slices.IndexFunc(c.nodes[:], func(n *node) bool { return err == nil && n.id == st.GetLeaderId() })
		return i >= 0
	}); err != nil {
		return 0, err
	}
	killed := time.Now()
	c.nodes[i].proc.kill()
	n := ch.count()
	if err := until(ctx, "writes go on", func() bool { return ch.count() > n+churnRate }); err != nil {
		return 0, err
	}
	gap := ch.gap(killed, time.Now())
	return gap, c.startNode(ctx, i)
}

// revision is the group's, by a linearizable read.
func (c *cluster) revision(ctx context.Context) (uint64, error) {
	g, err := c.nodes[0].api.GetGroup(asBench(ctx), &musterv1.GetGroupRequest{Group: "group"})
	return g.GetGroup().GetRevision(), err
}
