package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"
)

// tally is what a run, or several, came to. It is kept as JSON.
type tally struct {
	Rows []*rowTally // in the order of the table
	// Gaps are the pauses of writes by the measure they belong to; Alone those of
	// runs beside which the machine did nothing else.
	Gaps, Alone map[string][]time.Duration
	// Whole and Converged are the recoveries of all faults.
	Whole, Converged []time.Duration

	Faults, Violations, Schedules         int
	Undecided, Reseeded, Restarted, Calls int
	Snapshots, Resources                  int
	// Seeds are those of the schedules, Bad those with violations.
	Seeds, Bad []uint64
	Took       time.Duration
	// Commit is the state of the source that was built, Date when.
	Commit, Date string
	Race         bool

	alone bool // the machine does nothing else
}

type rowTally struct {
	Row, Name         string
	Count, Violations int
	Whole             []time.Duration
}

func newTally(faults []fault) *tally {
	t := &tally{Gaps: map[string][]time.Duration{}, Alone: map[string][]time.Duration{}}
	for _, f := range faults {
		t.row(f.row, f.name)
	}
	return t
}

func (t *tally) row(row, name string) *rowTally {
	for _, r := range t.Rows {
		if r.Row == row && r.Name == name {
			return r
		}
	}
	r := &rowTally{Row: row, Name: name}
	t.Rows = append(t.Rows, r)
	return r
}

func (t *tally) add(f fault, gap time.Duration, rec recovery, took time.Duration) {
	r := t.row(f.row, f.name)
	r.Count++
	r.Whole = append(r.Whole, rec.whole)
	t.Faults++
	t.Took += took
	switch {
	case f.gap == "":
	case t.alone:
		t.Alone[f.gap] = append(t.Alone[f.gap], gap)
	default:
		t.Gaps[f.gap] = append(t.Gaps[f.gap], gap)
	}
	t.Whole = append(t.Whole, rec.whole)
	t.Converged = append(t.Converged, rec.converged)
}

func (t *tally) violated(f fault, seed uint64) {
	t.row(f.row, f.name).Violations++
	t.Violations++
	t.Bad = append(t.Bad, seed)
}

// finish takes over what a schedule counted.
func (t *tally) finish(w *world) {
	t.Undecided += w.undecided
	t.Reseeded += w.reseeded
	t.Restarted += w.restarted
	w.writers.mu.Lock()
	t.Calls += w.writers.ops
	w.writers.mu.Unlock()
	s, r := w.fleet.saw.Counts()
	t.Snapshots += s
	t.Resources += r
}

// merge adds another run's tally.
func (t *tally) merge(o *tally) {
	for _, r := range o.Rows {
		mine := t.row(r.Row, r.Name)
		mine.Count += r.Count
		mine.Violations += r.Violations
		mine.Whole = append(mine.Whole, r.Whole...)
	}
	for k, v := range o.Gaps {
		t.Gaps[k] = append(t.Gaps[k], v...)
	}
	for k, v := range o.Alone {
		t.Alone[k] = append(t.Alone[k], v...)
	}
	t.Whole, t.Converged = append(t.Whole, o.Whole...), append(t.Converged, o.Converged...)
	t.Faults += o.Faults
	t.Violations += o.Violations
	t.Schedules += o.Schedules
	t.Undecided += o.Undecided
	t.Reseeded += o.Reseeded
	t.Restarted += o.Restarted
	t.Calls += o.Calls
	t.Snapshots += o.Snapshots
	t.Resources += o.Resources
	t.Seeds, t.Bad = append(t.Seeds, o.Seeds...), append(t.Bad, o.Bad...)
	t.Took += o.Took
	if !strings.Contains(t.Commit, o.Commit) {
		t.Commit = strings.TrimPrefix(t.Commit+", "+o.Commit, ", ")
	}
	t.Date = o.Date
}

// save keeps the tally in a file.
func (t *tally) save(path string) error {
	data, err := json.Marshal(t)
	if err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o644)
}

func loadTally(path string) (*tally, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	t := &tally{}
	if err := json.Unmarshal(data, t); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
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
	for _, r := range t.Rows {
		if r.Count == 0 {
			continue
		}
		fmt.Fprintf(out, "%-9s %-40s %7d %11d %9s %9s\n", r.Row, r.Name, r.Count, r.Violations, ms(quantile(r.Whole, 0.5)), ms(quantile(r.Whole, 1)))
	}
	fmt.Fprintf(out, "\n%d faults, %d violations, %.1f s a fault\n", t.Faults, t.Violations, t.Took.Seconds()/float64(max(t.Faults, 1)))
	for _, g := range allGaps() {
		if list := slices.Concat(t.Gaps[g], t.Alone[g]); len(list) > 0 {
			fmt.Fprintf(out, "pause of writes, %s: p50 %s, p99 %s, max %s (%d)\n", g, ms(quantile(list, 0.5)), ms(quantile(list, 0.99)), ms(quantile(list, 1)), len(list))
		}
	}
	fmt.Fprintf(out, "whole again: p50 %s, p99 %s; data planes at the head after that: p50 %s, p99 %s\n",
		ms(quantile(t.Whole, 0.5)), ms(quantile(t.Whole, 0.99)), ms(quantile(t.Converged, 0.5)), ms(quantile(t.Converged, 0.99)))
	fmt.Fprintf(out, "%d calls, %d whole configurations and %d single resources checked; %d histories too large to judge; %d servers seeded anew, %d started again\n",
		t.Calls, t.Snapshots, t.Resources, t.Undecided, t.Reseeded, t.Restarted)
	if len(t.Bad) > 0 {
		fmt.Fprintf(out, "seeds with violations: %s\n", strings.Trim(fmt.Sprint(t.Bad), "[]"))
	}
}
