package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"time"
)

// runner holds what all scenarios of one run share.
type runner struct {
	smoke   bool
	tls     bool
	samples int
	envoy   string // a binary, for B16
	report  *report
}

// sizes returns the full size or, for a smoke run, the small one.
func (r *runner) size(full, smoke int) int {
	if r.smoke {
		return smoke
	}
	return full
}

// start brings up one arm with its clients connected, unless connect is false.
func (r *runner) start(ctx context.Context, arm string, streams, resources int, connect bool, stalled int) (*pair, reply, error) {
	tlsArg := strconv.FormatBool(r.tls)
	server, err := spawn(ctx, "serve", "-arm", arm, "-resources", strconv.Itoa(resources), "-tls="+tlsArg)
	if err != nil {
		return nil, reply{}, err
	}
	p := &pair{arm: arm, server: server, streams: streams}
	addr, err := server.call(request{Do: "addr"})
	if err != nil {
		p.stop()
		return nil, reply{}, err
	}
	p.client, err = spawn(ctx, "load", "-addr", addr.Addr, "-streams", strconv.Itoa(streams),
		"-resources", strconv.Itoa(resources), "-tls="+tlsArg)
	if err != nil {
		p.stop()
		return nil, reply{}, err
	}
	if !connect {
		return p, reply{}, nil
	}
	first, err := p.client.call(request{Do: "connect", Stalled: stalled})
	if err != nil {
		p.stop()
		return nil, reply{}, err
	}
	return p, first, nil
}

func (p *pair) stop() {
	if p.client != nil {
		p.client.stop()
	}
	p.server.stop()
}

// startAll starts several arms; the caller stops them all.
func (r *runner) startAll(ctx context.Context, arms []string, streams, resources int) ([]*pair, error) {
	var pairs []*pair
	for _, a := range arms {
		p, _, err := r.start(ctx, a, streams, resources, true, 0)
		if err != nil {
			stopAll(pairs)
			return nil, fmt.Errorf("%s: %w", a, err)
		}
		pairs = append(pairs, p)
	}
	return pairs, nil
}

func stopAll(pairs []*pair) {
	for _, p := range pairs {
		p.stop()
	}
}

// oracle demands that every stream of every pair ended with exactly what its
// server holds. What was acknowledged may still be on its way into the client's
// books, so it asks a few times.
func oracle(pairs []*pair) error {
	for _, p := range pairs {
		want, err := p.server.call(request{Do: "digest"})
		if err != nil {
			return fmt.Errorf("%s: %w", p.arm, err)
		}
		for try := 0; ; try++ {
			got, err := p.client.call(request{Do: "digest"})
			if err != nil {
				return fmt.Errorf("%s: %w", p.arm, err)
			}
			if got.Digest == want.Digest {
				break
			}
			if try == 50 {
				return fmt.Errorf("%s: the streams do not hold what the server holds", p.arm)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

// fanOut is B1, B2 and B3: one changed resource to all streams.
func (r *runner) fanOut(ctx context.Context) error {
	streams, resources := r.size(1000, 100), r.size(10000, 1000)
	arms := []string{"floor", "muster", "linear", "snapshot"}
	pairs, err := r.startAll(ctx, arms, streams, resources)
	if err != nil {
		return err
	}
	defer stopAll(pairs)
	wall, cpu := map[string][]float64{}, map[string][]float64{}
	for s := range r.samples + 2 {
		for _, p := range pairs {
			got, err := p.server.call(request{Do: "push", Indices: []int{(s * 7919) % resources}, Acks: int64(streams)})
			if err != nil {
				return fmt.Errorf("%s: %w", p.arm, err)
			}
			if s >= 2 { // the first two warm up
				wall[p.arm] = append(wall[p.arm], got.Wall)
				cpu[p.arm] = append(cpu[p.arm], got.CPU/float64(streams))
			}
		}
	}
	if err := oracle(pairs); err != nil {
		return err
	}
	what := fmt.Sprintf("%d streams, %d resources, 1 changed", streams, resources)
	best := "linear"
	if median(wall["snapshot"]) < median(wall["linear"]) {
		best = "snapshot"
	}
	r.report.row("B1", "last ACK, "+what, "ms", scale(wall["muster"], 1e3), scale(wall["floor"], 1e3), scale(wall[best], 1e3))
	r.report.gate("B1 floor", median(wall["muster"])/median(wall["floor"]), 1.5)
	r.report.gateMin("B1 peer", median(wall[best])/median(wall["muster"]), r.peerFactor())
	r.report.row("B3", "server CPU per push, "+what, "µs", scale(cpu["muster"], 1e6), scale(cpu["floor"], 1e6), scale(cpu[best], 1e6))
	r.report.gate("B3 floor", median(cpu["muster"])/median(cpu["floor"]), 1.25)
	return nil
}

// peerFactor is how many times faster than the peer B1 must be. The peer's cost
// grows with the group, so a small smoke run shows less of it.
func (r *runner) peerFactor() float64 {
	if r.smoke {
		return 2
	}
	return 30
}

// flat is B2: the time of one change must not grow with the group.
func (r *runner) flat(ctx context.Context) error {
	streams := r.size(1000, 100)
	sizes := []int{10, 1000, r.size(10000, 3000)}
	walls := make([][]float64, len(sizes))
	var pairs []*pair
	defer func() { stopAll(pairs) }()
	for _, n := range sizes {
		p, _, err := r.start(ctx, "muster", streams, n, true, 0)
		if err != nil {
			return err
		}
		pairs = append(pairs, p)
	}
	for s := range 2*r.samples + 3 {
		for i, p := range pairs {
			got, err := p.server.call(request{Do: "push", Indices: []int{s % sizes[i]}, Acks: int64(streams)})
			if err != nil {
				return err
			}
			if s >= 3 {
				walls[i] = append(walls[i], got.Wall)
			}
		}
	}
	if err := oracle(pairs); err != nil {
		return err
	}
	last := len(sizes) - 1
	r.report.row("B2", fmt.Sprintf("last ACK at %d resources against 10 (in place of the floor)", sizes[last]), "ms",
		scale(walls[last], 1e3), scale(walls[0], 1e3), nil)
	r.report.gate("B2 flat", median(walls[last])/median(walls[0]), 1.15)
	return nil
}

// memory is B4: what an idle, fully served stream keeps.
func (r *runner) memory(ctx context.Context) error {
	streams, resources := r.size(1000, 100), r.size(10000, 1000)
	perStream := map[string][]float64{}
	for _, arm := range []string{"floor", "muster", "linear"} {
		p, _, err := r.start(ctx, arm, streams, resources, false, 0)
		if err != nil {
			return err
		}
		before, err := p.server.call(request{Do: "usage"})
		if err == nil {
			_, err = p.client.call(request{Do: "connect"})
		}
		if err == nil {
			_, err = p.client.call(request{Do: "settle"})
		}
		var after reply
		if err == nil {
			after, err = p.server.call(request{Do: "usage"})
		}
		if err == nil {
			err = oracle([]*pair{p})
		}
		p.stop()
		if err != nil {
			return fmt.Errorf("%s: %w", arm, err)
		}
		perStream[arm] = []float64{float64(after.RSS-before.RSS) / float64(streams) / 1024}
	}
	r.report.row("B4", fmt.Sprintf("RSS per idle stream, %d streams, %d resources", streams, resources), "KB",
		perStream["muster"], perStream["floor"], perStream["linear"])
	if !r.smoke { // a hundred streams are too few to tell from noise
		r.report.gate("B4 KB per stream", perStream["muster"][0], 56)
	}
	return nil
}

// scaleOut is B5: ten thousand streams.
func (r *runner) scaleOut(ctx context.Context) error {
	streams := r.size(9500, 1000)
	pairs, err := r.startAll(ctx, []string{"floor", "muster"}, streams, 10)
	if err != nil {
		return err
	}
	defer stopAll(pairs)
	wall := map[string][]float64{}
	for s := range r.samples/2 + 2 {
		for _, p := range pairs {
			got, err := p.server.call(request{Do: "push", Indices: []int{s % 10}, Acks: int64(streams)})
			if err != nil {
				return err
			}
			if s >= 1 {
				wall[p.arm] = append(wall[p.arm], got.Wall)
			}
		}
	}
	if err := oracle(pairs); err != nil {
		return err
	}
	r.report.row("B5", fmt.Sprintf("last ACK, %d streams, 1 changed", streams), "ms", scale(wall["muster"], 1e3), scale(wall["floor"], 1e3), nil)
	r.report.gate("B5 seconds", median(wall["muster"]), 1.5)
	return nil
}

// coldStart is B6, and with initial_resource_versions B7.
func (r *runner) coldStart(ctx context.Context) error {
	streams, resources := r.size(1000, 100), 1000
	wall, cpu := map[string][]float64{}, map[string][]float64{}
	for range max(3, r.samples/3) {
		for _, arm := range []string{"floor", "muster", "linear"} {
			p, _, err := r.start(ctx, arm, streams, resources, false, 0)
			if err != nil {
				return err
			}
			before, err := p.server.call(request{Do: "cpu"})
			var first, after reply
			if err == nil {
				first, err = p.client.call(request{Do: "connect"})
			}
			if err == nil {
				after, err = p.server.call(request{Do: "cpu"})
			}
			if err == nil {
				err = oracle([]*pair{p})
			}
			p.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", arm, err)
			}
			wall[arm] = append(wall[arm], first.Wall)
			cpu[arm] = append(cpu[arm], (after.CPU-before.CPU)/float64(streams))
		}
	}
	what := fmt.Sprintf("%d streams connect, %d resources each", streams, resources)
	r.report.row("B6", what+", wall", "ms", scale(wall["muster"], 1e3), scale(wall["floor"], 1e3), scale(wall["linear"], 1e3))
	r.report.row("B6", what+", server CPU per stream", "µs", scale(cpu["muster"], 1e6), scale(cpu["floor"], 1e6), scale(cpu["linear"], 1e6))
	r.report.gate("B6 floor", median(wall["muster"])/median(wall["floor"]), 1.3)
	return nil
}

// reconnect is B7.
func (r *runner) reconnect(ctx context.Context) error {
	streams, resources := r.size(1000, 100), r.size(10000, 2000)
	p, _, err := r.start(ctx, "muster", streams, resources, true, 0)
	if err != nil {
		return err
	}
	defer p.stop()
	var cpu []float64
	var resourceBytes []float64
	for range 3 {
		if _, err := p.client.call(request{Do: "disconnect", Known: true}); err != nil {
			return err
		}
		before, err := p.server.call(request{Do: "cpu"})
		if err != nil {
			return err
		}
		if _, err := p.client.call(request{Do: "connect"}); err != nil {
			return err
		}
		settled, err := p.client.call(request{Do: "settle"})
		if err != nil {
			return err
		}
		after, err := p.server.call(request{Do: "cpu"})
		if err != nil {
			return err
		}
		cpu = append(cpu, (after.CPU-before.CPU)/float64(streams))
		resourceBytes = append(resourceBytes, float64(settled.Bytes))
	}
	// The streams must still be live: a change reaches each.
	if _, err := p.server.call(request{Do: "push", Indices: []int{1}, Acks: int64(streams)}); err != nil {
		return err
	}
	if err := oracle([]*pair{p}); err != nil {
		return err
	}
	what := fmt.Sprintf("%d streams reconnect with %d versions, nothing changed", streams, resources)
	r.report.row("B7", what+", resource bytes", "B", resourceBytes, nil, nil)
	r.report.row("B7", what+", server CPU per stream, TLS and HTTP/2 set-up included", "µs", scale(cpu, 1e6), nil, nil)
	r.report.gate("B7 resource bytes", median(resourceBytes), 0)
	if !r.smoke {
		r.report.gate("B7 ms per stream", median(cpu)*1e3, 1)
	}
	return nil
}

// churn is B10.
func (r *runner) churn(ctx context.Context) error {
	streams, resources := r.size(1000, 100), r.size(10000, 1000)
	seconds := float64(r.size(30, 5))
	for _, arm := range []string{"muster", "linear"} {
		if r.smoke && arm == "linear" {
			continue
		}
		p, _, err := r.start(ctx, arm, streams, resources, true, 0)
		if err != nil {
			return err
		}
		_, err = p.client.call(request{Do: "reset"})
		var got, end reply
		if err == nil {
			got, err = p.server.call(request{Do: "churn", Seconds: seconds, Rate: 100})
		}
		if err == nil {
			_, err = p.client.call(request{Do: "settle"})
		}
		if err == nil {
			end, err = p.client.call(request{Do: "digest"})
		}
		if err == nil {
			err = oracle([]*pair{p})
		}
		p.stop()
		if err != nil {
			return fmt.Errorf("%s: %w", arm, err)
		}
		if arm == "muster" && end.Count != got.Count*int64(streams) {
			return fmt.Errorf("%d changes to %d streams arrived %d times", got.Count, streams, end.Count)
		}
		what := fmt.Sprintf("%s: 100 changes/s for %.0f s to %d streams", arm, seconds, streams)
		r.report.row("B10", what+", staleness p99", "ms", []float64{end.P99 * 1e3}, nil, nil)
		r.report.row("B10", what+", server cores", "", []float64{got.CPU / got.Wall}, nil, nil)
		r.report.row("B10", what+", responses per stream per second", "", []float64{float64(got.Pushes) / float64(streams) / got.Wall}, nil, nil)
		if arm == "muster" {
			r.report.gate("B10 staleness ms", end.P99*1e3, 250)
			r.report.gate("B10 cores", got.CPU/got.Wall, 1.2)
		}
	}
	return nil
}

// slowReader is B14: one stream in a hundred never reads.
func (r *runner) slowReader(ctx context.Context) error {
	streams, resources := r.size(1000, 100), 1000
	stalled := streams / 100
	healthy, _, err := r.start(ctx, "muster", streams, resources, true, 0)
	if err != nil {
		return err
	}
	defer healthy.stop()
	mixed, _, err := r.start(ctx, "muster", streams, resources, true, stalled)
	if err != nil {
		return err
	}
	defer mixed.stop()
	before, err := mixed.server.call(request{Do: "usage"})
	if err != nil {
		return err
	}
	baseline, err := healthy.server.call(request{Do: "usage"})
	if err != nil {
		return err
	}
	for _, p := range []*pair{healthy, mixed} {
		if _, err := p.client.call(request{Do: "reset"}); err != nil {
			return err
		}
	}
	for s := range 3 * r.samples {
		indices := make([]int, 50)
		for i := range indices {
			indices[i] = (s*50 + i) % resources
		}
		for _, p := range []*pair{healthy, mixed} {
			n := int64(streams)
			if p == mixed {
				n = int64(streams - stalled)
			}
			if _, err := p.server.call(request{Do: "push", Indices: indices, Acks: n}); err != nil {
				return err
			}
		}
	}
	if err := oracle([]*pair{healthy, mixed}); err != nil {
		return err
	}
	good, err := healthy.client.call(request{Do: "digest"})
	if err != nil {
		return err
	}
	bad, err := mixed.client.call(request{Do: "digest"})
	if err != nil {
		return err
	}
	after, err := mixed.server.call(request{Do: "usage"})
	if err != nil {
		return err
	}
	control, err := healthy.server.call(request{Do: "usage"})
	if err != nil {
		return err
	}
	extra := float64((after.RSS-before.RSS)-(control.RSS-baseline.RSS)) / float64(max(1, stalled)) / 1024
	r.report.row("B14", fmt.Sprintf("p99 of the others, %d of %d streams never read (floor: none stalled)", stalled, streams), "ms",
		[]float64{bad.P99 * 1e3}, []float64{good.P99 * 1e3}, nil)
	r.report.row("B14", "RSS that a stalled stream adds", "KB", []float64{extra}, nil, nil)
	r.report.gate("B14 others", bad.P99/good.P99, 1.1)
	if !r.smoke {
		r.report.gate("B14 KB per stalled stream", extra, 64)
	}
	return nil
}

// plainOnly are scenarios that are the same with TLS, or are not measured with it.
var plainOnly = []string{"B8", "B9", "B12", "B13", "B15", "B16", "memory", "tree"}

func (r *runner) run(ctx context.Context, only []string) error {
	var all error
	for _, s := range []struct {
		names []string
		run   func(context.Context) error
	}{
		{[]string{"B1", "B3"}, r.fanOut},
		{[]string{"B2"}, r.flat},
		{[]string{"B4"}, r.memory},
		{[]string{"B5"}, r.scaleOut},
		{[]string{"B6"}, r.coldStart},
		{[]string{"B7"}, r.reconnect},
		{[]string{"B8"}, r.commits},
		{[]string{"B9"}, r.endToEnd},
		{[]string{"B10"}, r.churn},
		{[]string{"B12"}, r.relays},
		{[]string{"B13"}, r.relayResume},
		{[]string{"tree"}, r.tree},
		{[]string{"B14"}, r.slowReader},
		{[]string{"B15"}, r.failover},
		{[]string{"B16"}, r.routing},
		{[]string{"memory"}, r.groupMemory},
	} {
		if r.tls && slices.Contains(plainOnly, s.names[0]) {
			continue
		}
		named := slices.ContainsFunc(s.names, func(n string) bool { return slices.Contains(only, n) })
		if !named && (len(only) > 0 || s.names[0] == "tree") {
			continue // tree takes gigabytes and minutes
		}
		if err := s.run(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", s.names[0], err)
			all = errors.Join(all, fmt.Errorf("%s: %w", s.names[0], err))
		}
	}
	return all
}
