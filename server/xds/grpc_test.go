package xds

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// fixture is a server on loopback with one group, "default".
type fixture struct {
	t    *testing.T
	srv  *Server
	grpc *grpc.Server
	hub  *Hub
	addr string

	mu   sync.Mutex
	snap *snapshot.Snapshot
	rev  uint64
}

func serve(t *testing.T, cfg Config, opts ...grpc.ServerOption) *fixture {
	t.Helper()
	f := &fixture{t: t, hub: NewHub(), snap: snapshot.Empty("default", 1)}
	cfg.Source = f.hub
	if cfg.Authorize == nil {
		cfg.Authorize = func(_ context.Context, n *corev3.Node) (string, error) { return n.GetCluster(), nil }
	}
	f.srv = NewServer(cfg)
	f.grpc = grpc.NewServer(append(f.srv.ServerOptions(), opts...)...)
	f.srv.Register(f.grpc)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	done := make(chan error, 1)
	go func() { done <- f.grpc.Serve(f.srv.Listener(l)) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		stopped := make(chan struct{})
		go func() { f.grpc.GracefulStop(); close(stopped) }()
		if err := f.srv.Shutdown(ctx); err != nil {
			t.Errorf("shutdown: %v", err)
		}
		<-stopped
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	return f
}

// publish makes the next revision; see testResource for the content.
func (f *fixture) publish(typeURL string, contents map[string]string, remove ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rev++
	var up []snapshot.Upsert
	for name, content := range contents {
		up = append(up, testResource(typeURL, name, content))
	}
	var keys []compile.Key
	for _, name := range remove {
		keys = append(keys, compile.Key{TypeURL: typeURL, Name: name})
	}
	f.snap = f.snap.Apply(snapshot.Version{Epoch: 1, Revision: f.rev}, up, keys)
	f.hub.Publish(f.snap.Published(time.Now()))
}

func (f *fixture) dial() *grpc.ClientConn {
	f.t.Helper()
	cc, err := grpc.NewClient(f.addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = cc.Close() })
	return cc
}

func testContext(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

type deltaStream = grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]

func (f *fixture) delta(cc *grpc.ClientConn) deltaStream {
	f.t.Helper()
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(cc).DeltaAggregatedResources(testContext(f.t))
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

func node(id string) *corev3.Node { return &corev3.Node{Id: id, Cluster: "default"} }

func send[T any](t *testing.T, s interface{ Send(*T) error }, m *T) {
	t.Helper()
	if err := s.Send(m); err != nil && !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
}

func recv[T any](t *testing.T, s interface{ Recv() (*T, error) }) *T {
	t.Helper()
	m, err := s.Recv()
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// wantEnd waits for the stream to end and checks with what.
func wantEnd[T any](t *testing.T, s interface{ Recv() (*T, error) }, code codes.Code, words string) {
	t.Helper()
	for {
		_, err := s.Recv()
		if err == nil {
			continue
		}
		if status.Code(err) != code || !strings.Contains(err.Error(), words) {
			t.Fatalf("the stream ended with %v, want %s with %q", err, code, words)
		}
		return
	}
}

func TestADeltaStreamFromTheWireToTheWire(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.VirtualHostType, map[string]string{"m/a": "1"})
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.VirtualHostType})
	r := recv(t, s)
	if len(r.GetResources()) != 1 || r.GetResources()[0].GetName() != "m/a" || r.GetNonce() == "" {
		t.Fatalf("first response: %v", r)
	}
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.VirtualHostType, ResponseNonce: r.GetNonce()})
	f.publish(compile.VirtualHostType, map[string]string{"m/b": "1"}, "m/a")
	r = recv(t, s)
	if len(r.GetResources()) != 1 || r.GetResources()[0].GetName() != "m/b" || fmt.Sprint(r.GetRemovedResources()) != "[m/a]" {
		t.Fatalf("second response: %v", r)
	}
}

func TestASotWStreamFromTheWireToTheWire(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	s, err := discoveryv3.NewAggregatedDiscoveryServiceClient(f.dial()).StreamAggregatedResources(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	send(t, s, &discoveryv3.DiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	r := recv(t, s)
	if len(r.GetResources()) != 1 || r.GetVersionInfo() == "" || r.GetTypeUrl() != compile.ListenerType {
		t.Fatalf("first response: %v", r)
	}
	send(t, s, &discoveryv3.DiscoveryRequest{TypeUrl: compile.ListenerType, ResponseNonce: r.GetNonce(), VersionInfo: r.GetVersionInfo()})
	f.publish(compile.ListenerType, map[string]string{"k": "1"})
	if r = recv(t, s); len(r.GetResources()) != 2 {
		t.Fatalf("second response: %v", r)
	}
}

func TestC01TheNodeIsOfTheStreamNotOfTheType(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	recv(t, s)
	// No node, and another node: neither matters any more.
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.VirtualHostType})
	recv(t, s)
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "b", Cluster: "other"}, TypeUrl: compile.ClusterType})
	recv(t, s)

	s = f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.ListenerType})
	wantEnd(t, s, codes.InvalidArgument, "must have a node")
}

func TestC03NoncesAreUniqueAndOfOneStream(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	cc := f.dial()
	s := f.delta(cc)
	seen := map[string]bool{}
	// A nonce of an earlier stream on a first request means nothing.
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType, ResponseNonce: "1"})
	for i := range 50 {
		r := recv(t, s)
		if r.GetNonce() == "" || seen[r.GetNonce()] {
			t.Fatalf("nonce %q", r.GetNonce())
		}
		seen[r.GetNonce()] = true
		f.publish(compile.ListenerType, map[string]string{"l": fmt.Sprint("x", i)})
		send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.ListenerType, ResponseNonce: r.GetNonce()})
	}
}

func TestC13AGroupThatIsNotReadyIsUnavailable(t *testing.T) {
	f := serve(t, Config{})
	f.hub.Expect("default")
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	wantEnd(t, s, codes.Unavailable, "not ready")

	s = f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "a", Cluster: "nobody"}, TypeUrl: compile.ListenerType})
	wantEnd(t, s, codes.NotFound, `no group "nobody"`)

	// A group that goes away ends its streams; it is not emptied.
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	s = f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	recv(t, s)
	f.hub.Remove("default")
	wantEnd(t, s, codes.Unavailable, "not ready")
}

func TestC14ReconnectRequestsMayBeLarge(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.VirtualHostType, map[string]string{"m/a": "1"})
	s := f.delta(f.dial())
	r := &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.VirtualHostType, InitialResourceVersions: map[string]string{}}
	for i := range 20000 {
		r.InitialResourceVersions[fmt.Sprintf("m/%s/%d", strings.Repeat("long", 60), i)] = "1.1.abcdefgh"
	}
	send(t, s, r)
	got := recv(t, s)
	if len(got.GetResources()) != 1 || len(got.GetRemovedResources()) != 20000 {
		// The removals need two responses: 5 MB.
		more := 0
		for len(got.GetRemovedResources())+more < 20000 {
			more += len(got.GetRemovedResources())
			send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.VirtualHostType, ResponseNonce: got.GetNonce()})
			got = recv(t, s)
		}
	}
}

func TestEveryPerTypeServiceAnswers(t *testing.T) {
	f := serve(t, Config{})
	for _, svc := range services {
		if svc.typeURL != "" {
			f.publish(svc.typeURL, map[string]string{"m/x": "1"})
		}
	}
	cc := f.dial()
	for _, svc := range services {
		if svc.typeURL == "" {
			continue
		}
		desc := &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}
		t.Run(svc.delta, func(t *testing.T) {
			s, err := cc.NewStream(testContext(t), desc, "/"+svc.name+"/"+svc.delta)
			if err != nil {
				t.Fatal(err)
			}
			// The type is the method's; the request need not say it.
			req := &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), ResourceNamesSubscribe: []string{"m/x"}}
			resp := &discoveryv3.DeltaDiscoveryResponse{}
			if err := errors.Join(s.SendMsg(req), s.RecvMsg(resp)); err != nil {
				t.Fatal(err)
			}
			if len(resp.GetResources()) != 1 || resp.GetTypeUrl() != svc.typeURL {
				t.Errorf("response: %v", resp)
			}
			if err := s.CloseSend(); err != nil {
				t.Fatal(err)
			}
			if err := s.RecvMsg(resp); !errors.Is(err, io.EOF) {
				t.Errorf("the stream ended with %v", err)
			}
		})
		if svc.sotw == "" {
			continue
		}
		t.Run(svc.sotw, func(t *testing.T) {
			s, err := cc.NewStream(testContext(t), desc, "/"+svc.name+"/"+svc.sotw)
			if err != nil {
				t.Fatal(err)
			}
			resp := &discoveryv3.DiscoveryResponse{}
			if err := errors.Join(s.SendMsg(&discoveryv3.DiscoveryRequest{Node: node("a"), ResourceNames: []string{"m/x"}}), s.RecvMsg(resp)); err != nil {
				t.Fatal(err)
			}
			if len(resp.GetResources()) != 1 || resp.GetTypeUrl() != svc.typeURL {
				t.Errorf("response: %v", resp)
			}
		})
	}
}

// An Envoy without ADS has a stream for each cluster's endpoints, all of one node.
func TestAnEnvoyWithoutADSHasAStreamPerResource(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.EndpointType, map[string]string{"a": "1", "b": "1"})
	f.publish(compile.ClusterType, map[string]string{"a": "1"})
	cc := f.dial()
	open := func(typeURL string, names ...string) grpc.ClientStream {
		svc := services[slices.IndexFunc(services, func(s service) bool { return s.typeURL == typeURL })]
		s, err := cc.NewStream(testContext(t), &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, "/"+svc.name+"/"+svc.delta)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SendMsg(&discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: typeURL, ResourceNamesSubscribe: names}); err != nil {
			t.Fatal(err)
		}
		return s
	}
	next := func(s grpc.ClientStream) (string, error) {
		var r discoveryv3.DeltaDiscoveryResponse
		if err := s.RecvMsg(&r); err != nil {
			return "", err
		}
		return r.GetResources()[0].GetName(), s.SendMsg(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: r.GetTypeUrl(), ResponseNonce: r.GetNonce()})
	}
	a, b := open(compile.EndpointType, "a"), open(compile.EndpointType, "b")
	first := open(compile.ClusterType)
	for _, s := range []grpc.ClientStream{a, b, first} {
		if _, err := next(s); err != nil {
			t.Fatal(err)
		}
	}
	f.publish(compile.EndpointType, map[string]string{"a": "2", "b": "2"})
	for want, s := range map[string]grpc.ClientStream{"a": a, "b": b} {
		if name, err := next(s); err != nil || name != want {
			t.Errorf("the stream of %s got %q, %v", want, name, err)
		}
	}
	// Of the types that are subscribed to as a whole there is one.
	second := open(compile.ClusterType)
	if _, err := next(second); err != nil {
		t.Error(err)
	}
	if _, err := next(first); status.Code(err) != codes.Aborted {
		t.Errorf("the earlier stream of clusters ended with %v", err)
	}
}

func TestWhereADataPlaneWithoutADSAsksIsChecked(t *testing.T) {
	for _, bad := range []any{"", strings.Repeat("x", 129), 1.0, nil} {
		metadata, err := structpb.NewStruct(map[string]any{"muster.xds_cluster": bad})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := clientOf(&corev3.Node{Metadata: metadata}, true); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%v: %v", bad, err)
		}
	}
	metadata, _ := structpb.NewStruct(map[string]any{"muster.xds_cluster": "xds"})
	for _, delta := range []bool{true, false} {
		if c, err := clientOf(&corev3.Node{Metadata: metadata}, delta); err != nil || c.view.Sources != (compile.Sources{Cluster: "xds", SotW: !delta}) {
			t.Errorf("delta %v: %+v, %v", delta, c.view, err)
		}
	}
}

func TestTheStatusOfAnEndedStreamReachesTheDataPlane(t *testing.T) {
	f := serve(t, Config{Authorize: func(context.Context, *corev3.Node) (string, error) {
		return "", status.Error(codes.PermissionDenied, "not you")
	}})
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	wantEnd(t, s, codes.PermissionDenied, "not you")
}

// apart hides what killer needs.
type apart struct{ grpc.ServerStream }

func (a apart) Context() context.Context {
	return grpc.NewContextWithServerTransportStream(a.ServerStream.Context(), plainTransport{})
}

type plainTransport struct{ grpc.ServerTransportStream }

func TestATransportWithoutStatusIsServedToo(t *testing.T) {
	f := serve(t, Config{Limits: Limits{FirstMessage: 50 * time.Millisecond}},
		grpc.StreamInterceptor(func(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return h(srv, apart{ss})
		}))
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	s := f.delta(f.dial())
	wantEnd(t, s, codes.DeadlineExceeded, "no request came")
	s = f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	recv(t, s)
	f.hub.Remove("default")
	wantEnd(t, s, codes.Unavailable, "not ready")
}

func TestShutdownSpreadsTheDataPlanes(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.ListenerType, map[string]string{"l": "1"})
	cc := f.dial()
	var streams []deltaStream
	for i := range 10 {
		s := f.delta(cc)
		send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node(fmt.Sprint("n", i)), TypeUrl: compile.ListenerType})
		recv(t, s)
		streams = append(streams, s)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	began := time.Now()
	if err := f.srv.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("shutdown took %s: it was not spread over the time given", took)
	}
	for _, s := range streams {
		wantEnd(t, s, codes.Unavailable, "shutting down")
	}
	s := f.delta(cc)
	wantEnd(t, s, codes.Unavailable, "shutting down")
}
