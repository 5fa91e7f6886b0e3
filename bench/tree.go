package main

import (
	"context"
	"fmt"
	"time"
)

// tree is 20,000 data planes below 10 relays below one server. The server and the
// relays are whole ones, each a process. The data planes are simulated: each is a
// stream on a TCP connection of its own that takes in what comes, keeps a hash of
// each resource and acknowledges, many to a process.
func (r *runner) tree(ctx context.Context) error {
	const perProcess = 5000 // of edges, for the sake of open files
	relays, edges, resources := r.size(10, 2), r.size(20000, 400), r.size(1000, 200)
	processes := max(1, edges/perProcess)
	t, err := startTree(ctx, resources, relays)
	if err != nil {
		return err
	}
	defer t.stop()
	empty, err := t.memory()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := t.connect(ctx, edges, processes, resources); err != nil {
		return err
	}
	connected := time.Since(began)
	full, err := t.memory()
	if err != nil {
		return err
	}
	var half, last, known, core, below []float64
	for s := range r.samples {
		coreBefore, relaysBefore, _, err := t.cpu()
		if err != nil {
			return err
		}
		h, l, err := t.push((s*7919)%resources, edges)
		if err != nil {
			return err
		}
		time.Sleep(2 * quietTime)
		coreAfter, relaysAfter, _, err := t.cpu()
		if err != nil {
			return err
		}
		synced, err := t.core.call(request{Do: "synced", Indices: []int{(s*7919 + 1) % resources}, Acks: int64(edges)})
		if err != nil {
			return err
		}
		half, last, known = append(half, h), append(last, l), append(known, synced.Wall)
		core, below = append(core, coreAfter-coreBefore), append(below, relaysAfter-relaysBefore)
	}
	if err := oracle(t.pairs("tree")); err != nil {
		return err
	}
	what := fmt.Sprintf("%d data planes below %d relays below a server, %d resources", edges, relays, resources)
	row := func(what, unit string, v ...float64) { r.report.row("tree", what, unit, v, nil, nil) }
	row(what+": all connect and have everything, in "+fmt.Sprint(processes)+" processes one after the other", "s", connected.Seconds())
	row("1 changed: the median has it", "ms", scale(half, 1e3)...)
	row("1 changed: the last has it", "ms", scale(last, 1e3)...)
	row("1 changed: the server knows that the last has acknowledged it", "ms", scale(known, 1e3)...)
	row("CPU of the server for a change, status included", "ms", scale(core, 1e3)...)
	row("CPU of all relays for a change, status included", "ms", scale(below, 1e3)...)
	const mb = 1 << 20
	row("RSS of the server", "MB", full.core/mb)
	row("RSS that the data planes add to the server", "MB", (full.core-empty.core)/mb)
	row("RSS of a relay", "MB", full.relays/float64(relays)/mb)
	row("RSS that a data plane adds to its relay", "KB", (full.relays-empty.relays)/float64(edges)/1024)
	row("RSS of all simulated data planes", "MB", full.edges/mb)
	return nil
}

// footprint is what the processes keep in memory, in bytes.
type footprint struct{ core, relays, edges float64 }

func (t *tree) memory() (out footprint, err error) {
	ask := func(c *child) float64 {
		p, failed := c.call(request{Do: "usage"})
		if failed != nil {
			err = failed
		}
		return float64(p.RSS)
	}
	out.core = ask(t.core)
	for _, r := range t.relays {
		if _, failed := r.call(request{Do: "addr"}); failed != nil { // it serves
			err = failed
		}
		out.relays += ask(r)
	}
	for _, e := range t.edges {
		out.edges += ask(e)
	}
	return out, err
}
