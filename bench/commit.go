package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"
)

// committer is a cluster of three that commits 1 KiB at a time. commit may be
// called concurrently, each writer waiting for its own answer.
type committer interface {
	commit(ctx context.Context, writer, n int) error
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
	p50, p99 time.Duration
}

// commitCommand is B8: all clusters run side by side on one disk, and in each
// round every one of them is written to in turn, so that ratios hold where
// absolute figures do not.
func commitCommand(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("commit", flag.ContinueOnError)
	rounds := fs.Int("rounds", 7, "samples of each measurement")
	each := fs.Duration("for", 2*time.Second, "how long one sample takes")
	many := fs.Int("writers", 128, "writers of the second half")
	only := fs.String("arms", "", "run these arms only, separated by commas")
	profile := fs.String("cpuprofile", "", "write a profile of this process to a file: all arms but etcd run in it")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var arms []commitArm
	var running []committer
	defer func() {
		for _, c := range running {
			c.close()
		}
	}()
	for _, arm := range commitArms() {
		if *only != "" && !slices.Contains(strings.Split(*only, ","), arm.name) {
			continue
		}
		dir, err := os.MkdirTemp("", "muster-bench-commit-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		c, err := arm.start(ctx, dir)
		if errors.Is(err, errNotInstalled) {
			fmt.Fprintln(os.Stderr, "bench:", err)
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", arm.name, err)
		}
		arms, running = append(arms, arm), append(running, c)
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	for _, writers := range []int{1, *many} {
		samples := make([][]sample, len(arms))
		for round := range *rounds + 1 {
			for i, c := range running {
				s, err := measureCommits(ctx, c, writers, *each)
				if err != nil {
					return fmt.Errorf("%s: %w", arms[i].name, err)
				}
				if round > 0 { // the first warms up
					samples[i] = append(samples[i], s)
				}
			}
		}
		printCommits(arms, samples, writers)
	}
	return nil
}

// errNotInstalled says that an arm needs a program that is not there.
var errNotInstalled = errors.New("not installed")

func measureCommits(ctx context.Context, c committer, writers int, d time.Duration) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, d+30*time.Second)
	defer cancel()
	took := make([][]time.Duration, writers)
	errs := make([]error, writers)
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
		return sample{}, err
	}
	all := slices.Concat(took...)
	slices.Sort(all)
	return sample{float64(len(all)) / time.Since(began).Seconds(), all[len(all)/2], all[len(all)*99/100]}, nil
}

// printCommits writes the medians, and each arm against the first.
func printCommits(arms []commitArm, samples [][]sample, writers int) {
	median := func(ss []sample, of func(sample) float64) float64 {
		values := make([]float64, len(ss))
		for i, s := range ss {
			values[i] = of(s)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	// Samples of one round are compared with each other.
	against := func(i int, of func(sample) float64) float64 {
		values := make([]float64, len(samples[i]))
		for k := range values {
			values[k] = of(samples[i][k]) / of(samples[0][k])
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	rate := func(s sample) float64 { return s.rate }
	p50 := func(s sample) float64 { return float64(s.p50) }
	p99 := func(s sample) float64 { return float64(s.p99) }
	fmt.Printf("\nB8, 3 nodes, 1 KiB, %d writers, %d samples\n\n| arm | commits/s | ratio | p50 | ratio | p99 |\n| --- | --- | --- | --- | --- | --- |\n", writers, len(samples[0]))
	for i, arm := range arms {
		fmt.Printf("| %s | %.0f | %.2f | %s | %.2f | %s |\n", arm.name, median(samples[i], rate), against(i, rate),
			time.Duration(median(samples[i], p50)).Round(10*time.Microsecond), against(i, p50), time.Duration(median(samples[i], p99)).Round(10*time.Microsecond))
	}
}
