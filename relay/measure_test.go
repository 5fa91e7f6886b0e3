package relay

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/xds"
)

var (
	edges    = flag.Int("edges", 40, "data planes of TestWhatARelayCosts")
	services = flag.Int("services", 200, "services of TestWhatARelayCosts")
	measured = flag.Int("changes", 10, "changes of TestWhatARelayCosts")
)

// edgeFleet are many light data planes, a hundred to a connection: each notes when
// the newest cluster came.
type edgeFleet struct {
	holds int          // clusters, of a data plane that has everything
	there atomic.Int64 // data planes that have everything
	mu    sync.Mutex
	came  []time.Time // of the change under way
}

func (f *edgeFleet) connect(t testing.TB, prefix, addr string, n int) {
	var conn *grpc.ClientConn
	for i := range n {
		if i%100 == 0 {
			var err error
			if conn, err = grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
				t.Fatal(err)
			}
		}
		on := conn
		if i%100 == 0 {
			t.Cleanup(func() { _ = on.Close() })
		}
		run(t, prefix, func(ctx context.Context) error {
			stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(on).DeltaAggregatedResources(ctx)
			if err != nil {
				return nil
			}
			req := &discoveryv3.DeltaDiscoveryRequest{
				Node: &corev3.Node{Id: fmt.Sprintf("%s-%d", prefix, i), Cluster: "edge"}, TypeUrl: compile.ClusterType, ResourceNamesSubscribe: []string{"*"},
			}
			// A large group comes in several responses.
			for held := 0; stream.Send(req) == nil; {
				resp, err := stream.Recv()
				if err != nil {
					break
				}
				now := time.Now()
				before := held
				if held += len(resp.GetResources()); before < f.holds && held >= f.holds {
					f.there.Add(1)
				}
				f.mu.Lock()
				f.came = append(f.came, now)
				f.mu.Unlock()
				req = &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
			}
			return nil
		})
	}
}

// change waits until n data planes have a change that do makes, and returns when each had it.
func (f *edgeFleet) change(t testing.TB, n int, do func()) []time.Time {
	t.Helper()
	f.mu.Lock()
	f.came = nil
	f.mu.Unlock()
	do()
	eventually(t, "every data plane has the change", func() bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		return len(f.came) >= n
	})
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.came)
}

func medianOf(ds []time.Duration) time.Duration {
	slices.Sort(ds)
	return ds[len(ds)/2]
}

// TestWhatARelayCosts measures what four relays take from the core, and when their
// data planes have a change. The usual sizes only keep it working; the figures come
// from `make relay-measure`.
func TestWhatARelayCosts(t *testing.T) {
	const relays = 4
	c := newCentre(t)
	c.group("edge", nil)
	for i := range *services {
		c.service("edge", fmt.Sprintf("s%d", i), 80)
	}
	rev := uint64(*services)
	var links []*link
	var all []*testRelay
	fleet, direct := &edgeFleet{holds: *services}, &edgeFleet{holds: *services}
	began := time.Now()
	for i := range relays {
		l := newLink(t, c.addr())
		r := newRelay(t, fmt.Sprintf("r%d", i), []string{l.addr()}, func(cfg *Config) {
			cfg.Limits = xds.Limits{Connections: -1, ConnectionsPerAddress: -1}
		})
		links, all = append(links, l), append(all, r)
	}
	for _, r := range all {
		eventually(t, "the relay has it", func() bool { return r.Ready() == nil && r.carriers.versions()[0].GetRevision() == rev })
	}
	_, cold, _ := links[0].counts()
	families, err := all[0].metrics.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	plain := 0.0
	for _, f := range families {
		if f.GetName() == "muster_relay_upstream_received_bytes_total" {
			plain = f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Logf("a cold start of %d services, which are %d resources, takes %d bytes of a relay's link, %.0f before compression; all relays have them within %v",
		*services, all[0].carriers.all()[0].client.State().Len(dataplane.RelayType), cold, plain, time.Since(began).Round(time.Millisecond))
	for i, r := range all {
		fleet.connect(t, fmt.Sprintf("e%d", i), r.addr(), *edges/relays)
	}
	direct.connect(t, "direct", c.addr(), 1)
	// One data plane of muster's own at the core: what it takes is one message.
	probe := newLink(t, c.addr())
	p := newPlane(t, "probe", "edge", []string{probe.addr()})
	eventually(t, "all are there", func() bool {
		return fleet.there.Load() == int64(*edges/relays*relays) && direct.there.Load() == 1 && p.at(rev)()
	})
	time.Sleep(500 * time.Millisecond)

	var added, last []time.Duration
	var egress, message int64
	for i := range *measured {
		var before [relays]int64
		for k, l := range links {
			_, before[k], _ = l.counts()
		}
		_, probeBefore, _ := probe.counts()
		var first []time.Time
		began := time.Now()
		came := fleet.change(t, *edges/relays*relays, func() {
			first = direct.change(t, 1, func() { c.counterTo(i + 1) })
		})
		rev++
		eventually(t, "the probe has it", p.at(rev))
		time.Sleep(300 * time.Millisecond) // reports and their answers count, too
		for _, at := range came {
			added = append(added, at.Sub(first[0]))
		}
		last = append(last, slices.MaxFunc(came, time.Time.Compare).Sub(began))
		for k, l := range links {
			_, now, _ := l.counts()
			egress += now - before[k]
		}
		_, probeNow, _ := probe.counts()
		message += probeNow - probeBefore
	}
	ratio := float64(egress) / float64(relays*message)
	t.Logf("%d data planes below %d relays, %d changes: a data plane has a change %v (median) after one at the core, the last %v after the commit began",
		*edges, relays, *measured, medianOf(added).Round(10*time.Microsecond), medianOf(last).Round(10*time.Microsecond))
	t.Logf("a change takes %d bytes of a relay's link and %d of a data plane at the core: core egress is %.2f times one message per relay",
		egress/int64(relays**measured), message/int64(*measured), ratio)
	if ratio > 2 {
		t.Errorf("core egress is %.2f times one message per relay", ratio)
	}
}
