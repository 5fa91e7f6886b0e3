//go:build unix

package compile_test

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/server/compile"
)

// edit is the same change back and forth, as views and changes.
type edit struct {
	views   [2]state.View
	changes [2][]state.Change
}

func makeEdit(b *testing.B, n int, s shape, change func(variant int) *musterv1.Resource) (*compile.Compiled, edit) {
	b.Helper()
	st := newStore(b)
	st.commit(s.group(n))
	var e edit
	st.commit([]*musterv1.Resource{change(1)})
	compiled, _, problems := compile.Full(st.group().View())
	if len(problems) > 0 {
		b.Fatal(problems)
	}
	e.views[0], e.changes[0] = st.commit([]*musterv1.Resource{change(2)})
	e.views[1], e.changes[1] = st.commit([]*musterv1.Resource{change(1)})
	return compiled, e
}

// cpu measures the process's CPU time, which a busy machine does not inflate.
func cpu(b *testing.B) (stop func()) {
	now := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	start := now()
	return func() { b.ReportMetric(float64(now()-start)/float64(b.N), "cpu-ns/op") }
}

func benchmarkNext(b *testing.B, n int, s shape, resources int, change func(variant int) *musterv1.Resource) {
	c, e := makeEdit(b, n, s, change)
	var bytes, count int
	b.ReportAllocs()
	stop := cpu(b)
	for i := 0; b.Loop(); i++ {
		var delta compile.Delta
		c, delta, _ = c.Next(e.views[i%2], e.changes[i%2])
		if count = len(delta.Upsert); count != resources {
			b.Fatalf("%d resources changed, want %d", count, resources)
		}
		bytes = 0
		for _, r := range delta.Upsert {
			bytes += len(r.Body)
		}
	}
	stop()
	b.ReportMetric(float64(bytes), "xds-bytes")
}

// B11: one route of the group changes; the target is at most 200 µs.
func BenchmarkNextOneRoute(b *testing.B) {
	for _, s := range shapes {
		for _, n := range []int{100, 10000} {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				benchmarkNext(b, n, s, 1, func(variant int) *musterv1.Resource { return s.route(n/2, variant) })
			})
		}
	}
}

// One node of one service changes.
func BenchmarkNextOneNode(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			benchmarkNext(b, n, shapes[0], 1, func(variant int) *musterv1.Resource { return shapes[0].service(n/2, variant) })
		})
	}
}

// A route that takes every path of a host, or of all hosts, stands behind the
// routes of every node, and its change changes them all.
func BenchmarkNextFallback(b *testing.B) {
	for _, host := range []string{"", "api.example.com"} {
		b.Run("host="+host, func(b *testing.B) {
			const n = 10000
			route := func(variant int) *musterv1.Resource {
				r := &musterv1.Route{Id: "fallback", Uris: []string{"/*"}, Timeout: &musterv1.Timeout{Read: float64(61 + variant)},
					Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: "10.9.9.9", Port: 80}}}}
				if host != "" {
					r.Hosts = []string{host}
				}
				return &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: r}}
			}
			benchmarkNext(b, n, shapes[0], n+1, route)
		})
	}
}

// One of many consumers changes: the shards of the key that goes and of the one that comes.
func BenchmarkNextOneConsumer(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			st := newStore(b)
			var all []*musterv1.Resource
			for i := range n {
				all = append(all, consumer(b, fmt.Sprintf("c%d", i)))
			}
			st.commit(all)
			c, _, _ := compile.Full(st.group().View())
			var e edit
			e.views[0], e.changes[0] = st.commit([]*musterv1.Resource{keyed(b, "c7", "another")})
			e.views[1], e.changes[1] = st.commit([]*musterv1.Resource{consumer(b, "c7")})
			b.ReportAllocs()
			stop := cpu(b)
			for i := 0; b.Loop(); i++ {
				c, _, _ = c.Next(e.views[i%2], e.changes[i%2])
			}
			stop()
		})
	}
}

func BenchmarkFull(b *testing.B) {
	for _, s := range shapes {
		for _, n := range []int{100, 10000} {
			b.Run(fmt.Sprintf("%s/%d", s.name, n), func(b *testing.B) {
				st := newStore(b)
				view, _ := st.commit(s.group(n))
				b.ReportAllocs()
				stop := cpu(b)
				for b.Loop() {
					compile.Full(view)
				}
				stop()
			})
		}
	}
}

// What gRPC clients of a large group cost: one changed route, and all of it.
func BenchmarkProxyless(b *testing.B) {
	const n = 10000
	st := newStore(b)
	st.commit(shapes[0].group(n))
	p, _ := compile.FullProxyless(st.group().View())
	var e edit
	for i := range 2 {
		e.views[i], e.changes[i] = st.commit([]*musterv1.Resource{grpcRoute("r7", "s7", fmt.Sprintf("/v%d/*", i))})
	}
	b.Run("route", func(b *testing.B) {
		p := p
		b.ReportAllocs()
		stop := cpu(b)
		for i := 0; b.Loop(); i++ {
			var delta compile.Delta
			if p, delta = p.Next(e.views[i%2], e.changes[i%2]); len(delta.Upsert) != 1 {
				b.Fatalf("%d resources changed", len(delta.Upsert))
			}
		}
		stop()
	})
	b.Run("full", func(b *testing.B) {
		b.ReportAllocs()
		stop := cpu(b)
		for b.Loop() {
			compile.FullProxyless(e.views[1])
		}
		stop()
	})
}
