package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// committer is a cluster of three that commits 1 KiB at a time. commit may be
// called concurrently, each writer waiting for its own answer.
type committer interface {
	commit(ctx context.Context, writer, n int) error
	// processes are the servers that are not in this process.
	processes() []int
	close()
}

// commitArm is one way to commit, in the order of the table.
type commitArm struct {
	name  string
	start func(ctx context.Context, dir string) (committer, error)
}

const payloadSize = 1 << 10

func commitArms() []commitArm {
	return []commitArm{
		{"bare raft", startBareRaft},
		{"muster store", startMusterStore},
		{"muster API", func(ctx context.Context, dir string) (committer, error) { return startMusterAPI(ctx, dir, false) }},
		{"muster API one group", func(ctx context.Context, dir string) (committer, error) { return startMusterAPI(ctx, dir, true) }},
		{"etcd", startEtcd},
	}
}

// sample is what one arm did in one round.
type sample struct {
	rate     float64 // commits a second
	p50, p99 float64 // seconds
	cpu      float64 // seconds of CPU a commit, of all servers and the writers
}

// commitCommand is B8: all clusters run side by side on one disk, each in a process
// of its own, and in each round every one of them is written to in turn, so that
// ratios hold where absolute figures do not.
func commitCommand(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("commit", flag.ContinueOnError)
	c := commitRun{}
	fs.IntVar(&c.rounds, "rounds", 7, "samples of each measurement")
	fs.DurationVar(&c.each, "for", 2*time.Second, "how long one sample takes")
	counts := fs.String("writers", "1,128", "how many write at once, separated by commas")
	only := fs.String("arms", "", "run these arms only, separated by commas")
	if err := fs.Parse(args); err != nil {
		return err
	}
	for count := range strings.SplitSeq(*counts, ",") {
		n, err := strconv.Atoi(count)
		if err != nil || n < 1 {
			return fmt.Errorf("-writers %s: %q is not a number of writers", *counts, count)
		}
		c.writers = append(c.writers, n)
	}
	if *only != "" {
		c.arms = strings.Split(*only, ",")
	}
	measured, err := c.measure(ctx)
	for _, m := range measured {
		m.print(os.Stdout)
	}
	return err
}

// commitRun is what B8 is to measure.
type commitRun struct {
	rounds  int
	each    time.Duration
	writers []int
	arms    []string // none: all
}

// commits is B8 in the table of all benchmarks.
func (r *runner) commits(ctx context.Context) error {
	c := commitRun{rounds: r.samples, each: 2 * time.Second, writers: []int{1, 128}}
	if r.smoke {
		c.rounds, c.each = 3, 500*time.Millisecond
	}
	measured, err := c.measure(ctx)
	if err != nil {
		return err
	}
	for _, m := range measured {
		what := fmt.Sprintf("3 nodes, 1 KiB, %d writers", m.writers)
		store, api := m.of("muster store"), m.of("muster API")
		if m.writers > 1 {
			api = m.of("muster API one group")
		}
		bare, etcd := m.of("bare raft"), m.of("etcd")
		r.report.row("B8", what+", commits to the store (floor: bare hashicorp/raft; go-control-plane: etcd)", "/s", rates(store), rates(bare), rates(etcd))
		r.report.row("B8", what+", p50", "ms", scale(p50s(store), 1e3), scale(p50s(bare), 1e3), scale(p50s(etcd), 1e3))
		r.report.row("B8", what+", p50 through the API, one group", "ms", scale(p50s(api), 1e3), scale(p50s(bare), 1e3), scale(p50s(etcd), 1e3))
		r.report.row("B8", what+", commits through the API, one group", "/s", rates(api), rates(bare), rates(etcd))
		if m.writers == 1 {
			r.report.gate("B8 p50 of one writer", median(ratios(p50s(store), p50s(bare))), 1.3)
		} else {
			r.report.gateMin("B8 commits of many writers", median(ratios(rates(store), rates(bare))), 0.8)
		}
	}
	return nil
}

func rates(ss []sample) []float64 { return values(ss, func(s sample) float64 { return s.rate }) }
func p50s(ss []sample) []float64  { return values(ss, func(s sample) float64 { return s.p50 }) }

func values(ss []sample, of func(sample) float64) []float64 {
	out := make([]float64, len(ss))
	for i, s := range ss {
		out[i] = of(s)
	}
	return out
}

// ratios compares what was measured in the same round.
func ratios(a, b []float64) []float64 {
	out := make([]float64, min(len(a), len(b)))
	for i := range out {
		out[i] = a[i] / b[i]
	}
	return out
}

// measuredCommits is what the arms did with a number of writers.
type measuredCommits struct {
	writers int
	arms    []string
	samples [][]sample // by arm
}

func (m measuredCommits) of(arm string) []sample {
	if i := slices.Index(m.arms, arm); i >= 0 {
		return m.samples[i]
	}
	return nil
}

// measure lets all arms commit in turn, with each number of writers.
func (c commitRun) measure(ctx context.Context) ([]measuredCommits, error) {
	var names []string
	var running []*child
	defer func() {
		for _, p := range running {
			p.stop()
		}
	}()
	for _, arm := range commitArms() {
		if len(c.arms) > 0 && !slices.Contains(c.arms, arm.name) {
			continue
		}
		p, err := spawn(ctx, "commit-arm", "-arm", arm.name)
		if err != nil {
			return nil, err
		}
		running = append(running, p)
		if _, err := p.call(request{Do: "start"}); err != nil {
			if strings.Contains(err.Error(), errNotInstalled.Error()) {
				fmt.Fprintln(os.Stderr, "bench:", err)
				p.stop()
				running = running[:len(running)-1]
				continue
			}
			return nil, err
		}
		names = append(names, arm.name)
	}
	var all []measuredCommits
	for _, writers := range c.writers {
		m := measuredCommits{writers, names, make([][]sample, len(names))}
		for round := range c.rounds + 1 {
			for i, p := range running {
				got, err := p.call(request{Do: "commit", Writers: writers, Seconds: c.each.Seconds()})
				if err != nil {
					return nil, err
				}
				if round > 0 { // the first warms up
					m.samples[i] = append(m.samples[i], sampleOf(got))
				}
			}
		}
		all = append(all, m)
	}
	return all, nil
}

// commitArmProcess is the process of one arm, with its three servers and its
// writers; etcd's servers are its children.
func commitArmProcess(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("commit-arm", flag.ContinueOnError)
	name := fs.String("arm", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	all := commitArms()
	i := slices.IndexFunc(all, func(a commitArm) bool { return a.name == *name })
	if i < 0 {
		return fmt.Errorf("unknown arm %q", *name)
	}
	dir, err := os.MkdirTemp("", "muster-bench-commit-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var c committer
	defer func() {
		if c != nil {
			c.close()
		}
	}()
	if file := os.Getenv(profileEnv); file != "" {
		stop, err := profile(fmt.Sprintf("%s.%s.%d", file, strings.ReplaceAll(*name, " ", "-"), os.Getpid()))
		if err != nil {
			return err
		}
		defer stop()
	}
	return answer(func(r request) (reply, error) {
		switch r.Do {
		case "start":
			var err error
			c, err = all[i].start(ctx, dir)
			return reply{}, err
		case "commit":
			return measureCommits(ctx, c, r.Writers, time.Duration(r.Seconds*float64(time.Second)))
		}
		return reply{}, fmt.Errorf("unknown request %q", r.Do)
	})
}

// errNotInstalled says that an arm needs a program that is not there.
var errNotInstalled = errors.New("not installed")

func measureCommits(ctx context.Context, c committer, writers int, d time.Duration) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, d+30*time.Second)
	defer cancel()
	took := make([][]time.Duration, writers)
	errs := make([]error, writers)
	cpu := armCPU(c)
	began := time.Now()
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for n := 0; time.Since(began) < d; n++ {
				start := time.Now()
				if errs[w] = c.commit(ctx, w, n); errs[w] != nil {
					return
				}
				took[w] = append(took[w], time.Since(start))
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return reply{}, err
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	return reply{
		Count: int64(len(all)), Wall: time.Since(began).Seconds(), CPU: armCPU(c) - cpu,
		P50: all[len(all)/2].Seconds(), P99: all[len(all)*99/100].Seconds(),
	}, nil
}

func sampleOf(r reply) sample {
	return sample{rate: float64(r.Count) / r.Wall, p50: r.P50, p99: r.P99, cpu: r.CPU / float64(r.Count)}
}

// armCPU is the CPU that an arm has used, in seconds: this process and its own.
func armCPU(c committer) float64 {
	all := cpuSeconds()
	for _, pid := range c.processes() {
		if used, err := cpuOf(pid); err == nil {
			all += used
		}
	}
	return all
}

// print writes the medians, and each arm against the first: samples of one round
// are compared with each other.
func (m measuredCommits) print(w io.Writer) {
	rate := func(s sample) float64 { return s.rate }
	p50 := func(s sample) float64 { return 1e3 * s.p50 }
	p99 := func(s sample) float64 { return 1e3 * s.p99 }
	cpu := func(s sample) float64 { return 1e6 * s.cpu }
	fmt.Fprintf(w, "\nB8, 3 nodes, 1 KiB, %d writers, %d samples\n\n", m.writers, len(m.samples[0]))
	fmt.Fprintln(w, "| arm | commits/s | ratio | p50 | ratio | p99 | CPU a commit | ratio |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- | --- |")
	for i, arm := range m.arms {
		of := func(value func(sample) float64) float64 { return median(values(m.samples[i], value)) }
		against := func(value func(sample) float64) float64 {
			return median(ratios(values(m.samples[i], value), values(m.samples[0], value)))
		}
		fmt.Fprintf(w, "| %s | %.0f | %.2f | %.2f ms | %.2f | %.1f ms | %.0f µs | %.2f |\n",
			arm, of(rate), against(rate), of(p50), against(p50), of(p99), of(cpu), against(cpu))
	}
}
