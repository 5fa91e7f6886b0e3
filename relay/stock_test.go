package relay

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// stockPlane is a data plane that believes everything it is told, as a stock Envoy
// does: it keeps what it holds over streams, says so when it comes back, and
// remembers each breach of a promise.
type stockPlane struct {
	t      testing.TB
	id     string
	sotw   bool
	stable []string // clusters that are there from the beginning to the end

	mu      sync.Mutex
	targets []string // tried in turn
	next    int
	cancel  context.CancelFunc // of the stream
	held    map[string]map[string]*discoveryv3.Resource
	version string        // of the last state-of-the-world response
	counter time.Duration // as the cluster `service/counter` has it
	breach  []string
	streams int
}

func newStockPlane(t testing.TB, id string, sotw bool, stable []string, targets ...string) *stockPlane {
	p := &stockPlane{t: t, id: id, sotw: sotw, stable: stable, targets: targets, held: map[string]map[string]*discoveryv3.Resource{}}
	run(t, id, p.run)
	return p
}

// move ends the stream; the next one goes to the target if there is one.
func (p *stockPlane) move(target string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, x := range p.targets {
		if x == target {
			p.next = i
		}
	}
	if p.cancel != nil {
		p.cancel()
	}
}

func (p *stockPlane) run(ctx context.Context) error {
	for ctx.Err() == nil {
		p.mu.Lock()
		target := p.targets[p.next%len(p.targets)]
		p.next++
		stream, cancel := context.WithCancel(ctx)
		p.cancel = cancel
		p.mu.Unlock()
		p.follow(stream, target)
		cancel()
		sleep(ctx, 20*time.Millisecond)
	}
	return nil
}

func (p *stockPlane) follow(ctx context.Context, target string) {
	conn, err := grpc.NewClient(target, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		p.t.Error(err)
		return
	}
	defer conn.Close()
	client := discoveryv3.NewAggregatedDiscoveryServiceClient(conn)
	node := &corev3.Node{Id: p.id, Cluster: "edge", UserAgentName: "stock"}
	if p.sotw {
		p.followSotW(ctx, client, node)
		return
	}
	stream, err := client.DeltaAggregatedResources(ctx)
	if err != nil {
		return
	}
	for i, typeURL := range []string{compile.ClusterType, compile.EndpointType, compile.VirtualHostType} {
		req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: []string{"*"}}
		if i == 0 {
			req.Node = node
		}
		p.mu.Lock()
		for name, r := range p.held[typeURL] {
			if req.InitialResourceVersions == nil {
				req.InitialResourceVersions = map[string]string{}
			}
			req.InitialResourceVersions[name] = r.GetVersion()
		}
		p.mu.Unlock()
		if err := stream.Send(req); err != nil {
			return
		}
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return
		}
		p.take(resp.GetTypeUrl(), resp.GetResources(), resp.GetRemovedResources())
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}); err != nil {
			return
		}
	}
}

func (p *stockPlane) followSotW(ctx context.Context, client discoveryv3.AggregatedDiscoveryServiceClient, node *corev3.Node) {
	stream, err := client.StreamAggregatedResources(ctx)
	if err != nil {
		return
	}
	p.mu.Lock()
	version := p.version
	p.mu.Unlock()
	if err := stream.Send(&discoveryv3.DiscoveryRequest{Node: node, TypeUrl: compile.ClusterType, VersionInfo: version}); err != nil {
		return
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return
		}
		p.takeAll(resp)
		ack := &discoveryv3.DiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce(), VersionInfo: resp.GetVersionInfo()}
		if err := stream.Send(ack); err != nil {
			return
		}
	}
}

// take applies an incremental response.
func (p *stockPlane) take(typeURL string, upsert []*discoveryv3.Resource, removed []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams++
	of := p.held[typeURL]
	if of == nil {
		of = map[string]*discoveryv3.Resource{}
		p.held[typeURL] = of
	}
	for _, r := range upsert {
		if before := of[r.GetName()]; before != nil {
			was, _, _ := snapshot.ParseVersion(before.GetVersion())
			if now, _, _ := snapshot.ParseVersion(r.GetVersion()); now.Less(was) {
				p.broke("%s %s went from version %s to %s", typeURL, r.GetName(), before.GetVersion(), r.GetVersion())
			}
		}
		of[r.GetName()] = r
		p.look(r.GetName(), r.GetResource())
	}
	for _, name := range removed {
		delete(of, name)
	}
	if typeURL == compile.ClusterType {
		p.whole(of)
	}
}

// takeAll applies a response that holds everything.
func (p *stockPlane) takeAll(resp *discoveryv3.DiscoveryResponse) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.streams++
	was, _, _ := snapshot.ParseVersion(p.version)
	if now, _, ok := snapshot.ParseVersion(resp.GetVersionInfo()); ok && now.Less(was) {
		p.broke("the clusters went from version %s to %s", p.version, resp.GetVersionInfo())
	}
	p.version = resp.GetVersionInfo()
	of := map[string]*discoveryv3.Resource{}
	for _, a := range resp.GetResources() {
		c := &clusterv3.Cluster{}
		if err := a.UnmarshalTo(c); err != nil {
			p.broke("a cluster that cannot be read: %v", err)
			continue
		}
		of[c.GetName()] = &discoveryv3.Resource{Name: c.GetName(), Resource: a}
		p.look(c.GetName(), a)
	}
	p.held[compile.ClusterType] = of
	p.whole(of)
}

// look reads the counter.
func (p *stockPlane) look(name string, a *anypb.Any) {
	if name != "service/counter" {
		return
	}
	c := &clusterv3.Cluster{}
	if a.GetTypeUrl() != compile.ClusterType || proto.Unmarshal(a.GetValue(), c) != nil {
		return
	}
	now := c.GetConnectTimeout().AsDuration()
	if now < p.counter {
		p.broke("the counter went back from %v to %v", p.counter, now)
	}
	p.counter = now
}

// whole demands that nothing is lost.
func (p *stockPlane) whole(clusters map[string]*discoveryv3.Resource) {
	for _, name := range p.stable {
		if clusters[name] == nil {
			p.broke("cluster %s is lost", name)
			return
		}
	}
}

func (p *stockPlane) broke(format string, args ...any) {
	if len(p.breach) < 10 {
		p.breach = append(p.breach, fmt.Sprintf(format, args...))
	}
}

func (p *stockPlane) at(counter time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counter >= counter || len(p.breach) > 0
}

func TestTheStockPlaneNoticesABrokenPromise(t *testing.T) {
	cluster := func(name, version string, counter time.Duration) *discoveryv3.Resource {
		a, err := anypb.New(&clusterv3.Cluster{Name: name, ConnectTimeout: durationpb.New(counter)})
		if err != nil {
			t.Fatal(err)
		}
		return &discoveryv3.Resource{Name: name, Version: version, Resource: a}
	}
	for name, give := range map[string]func(*stockPlane){
		"an older version": func(p *stockPlane) {
			p.take(compile.ClusterType, []*discoveryv3.Resource{cluster("service/s", "1.2.aaaaaaaa", 0)}, nil)
		},
		"an older content": func(p *stockPlane) {
			p.take(compile.ClusterType, []*discoveryv3.Resource{cluster("service/counter", "1.9.bbbbbbbb", 1)}, nil)
		},
		"a lost cluster": func(p *stockPlane) { p.take(compile.ClusterType, nil, []string{"service/s"}) },
		"an older whole": func(p *stockPlane) {
			p.takeAll(&discoveryv3.DiscoveryResponse{VersionInfo: "1.9.aaaaaaaa", Resources: []*anypb.Any{cluster("service/s", "", 0).Resource}})
			p.takeAll(&discoveryv3.DiscoveryResponse{VersionInfo: "1.8.aaaaaaaa", Resources: []*anypb.Any{cluster("service/s", "", 0).Resource}})
		},
		"an empty whole": func(p *stockPlane) { p.takeAll(&discoveryv3.DiscoveryResponse{VersionInfo: "1.9.aaaaaaaa"}) },
	} {
		p := &stockPlane{t: t, stable: []string{"service/s"}, held: map[string]map[string]*discoveryv3.Resource{}}
		p.take(compile.ClusterType, []*discoveryv3.Resource{cluster("service/s", "1.5.aaaaaaaa", 0), cluster("service/counter", "1.5.aaaaaaaa", 5)}, nil)
		if len(p.breach) > 0 {
			t.Fatalf("%s: before it: %v", name, p.breach)
		}
		if give(p); len(p.breach) == 0 {
			t.Errorf("%s was not noticed", name)
		}
	}
}

func (p *stockPlane) has(cluster string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held[compile.ClusterType][cluster] != nil
}
