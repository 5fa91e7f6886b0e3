package dataplane

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// fakeADS is an upstream: a delta ADS server that serves what the test says. It has
// a revision of its own content; with Manifests unless plain.
type fakeADS struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	plain bool

	server    *grpc.Server
	addr      string
	receivers sync.WaitGroup

	mu       sync.Mutex
	err      error // what streams end with instead of being served
	epoch    uint64
	revision uint64
	content  map[string][]string // name@version by type
	streams  map[*fakeStream]bool
	opened   int
	requests []*discoveryv3.DeltaDiscoveryRequest // all, in order of arrival
}

type fakeStream struct {
	wake  chan struct{}
	known map[string]map[string]string // versions by type and name
	sent  version
	nonce int
	types map[string]bool
}

func newFakeADS(t *testing.T) *fakeADS {
	t.Helper()
	f := &fakeADS{epoch: 1, revision: 1, content: map[string][]string{}, streams: map[*fakeStream]bool{}}
	f.start(t, "127.0.0.1:0")
	return f
}

func (f *fakeADS) start(t *testing.T, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer(grpc.MaxRecvMsgSize(64 << 20))
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, f)
	f.server, f.addr = server, ln.Addr().String()
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) }) // ends with Stop
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
		f.receivers.Wait()
	})
}

// set replaces the content of some types and makes it the next revision.
func (f *fakeADS) set(content map[string][]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for typeURL, entries := range content {
		f.content[typeURL] = entries
	}
	f.revision++
	f.poke()
}

func (f *fakeADS) poke() {
	for s := range f.streams {
		select {
		case s.wake <- struct{}{}:
		default:
		}
	}
}

// fail makes streams end with an error from now on; nil serves again.
func (f *fakeADS) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
	f.poke()
}

func (f *fakeADS) seen() []*discoveryv3.DeltaDiscoveryRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*discoveryv3.DeltaDiscoveryRequest(nil), f.requests...)
}

func (f *fakeADS) openStreams() (now, ever int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.streams), f.opened
}

func (f *fakeADS) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	s := &fakeStream{wake: make(chan struct{}, 1), known: map[string]map[string]string{}, types: map[string]bool{}}
	f.mu.Lock()
	f.streams[s] = true
	f.opened++
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.streams, s)
		f.mu.Unlock()
	}()
	in := make(chan *discoveryv3.DeltaDiscoveryRequest)
	ctx := stream.Context()
	f.receivers.Go(func() { // Recv ends when this method has returned
		defer close(in)
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case in <- req:
			case <-ctx.Done():
				return
			}
		}
	})
	subscriptions := len(DefaultTypes())
	if !f.plain {
		subscriptions++
	}
	for {
		f.mu.Lock()
		err := f.err
		f.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case req, ok := <-in:
			if !ok {
				return nil
			}
			f.mu.Lock()
			f.requests = append(f.requests, req)
			f.mu.Unlock()
			if req.GetResponseNonce() != "" {
				continue
			}
			s.types[req.GetTypeUrl()] = true
			s.known[req.GetTypeUrl()] = req.GetInitialResourceVersions()
			if len(s.types) < subscriptions && !f.plain {
				continue
			}
		case <-s.wake:
		}
		if err := f.push(stream, s); err != nil {
			return err
		}
	}
}

// push sends the difference between what the stream knows and the content.
func (f *fakeADS) push(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer, s *fakeStream) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	now := version{f.epoch, f.revision}
	first := s.sent == version{}
	if s.sent == now && !f.plain {
		return nil
	}
	s.sent = now
	for _, typeURL := range DefaultTypes() {
		if !s.types[typeURL] {
			continue
		}
		r := response(typeURL)
		current := map[string]string{}
		for _, full := range response(typeURL, f.content[typeURL]...).GetResources() {
			current[full.GetName()] = full.GetVersion()
			if s.known[typeURL][full.GetName()] != full.GetVersion() {
				r.Resources = append(r.Resources, full)
			}
		}
		for name := range s.known[typeURL] {
			if _, ok := current[name]; !ok {
				r.RemovedResources = append(r.RemovedResources, name)
			}
		}
		s.known[typeURL] = current
		if len(r.Resources)+len(r.RemovedResources) == 0 && !first {
			continue
		}
		s.nonce++
		r.Nonce = fmt.Sprint(typeURL, s.nonce)
		if err := stream.Send(r); err != nil {
			return err
		}
	}
	if f.plain || !s.types[ManifestType] {
		return nil
	}
	m := manifestOf(f.epoch, f.revision, f.content)
	s.nonce++
	m.Nonce = fmt.Sprint("m", s.nonce)
	return stream.Send(m)
}

// gatherer is a handler that keeps what it is given.
type gatherer struct {
	mu      sync.Mutex
	updates []*Update
	answer  func(u *Update) error
}

func (g *gatherer) Apply(_ context.Context, u *Update) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.updates = append(g.updates, u)
	if g.answer != nil {
		return g.answer(u)
	}
	return nil
}

func (g *gatherer) all() []*Update {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]*Update(nil), g.updates...)
}

// quick are waiting times for tests.
var quick = Timing{
	BackoffMin: 5 * time.Millisecond, BackoffMax: 50 * time.Millisecond, Connect: 2 * time.Second,
	FirstResponse: 5 * time.Second, Manifest: 50 * time.Millisecond, Incomplete: 200 * time.Millisecond,
}

func config(handler Handler, servers ...*fakeADS) Config {
	c := Config{
		Insecure: true, Group: "g", NodeID: "n", Handler: handler, Timing: quick, Order: OrderPreferred,
		UserAgentName: "test", UserAgentVersion: "1", Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}
	for _, s := range servers {
		c.Servers = append(c.Servers, s.addr)
	}
	return c
}

// run runs a client until the test ends or stop is called, which waits.
func run(t *testing.T, cfg Config) (c *Client, stop func()) {
	t.Helper()
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := c.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	stop = func() {
		cancel()
		running.Wait()
	}
	t.Cleanup(stop)
	return c, stop
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

var errUnavailable = status.Error(codes.Unavailable, "not ready")
