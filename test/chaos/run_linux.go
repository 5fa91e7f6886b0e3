package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// runner carries out schedules and keeps the tally.
type runner struct {
	lab   *lab
	out   io.Writer
	keep  string // where the evidence of violations is kept
	tally *tally
}

// run carries out a schedule on a new cluster. It returns an error when the
// tests themselves failed; a violation ends the schedule and is counted.
func (r *runner) run(ctx context.Context, s schedule) error {
	w, err := newWorld(ctx, r.lab, s.seed)
	if err != nil {
		return fmt.Errorf("%s\nform a cluster: %w", s, err)
	}
	defer w.close()
	defer r.tally.finish(w)
	r.tally.Schedules++
	r.tally.Seeds = append(r.tally.Seeds, s.seed)
	for i, st := range s.steps {
		random := rand.New(rand.NewPCG(st.seed, 3))
		// Under load, and after the writers have gone on.
		sleep(ctx, between(random, 150*time.Millisecond, 350*time.Millisecond))
		if ctx.Err() != nil {
			return nil
		}
		began := w.now()
		err := st.run(ctx, w, random)
		var rec recovery
		if err == nil {
			rec, err = w.check(ctx)
		}
		if ctx.Err() != nil {
			return nil
		}
		gap := w.writers.gap(began, max(w.healed, began))
		r.tally.add(st.fault, gap, rec, w.now()-began)
		fmt.Fprintf(r.out, "seed %d %2d/%d row %-8s %-36s pause %6s  whole %6s  data planes %6s\n", s.seed, i+1, len(s.steps),
			st.row, st.name, ms(gap), ms(rec.whole), ms(rec.converged))
		var broken *violation
		switch {
		case errors.As(err, &broken):
			r.tally.violated(st.fault, s.seed)
			return r.report(w, s, i, broken)
		case err != nil:
			return fmt.Errorf("%s\nstep %d (%s): %w\n%s", s, i+1, st.name, err, w.logs(2000))
		}
	}
	if leak, err := w.leaked(ctx); err != nil {
		return err
	} else if leak != "" {
		r.tally.violated(s.steps[len(s.steps)-1].fault, s.seed)
		return r.report(w, s, len(s.steps)-1, &violation{[]string{leak}})
	}
	return nil
}

// report prints a violation with its schedule, and keeps the servers' logs.
func (r *runner) report(w *world, s schedule, i int, v *violation) error {
	fmt.Fprintf(r.out, "\nVIOLATION at step %d (row %s, %s)\n%s\n%s\n", i+1, s.steps[i].row, s.steps[i].name, s, clip(v.Error(), 6000))
	if r.keep == "" {
		return nil
	}
	dir := filepath.Join(r.keep, fmt.Sprintf("seed-%d-step-%d", s.seed, i+1))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	fmt.Fprintf(r.out, "kept in %s\n\n", dir)
	// What a server that does not answer is at shows in its log.
	for n, st := range w.statuses(context.Background()) {
		if st == nil && n.runs() {
			_ = n.signal(syscall.SIGQUIT)
			time.Sleep(300 * time.Millisecond)
		}
	}
	errs := []error{os.WriteFile(filepath.Join(dir, "violation.txt"), []byte(s.String()+"\n"+v.Error()+"\n"), 0o644)}
	for _, n := range w.members() {
		errs = append(errs, os.WriteFile(filepath.Join(dir, n.id+".log"), []byte(n.logTail(8<<20)), 0o644))
	}
	return errors.Join(errs...)
}

func (w *world) logs(bytes int) string {
	var b strings.Builder
	for _, n := range w.members() {
		fmt.Fprintf(&b, "--- %s\n%s\n", n.id, n.logTail(bytes))
	}
	return b.String()
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + fmt.Sprintf("\n... and %d bytes more", len(s)-n)
}

func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
