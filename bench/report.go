package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report collects rows and gates and prints them as one table.
type report struct {
	rows  []row
	gates []gate
	heap  []holder // of the group whose memory is stated
}

type row struct {
	id, what, unit       string
	product, floor, peer []float64
}

type gate struct {
	what       string
	got, limit float64
	atLeast    bool
}

func (r *report) row(id, what, unit string, product, floor, peer []float64) {
	r.rows = append(r.rows, row{id, what, unit, product, floor, peer})
	fmt.Fprintf(os.Stderr, "%s %s: %s %s\n", id, what, number(median(product)), unit)
}

// gate demands got <= limit.
func (r *report) gate(what string, got, limit float64) {
	r.gates = append(r.gates, gate{what: what, got: got, limit: limit})
}

// gateMin demands got >= limit.
func (r *report) gateMin(what string, got, limit float64) {
	r.gates = append(r.gates, gate{what: what, got: got, limit: limit, atLeast: true})
}

func (g gate) held() bool {
	if g.atLeast {
		return g.got >= g.limit
	}
	return g.got <= g.limit
}

// ids are those of the rows.
func (r *report) ids() []string {
	var out []string
	for _, x := range r.rows {
		out = append(out, x.id)
	}
	return out
}

// failed lists the gates that did not hold, with slack on the limits: CI runs
// on noisy machines and gates on what a regression would break by far.
func (r *report) failed(slack float64) []gate {
	return slices.DeleteFunc(slices.Clone(r.gates), func(g gate) bool {
		if g.atLeast {
			g.limit /= slack
		} else {
			g.limit *= slack
		}
		return g.held()
	})
}

func (r *report) write(w io.Writer, how string) {
	fmt.Fprintf(w, "Measured %s on %s/%s, %d CPUs, %s; %s%s.\n\n", time.Now().UTC().Format("2006-01-02"),
		runtime.GOOS, runtime.GOARCH, runtime.NumCPU(), cpuModel(), how, loadAverage())
	fmt.Fprintln(w, "| # | what | muster | floor | go-control-plane | muster/floor | peer/muster |")
	fmt.Fprintln(w, "| --- | --- | --- | --- | --- | --- | --- |")
	for _, x := range r.rows {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s | %s |\n", x.id, x.what, cell(x.product, x.unit), cell(x.floor, x.unit),
			cell(x.peer, x.unit), ratio(x.product, x.floor), ratio(x.peer, x.product))
	}
	if len(r.gates) > 0 {
		fmt.Fprint(w, "\n| target | got | limit | held |\n| --- | --- | --- | --- |\n")
	}
	for _, g := range r.gates {
		sign, held := "≤", "yes"
		if g.atLeast {
			sign = "≥"
		}
		if !g.held() {
			held = "**no**"
		}
		fmt.Fprintf(w, "| %s | %s | %s %s | %s |\n", g.what, number(g.got), sign, number(g.limit), held)
	}
	r.writeHeap(w)
}

// writeHeap lists which packages hold the memory of a group.
func (r *report) writeHeap(w io.Writer) {
	if len(r.heap) == 0 {
		return
	}
	fmt.Fprint(w, "\nThe heap of the group whose memory is stated, by the package that asked for it:\n\n| package | MB in use |\n| --- | --- |\n")
	for _, h := range r.heap {
		fmt.Fprintf(w, "| `%s` | %s |\n", h.Package, number(float64(h.Bytes)/(1<<20)))
	}
}

func cell(v []float64, unit string) string {
	if len(v) == 0 {
		return ""
	}
	if len(v) == 1 {
		return strings.TrimSpace(number(v[0]) + " " + unit)
	}
	s := slices.Sorted(slices.Values(v))
	return fmt.Sprintf("%s %s (%s–%s)", number(median(v)), unit, number(s[0]), number(s[len(s)-1]))
}

func ratio(a, b []float64) string {
	if len(a) == 0 || len(b) == 0 || median(b) == 0 {
		return ""
	}
	return number(median(a)/median(b)) + "×"
}

func number(v float64) string {
	switch {
	case v == float64(int64(v)):
		return fmt.Sprintf("%d", int64(v))
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(v))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

func scale(v []float64, by float64) []float64 {
	out := make([]float64, len(v))
	for i, x := range v {
		out[i] = x * by
	}
	return out
}

// loadAverage is how many processes wanted a CPU of late, of this run and of others:
// what the times beside it are worth. It is empty where it cannot be told.
func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return ""
	}
	if f := strings.Fields(string(b)); len(f) >= 3 {
		return fmt.Sprintf(", load average at the end %s (5 minutes), %s (15 minutes)", f[1], f[2])
	}
	return ""
}

// cpuModel names the processor, for the record beside the figures.
func cpuModel() string {
	b, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "unknown processor"
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimLeft(name, "\t: ")
		}
	}
	return "unknown processor"
}
