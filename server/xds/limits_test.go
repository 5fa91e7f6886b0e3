package xds

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"golang.org/x/net/http2"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/compile"
)

func (f *fixture) refused(why reason) float64 {
	return valueOf(f.srv.metrics.refusals.WithLabelValues(string(why)))
}

// valueOf returns the value of a counter or gauge.
func valueOf(m prometheus.Metric) float64 {
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		panic(err) // a metric of our own
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 1000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("it never came to be that %s", what)
}

func TestAStreamThatSaysNothingIsEnded(t *testing.T) {
	f := serve(t, Config{Limits: Limits{FirstMessage: 50 * time.Millisecond}})
	wantEnd(t, f.delta(f.dial()), codes.DeadlineExceeded, "no request came")
	if f.refused(reasonFirstMessage) != 1 {
		t.Error("not counted")
	}
}

func TestStreamsOfAConnectionAreLimited(t *testing.T) {
	f := serve(t, Config{Limits: Limits{StreamsPerConnection: 2}})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	cc := f.dial()
	for i := range 2 {
		s := f.delta(cc)
		send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node(fmt.Sprint(i)), TypeUrl: compile.ListenerType})
		recv(t, s)
	}
	wantEnd(t, f.delta(cc), codes.ResourceExhausted, "more than 2 streams")
	s := f.delta(f.dial()) // another connection has its own
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("x"), TypeUrl: compile.ListenerType})
	recv(t, s)
	if f.refused(reasonStreams) != 1 {
		t.Error("not counted")
	}
}

func TestConnectionsOfAnAddressAreLimited(t *testing.T) {
	f := serve(t, Config{Limits: Limits{ConnectionsPerAddress: 1}})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	first := f.dial()
	s := f.delta(first)
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	recv(t, s)

	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_, err := discoveryv3.NewAggregatedDiscoveryServiceClient(f.dial()).DeltaAggregatedResources(ctx)
	if err == nil {
		t.Error("a second connection of the address was served")
	}
	eventually(t, "the refusal is counted", func() bool { return f.refused(reasonAddress) > 0 })

	// A connection that closes makes room.
	_ = first.Close()
	eventually(t, "the connection is gone", func() bool { return valueOf(f.srv.metrics.connections) == 0 })
	s = f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	recv(t, s)
}

func TestConnectionsAreLimitedInTotal(t *testing.T) {
	f := serve(t, Config{Limits: Limits{Connections: 1}})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	recv(t, s)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := discoveryv3.NewAggregatedDiscoveryServiceClient(f.dial()).DeltaAggregatedResources(ctx); err == nil {
		t.Error("a second connection was served")
	}
	eventually(t, "the refusal is counted", func() bool { return f.refused(reasonConnections) > 0 })
}

func TestASubscriptionTooManyIsCountedAndTold(t *testing.T) {
	f := serve(t, Config{Limits: Limits{Subscriptions: 2, Types: 1}})
	f.publish(compile.EndpointType, map[string]string{"a": "1"})
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.EndpointType, ResourceNamesSubscribe: []string{"a", "b", "c"}})
	wantEnd(t, s, codes.ResourceExhausted, "more than 2 subscriptions on one stream")
	s = f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("b"), TypeUrl: compile.EndpointType, ResourceNamesSubscribe: []string{"a"}})
	recv(t, s)
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.ListenerType})
	wantEnd(t, s, codes.ResourceExhausted, "more than 1 types on one stream")
	for _, why := range []reason{reasonSubscription, reasonTypes} {
		if f.refused(why) != 1 {
			t.Errorf("%s is not counted", why)
		}
	}
}

func TestARequestTooLargeIsCountedAndTold(t *testing.T) {
	f := serve(t, Config{Limits: Limits{MessageSize: 1000}})
	f.publish(compile.EndpointType, map[string]string{"a": "1"})
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.EndpointType, ResourceNamesSubscribe: []string{strings.Repeat("x", 1000)}})
	wantEnd(t, s, codes.ResourceExhausted, "larger than max")
	if f.refused(reasonMessageSize) != 1 {
		t.Error("not counted")
	}
}

func TestColdStartsTakeTurns(t *testing.T) {
	f := serve(t, Config{Limits: Limits{ColdStarts: 1}})
	f.publish(compile.EndpointType, map[string]string{"a": "1"})
	f.srv.cold <- struct{}{} // somebody else's
	var names []string
	for i := range coldNames + 1 {
		names = append(names, fmt.Sprint(i))
	}
	cold := f.delta(f.dial())
	send(t, cold, &discoveryv3.DeltaDiscoveryRequest{Node: node("cold"), TypeUrl: compile.EndpointType, ResourceNamesSubscribe: names})
	eventually(t, "it waits for its turn", func() bool { return f.srv.coldWaiting.Load() == 1 })
	// A small request does not wait behind it.
	warm := f.delta(f.dial())
	send(t, warm, &discoveryv3.DeltaDiscoveryRequest{Node: node("warm"), TypeUrl: compile.EndpointType, ResourceNamesSubscribe: []string{"a"}})
	recv(t, warm)
	if f.srv.coldWaiting.Load() != 1 {
		t.Error("it did not wait")
	}
	<-f.srv.cold
	recv(t, cold)
}

// TestAClientThatPingsAllTheTimeIsCutOff speaks HTTP/2 by hand: gRPC's clients keep
// to ten seconds.
func TestAClientThatPingsAllTheTimeIsCutOff(t *testing.T) {
	f := serve(t, Config{Limits: Limits{MinPing: time.Minute}})
	conn, err := net.Dial("tcp", f.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(http2.ClientPreface)); err != nil {
		t.Fatal(err)
	}
	framer := http2.NewFramer(conn, conn)
	if err := framer.WriteSettings(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		_ = framer.WritePing(false, [8]byte{}) // fails when it is cut off
	}
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	for {
		frame, err := framer.ReadFrame()
		if err != nil {
			t.Fatalf("no GOAWAY came: %v", err)
		}
		if g, ok := frame.(*http2.GoAwayFrame); ok {
			if g.ErrCode != http2.ErrCodeEnhanceYourCalm || string(g.DebugData()) != "too_many_pings" {
				t.Errorf("GOAWAY with %v %q", g.ErrCode, g.DebugData())
			}
			eventually(t, "it is counted", func() bool { return f.ended(endViolation) == 1 })
			return
		}
	}
}

func TestAnOldConnectionIsAskedToComeBack(t *testing.T) {
	f := serve(t, Config{Limits: Limits{ConnectionAge: 50 * time.Millisecond, ConnectionAgeGrace: 50 * time.Millisecond}})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	cc := f.dial()
	for range 2 { // the client comes back by itself, on a new connection
		s := f.delta(cc)
		send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
		recv(t, s)
		if _, err := s.Recv(); status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
	}
}

func TestTheNewestStreamOfANodeWins(t *testing.T) {
	f := serve(t, Config{Limits: Limits{Replacements: 2}})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	connect := func() deltaStream {
		s := f.delta(f.dial())
		send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("same"), TypeUrl: compile.ListenerType})
		return s
	}
	first := connect()
	recv(t, first)
	second := connect()
	recv(t, second)
	wantEnd(t, first, codes.Aborted, "newer stream")
	third := connect()
	recv(t, third)
	wantEnd(t, second, codes.Aborted, "newer stream")
	// Two that take turns do so for a while only.
	wantEnd(t, connect(), codes.AlreadyExists, "must not share a node id")
	f.publish(compile.ListenerType, map[string]string{"l": "2"})
	send(t, third, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.ListenerType, ResponseNonce: "1"})
	recv(t, third) // the one that was there stays
}

func TestAStreamWhoseClientHasGoneReplacesNobody(t *testing.T) {
	gone, late, arrived := make(chan struct{}), make(chan struct{}), make(chan struct{})
	var calls atomic.Int32
	f := serve(t, Config{Authorize: func(ctx context.Context, n *corev3.Node) (string, error) {
		if calls.Add(1) == 1 { // the first to come is worked on last
			close(arrived)
			<-ctx.Done()
			close(gone)
			<-late
		}
		return n.GetCluster(), nil
	}})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	leaving := f.dial()
	send(t, f.delta(leaving), &discoveryv3.DeltaDiscoveryRequest{Node: node("same"), TypeUrl: compile.ListenerType})
	<-arrived
	_ = leaving.Close()
	<-gone
	back := f.delta(f.dial())
	send(t, back, &discoveryv3.DeltaDiscoveryRequest{Node: node("same"), TypeUrl: compile.ListenerType})
	resp := recv(t, back)
	close(late)
	eventually(t, "the first stream ended", func() bool {
		f.srv.mu.Lock()
		defer f.srv.mu.Unlock()
		return len(f.srv.streams) == 1
	})
	f.publish(compile.ListenerType, map[string]string{"l": "2"})
	send(t, back, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.ListenerType, ResponseNonce: resp.GetNonce()})
	recv(t, back)
}

func TestGRPCClientsHaveAStreamPerTarget(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	cc := f.dial()
	n := node("client")
	n.UserAgentName = "gRPC Go"
	for range 3 {
		s := f.delta(cc)
		send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: n, TypeUrl: compile.ListenerType, ResourceNamesSubscribe: []string{"l"}})
		recv(t, s)
		defer func() {
			_ = s.CloseSend()
			wantClean(t, s)
		}()
	}
}

// wantClean waits for a stream to end as its client ended it.
func wantClean(t *testing.T, s deltaStream) {
	t.Helper()
	for {
		if _, err := s.Recv(); err != nil {
			if err.Error() != "EOF" {
				t.Errorf("the stream ended with %v", err)
			}
			return
		}
	}
}

func TestAnEnvoyThatIsTooOldIsTold(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	n := node("old")
	n.UserAgentName = "envoy"
	n.UserAgentVersionType = &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{
		Version: &typev3.SemanticVersion{MajorNumber: 1, MinorNumber: 36, Patch: 4},
	}}
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: n, TypeUrl: compile.ListenerType})
	wantEnd(t, s, codes.FailedPrecondition, "Envoy 1.36 is too old: the configuration of this gateway group needs 1.37")
}

func TestMetricsAreRegisteredAndCount(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	f := serve(t, Config{Metrics: reg})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	r := recv(t, s)
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.ListenerType, ResponseNonce: r.GetNonce()})
	m := &f.srv.metrics.byType[4] // listeners
	eventually(t, "the acknowledgement is counted", func() bool { return valueOf(m.acks) == 1 })
	if got := valueOf(m.responses); got != 1 {
		t.Errorf("%v responses counted", got)
	}
	if _, err := reg.Gather(); err != nil {
		t.Error(err)
	}
}
