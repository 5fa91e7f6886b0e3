package server

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
)

const (
	synced  = musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED
	nacked  = musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED
	offline = musterv1.DataPlaneState_DATA_PLANE_STATE_OFFLINE
)

// list returns a group's data planes.
func (n *node) list(group string) []*musterv1.DataPlane {
	n.t.Helper()
	resp, err := n.dps.ListDataPlanes(n.ctx(), &musterv1.ListDataPlanesRequest{Group: group, Types: true})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp.GetDataPlanes()
}

// until waits for a data plane to be in a state at a revision, and returns it.
func (n *node) until(group, id string, state musterv1.DataPlaneState, revision uint64) *musterv1.DataPlane {
	n.t.Helper()
	var found *musterv1.DataPlane
	eventually(n.t, fmt.Sprintf("%s of %s is %s at %d", id, group, state, revision), func() bool {
		for _, p := range n.list(group) {
			if p.GetId() == id && p.GetState() == state && p.GetRevision() == revision {
				found = p
				return true
			}
		}
		return false
	})
	return found
}

// waitAcked is `muster wait`.
func (n *node) waitAcked(group string, revision uint64) error {
	n.t.Helper()
	stream, err := n.dps.Wait(n.ctx(), &musterv1.WaitRequest{Group: group, Revision: revision, Timeout: durationpb.New(10 * time.Second)})
	if err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func TestACommittedChangeArrivesAndIsAcknowledged(t *testing.T) {
	n := start(t, testConfig(t))
	n.group("g")
	dp := n.dataPlane("dp-1", "g")
	rev := n.commit("g", put(serviceOf("pay", 8080)), put(routeOf("orders", "pay", "/orders"))).GetRevision()
	if err := n.waitAcked("g", rev); err != nil {
		t.Fatal(err)
	}
	for typ, want := range map[string]string{
		compile.ClusterType: "service/pay", compile.EndpointType: "service/pay", compile.ListenerType: "http", compile.RouteConfigurationType: "muster",
	} {
		if got := dp.names(typ); got != want {
			t.Errorf("the data plane holds %q of %s, want %q", got, typ, want)
		}
	}
	if got := dp.names(compile.VirtualHostType); !strings.Contains(got, "pay.example.com") {
		t.Errorf("virtual hosts = %q", got)
	}
	p := n.until("g", "dp-1", synced, rev)
	if p.GetUserAgent() != "raw-test-client/1" || p.GetProtocol() != "delta" || p.GetServer() != "srv-1" || len(p.GetTypes()) != len(wildcardTypes) {
		t.Errorf("data plane = %v", p)
	}

	rev = n.commit("g", del(musterv1.Kind_KIND_SERVICE, "pay")).GetRevision()
	if err := n.waitAcked("g", rev); err != nil {
		t.Fatal(err)
	}
	if got := dp.names(compile.ClusterType); got != "" {
		t.Errorf("clusters after the deletion: %q", got)
	}
}

func TestAChangeSendsOnlyWhatItTouches(t *testing.T) {
	n := start(t, testConfig(t))
	n.group("g")
	var changes []*musterv1.Change
	for i := range 50 {
		id := fmt.Sprintf("s%02d", i)
		changes = append(changes, put(serviceOf(id, 8080)), put(routeOf("r-"+id, id, "/")))
	}
	rev := n.commit("g", changes...).GetRevision()
	dp := n.dataPlane("dp-1", "g")
	n.until("g", "dp-1", synced, rev)
	dp.mu.Lock()
	before := dp.responses
	dp.resources = map[string]map[string]*discoveryv3.Resource{}
	dp.mu.Unlock()
	rev = n.commit("g", put(serviceOf("s07", 9090))).GetRevision()
	if err := n.waitAcked("g", rev); err != nil {
		t.Fatal(err)
	}
	if got := dp.names(compile.EndpointType); got != "service/s07" {
		t.Errorf("endpoints sent: %q, want those of s07 alone", got)
	}
	for _, typ := range []string{compile.ListenerType, compile.RouteConfigurationType, compile.VirtualHostType} {
		if got := dp.names(typ); got != "" {
			t.Errorf("sent %q of %s", got, typ)
		}
	}
	dp.mu.Lock()
	defer dp.mu.Unlock()
	if sent := dp.responses - before; sent > 2 {
		t.Errorf("%d responses for a changed node", sent)
	}
}

// rawCluster is a raw xds_resource; the tests' data planes refuse those with a
// certain name.
func rawCluster(t *testing.T, id, name string, timeout time.Duration) *musterv1.Resource {
	t.Helper()
	packed, err := anypb.New(&clusterv3.Cluster{Name: name, ConnectTimeout: durationpb.New(timeout)})
	if err != nil {
		t.Fatal(err)
	}
	return &musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{Id: id, Name: name, Resource: packed}}}
}

func refusingRaw(c *adsClient, _ *corev3.Node) {
	c.refuse = func(_ string, r *discoveryv3.Resource) string {
		m := &clusterv3.Cluster{}
		if r.GetName() == "raw-bad" && r.GetResource().UnmarshalTo(m) == nil && m.GetConnectTimeout().GetSeconds() == 0 {
			return "raw-bad: (ClusterValidationError.ConnectTimeout: value must be greater than 0s)"
		}
		return ""
	}
}

func TestARefusedResourceIsAttributedAndHoldsNothingElseBack(t *testing.T) {
	n := start(t, testConfig(t))
	n.group("g")
	dp := n.dataPlane("dp-1", "g", refusingRaw)
	n.commit("g", put(serviceOf("first", 8080)))
	rev := n.commit("g", put(rawCluster(t, "raw", "raw-bad", 0)), put(serviceOf("pay", 8080)), put(routeOf("r", "pay", "/"))).GetRevision()
	p := n.until("g", "dp-1", nacked, rev)
	if len(p.GetRefusals()) != 1 {
		t.Fatalf("refusals = %v", p.GetRefusals())
	}
	r := p.GetRefusals()[0]
	if r.GetResourceName() != "raw-bad" || len(r.GetObjects()) == 0 || r.GetObjects()[0].GetKind() != musterv1.Kind_KIND_XDS_RESOURCE ||
		r.GetObjects()[0].GetId() != "raw" || r.GetAuthor() != "ann" || r.GetRevision() != rev || r.GetField() != "resource.connect_timeout" {
		t.Errorf("refusal = %v", r)
	}
	if got := dp.names(compile.ClusterType); !strings.Contains(got, "service/pay") {
		t.Errorf("the good changes of the transaction did not arrive: %q", got)
	}
	// A good revision of another object does not wait for the bad one, and the
	// next good content of the bad one clears it.
	rev = n.commit("g", put(serviceOf("other", 8081))).GetRevision()
	if err := n.waitAcked("g", rev); err != nil {
		t.Fatal(err)
	}
	n.until("g", "dp-1", nacked, rev)
	rev = n.commit("g", put(rawCluster(t, "raw", "raw-bad", time.Second))).GetRevision()
	if p := n.until("g", "dp-1", synced, rev); len(p.GetRefusals()) != 0 {
		t.Errorf("refusals = %v", p.GetRefusals())
	}
}

func TestGroupsNeverMix(t *testing.T) {
	n := start(t, testConfig(t))
	n.group("red")
	n.group("blue")
	for _, group := range []string{"red", "blue"} {
		s := serviceOf("same-id", 8080)
		s.GetService().Hosts = []string{group + ".canary.example"}
		n.commit(group, put(s), put(routeOf("same-route", "same-id", "/")))
	}
	// The same node id in both groups, by cluster and by metadata.
	red := n.dataPlane("dp", "red")
	blue := n.dataPlane("dp", "red", func(_ *adsClient, node *corev3.Node) {
		node.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"muster.group": structpb.NewStringValue("blue")}}
	})
	n.until("red", "dp", synced, 1)
	n.until("blue", "dp", synced, 1)
	n.commit("blue", put(routeOf("only-blue", "same-id", "/only-blue-path")))
	n.until("blue", "dp", synced, 2)
	n.until("red", "dp", synced, 1)
	if text := red.text(); !strings.Contains(text, "red.canary") || strings.Contains(text, "blue") {
		t.Error("the red data plane holds something blue")
	}
	if text := blue.text(); !strings.Contains(text, "blue.canary") || strings.Contains(text, "red.canary") {
		t.Error("the blue data plane holds something red")
	}
}

func TestAnUnknownGroupIsRefusedNotEmpty(t *testing.T) {
	n := start(t, testConfig(t))
	dp := n.dataPlane("dp", "nope")
	eventually(t, "the stream ends", func() bool { return dp.ended() != nil })
	if err := dp.ended(); status.Code(err) != codes.NotFound {
		t.Fatalf("err = %v, want NOT_FOUND", err)
	}
	if dp.responses != 0 {
		t.Fatal("it was answered")
	}
}

func TestADeletedGroupEndsItsStreamsAndIsGoneFromTheFleet(t *testing.T) {
	n := start(t, testConfig(t))
	n.group("g")
	n.group("other")
	dp, stays := n.dataPlane("dp", "g"), n.dataPlane("dp", "other")
	n.until("g", "dp", synced, 0)
	n.until("other", "dp", synced, 0)
	if _, err := n.admin.DeleteGroup(n.ctx(), &musterv1.DeleteGroupRequest{Group: "g"}); status.Code(err) != codes.FailedPrecondition {
		t.Fatalf("deleted with a data plane connected: %v", err)
	}
	if _, err := n.admin.DeleteGroup(n.ctx(), &musterv1.DeleteGroupRequest{Group: "g", Force: true}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream ends", func() bool { return dp.ended() != nil })
	if stays.ended() != nil {
		t.Fatal("another group's stream ended")
	}
	// Made again, it is another group: nothing of the old one is known.
	n.group("g")
	if list := n.list("g"); len(list) != 0 {
		t.Fatalf("data planes of the new group: %v", list)
	}
}

func TestADataPlaneThatLeftIsOffline(t *testing.T) {
	n := start(t, testConfig(t))
	n.group("g")
	rev := n.commit("g", put(serviceOf("pay", 8080))).GetRevision()
	dp := n.dataPlane("dp", "g")
	n.until("g", "dp", synced, rev)
	dp.close()
	n.until("g", "dp", offline, rev)
}

func TestARestartedServerDoesNotSendWhatADataPlaneHas(t *testing.T) {
	cfg := testConfig(t)
	n := start(t, cfg)
	n.group("g")
	n.commit("g", put(serviceOf("pay", 8080)))
	rev := n.commit("g", put(routeOf("r", "pay", "/"))).GetRevision()
	dp := n.dataPlane("dp", "g")
	n.until("g", "dp", synced, rev)
	was := dp.version(compile.ClusterType, "service/pay")
	cfg.XDSAddr = n.srv.XDSAddr().String()
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the stream ends", func() bool { return dp.ended() != nil })
	if code := status.Code(dp.ended()); code != codes.Unavailable {
		t.Errorf("the stream ended with %v, want UNAVAILABLE", dp.ended())
	}
	n = start(t, cfg)
	again := n.dataPlane("dp", "g")
	n.until("g", "dp", synced, rev)
	is := again.version(compile.ClusterType, "service/pay")
	if was == "" || was[strings.LastIndex(was, ".")+1:] != is[strings.LastIndex(is, ".")+1:] {
		t.Errorf("the content part of the version went from %q to %q", was, is)
	}
}

func TestEveryMutationOfATypicalGroupReachesADataPlane(t *testing.T) {
	n := start(t, testConfig(t))
	n.group("g")
	dp := n.dataPlane("dp", "g")
	steps := []struct {
		name   string
		change *musterv1.Change
		typ    string
		want   string
	}{
		{"a service", put(serviceOf("pay", 8080)), compile.ClusterType, "service/pay"},
		{"a route", put(routeOf("r", "pay", "/a/*")), compile.VirtualHostType, "pay.example.com"},
		{"a consumer", put(&musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{Username: "ann"}}}), compile.ClusterType, "service/pay"},
		{"a credential", put(&musterv1.Resource{Kind: &musterv1.Resource_Credential{Credential: &musterv1.Credential{
			Id: "k", Consumer: "ann", Plugins: map[string]*structpb.Struct{"key-auth": {Fields: map[string]*structpb.Value{"key": structpb.NewStringValue("a-long-enough-key")}}},
		}}}), compile.ExtensionConfigType, "key-auth"},
		{"a global rule", put(&musterv1.Resource{Kind: &musterv1.Resource_GlobalRule{GlobalRule: &musterv1.GlobalRule{
			Id: "cors", Plugins: map[string]*structpb.Struct{"cors": {}},
		}}}), compile.RouteConfigurationType, "muster"},
	}
	for _, s := range steps {
		rev := n.commit("g", s.change).GetRevision()
		if err := n.waitAcked("g", rev); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if got := dp.names(s.typ); !strings.Contains(got, s.want) {
			t.Errorf("after %s the data plane holds %q of %s, want %q in it", s.name, got, s.typ, s.want)
		}
	}
}
