// Command chaos runs real servers in network namespaces, on disks that can be
// made to misbehave, does to them what goes wrong in the field, and holds them
// to their promises by what clients and data planes see. It needs root on Linux.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/musterhq/muster/test/chaos/netlab"
)

type options struct {
	seed     uint64
	faults   int
	each     int
	rows     string
	keep     string
	race     bool
	list     bool
	limit    time.Duration
	failFast bool
	prove    bool
	alone    bool
	check    bool
	save     string
	page     string
	from     string
}

func main() {
	code, err := start()
	if err != nil {
		fmt.Fprintln(os.Stderr, "chaos:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// binaryEnv tells the process in the namespaces where the server's binary is:
// it has no network to build it with.
const binaryEnv = "MUSTER_CHAOS_BINARY"

func start() (int, error) {
	var o options
	flag.Uint64Var(&o.seed, "seed", 1, "seed of the first schedule; the next have the numbers after it")
	flag.IntVar(&o.faults, "faults", 100, "how many faults, in schedules of 25")
	flag.IntVar(&o.each, "each", 0, "every kind of fault so many times, instead of -faults")
	flag.StringVar(&o.rows, "rows", "", "rows of the table, or names of faults, separated by commas (default all)")
	flag.StringVar(&o.keep, "keep", "", "directory for the evidence of violations")
	flag.BoolVar(&o.race, "race", false, "build the servers with the race detector")
	flag.BoolVar(&o.list, "list", false, "print the schedules and do nothing")
	flag.DurationVar(&o.limit, "limit", 0, "begin no schedule after so long; 0 is no limit")
	flag.BoolVar(&o.failFast, "fail-fast", false, "end at the first violation")
	flag.BoolVar(&o.prove, "prove", false, "lie to the oracle, and fail unless it notices")
	flag.BoolVar(&o.check, "check", false, "only tell whether this machine can run the tests, and why not")
	flag.BoolVar(&o.alone, "alone", false, "the machine does nothing else: what is timed is told apart")
	flag.StringVar(&o.save, "save", "", "file for the tally, as JSON")
	flag.StringVar(&o.page, "page", "", "file for the tally as a page, docs/reliability.md")
	flag.StringVar(&o.from, "from", "", "files of tallies, separated by commas, to write the page of, without a run")
	flag.Parse()
	if o.from != "" {
		return 0, pageOf(o)
	}
	if o.check {
		return 0, netlab.Check()
	}

	faults, err := ofRows(allFaults(), o.rows)
	if err != nil {
		return 2, err
	}
	plan := mixed(faults, o.seed, o.faults)
	if o.each > 0 {
		plan = each(faults, o.seed, o.each)
	}
	if o.prove {
		plan = nil
		for _, f := range proofs() {
			plan = append(plan, schedule{seed: o.seed, steps: []step{{f, o.seed}}})
		}
	}
	if o.list {
		for _, s := range plan {
			fmt.Println(s)
		}
		return 0, nil
	}
	if os.Getenv(binaryEnv) == "" {
		return outside(o)
	}
	if _, _, err := netlab.Enter(); err != nil {
		return 1, err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return inside(ctx, o, faults, plan, os.Stdout)
}

// outside builds the server and runs this program again in namespaces.
func outside(o options) (code int, err error) {
	if err := netlab.Check(); err != nil {
		return 1, err
	}
	dir, err := os.MkdirTemp("", "muster-chaos-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	binary, err := buildServer(ctx, dir, o.race)
	if err == nil {
		err = os.Setenv(sourceEnv, source(ctx))
	}
	stop()
	if err != nil {
		return 1, err
	}
	if err := os.Setenv(binaryEnv, binary); err != nil {
		return 1, err
	}
	_, code, err = netlab.Enter()
	return code, err
}

// sourceEnv tells the process in the namespaces what was built.
const sourceEnv = "MUSTER_CHAOS_SOURCE"

// source names the commit that is built, as far as git knows.
func source(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "describe", "--always", "--dirty", "--abbrev=12").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// pageOf writes the page of kept tallies.
func pageOf(o options) error {
	sum := newTally(allFaults())
	for path := range strings.SplitSeq(o.from, ",") {
		t, err := loadTally(path)
		if err != nil {
			return err
		}
		sum.merge(t)
	}
	return sum.writePage(o.page)
}

func (t *tally) writePage(path string) error {
	if path == "" {
		t.page(os.Stdout)
		return nil
	}
	var b strings.Builder
	t.page(&b)
	return os.WriteFile(path, []byte(b.String()), 0o644)
}

// inside carries out the schedules.
func inside(ctx context.Context, o options, faults []fault, plan []schedule, out io.Writer) (int, error) {
	l, err := newLab(os.Getenv(binaryEnv))
	if err != nil {
		return 1, err
	}
	t := newTally(faults)
	t.Commit, t.Date, t.Race = os.Getenv(sourceEnv), time.Now().UTC().Format("2 January 2006"), o.race
	t.alone = o.alone
	r := &runner{lab: l, out: out, keep: o.keep, tally: t}
	for _, s := range plan {
		if ctx.Err() != nil || (o.limit > 0 && l.now() > o.limit) || (o.failFast && t.Violations > 0) {
			break
		}
		if err = r.run(ctx, s); err != nil {
			break
		}
		if o.save != "" {
			if err = t.save(o.save); err != nil {
				break
			}
		}
	}
	t.print(out)
	err = errors.Join(err, l.close())
	switch {
	case err != nil:
		return 1, err
	case ctx.Err() != nil:
		return 130, nil
	case o.prove && t.Violations == len(plan):
		fmt.Fprintln(out, "the oracle noticed everything")
		return 0, nil
	case o.prove:
		return 3, fmt.Errorf("the oracle noticed %d of %d lies", t.Violations, len(plan))
	}
	if o.page != "" {
		err = t.writePage(o.page)
	}
	if t.Violations > 0 {
		return 3, err
	}
	return 0, err
}
