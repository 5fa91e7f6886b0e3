package main

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// endToEnd is B9: from before the API call, at any of three servers, to the last
// acknowledgement, which takes the log, the compilation and the fan-out of each
// server. The floor is B1's: bare grpc-go that streams the same bytes to as many.
func (r *runner) endToEnd(ctx context.Context) error {
	streams, resources, writes := r.size(1000, 100), r.size(10000, 1000), r.size(100, 20)
	c, err := startCluster(ctx)
	if err != nil {
		return err
	}
	defer c.stop()
	if err := c.load(ctx, streams, resources); err != nil {
		return err
	}
	floor, _, err := r.start(ctx, "floor", streams, resources, true, 0)
	if err != nil {
		return err
	}
	defer floor.stop()
	var last, half, api, bare []float64
	for n := range writes + 5 {
		if _, err := c.planes.call(request{Do: "reset"}); err != nil {
			return err
		}
		start := time.Now()
		if err := c.write(ctx, n, "", start, n*7919%resources); err != nil {
			return err
		}
		took := time.Since(start).Seconds()
		got, err := c.planes.call(request{Do: "arrive", Acks: int64(streams)})
		if err != nil {
			return err
		}
		push, err := floor.server.call(request{Do: "push", Indices: []int{n * 7919 % resources}, Acks: int64(streams)})
		if err != nil {
			return err
		}
		if n >= 5 { // the first warm up
			last, half, api, bare = append(last, got.Wall), append(half, got.P50), append(api, took), append(bare, push.Wall)
		}
	}
	end, err := c.oracle(ctx)
	if err != nil {
		return err
	}
	if err := oracle([]*pair{floor}); err != nil {
		return err
	}
	if end.Backwards > 0 {
		return fmt.Errorf("data planes went backwards %d times", end.Backwards)
	}
	what := fmt.Sprintf("%d writes, each server in turn, %d streams on 3 servers, %d resources", writes, streams, resources)
	r.report.row("B9", "API write to last ACK, "+what+" (floor: the fan-out alone, by one server)", "ms", scale(last, 1e3), scale(bare, 1e3), nil)
	r.report.row("B9", "API write to last ACK, p99", "ms", []float64{1e3 * quantile(last, 0.99)}, []float64{1e3 * quantile(bare, 0.99)}, nil)
	r.report.row("B9", "API write to the ACK of half of the streams", "ms", scale(half, 1e3), nil, nil)
	r.report.row("B9", "API write to its answer", "ms", scale(api, 1e3), nil, nil)
	if !r.smoke { // milliseconds of a smoke run are those of the machine's other work
		r.report.gate("B9 p50 ms", 1e3*median(last), 100)
		r.report.gate("B9 p99 ms", 1e3*quantile(last, 0.99), 300)
	}
	return nil
}

// quantile is the value below which the share q of the values lies.
func quantile(values []float64, q float64) float64 {
	s := slices.Sorted(slices.Values(values))
	return s[min(int(float64(len(s))*q), len(s)-1)]
}
