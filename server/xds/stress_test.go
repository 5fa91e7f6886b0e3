package xds

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

var viewDelta = snapshot.View{Client: compile.ViewDelta}

// plane is a data plane that acknowledges everything and keeps what it is sent.
type plane struct {
	id string
	mu sync.Mutex
	vh map[string]string
}

func (p *plane) run(ctx context.Context, cc *grpc.ClientConn, pause func()) error {
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	first := &discoveryv3.DeltaDiscoveryRequest{Node: node(p.id), TypeUrl: compile.VirtualHostType, InitialResourceVersions: map[string]string{}}
	p.mu.Lock()
	for name, version := range p.vh {
		first.InitialResourceVersions[name] = version
	}
	p.mu.Unlock()
	if err := s.Send(first); err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if err != nil {
			return err
		}
		p.mu.Lock()
		for _, res := range r.GetResources() {
			p.vh[res.GetName()] = res.GetVersion()
		}
		for _, name := range r.GetRemovedResources() {
			delete(p.vh, name)
		}
		p.mu.Unlock()
		pause()
		if err := s.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()}); err != nil {
			return err
		}
	}
}

// TestManyStreamsUnderChurnEndWithTheSnapshot publishes as fast as it can to data
// planes that answer late, come and go.
func TestManyStreamsUnderChurnEndWithTheSnapshot(t *testing.T) {
	f := serve(t, Config{Limits: Limits{Replacements: -1}})
	f.publish(compile.VirtualHostType, map[string]string{"m/0": "0"})
	const planes, revisions = 40, 400
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var all []*plane
	for i := range planes {
		p := &plane{id: fmt.Sprint("plane", i), vh: map[string]string{}}
		all = append(all, p)
		cc := f.dial()
		wg.Go(func() {
			for ctx.Err() == nil {
				stream, stop := context.WithCancel(ctx)
				if i%4 == 0 { // this one comes and goes
					time.AfterFunc(time.Duration(rand.IntN(100))*time.Millisecond, stop)
				}
				_ = p.run(stream, cc, func() {
					if i%3 == 0 {
						time.Sleep(time.Duration(rand.IntN(3)) * time.Millisecond)
					}
				})
				stop()
			}
		})
	}
	for rev := range revisions {
		name := fmt.Sprint("m/", rand.IntN(50))
		if rev%5 == 0 {
			f.publish(compile.VirtualHostType, nil, name)
		} else {
			f.publish(compile.VirtualHostType, map[string]string{name: fmt.Sprint(rev)})
		}
		if rev%20 == 0 {
			time.Sleep(5 * time.Millisecond)
		}
	}
	want := map[string]string{}
	for r := range f.snap.Set(compile.VirtualHostType, viewDelta).All() {
		want[r.Name] = r.Version
	}
	for _, p := range all {
		eventually(t, p.id+" holds the snapshot", func() bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			if len(p.vh) != len(want) {
				return false
			}
			for name, version := range want {
				if p.vh[name] != version {
					return false
				}
			}
			return true
		})
	}
	cancel()
	wg.Wait()
}

// TestASlowReaderHoldsNobodyUp has data planes that stop reading while others are
// served.
func TestASlowReaderHoldsNobodyUp(t *testing.T) {
	f := serve(t, Config{})
	big := map[string]string{}
	for i := range 400 { // 400 KB: more than a stream takes that is not read
		big[fmt.Sprint("m/", i)] = fmt.Sprintf("%01000d", i)
	}
	f.publish(compile.VirtualHostType, big)
	for i := range 20 {
		cc, err := grpc.NewClient(f.addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithInitialWindowSize(65535), grpc.WithInitialConnWindowSize(65535))
		if err != nil {
			t.Fatal(err)
		}
		defer cc.Close()
		s := f.delta(cc)
		for range 3 { // asks again and again, and never reads
			send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node(fmt.Sprint("slow", i)), TypeUrl: compile.VirtualHostType, ResourceNamesSubscribe: []string{"*"}})
		}
	}
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("reader"), TypeUrl: compile.VirtualHostType})
	for i := range 50 {
		r := recv(t, s)
		f.publish(compile.VirtualHostType, map[string]string{"m/0": fmt.Sprint("now", i)})
		began := time.Now()
		send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.VirtualHostType, ResponseNonce: r.GetNonce()})
		if took := time.Since(began); took > time.Second {
			t.Fatalf("a request took %s", took)
		}
	}
}
