package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	relayCount = 4
	// quietTime is how long after a change data planes' reports have gone up and
	// their receipts come down.
	quietTime = time.Second
)

// tree is a muster server, relays below it, and edges below those.
type tree struct {
	core   *child
	addr   string // of the core
	relays []*child
	edges  []*child
	dir    string
}

func (t *tree) stop() {
	for _, c := range slices.Concat(t.edges, t.relays, []*child{t.core}) {
		if c != nil {
			c.stop()
		}
	}
	_ = os.RemoveAll(t.dir)
}

// pairs are the tree as oracle knows it: whatever is between, the edges must hold
// what the core holds.
func (t *tree) pairs(arm string) []*pair {
	var out []*pair
	for _, e := range t.edges {
		out = append(out, &pair{arm: arm, server: t.core, client: e})
	}
	return out
}

// startTree starts a core and relays below it; without relays edges hang on the core.
func startTree(ctx context.Context, resources, relays int) (_ *tree, err error) {
	t := &tree{}
	defer func() {
		if err != nil {
			t.stop()
		}
	}()
	if t.dir, err = os.MkdirTemp("", "muster-bench-"); err != nil {
		return nil, err
	}
	if t.core, err = spawn(ctx, "core", "-resources", strconv.Itoa(resources)); err != nil {
		return nil, err
	}
	addr, err := t.core.call(request{Do: "addr"})
	if err != nil {
		return nil, err
	}
	t.addr = addr.Addr
	for i := range relays {
		r, err := t.startRelay(ctx, fmt.Sprintf("relay-%d", i), "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		t.relays = append(t.relays, r)
	}
	return t, nil
}

func (t *tree) startRelay(ctx context.Context, id, addr string) (*child, error) {
	return spawn(ctx, "relay", "-id", id, "-upstream", t.addr, "-addr", addr, "-dir", t.dir)
}

// connect starts n edges in processes of their own, spread over the relays, or on
// the core.
func (t *tree) connect(ctx context.Context, n, processes, resources int) error {
	addrs := []string{t.addr}
	if len(t.relays) > 0 {
		addrs = nil
	}
	for _, r := range t.relays {
		addr, err := r.call(request{Do: "addr"})
		if err != nil {
			return err
		}
		addrs = append(addrs, addr.Addr)
	}
	for i := range processes {
		e, err := spawn(ctx, "load", "-addr", strings.Join(addrs, ","), "-id", fmt.Sprintf("edge-%d", i),
			"-agent", "simulated", // one type is all that it asks for, of which an Envoy would be half ready
			"-streams", strconv.Itoa(n/processes), "-resources", strconv.Itoa(resources))
		if err != nil {
			return err
		}
		t.edges = append(t.edges, e)
		if _, err := e.call(request{Do: "connect"}); err != nil {
			return err
		}
	}
	return nil
}

// cpu is what the processes have used: the core, all relays, the edges.
func (t *tree) cpu() (core, relays, edges float64, err error) {
	ask := func(c *child) float64 {
		p, failed := c.call(request{Do: "cpu"})
		err = errors.Join(err, failed)
		return p.CPU
	}
	for _, r := range t.relays {
		relays += ask(r)
	}
	for _, e := range t.edges {
		edges += ask(e)
	}
	return ask(t.core), relays, edges, err
}

// received is what all relays have received from the core, in bytes.
func (t *tree) received() (down float64, err error) {
	for _, r := range t.relays {
		p, err := r.call(request{Do: "bytes"})
		if err != nil {
			return 0, err
		}
		down += float64(p.Bytes)
	}
	return down, nil
}

// push changes one resource and returns after how long half of the edges of the
// median process and all of them had it, from before the commit.
func (t *tree) push(index, edges int) (half, last float64, err error) {
	for _, e := range t.edges {
		if _, err := e.call(request{Do: "reset"}); err != nil {
			return 0, 0, err
		}
	}
	if _, err := t.core.call(request{Do: "push", Indices: []int{index}}); err != nil {
		return 0, 0, err
	}
	var halves []float64
	for _, e := range t.edges {
		got, err := e.call(request{Do: "arrive", Acks: int64(edges / len(t.edges))})
		if err != nil {
			return 0, 0, err
		}
		halves, last = append(halves, got.P50), max(last, got.Wall)
	}
	return median(halves), last, nil
}

// relayArm is one arm of B12: a tree and what was measured of it.
type relayArm struct {
	*tree
	half, last          []float64
	core, below, client []float64 // CPU seconds per change
}

func (a *relayArm) sample(index, edges int) error {
	core, relays, clients, err := a.cpu()
	if err != nil {
		return err
	}
	half, last, err := a.push(index, edges)
	if err != nil {
		return err
	}
	time.Sleep(quietTime)
	core2, relays2, clients2, err := a.cpu()
	a.half, a.last = append(a.half, half), append(a.last, last)
	a.core, a.below, a.client = append(a.core, core2-core), append(a.below, relays2-relays), append(a.client, clients2-clients)
	return err
}

// relays is B12: edges below four relays against as many on the core itself.
func (r *runner) relays(ctx context.Context) error {
	resources := r.size(1000, 200)
	// Four edges tell what the hop itself adds, many what is left of it beside the
	// fan-out, which takes its time either way.
	for _, edges := range []int{relayCount, r.size(2000, 200)} {
		if err := r.hop(ctx, resources, edges); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) hop(ctx context.Context, resources, edges int) error {
	var arms [2]*relayArm
	for i, relays := range []int{0, relayCount} {
		t, err := startTree(ctx, resources, relays)
		if err != nil {
			return err
		}
		defer t.stop()
		if err := t.connect(ctx, edges, 1, resources); err != nil {
			return err
		}
		arms[i] = &relayArm{tree: t}
	}
	direct, relayed := arms[0], arms[1]
	own, err := startProbe(ctx, relayed.addr)
	if err != nil {
		return err
	}
	defer own.close()
	time.Sleep(2 * quietTime)
	var egress, message []float64
	for s := range r.samples + 2 {
		index := (s * 7919) % resources
		if err := direct.sample(index, edges); err != nil {
			return fmt.Errorf("direct: %w", err)
		}
		before, err := relayed.received()
		if err != nil {
			return err
		}
		messageBefore := float64(own.meter.down.Load())
		if err := relayed.sample(index, edges); err != nil {
			return fmt.Errorf("relayed: %w", err)
		}
		after, err := relayed.received()
		if err != nil {
			return err
		}
		if s >= 2 {
			egress = append(egress, after-before)
			message = append(message, relayCount*(float64(own.meter.down.Load())-messageBefore))
		}
	}
	if err := oracle(slices.Concat(direct.pairs("direct"), relayed.pairs("relayed"))); err != nil {
		return err
	}
	what := fmt.Sprintf("%d edges below %d relays (floor: on the server itself), %d resources, 1 changed", edges, relayCount, resources)
	warm := func(v []float64, by float64) []float64 { return scale(v[2:], by) }
	r.report.row("B12", "median edge has the change, "+what, "ms", warm(relayed.half, 1e3), warm(direct.half, 1e3), nil)
	added := (median(relayed.half[2:]) - median(direct.half[2:])) * 1e3
	if edges > relayCount {
		r.report.row("B12", "last edge has the change", "ms", warm(relayed.last, 1e3), warm(direct.last, 1e3), nil)
		r.report.row("B12", "CPU of the server for a change, status included", "ms", warm(relayed.core, 1e3), warm(direct.core, 1e3), nil)
		r.report.row("B12", fmt.Sprintf("CPU of all %d relays for a change", relayCount), "ms", warm(relayed.below, 1e3), nil, nil)
		r.report.row("B12", "CPU of the edges for a change", "ms", warm(relayed.client, 1e3), warm(direct.client, 1e3), nil)
		r.report.row("B12", fmt.Sprintf("bytes from the server to %d relays for a change, status included (floor: %d data planes of muster's own)", relayCount, relayCount),
			"B", egress, message, nil)
		r.report.gate("B12 egress", median(egress)/median(message), 1.05)
	}
	if !r.smoke { // milliseconds of a smoke run are those of the machine's other work
		r.report.gate(fmt.Sprintf("B12 ms added by the hop, %d edges", edges), added, 10)
	}
	return nil
}

// relayResume is B13: a relay is killed and comes back after ten seconds and five
// changes.
func (r *runner) relayResume(ctx context.Context) error {
	const missed = 5
	resources, edges := r.size(1000, 200), r.size(100, 20)
	away := time.Duration(r.size(10, 2)) * time.Second
	var resume, sent, deltas, full []float64
	for range max(3, r.samples/3) {
		got, err := r.resumeOnce(ctx, resources, edges, missed, away)
		if err != nil {
			return err
		}
		resume, sent = append(resume, got.resume), append(sent, got.sent)
		deltas, full = append(deltas, got.deltas), append(full, got.full)
	}
	what := fmt.Sprintf("%d resources, %d changed while a relay was killed for %v", resources, missed, away)
	r.report.row("B13", "bytes from the server when the relay is back, connection included, "+what+" (floor: what the changes took another relay; go-control-plane: the full state)",
		"B", resume, deltas, full)
	r.report.row("B13", "bytes to the server meanwhile", "B", sent, nil, nil)
	r.report.gate("B13 resume", median(resume)/median(deltas), 1.2)
	return nil
}

type resumed struct{ resume, sent, deltas, full float64 }

func (r *runner) resumeOnce(ctx context.Context, resources, edges, missed int, away time.Duration) (out resumed, err error) {
	t, err := startTree(ctx, resources, 1)
	if err != nil {
		return out, err
	}
	defer t.stop()
	if err := t.connect(ctx, edges, 1, resources); err != nil {
		return out, err
	}
	victim := t.relays[0]
	addr, err := victim.call(request{Do: "addr"})
	if err != nil {
		return out, err
	}
	steady, err := t.startRelay(ctx, "steady", "127.0.0.1:0")
	if err != nil {
		return out, err
	}
	t.relays = append(t.relays, steady)
	if _, err := steady.call(request{Do: "addr"}); err != nil { // it serves
		return out, err
	}
	time.Sleep(quietTime)
	cold, err := steady.call(request{Do: "bytes"})
	if err != nil {
		return out, err
	}
	out.full = float64(cold.Bytes)

	victim.kill()
	began := time.Now()
	if _, err := t.edges[0].call(request{Do: "disconnect", Known: true}); err != nil {
		return out, err
	}
	for i := range missed {
		before, err := steady.call(request{Do: "bytes"})
		if err != nil {
			return out, err
		}
		if _, err := t.core.call(request{Do: "push", Indices: []int{i * resources / missed}}); err != nil {
			return out, err
		}
		time.Sleep(quietTime)
		after, err := steady.call(request{Do: "bytes"})
		if err != nil {
			return out, err
		}
		out.deltas += float64(after.Bytes - before.Bytes)
	}
	time.Sleep(time.Until(began.Add(away)))
	back, err := t.startRelay(ctx, "relay-0", addr.Addr)
	if err != nil {
		return out, err
	}
	t.relays[0] = back
	if _, err := back.call(request{Do: "addr"}); err != nil {
		return out, err
	}
	if _, err := t.edges[0].call(request{Do: "connect"}); err != nil {
		return out, err
	}
	if err := oracle(t.pairs("resumed")); err != nil {
		return out, err
	}
	time.Sleep(quietTime)
	got, err := back.call(request{Do: "bytes"})
	out.resume, out.sent = float64(got.Bytes), float64(got.Sent)
	return out, err
}

// kill ends a process as a crash does.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait()
}
