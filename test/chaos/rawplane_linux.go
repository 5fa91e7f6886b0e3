package main

import (
	"context"
	"crypto/tls"
	"maps"
	"math/rand/v2"
	"sync"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/musterhq/muster/test/chaos/oracle"
)

// rawPlane is a delta client that follows no Manifest, as a stock Envoy: it
// takes each response as it comes, and tells a new server what it holds.
type rawPlane struct {
	id, group string
	servers   []string
	tls       *tls.Config
	saw       *oracle.Planes // nil: not watched
	// deaf makes it never read.
	deaf bool

	cancel context.CancelFunc
	done   chan struct{}

	mu        sync.Mutex
	err       error
	server    string
	versions  map[string]map[string]string
	endpoints oracle.Values
	streams   int // that were answered
}

// rawTypes are what it subscribes to.
var rawTypes = []string{clusterType, endpointType, hostType}

func newRawPlane(c *cluster, saw *oracle.Planes, group, id string, servers []string) (*rawPlane, error) {
	identity, err := c.planeTLS(group, id)
	if err != nil {
		return nil, err
	}
	return &rawPlane{id: id, group: group, servers: servers, tls: identity, saw: saw, versions: map[string]map[string]string{}}, nil
}

func (r *rawPlane) start() {
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel, r.done = cancel, make(chan struct{})
	go func() {
		defer close(r.done)
		for i := rand.IntN(len(r.servers)); ctx.Err() == nil; i++ {
			server := r.servers[i%len(r.servers)]
			err := r.stream(ctx, server)
			r.mu.Lock()
			r.err, r.server = err, ""
			r.mu.Unlock()
			sleep(ctx, time.Duration(50+rand.IntN(100))*time.Millisecond)
		}
	}()
}

func (r *rawPlane) stop() {
	r.cancel()
	<-r.done
}

func (r *rawPlane) lastError() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

func (r *rawPlane) values() oracle.Values {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.endpoints
}

// answered is the number of streams on which a server sent something.
func (r *rawPlane) answered() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streams
}

func (r *rawPlane) stream(ctx context.Context, server string) error {
	conn, err := grpc.NewClient(server, grpc.WithTransportCredentials(credentials.NewTLS(r.tls)), quickDial,
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// A server that says nothing is left, as a client would.
	silent := time.AfterFunc(3*time.Second, cancel)
	defer silent.Stop()
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		return err
	}
	node := &corev3.Node{Id: r.id, Cluster: r.group, UserAgentName: "chaos"}
	for _, t := range rawTypes {
		r.mu.Lock()
		req := &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: t, ResourceNamesSubscribe: []string{"*"}, InitialResourceVersions: maps.Clone(r.versions[t])}
		r.mu.Unlock()
		node = nil
		if err := stream.Send(req); err != nil {
			return err
		}
	}
	if r.deaf {
		silent.Stop()
		<-ctx.Done()
		return ctx.Err()
	}
	for first := true; ; first = false {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		if first {
			silent.Stop()
			r.mu.Lock()
			r.streams++
			r.server = server
			r.mu.Unlock()
		}
		r.take(resp)
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}); err != nil {
			return err
		}
	}
}

func (r *rawPlane) take(resp *discoveryv3.DeltaDiscoveryResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	held := r.versions[resp.GetTypeUrl()]
	if held == nil {
		held = map[string]string{}
		r.versions[resp.GetTypeUrl()] = held
	}
	var ignored oracle.Values
	for _, res := range resp.GetResources() {
		if res.GetResource() == nil {
			continue // a heartbeat
		}
		held[res.GetName()] = res.GetVersion()
		body := res.GetResource().GetValue()
		if r.saw != nil {
			r.saw.Received(r.id, r.group, oracle.Resource{TypeURL: resp.GetTypeUrl(), Name: res.GetName(), Version: res.GetVersion(), Body: body})
		}
		slotValue(r.group, resp.GetTypeUrl(), body, &r.endpoints, &ignored)
	}
	for _, name := range resp.GetRemovedResources() {
		delete(held, name)
	}
}
