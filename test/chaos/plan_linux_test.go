package main

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func names(plan []schedule) (out []string) {
	for _, s := range plan {
		out = append(out, s.String())
		for _, st := range s.steps {
			out = append(out, st.name, string(rune(st.seed)))
		}
	}
	return out
}

func TestTheSameSeedIsTheSameSchedule(t *testing.T) {
	faults := allFaults()
	a, b := mixed(faults, 7, 60), mixed(faults, 7, 60)
	if !slices.Equal(names(a), names(b)) {
		t.Error("two plans of one seed differ")
	}
	if len(a) != 3 || len(a[0].steps) != perSchedule || len(a[2].steps) != 10 {
		t.Errorf("60 faults are %d schedules", len(a))
	}
	// A schedule can be repeated alone, whatever run it was part of.
	if alone := mixed(faults, 8, perSchedule); !slices.Equal(names(alone), names(a[1:2])) {
		t.Error("the second schedule is another when it is run alone")
	}
	if slices.Equal(names(a), names(mixed(faults, 8, 60))) {
		t.Error("two seeds have one plan")
	}
	if !slices.Equal(names(each(faults, 7, 2)), names(each(faults, 7, 2))) {
		t.Error("two plans of every fault differ")
	}
}

func TestEveryFaultIsPlanned(t *testing.T) {
	seen := map[string]int{}
	for _, s := range each(allFaults(), 1, 2) {
		for _, st := range s.steps {
			seen[st.row+st.name]++
		}
	}
	for _, f := range allFaults() {
		if seen[f.row+f.name] != 2 || f.weight == 0 || f.run == nil {
			t.Errorf("row %s, %s: planned %d times, weight %d", f.row, f.name, seen[f.row+f.name], f.weight)
		}
		if !slices.ContainsFunc(published, func(p struct{ row, fault, want string }) bool { return p.row == f.row }) {
			t.Errorf("%s is of row %s, which the page does not have", f.name, f.row)
		}
	}
}

func TestRowsAndNamesChooseFaults(t *testing.T) {
	for rows, want := range map[string]int{"2": 2, "2,18": 3, "SIGSTOP of a follower": 1} {
		if got, err := ofRows(allFaults(), rows); err != nil || len(got) != want {
			t.Errorf("%q chooses %d faults, %v; want %d", rows, len(got), err, want)
		}
	}
	if _, err := ofRows(allFaults(), "99"); err == nil {
		t.Error("a row that there is not was accepted")
	}
}

func TestAPauseOfWritesIsMeasuredAroundTheFault(t *testing.T) {
	w := &writers{}
	for _, at := range []int{0, 10, 20, 500, 510, 520, 900, 910} {
		w.acks = append(w.acks, time.Duration(at+1)*time.Millisecond)
	}
	for _, c := range []struct{ since, until, want int }{
		{15, 530, 480},  // from the write before the fault to the one after
		{25, 530, 480},  // the fault began in the pause
		{505, 530, 10},  // the pause before is not this fault's
		{525, 800, 280}, // nothing yet
		{905, 2000, 1089},
	} {
		if got := w.gap(time.Duration(c.since)*time.Millisecond, time.Duration(c.until)*time.Millisecond); got.Milliseconds() != int64(c.want) && got.Milliseconds() != int64(c.want)-1 {
			t.Errorf("from %d to %d: %s, want %d ms", c.since, c.until, got, c.want)
		}
	}
}

func TestThePageSaysWhatWasDone(t *testing.T) {
	sum := newTally(allFaults())
	f := allFaults()[0]
	sum.add(f, 700*time.Millisecond, recovery{whole: time.Second, converged: 5 * time.Millisecond}, 2*time.Second)
	sum.violated(f, 41)
	sum.Seeds = []uint64{41, 42, 43, 50}
	other := newTally(allFaults())
	other.add(f, 900*time.Millisecond, recovery{}, time.Second)
	sum.merge(other)
	var b strings.Builder
	sum.page(&b)
	for _, want := range []string{"**2 faults, 1 violations.**", "| 1 | SIGKILL of the leader | 2 | 1 |", "Seeds with violations: 41.", "41 to 43, 50", "| leader killed | 900 ms |", "| 16 | relays dead and stale | 100 | 0 |"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("the page lacks %q", want)
		}
	}
}

func TestValuesSurviveBeingCompiled(t *testing.T) {
	w := &writers{}
	for g := range groups {
		v := w.value(g)
		if got, ok := valueOf(nodeHost(v)); !ok || got != v {
			t.Errorf("%#x is read as %#x", v, got)
		}
	}
}
