package dataplane_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"net"
	"sync"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/dataplane"
)

// upstream is the control plane of the examples: it has clusters, at revisions.
type upstream struct {
	discoveryv3.UnimplementedAggregatedDiscoveryServiceServer
	addr string
	stop func()

	mu        sync.Mutex
	revisions [][]*discoveryv3.Resource // all that the group has at each
	wake      chan struct{}             // closed when there is another
}

// startUpstream serves revision 1 with the clusters.
func startUpstream(clusters ...*clusterv3.Cluster) *upstream {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	u := &upstream{addr: ln.Addr().String(), wake: make(chan struct{})}
	u.commit(clusters...)
	server := grpc.NewServer()
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(server, u)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) }) // ends with Stop
	u.stop = func() {
		server.Stop()
		serving.Wait()
	}
	return u
}

// commit makes the next revision, which has these clusters.
func (u *upstream) commit(clusters ...*clusterv3.Cluster) {
	var all []*discoveryv3.Resource
	for _, c := range clusters {
		body, err := anypb.New(c)
		if err != nil {
			log.Fatal(err)
		}
		next := &discoveryv3.Resource{Name: c.GetName(), Version: dataplane.VersionOf(1, uint64(len(u.revisions)+1), body), Resource: body}
		if len(u.revisions) > 0 {
			for _, before := range u.revisions[len(u.revisions)-1] {
				if before.GetName() == next.GetName() && bytes.Equal(before.GetResource().GetValue(), body.GetValue()) {
					next = before // what does not change keeps its version
				}
			}
		}
		all = append(all, next)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.revisions = append(u.revisions, all)
	close(u.wake)
	u.wake = make(chan struct{})
}

func (u *upstream) newest() (revision int, all []*discoveryv3.Resource, next <-chan struct{}) {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.revisions), u.revisions[len(u.revisions)-1], u.wake
}

func (u *upstream) DeltaAggregatedResources(stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesServer) error {
	for range 2 { // it asks for clusters and for the Manifest
		if _, err := stream.Recv(); err != nil {
			return err
		}
	}
	had := map[string]bool{}
	for {
		revision, all, next := u.newest()
		clusters := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: dataplane.ClusterType, Resources: all, Nonce: fmt.Sprint("clusters ", revision)}
		has := map[string]bool{}
		for _, r := range all {
			has[r.GetName()] = true
		}
		for name := range had {
			if !has[name] {
				clusters.RemovedResources = append(clusters.RemovedResources, name)
			}
		}
		had = has
		manifest := &discoveryv3.DeltaDiscoveryResponse{
			TypeUrl: dataplane.ManifestType, Nonce: fmt.Sprint("manifest ", revision),
			Resources: []*discoveryv3.Resource{{Name: "edge", Resource: dataplane.ManifestOf("edge", 1, uint64(revision), dataplane.ClusterType, all)}},
		}
		for _, resp := range []*discoveryv3.DeltaDiscoveryResponse{clusters, manifest} {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		select {
		case <-next:
		case <-stream.Context().Done():
			return nil
		}
	}
}

// memory is a bucket in memory.
type memory struct {
	mu      sync.Mutex
	objects map[string][]byte
}

func (m *memory) List(_ context.Context, _ string) (all []dataplane.Object, _ error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for name := range m.objects {
		all = append(all, dataplane.Object{Name: name})
	}
	return all, nil
}

func (m *memory) Get(_ context.Context, name string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b, ok := m.objects[name]
	if !ok {
		return nil, dataplane.ErrNoObject
	}
	return b, nil
}

func (m *memory) Put(_ context.Context, name string, content []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.objects[name] = content
	return nil
}

func (m *memory) Delete(_ context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}
