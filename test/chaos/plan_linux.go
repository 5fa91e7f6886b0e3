package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
)

// fault is one kind of fault. run does it, and returns once it has lasted long
// enough; what is not undone then is undone by the check that follows. It takes
// all its choices from random, so that the seed is the schedule.
type fault struct {
	row  string // of the published table
	name string
	// weight is its share of a mixed schedule.
	weight int
	// gap names the measure that the pause of writes belongs to, if any.
	gap string
	run func(ctx context.Context, w *world, random *rand.Rand) error
}

func allFaults() []fault {
	return slices.Concat(processFaults(), networkFaults(), diskFaults(), codeFaults(), memberFaults(), planeFaults(), pairFaults())
}

// step is one fault of a schedule.
type step struct {
	fault
	seed uint64
}

// schedule is what happens to one cluster, one after the other.
type schedule struct {
	seed  uint64
	steps []step
}

func (s schedule) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "schedule of seed %d:", s.seed)
	for i, st := range s.steps {
		fmt.Fprintf(&b, "\n  %2d. row %s: %s", i+1, st.row, st.name)
	}
	return b.String()
}

// perSchedule is how many faults a cluster lives through.
const perSchedule = 25

// mixed plans n faults of the rows as schedules of the seeds seed, seed+1 and so
// on. A schedule depends on its seed and the rows alone.
func mixed(faults []fault, seed uint64, n int) []schedule {
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	var out []schedule
	for ; n > 0; seed++ {
		random := rand.New(rand.NewPCG(seed, 1))
		s := schedule{seed: seed}
		for range min(n, perSchedule) {
			pick := random.IntN(total)
			i := 0
			for ; pick >= faults[i].weight; i++ {
				pick -= faults[i].weight
			}
			s.steps = append(s.steps, step{faults[i], random.Uint64()})
		}
		n -= len(s.steps)
		out = append(out, s)
	}
	return out
}

// each plans every fault so many times, in an order of the seed.
func each(faults []fault, seed uint64, times int) []schedule {
	random := rand.New(rand.NewPCG(seed, 2))
	var steps []step
	for _, f := range faults {
		for range times {
			steps = append(steps, step{f, random.Uint64()})
		}
	}
	random.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	var out []schedule
	for chunk := range slices.Chunk(steps, perSchedule) {
		out = append(out, schedule{seed: seed, steps: chunk})
	}
	return out
}

// ofRows keeps the faults of the rows, or of names that contain one of them.
func ofRows(faults []fault, rows string) ([]fault, error) {
	if rows == "" {
		return faults, nil
	}
	var out []fault
	for _, f := range faults {
		for r := range strings.SplitSeq(rows, ",") {
			if f.row == r || f.name == r {
				out = append(out, f)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("no fault is of the rows %q", rows)
	}
	return out, nil
}
