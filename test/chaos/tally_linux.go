package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// tally is what a run, or several, came to.
type tally struct {
	rows  []*rowTally // in the order of the table
	gaps  map[string][]time.Duration
	whole []time.Duration
	conv  []time.Duration

	faults, violations, schedules       int
	undecided, reseeded, restarted, ops int
	snapshots, resources                int
	seeds                               []uint64
	bad                                 []uint64
	took                                time.Duration
}

type rowTally struct {
	row, name         string
	count, violations int
	took              time.Duration
	whole             []time.Duration
}

func newTally(faults []fault) *tally {
	t := &tally{gaps: map[string][]time.Duration{}}
	for _, f := range faults {
		t.rows = append(t.rows, &rowTally{row: f.row, name: f.name})
	}
	return t
}

func (t *tally) row(f fault) *rowTally {
	for _, r := range t.rows {
		if r.row == f.row && r.name == f.name {
			return r
		}
	}
	r := &rowTally{row: f.row, name: f.name}
	t.rows = append(t.rows, r)
	return r
}

func (t *tally) add(f fault, gap time.Duration, rec recovery, took time.Duration) {
	r := t.row(f)
	r.count++
	r.took += took
	r.whole = append(r.whole, rec.whole)
	t.faults++
	t.took += took
	if f.gap != "" {
		t.gaps[f.gap] = append(t.gaps[f.gap], gap)
	}
	t.whole = append(t.whole, rec.whole)
	t.conv = append(t.conv, rec.converged)
}

func (t *tally) violated(f fault, seed uint64) {
	t.row(f).violations++
	t.violations++
	t.bad = append(t.bad, seed)
}

// finish takes over what a schedule counted.
func (t *tally) finish(w *world) {
	t.schedules++
	t.undecided += w.undecided
	t.reseeded += w.reseeded
	t.restarted += w.restarted
	w.writers.mu.Lock()
	t.ops += w.writers.ops
	w.writers.mu.Unlock()
	s, r := w.fleet.saw.Counts()
	t.snapshots += s
	t.resources += r
}

// quantile returns a quantile of durations, 0 without any.
func quantile(list []time.Duration, q float64) time.Duration {
	if len(list) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(list))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

// print writes the tally as text.
func (t *tally) print(out io.Writer) {
	fmt.Fprintf(out, "\n%-9s %-40s %7s %11s %9s %9s\n", "row", "fault", "count", "violations", "heal p50", "heal max")
	for _, r := range t.rows {
		if r.count == 0 {
			continue
		}
		fmt.Fprintf(out, "%-9s %-40s %7d %11d %9s %9s\n", r.row, r.name, r.count, r.violations, ms(quantile(r.whole, 0.5)), ms(quantile(r.whole, 1)))
	}
	fmt.Fprintf(out, "\n%d faults, %d violations, %.1f s a fault\n", t.faults, t.violations, t.took.Seconds()/float64(max(t.faults, 1)))
	for _, g := range []string{gapKill, gapHandover, gapTerm, gapRolling, gapDisk, gapCut} {
		if list := t.gaps[g]; len(list) > 0 {
			fmt.Fprintf(out, "pause of writes, %s: p50 %s, p99 %s, max %s (%d)\n", g, ms(quantile(list, 0.5)), ms(quantile(list, 0.99)), ms(quantile(list, 1)), len(list))
		}
	}
	fmt.Fprintf(out, "whole again: p50 %s, p99 %s; data planes at the head after that: p50 %s, p99 %s\n",
		ms(quantile(t.whole, 0.5)), ms(quantile(t.whole, 0.99)), ms(quantile(t.conv, 0.5)), ms(quantile(t.conv, 0.99)))
	fmt.Fprintf(out, "%d calls, %d whole configurations and %d single resources checked; %d histories too large to judge; %d servers seeded anew, %d started again\n",
		t.ops, t.snapshots, t.resources, t.undecided, t.reseeded, t.restarted)
	if len(t.bad) > 0 {
		fmt.Fprintf(out, "seeds with violations: %s\n", strings.Trim(fmt.Sprint(t.bad), "[]"))
	}
}
