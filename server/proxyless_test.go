package server

import (
	"strings"
	"sync/atomic"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

func grpcShop(id string) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
		Id: id, Upstream: &musterv1.Upstream{Scheme: "grpc", Nodes: []*musterv1.Node{{Host: "10.0.0.1", Port: 1}}},
	}}}}}
}

func TestAGroupIsCompiledForGRPCFromItsFirstSuchClientOn(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0), commit("g", grpcShop("a")))
	p.snap("g", 1, 1)
	pg := p.pub.lookup("g")
	subscribe := func(agent string) (listeners func() []string, closeFeed func(), wakes *atomic.Int32) {
		t.Helper()
		wakes = &atomic.Int32{}
		feed, err := p.pub.Subscribe("g", &corev3.Node{UserAgentName: agent}, func() { wakes.Add(1) })
		if err != nil {
			t.Fatal(err)
		}
		return func() (names []string) {
			for r := range feed.Current().Set(compile.ListenerType, snapshot.View{Client: compile.ViewGRPC}).All() {
				names = append(names, r.Name)
			}
			return names
		}, feed.Close, wakes
	}
	listeners, done, _ := subscribe("envoy")
	if got := listeners(); len(got) != 1 || got[0] != "http" {
		t.Errorf("an Envoy sees %q", got)
	}
	done()
	if pg.proxyless.current.Load() != nil {
		t.Error("compiled for gRPC without such a client")
	}

	listeners, done, wakes := subscribe("gRPC Go")
	defer done()
	if got := listeners(); len(got) != 1 || got[0] != "a" {
		t.Errorf("the first gRPC client sees %q at once", got)
	}
	p.apply(commit("g", grpcShop("b")))
	eventually(t, "the gRPC client is woken", func() bool { return wakes.Load() == 1 && len(listeners()) == 2 })
	if _, rev, ok := p.pub.Describe("g", compile.ClusterType, "grpc/none"); !ok || rev.GetRevision() != 0 {
		t.Errorf("grpc/none is not described: %v", rev)
	}
	if keys, rev, ok := p.pub.Describe("g", compile.ListenerType, "b"); !ok || len(keys) != 1 || keys[0].ID != "b" || rev.GetRevision() != 2 || rev.GetAuthor() != "ann" {
		t.Errorf("listener b is described as %v, %v", keys, rev)
	}
	if got := strings.Join(p.pub.Warnings("g", []string{"b", "c", compile.ServerListenerPrefix + "127.0.0.1:1"}), "; "); got !=
		"service/b: no route can take a call: each fails with UNAVAILABLE (add a route, for example for /*); xds:///c: the group has no service of this id or name" {
		t.Errorf("warnings: %s", got)
	}
	if _, ok := p.pub.lookup("g").proxyless.resource(compile.ListenerType, compile.ServerListenerPrefix+"127.0.0.1:1"); !ok {
		t.Error("a gRPC server gets no listener")
	}
	p.apply(deleteGroup("g"))
	eventually(t, "the gRPC client is woken", func() bool { return wakes.Load() == 2 })
	p.apply(createGroup("g", 0), commit("g", grpcShop("c")))
	p.snap("g", 1, 4)
	again, done, _ := subscribe("gRPC Go")
	defer done()
	if got := again(); len(got) != 1 || got[0] != "c" {
		t.Errorf("a gRPC client of the group made again sees %q", got)
	}
}
