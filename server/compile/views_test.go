package compile_test

import (
	"slices"
	"testing"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/server/compile"
)

// emptyGroup is what an empty group has.
func emptyGroup(t *testing.T) map[compile.Key]compile.Resource {
	t.Helper()
	_, delta, _ := compile.Full(state.View{})
	out := map[compile.Key]compile.Resource{}
	for _, r := range delta.Upsert {
		out[r.Key] = r
	}
	return out
}

func TestStateOfTheWorldHasTheVirtualHostsInline(t *testing.T) {
	all := emptyGroup(t)
	rds := all[compile.Key{TypeURL: compile.RouteConfigurationType, Name: compile.RouteConfig}]
	catchAll := all[compile.Key{TypeURL: compile.VirtualHostType, Name: compile.CatchAll}]
	other, err := proto.Marshal(&routev3.VirtualHost{Name: "muster/other", Domains: []string{"other/"}})
	if err != nil {
		t.Fatal(err)
	}
	body, err := compile.SotWRouteConfiguration(rds.Body, slices.Values([][]byte{catchAll.Body, other}))
	if err != nil {
		t.Fatal(err)
	}
	want := message(t, rds).(*routev3.RouteConfiguration)
	want.Vhds = nil
	want.VirtualHosts = []*routev3.VirtualHost{message(t, catchAll).(*routev3.VirtualHost), {Name: "muster/other", Domains: []string{"other/"}}}
	got := &routev3.RouteConfiguration{}
	if err := proto.Unmarshal(body, got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
		t.Error(diff)
	}
	if got.GetVhostHeader() != compile.RouteKeyHeader {
		t.Error("the virtual hosts are not chosen by the route key")
	}
}

func TestABrokenRouteConfigurationIsAnError(t *testing.T) {
	if _, err := compile.SotWRouteConfiguration([]byte{0xff}, slices.Values([][]byte{})); err == nil {
		t.Error("no error")
	}
}

func TestAListenerIsMovedToWhereADataPlaneListens(t *testing.T) {
	base := emptyGroup(t)[compile.Key{TypeURL: compile.ListenerType, Name: compile.ListenerHTTP}]
	for _, c := range []struct {
		name    string
		opts    compile.ListenOptions
		address string
		port    uint32
	}{
		{"not at all", compile.ListenOptions{}, "0.0.0.0", 9080},
		{"address", compile.ListenOptions{Address: "127.0.0.1"}, "127.0.0.1", 9080},
		{"port", compile.ListenOptions{HTTPPort: 1234, HTTPSPort: 5678}, "0.0.0.0", 1234},
		{"port of the other", compile.ListenOptions{HTTPSPort: 5678}, "0.0.0.0", 9080},
	} {
		t.Run(c.name, func(t *testing.T) {
			body, err := compile.ListenerFor(base.Body, c.opts)
			if err != nil {
				t.Fatal(err)
			}
			got, want := &listenerv3.Listener{}, message(t, base).(*listenerv3.Listener)
			if err := proto.Unmarshal(body, got); err != nil {
				t.Fatal(err)
			}
			socket := got.GetAddress().GetSocketAddress()
			if socket.GetAddress() != c.address || socket.GetPortValue() != c.port {
				t.Errorf("listens on %v", socket)
			}
			got.Address = want.Address
			if diff := cmp.Diff(want, got, protocmp.Transform()); diff != "" {
				t.Errorf("more than the address differs:\n%s", diff)
			}
		})
	}
	if _, err := compile.ListenerFor([]byte{0xff}, compile.ListenOptions{Address: "127.0.0.1"}); err == nil {
		t.Error("a broken listener is no error")
	}
}
