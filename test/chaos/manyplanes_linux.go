package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/test/chaos/oracle"
)

// planeFaults are faults of data planes.
func planeFaults() []fault {
	return []fault{
		{row: "9", name: "data plane's cache damaged", weight: 4, run: damageCache},
		{row: "15", name: "many data planes reconnect, 1% never read", weight: 2, run: reconnectMany},
		{row: "dp", name: "data plane restarted", weight: 4, run: restartPlane},
		{row: "dp", name: "data plane slow", weight: 3, run: slowPlane},
		{row: "dp", name: "data plane refuses for a while", weight: 3, run: refusingPlane},
		{row: "dp", name: "streams of all raw data planes broken", weight: 3, run: breakStreams},
	}
}

func restartPlane(ctx context.Context, w *world, random *rand.Rand) error {
	p := pick(random, w.fleet.planes)
	down := between(random, 0, 500*time.Millisecond)
	p.stop()
	sleep(ctx, down)
	return p.start()
}

// damageCache flips a bit in a data plane's cache. What it starts from, if
// anything, must be a configuration that there was.
func damageCache(ctx context.Context, w *world, random *rand.Rand) error {
	p := pick(random, w.fleet.planes)
	p.stop()
	files, err := filepath.Glob(filepath.Join(p.cacheDir, "*"))
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("%s has no cache", p.id)
	}
	if err := flip(pick(random, files), random); err != nil {
		return err
	}
	// It may have to start from the generation before, or from nothing.
	w.fleet.saw.Forget(p.id)
	if err := p.start(); err != nil {
		return err
	}
	sleep(ctx, 200*time.Millisecond)
	return nil
}

func slowPlane(ctx context.Context, w *world, random *rand.Rand) error {
	p := pick(random, w.fleet.planes)
	p.set(between(random, 100*time.Millisecond, 600*time.Millisecond), false)
	sleep(ctx, between(random, 500*time.Millisecond, 1500*time.Millisecond))
	p.set(0, false)
	return nil
}

// refusingPlane refuses everything for a while; the others must not notice, and
// it must come to the head once it accepts again.
func refusingPlane(ctx context.Context, w *world, random *rand.Rand) error {
	p := pick(random, w.fleet.planes)
	p.set(0, true)
	sleep(ctx, between(random, 300*time.Millisecond, time.Second))
	p.set(0, false)
	// A refused revision is not sent again: the next change brings it along.
	sleep(ctx, 300*time.Millisecond)
	return nil
}

func breakStreams(ctx context.Context, w *world, _ *rand.Rand) error {
	for range 3 {
		for _, r := range w.fleet.raws {
			r.stop()
			r.start()
		}
		sleep(ctx, 200*time.Millisecond)
	}
	return nil
}

const (
	manyPlanes = 300
	// memoryLimit is what a server may use with all of them, in KiB.
	memoryLimit = 400 << 10
)

// reconnectMany lets many data planes hang on the cluster, of which one in a
// hundred never reads, and takes a server, or all of them, away at once.
func reconnectMany(ctx context.Context, w *world, random *rand.Rand) error {
	group := pick(random, groups)
	everyone := random.IntN(2) == 0
	var planes []*rawPlane
	defer func() {
		for _, p := range planes {
			p.cancel()
		}
		for _, p := range planes {
			<-p.done
		}
	}()
	var live []string
	for _, n := range w.members() {
		live = append(live, n.host.addr(xdsPort))
	}
	for i := range manyPlanes {
		p, err := newRawPlane(w.cluster, nil, group, fmt.Sprintf("many-%s-%d", group, i), live)
		if err != nil {
			return err
		}
		p.deaf = i%100 == 0
		p.start()
		planes = append(planes, p)
	}
	if err := w.reach(ctx, group, planes); err != nil {
		return err
	}
	for i, n := range w.members() {
		if i == 0 || everyone {
			n.kill()
			if err := w.start(n); err != nil {
				return err
			}
		}
	}
	if err := w.heal(ctx); err != nil {
		return err
	}
	if err := w.reach(ctx, group, planes); err != nil {
		return err
	}
	for _, n := range w.members() {
		if kib, err := n.memory(); err != nil || kib > memoryLimit {
			return violated("row 15: %s uses %d KiB with %d data planes (%v)", n.id, kib, manyPlanes, err)
		}
	}
	return nil
}

// reach waits until all planes that read hold what the group does.
func (w *world) reach(ctx context.Context, group string, planes []*rawPlane) error {
	resume := w.writers.quiesce()
	defer resume()
	last, err := w.writers.readAll(ctx, group)
	if err != nil {
		return violated("I4: %v", err)
	}
	deadline := time.Now().Add(2 * convergeLimit)
	for {
		missing := 0
		var one *rawPlane
		for _, p := range planes {
			if !p.deaf && p.values() != last.Values {
				missing++
				one = p
			}
		}
		if missing == 0 {
			return nil
		}
		if time.Now().After(deadline) {
			return violated("row 15: %d of %d data planes are not at the head after %s: %v", missing, len(planes), 2*convergeLimit, one.lastError())
		}
		if !sleep(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// memory is the resident memory of a server, in KiB.
func (n *node) memory() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		return 0, nil
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", n.proc.Process.Pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			return strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")))
		}
	}
	return 0, fmt.Errorf("no VmRSS of %s", n.id)
}

// proofs are not faults but lies to the oracle: what it must find. They show
// that a run without violations says something.
func proofs() []fault {
	return []fault{
		{row: "proof", name: "acknowledged writes taken back", run: proveLoss},
		{row: "proof", name: "a data plane sent back", run: proveBackwards},
		{row: "proof", name: "a server ends by itself", run: proveCrash},
		{row: "proof", name: "a secret in clear on a disk", run: proveLeak},
	}
}

// proveLoss restores a backup without telling the oracle.
func proveLoss(ctx context.Context, w *world, _ *rand.Rand) error {
	n := w.members()[0]
	data, _, err := w.backup(ctx, n)
	if err != nil {
		return err
	}
	sleep(ctx, 500*time.Millisecond)
	return w.restore(ctx, n, data)
}

// proveBackwards tells the oracle that a data plane is far ahead of its group.
func proveBackwards(ctx context.Context, w *world, _ *rand.Rand) error {
	at := w.fleet.saw.At(w.fleet.planes[0].id)
	at.Revision += 1000
	w.fleet.saw.Saw(oracle.Snapshot{Plane: w.fleet.planes[0].id, Group: w.fleet.planes[0].group, At: at})
	sleep(ctx, 300*time.Millisecond)
	return nil
}

func proveCrash(ctx context.Context, w *world, _ *rand.Rand) error {
	n := w.members()[2]
	if err := n.host.arm("apply"); err != nil {
		return err
	}
	sleep(ctx, 500*time.Millisecond)
	return nil
}

// proveLeak leaves a secret where a server keeps its data.
func proveLeak(_ context.Context, w *world, _ *rand.Rand) error {
	return os.WriteFile(filepath.Join(w.members()[1].backingDir(), "leak"), []byte("a "+canary), 0o600)
}
