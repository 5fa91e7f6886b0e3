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
	"os/signal"
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
	flag.Parse()

	faults, err := ofRows(allFaults(), o.rows)
	if err != nil {
		return 2, err
	}
	plan := mixed(faults, o.seed, o.faults)
	if o.each > 0 {
		plan = each(faults, o.seed, o.each)
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

// inside carries out the schedules.
func inside(ctx context.Context, o options, faults []fault, plan []schedule, out io.Writer) (int, error) {
	l, err := newLab(os.Getenv(binaryEnv))
	if err != nil {
		return 1, err
	}
	r := &runner{lab: l, out: out, keep: o.keep, tally: newTally(faults)}
	for _, s := range plan {
		if ctx.Err() != nil || (o.limit > 0 && l.now() > o.limit) || (o.failFast && r.tally.violations > 0) {
			break
		}
		r.tally.seeds = append(r.tally.seeds, s.seed)
		if err = r.run(ctx, s); err != nil {
			break
		}
	}
	r.tally.print(out)
	err = errors.Join(err, l.close())
	switch {
	case err != nil:
		return 1, err
	case ctx.Err() != nil:
		return 130, nil
	case r.tally.violations > 0:
		return 3, nil
	}
	return 0, nil
}
