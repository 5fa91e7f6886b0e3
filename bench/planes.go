package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/server/compile"
)

// planes are data planes of a cluster: delta ADS streams, each on a connection of
// its own, spread over the servers. Unlike a fleet's, they come back: when a stream
// ends, its data plane goes to the next server and says what it holds. They check
// that nothing ever goes backwards.
type planes struct {
	addrs     []string
	resources int
	all       []*plane
	versions  []versions // by resource index
	dials     chan struct{}
	// acked is how old a change was when a stream had acknowledged it.
	acked      staleness
	backwards  atomic.Int64
	reconnects atomic.Int64
	failed     atomic.Pointer[error]
	wg         sync.WaitGroup
}

// plane is one data plane.
type plane struct {
	id   int
	full atomic.Bool

	mu     sync.Mutex
	held   []*version // by resource index; nil is absent
	count  int
	newest [2]uint64 // epoch and revision of the last response
}

// version is one content of a resource, shared by all who hold it.
type version struct {
	name  string
	hash  uint64
	stamp time.Time
}

// versions are those of one resource that were seen lately.
type versions struct {
	mu  sync.Mutex
	all []*version
}

const versionsKept = 64

// of returns the version of a name; one name must stand for one content.
func (v *versions) of(name, body []byte) (*version, error) {
	hash := bodyHash(body)
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := len(v.all) - 1; i >= 0; i-- {
		if v.all[i].name == string(name) {
			if v.all[i].hash != hash {
				return nil, fmt.Errorf("version %s stands for two contents", name)
			}
			return v.all[i], nil
		}
	}
	stamp, _ := stampOf(body)
	one := &version{string(name), hash, stamp}
	if len(v.all) == versionsKept {
		v.all = append(v.all[:0], v.all[versionsKept/2:]...)
	}
	v.all = append(v.all, one)
	return one, nil
}

func newPlanes(addrs []string, n, resources int) *planes {
	p := &planes{addrs: addrs, resources: resources, versions: make([]versions, resources), dials: make(chan struct{}, 200)}
	for i := range n {
		p.all = append(p.all, &plane{id: i, held: make([]*version, resources)})
	}
	return p
}

// run keeps every data plane connected until ctx ends.
func (p *planes) run(ctx context.Context) {
	for _, pl := range p.all {
		p.wg.Go(func() {
			for attempt := 0; ctx.Err() == nil; attempt++ {
				err := p.stream(ctx, pl, p.addrs[(pl.id+attempt)%len(p.addrs)])
				var wrong *violation
				if errors.As(err, &wrong) {
					p.failed.CompareAndSwap(nil, &err)
					return
				}
				p.reconnects.Add(1)
				select {
				case <-time.After(20*time.Millisecond + rand.N(200*time.Millisecond)):
				case <-ctx.Done():
				}
			}
		})
	}
}

// violation is what no server may do.
type violation struct{ error }

// stream is one stream of a data plane, from its first request to its end.
func (p *planes) stream(ctx context.Context, pl *plane, addr string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p.dials <- struct{}{}
	waits := true
	defer func() {
		if waits {
			<-p.dials
		}
	}()
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return &violation{err}
	}
	defer conn.Close()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
	if err != nil {
		return err
	}
	first, err := pl.firstRequest()
	if err != nil {
		return &violation{err}
	}
	if err := stream.SendMsg(first); err != nil {
		return err
	}
	<-p.dials
	waits = false
	ackHead := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), typeURL)
	for {
		var m []byte
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		nonce, stamps, err := p.apply(pl, m)
		if err != nil {
			return &violation{fmt.Errorf("data plane %d: %w", pl.id, err)}
		}
		ack := append([]byte(nil), ackHead...)
		if err := stream.SendMsg(protowire.AppendBytes(protowire.AppendTag(ack, 6, protowire.BytesType), nonce)); err != nil {
			return err
		}
		now := time.Now()
		for _, at := range stamps {
			p.acked.add(now.Sub(at))
		}
	}
}

// firstRequest says what the data plane holds.
func (pl *plane) firstRequest() ([]byte, error) {
	meta, err := structpb.NewStruct(map[string]any{"muster.group": "group"})
	if err != nil {
		return nil, err
	}
	b, err := proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: typeURL,
		Node:    &corev3.Node{Id: fmt.Sprintf("node-%d", pl.id), Cluster: "group", Metadata: meta, UserAgentName: "envoy"},
	})
	pl.mu.Lock()
	defer pl.mu.Unlock()
	for i, v := range pl.held {
		if v != nil {
			b = appendKnown(b, resourceName(i), []byte(v.name))
		}
	}
	return b, err
}

// apply takes a response in, and returns when what it brings was changed.
func (p *planes) apply(pl *plane, m []byte) (nonce []byte, stamps []time.Time, err error) {
	pl.mu.Lock()
	defer pl.mu.Unlock()
	at, nonce, err := scanResponse(m, func(resource []byte) error {
		name, id, body, err := scanResource(resource)
		if err != nil || string(name) == compile.CatchAll {
			return err
		}
		i := resourceIndex(name)
		if i < 0 || i >= p.resources {
			return fmt.Errorf("unknown resource %q", name)
		}
		v, err := p.versions[i].of(id, body)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		switch before := pl.held[i]; {
		case before == nil:
			pl.count++
		case v.stamp.Before(before.stamp):
			p.backwards.Add(1)
		}
		pl.held[i] = v
		if !v.stamp.IsZero() {
			stamps = append(stamps, v.stamp)
		}
		return nil
	}, func(name []byte) {
		if i := resourceIndex(name); i >= 0 && i < p.resources && pl.held[i] != nil {
			pl.held[i] = nil
			pl.count--
		}
	})
	if err != nil {
		return nil, nil, err
	}
	epoch, rest, _ := strings.Cut(string(at), ".")
	revision, _, _ := strings.Cut(rest, ".")
	e, err1 := strconv.ParseUint(epoch, 10, 64)
	r, err2 := strconv.ParseUint(revision, 10, 64)
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, fmt.Errorf("system_version_info %q: %w", at, err)
	}
	if e < pl.newest[0] || e == pl.newest[0] && r < pl.newest[1] {
		p.backwards.Add(1)
	}
	pl.newest = [2]uint64{e, r}
	pl.full.Store(pl.count == p.resources)
	return nonce, stamps, nil
}

// digest is a hash over what every data plane holds, or an error: the oracle.
func (p *planes) digest() (uint64, error) {
	if err := p.failed.Load(); err != nil {
		return 0, *err
	}
	hashes := make([]uint64, p.resources)
	want := uint64(0)
	for n, pl := range p.all {
		pl.mu.Lock()
		for i, v := range pl.held {
			hashes[i] = 0
			if v != nil {
				hashes[i] = v.hash
			}
		}
		pl.mu.Unlock()
		if got := digestOf(hashes); n == 0 {
			want = got
		} else if got != want {
			return 0, fmt.Errorf("data plane %d holds something else than the first", n)
		}
	}
	return want, nil
}

// planesProcess is the process of all data planes of a cluster.
func planesProcess(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("planes", flag.ContinueOnError)
	addrs := fs.String("addr", "", "")
	n := fs.Int("streams", 1, "")
	resources := fs.Int("resources", 1, "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	p := newPlanes(strings.Split(*addrs, ","), *n, *resources)
	run, cancel := context.WithCancel(ctx)
	defer p.wg.Wait()
	defer cancel()
	return answer(func(r request) (reply, error) {
		switch r.Do {
		case "connect":
			start := time.Now()
			p.run(run)
			for deadline := start.Add(10 * time.Minute); ; time.Sleep(10 * time.Millisecond) {
				missing := 0
				for _, pl := range p.all {
					if !pl.full.Load() {
						missing++
					}
				}
				if missing == 0 {
					return reply{Wall: time.Since(start).Seconds()}, nil
				}
				if err := p.failed.Load(); err != nil {
					return reply{}, *err
				}
				if time.Now().After(deadline) {
					return reply{}, fmt.Errorf("%d of %d data planes do not hold all resources", missing, len(p.all))
				}
			}
		case "reset":
			p.acked.reset()
			return reply{}, nil
		case "arrive":
			for deadline := time.Now().Add(time.Minute); p.acked.count() < r.Acks; time.Sleep(500 * time.Microsecond) {
				if time.Now().After(deadline) {
					return reply{}, fmt.Errorf("%d of %d data planes acknowledged the change", p.acked.count(), r.Acks)
				}
			}
			return reply{P50: p.acked.quantile(0.5).Seconds(), Wall: p.acked.quantile(1).Seconds()}, nil
		case "digest":
			d, err := p.digest()
			return reply{Digest: d, Count: p.acked.count(), P99: p.acked.quantile(0.99).Seconds(),
				Backwards: p.backwards.Load(), Reconnects: p.reconnects.Load()}, err
		}
		return processState(r)
	})
}
