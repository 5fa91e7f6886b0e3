package fleet

import (
	"fmt"
	"testing"
	"time"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/xds"
)

// An acknowledgement must cost the same however large the fleet is.
func BenchmarkAcknowledgement(b *testing.B) {
	for _, n := range []int{100, 10000} {
		b.Run(fmt.Sprintf("planes=%d", n), func(b *testing.B) {
			r := New(Config{Server: "srv-1", Now: time.Now})
			r.Published("g", rev(1))
			streams := make([]*xds.Stream, n)
			for i := range streams {
				streams[i] = &xds.Stream{ID: uint64(i + 1), Group: "g", Node: fmt.Sprintf("dp-%d", i), UserAgent: "envoy/1.40.0"}
				r.Connected(streams[i])
				for _, typ := range []string{compile.ClusterType, compile.EndpointType, compile.ListenerType, compile.RouteConfigurationType, compile.VirtualHostType} {
					r.Subscribed(streams[i], xds.Subscribed{TypeURL: typ, Wildcard: true})
				}
			}
			b.ReportAllocs()
			i, v := 0, uint64(1)
			for b.Loop() {
				if i%n == 0 {
					v++
					r.Published("g", rev(v))
				}
				s := streams[i%n]
				r.Sent(s, xds.Sent{TypeURL: compile.VirtualHostType, To: rev(v)})
				r.Acked(s, xds.Acked{TypeURL: compile.VirtualHostType, Version: rev(v)})
				r.Synced(s, rev(v))
				i++
			}
		})
	}
}
