package main

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// published is the table of faults that the project set out to withstand, with
// the number of runs that it wants published.
var published = []struct{ row, fault, want string }{
	{"1", "SIGKILL of the leader, a follower, all, under load", "1,000"},
	{"2", "SIGSTOP of the leader, resumed", "200"},
	{"3", "partitions: leader, one way, bridge, flapping", "300"},
	{"4", "loss, delay, slow links", "100"},
	{"5", "a disk hangs", "100"},
	{"6", "single writes fail", "200"},
	{"7", "one and two disks full", "50"},
	{"8", "power lost: what was not synced is gone or torn", "500"},
	{"9", "bits flipped and files cut: log, snapshot, data plane's cache", "200"},
	{"10", "the process ends at chosen places of the code", "400"},
	{"11", "a server ends while a snapshot is installed", "100"},
	{"12", "backup, writes, restore", "50"},
	{"13", "servers added, removed, replaced, recovered", "100"},
	{"14", "rolling upgrade between versions", "50"},
	{"15", "many data planes reconnect, 1% never read", "20"},
	{"16", "relays dead and stale", "100"},
	{"17", "clocks, certificates", "20"},
	{"18", "hostile requests", "-"},
	{"mix", "two to four of these at once", "-"},
	{"handover", "leadership handed on, servers stopped in order", "-"},
	{"dp", "data planes restarted, slow, refusing, cut off", "-"},
}

var why = map[string]string{
	"14": "not run: there is no earlier version yet",
	"16": "not run: there is no relay in these clusters yet",
	"17": "not run yet",
}

// pauses writes a table of how long writes paused; nothing when nothing was timed.
func (t *tally) pauses(p func(format string, args ...any), when string, gaps map[string][]time.Duration) {
	if len(gaps) == 0 {
		return
	}
	p("%s\n\n| fault | p50 | p99 | max | faults | target |\n| --- | ---: | ---: | ---: | ---: | --- |\n", when)
	targets := map[string]string{
		gapKill: "p99 < 2 s", gapHandover: "< 100 ms", gapTerm: "< 100 ms", gapRolling: "< 100 ms a step",
		gapDisk: fmt.Sprintf("< %s (limit of the watchdog) + 2 s", diskTimeout),
	}
	for _, g := range allGaps() {
		if list := gaps[g]; len(list) > 0 {
			p("| %s | %s | %s | %s | %d | %s |\n", g, ms(quantile(list, 0.5)), ms(quantile(list, 0.99)), ms(quantile(list, 1)), len(list), cmp.Or(targets[g], "-"))
		}
	}
	p("\n")
}

// page writes docs/reliability.md.
func (t *tally) page(out io.Writer) {
	p := func(format string, args ...any) { fmt.Fprintf(out, format, args...) }
	p("# Reliability\n\nWhat was done to clusters of three servers, and what came of it. `make chaos` writes this\npage; [how it is done](#how-it-is-done) is below.\n\n")
	p("**%d faults, %d violations.** %d clusters lived through up to %d faults each; %d calls of the\nadmin API, %d whole configurations and %d single resources at data planes were checked.\n\n",
		t.Faults, t.Violations, t.Schedules, perSchedule, t.Calls, t.Snapshots, t.Resources)
	p("| row | fault | wanted | done | violations | whole again p50 | p99 | max |\n| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n")
	for _, row := range published {
		count, bad := 0, 0
		var whole []time.Duration
		for _, r := range t.Rows {
			if r.Row == row.row {
				count += r.Count
				bad += r.Violations
				whole = append(whole, r.Whole...)
			}
		}
		switch {
		case count > 0:
			p("| %s | %s | %s | %d | %d | %s | %s | %s |\n", row.row, row.fault, row.want, count, bad, ms(quantile(whole, 0.5)), ms(quantile(whole, 0.99)), ms(quantile(whole, 1)))
		default:
			p("| %s | %s | %s | 0 | - | %s | | |\n", row.row, row.fault, row.want, cmp.Or(why[row.row], "not run"))
		}
	}
	p("\n*Whole again* is the time from the end of the fault until every server runs, is ready, has\na vote and agrees on the leader; it includes the start of processes that had ended. Data planes\nheld the newest revision %s (p50) and %s (p99) after that.\n\n", ms(quantile(t.Converged, 0.5)), ms(quantile(t.Converged, 0.99)))

	p("## How long writes pause\n\nThe longest time without an acknowledged write around the fault, with five clients writing.\nA machine that is busy with other work adds pauses of its own.\n\n")
	t.pauses(p, "With nothing else on the machine:", t.Alone)
	t.pauses(p, "While the machine did other work besides:", t.Gaps)

	p("\n## Every kind of fault\n\n| row | fault | done | violations |\n| --- | --- | ---: | ---: |\n")
	for _, row := range published {
		for _, r := range t.Rows {
			if r.Row == row.row && r.Count > 0 {
				p("| %s | %s | %d | %d |\n", r.Row, r.Name, r.Count, r.Violations)
			}
		}
	}
	p("\n%d servers refused damaged data by name and were seeded anew; %d ended by themselves where that\nis right (failpoints, hung disks, disks that cannot keep a vote) and were started again. %d\nhistories were too large to be judged in %s.\n", t.Reseeded, t.Restarted, t.Undecided, judgeLimit)
	if len(t.Bad) > 0 {
		p("\nSeeds with violations: %s.\n", strings.Trim(fmt.Sprint(t.Bad), "[]"))
	}
	fmt.Fprintf(out, howItIsDone, machine(), t.Date, t.Commit, seedRanges(t.Seeds), diskTimeout, snapshotThreshold)
}

const howItIsDone = `
## How it is done

- Machine: %s. %s, source %s.
- Seeds of the schedules: %s. The same seed is the same schedule:
  ` + "`go run ./test/chaos -seed 7 -faults 25`" + `; ` + "`-list`" + ` prints it, ` + "`-rows`" + ` chooses rows or
  single faults, ` + "`-keep DIR`" + ` keeps the evidence of a violation. Timing is the machine's, so a
  violation may need several tries.
- Real ` + "`muster server`" + ` processes, each in a network namespace with mutual TLS on every port and
  its data on a FUSE disk that hangs, fills, fails, and forgets what was not synced. Partitions are
  nft rules, loss is ` + "`iptables -m statistic`" + `, slow links a proxy. The watchdog's limit is
  %s and a snapshot is due after %d entries, so that both happen often; all else is as
  shipped. The binary holds failpoints that a usual build does not.
- Five clients write and read two groups all the time: one bound to each server, two that go
  from server to server and repeat their request id. Four data planes apply whole revisions and
  keep them on disk, two take resource by resource as Envoy does.
- After each fault: the calls are linearizable (porcupine), no acknowledged write is gone and no
  failed one there; the states of all servers have one checksum; every data plane is at the head,
  never went back in (epoch, revision), never held a mixture of revisions, nor anything of the
  other group; one revision has one content everywhere; no server ended by itself without
  reason; no secret is in a log, a metric, or on a server's disk (the servers have keys for that).
  ` + "`-prove`" + ` takes writes back, moves a data plane back, ends a server and leaves a secret on a disk
  behind the oracle's back, and fails unless the oracle notices.

## What it has found

Each was mended, and has a test of its own beside the code.

- A write that failed (EIO, ENOSPC) left bolt with a wrong idea of which pages are free; the
  next write panicked, and could have used a page twice. The server now ends and starts anew.
- A flipped bit in a snapshot's meta.json changed the address of another server unnoticed; the
  damaged server led, and the other was lost to the cluster. Configurations on disk are sealed now.
- A process that was stopped for longer than the watchdog's limit took that for a hung disk.
- A write without a condition was told of a conflict when three servers wrote to one group.
- A raw xDS message that cannot be decoded was accepted, and would have been refused by data planes.

Seen once, before these were mended, and not explained: bolt's "page already freed" on a server
that had been killed and started again, without a failed write. 900 kills of a process that does
nothing but write to bolt on the same disk did not show it, nor did the runs above.

## What it does not show

- A backup holds secrets in clear, for those who may take one to encrypt.
- Packets are not reordered, and names of files survive a power loss, which a real disk may not
  grant. The disks' backing is memory: no fsync is ever slow by itself.
- Hundreds of data planes, not thousands, in row 15. No soak of 24 hours.
`

// seedRanges writes seeds as ranges.
func seedRanges(seeds []uint64) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(seeds)))
	var out []string
	for i := 0; i < len(sorted); {
		j := i
		for j+1 < len(sorted) && sorted[j+1] == sorted[j]+1 {
			j++
		}
		if i == j {
			out = append(out, fmt.Sprint(sorted[i]))
		} else {
			out = append(out, fmt.Sprintf("%d to %d", sorted[i], sorted[j]))
		}
		i = j + 1
	}
	return strings.Join(out, ", ")
}

// machine describes where this runs.
func machine() string {
	model, kernel := "unknown processor", "unknown kernel"
	if data, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.SplitSeq(string(data), "\n") {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	if data, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		kernel = "Linux " + strings.TrimSpace(string(data))
	}
	return fmt.Sprintf("%d × %s, %s, %s", runtime.NumCPU(), model, kernel, runtime.Version())
}
