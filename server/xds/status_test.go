package xds

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/compile"
)

func serveStatus(t *testing.T, f *fixture, authorize func(context.Context) error) statusv3.ClientStatusDiscoveryServiceClient {
	t.Helper()
	g := grpc.NewServer()
	f.srv.RegisterStatus(g, authorize)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Serve(l) }()
	cc, err := grpc.NewClient(l.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		g.Stop()
		<-done
	})
	return statusv3.NewClientStatusDiscoveryServiceClient(cc)
}

func TestTheStatusServiceTellsWhatAClientHas(t *testing.T) {
	f := serve(t, Config{})
	f.publish(compile.VirtualHostType, map[string]string{"m/good": "1", "m/bad": "1"})
	f.publish(compile.SecretType, map[string]string{"key": "secret"})
	s := f.delta(f.dial())
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.VirtualHostType})
	r := recv(t, s)
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.VirtualHostType, ResponseNonce: r.GetNonce()})
	f.publish(compile.VirtualHostType, map[string]string{"m/bad": "2"})
	r = recv(t, s)
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.VirtualHostType, ResponseNonce: r.GetNonce(), ErrorDetail: &rpcstatus.Status{Message: "cannot"}})
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.SecretType, ResourceNamesSubscribe: []string{"key", "none"}})
	r = recv(t, s)
	send(t, s, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.SecretType, ResponseNonce: r.GetNonce()})
	other := f.delta(f.dial())
	send(t, other, &discoveryv3.DeltaDiscoveryRequest{Node: node("b"), TypeUrl: compile.VirtualHostType})
	recv(t, other)

	client := serveStatus(t, f, func(context.Context) error { return nil })
	only := func(id string) *statusv3.ClientStatusRequest {
		return &statusv3.ClientStatusRequest{NodeMatchers: []*matcherv3.NodeMatcher{{NodeId: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Exact{Exact: id},
		}}}}
	}
	want := "SecretType key SYNCED ACKED at 2; SecretType none NOT_SENT DOES_NOT_EXIST at ; " +
		"VirtualHostType m/bad ERROR NACKED at 1 refused at 3: cannot; VirtualHostType m/good SYNCED ACKED at 1"
	var got string
	eventually(t, "everything is acknowledged", func() bool {
		resp, err := client.FetchClientStatus(testContext(t), only("a"))
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.GetConfig()) != 1 || resp.GetConfig()[0].GetNode().GetId() != "a" || resp.GetConfig()[0].GetNode().GetCluster() != "default" {
			t.Fatalf("answer %v", resp)
		}
		got = describeStatus(resp.GetConfig()[0])
		return got == want
	})
	resp, err := client.FetchClientStatus(testContext(t), &statusv3.ClientStatusRequest{})
	if err != nil || len(resp.GetConfig()) != 2 {
		t.Fatalf("of all: %v, %v", resp, err)
	}
	for _, c := range resp.GetConfig() {
		for _, x := range c.GetGenericXdsConfigs() {
			if x.GetTypeUrl() == compile.SecretType && x.GetXdsConfig() != nil {
				t.Error("a secret is shown")
			}
			if x.GetTypeUrl() == compile.VirtualHostType && x.GetXdsConfig() == nil && x.GetVersionInfo() != "" {
				t.Errorf("the body of %s is not shown", x.GetName())
			}
		}
	}
}

func describeStatus(c *statusv3.ClientConfig) string {
	var out []string
	for _, x := range c.GetGenericXdsConfigs() {
		revision := func(version string) string {
			parts := strings.Split(version, ".")
			if len(parts) < 2 {
				return ""
			}
			return parts[1]
		}
		name := "VirtualHostType"
		if x.GetTypeUrl() == compile.SecretType {
			name = "SecretType"
		}
		line := fmt.Sprintf("%s %s %s %s at %s", name, x.GetName(), x.GetConfigStatus(), x.GetClientStatus(), revision(x.GetVersionInfo()))
		if e := x.GetErrorState(); e != nil {
			line += fmt.Sprintf(" refused at %s: %s", revision(e.GetVersionInfo()), e.GetDetails())
		}
		out = append(out, line)
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func TestTheStatusServiceAsksWhoAsks(t *testing.T) {
	f := serve(t, Config{})
	client := serveStatus(t, f, func(context.Context) error { return status.Error(codes.PermissionDenied, "operators only") })
	if _, err := client.FetchClientStatus(testContext(t), &statusv3.ClientStatusRequest{}); status.Code(err) != codes.PermissionDenied {
		t.Errorf("answered with %v", err)
	}
	s, err := client.StreamClientStatus(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	wantEnd(t, s, codes.PermissionDenied, "operators only")
}
