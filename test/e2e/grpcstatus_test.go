//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	luav3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/lua/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/test/e2e/grpcclient"
	"github.com/musterhq/muster/test/e2e/ports"
)

func packed(m proto.Message) *anypb.Any {
	body, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return body
}

// rawListener is a Listener for xds:///<name> with the routes of a service. With
// a filter that gRPC does not know it is refused by every client.
func rawListener(name, service string, known bool) *musterv1.Change {
	filters := []*hcmv3.HttpFilter{{
		Name: "router", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&routerv3.Router{})},
	}}
	if !known {
		filters = append([]*hcmv3.HttpFilter{{
			Name: "script", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&luav3.Lua{})},
		}}, filters...)
	}
	listener := &listenerv3.Listener{Name: name, ApiListener: &listenerv3.ApiListener{ApiListener: packed(&hcmv3.HttpConnectionManager{
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource:    &corev3.ConfigSource{ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}},
			RouteConfigName: "grpc/service/" + service,
		}},
		HttpFilters: filters,
	})}}
	return put(&musterv1.Resource{Kind: &musterv1.Resource_XdsResource{
		XdsResource: &musterv1.XdsResource{Id: name, Name: name, Resource: packed(listener)},
	}})
}

// TestARefusalOfAGRPCClientIsToldAndHoldsBackNothing gives each client a Listener
// that it refuses. It keeps the one that it has, and goes on with the rest.
func TestARefusalOfAGRPCClientIsToldAndHoldsBackNothing(t *testing.T) {
	eachClient(t, func(t *testing.T, s *site, c grpcclient.Client) {
		ctx := t.Context()
		a, b := startHealth(t, "a"), startHealth(t, "b")
		commit := func(changes ...*musterv1.Change) uint64 {
			t.Helper()
			revision, err := s.commit(ctx, mesh, changes...)
			if err != nil {
				t.Fatal(err)
			}
			return revision
		}
		commit(grpcService("shop", a), routeOf("shop", "/*"), rawListener("raw", "shop", true))
		run := s.startClient(t, c, mesh, "shop-client", "raw", nil)
		answered(t, run, 0, "a")

		mark := run.Mark()
		revision := commit(rawListener("raw", "shop", false))
		if err := eventually(ctx, followTimeout, func() error {
			dp, err := s.status(ctx, mesh, "shop-client")
			if err != nil {
				return err
			}
			if len(dp.Refusals) != 1 || dp.State != musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED {
				return fmt.Errorf("state %v, %d refusals", dp.State, len(dp.Refusals))
			}
			r := dp.Refusals[0]
			if len(r.Objects) == 0 || r.Objects[0].Kind != musterv1.Kind_KIND_XDS_RESOURCE || r.Objects[0].Id != "raw" || r.Revision != revision || r.Detail == "" {
				return fmt.Errorf("the refusal is told as %v", r)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		out, err := s.CLI(ctx, "", "dp", "status", "--group", mesh)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{"shop-client refused xds_resource/raw", "NACKED"} {
			if !strings.Contains(out, want) {
				t.Errorf("dp status lacks %q:\n%s", want, out)
			}
		}
		commit(grpcService("shop", b))
		answered(t, run, mark, "b")
		noneLost(t, run, mark, "refusal of a listener")

		commit(rawListener("raw", "shop", true))
		if err := eventually(ctx, followTimeout, func() error {
			dp, err := s.status(ctx, mesh, "shop-client")
			if err == nil && dp.State != musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED {
				err = fmt.Errorf("state %v, refusals %v", dp.State, dp.Refusals)
			}
			return err
		}); err != nil {
			t.Errorf("after the listener was mended: %v", err)
		}
	})
}

// TestWhatGRPCCannotHonourIsToldInDPStatus has the Go client ask for a service
// with a plugin and a condition on a cookie, and for one that is not there.
func TestWhatGRPCCannotHonourIsToldInDPStatus(t *testing.T) {
	s := newMesh(t)
	ctx := t.Context()
	a := startHealth(t, "a")
	cookie := &musterv1.Route{Id: "cookie", ServiceId: "shop", Uris: []string{"/*"}, Vars: vars(t, `[["cookie_x", "==", "1"]]`)}
	all := &musterv1.Route{Id: "all", ServiceId: "shop", Uris: []string{"/*"}, Plugins: keyAuth()}
	if _, err := s.commit(ctx, mesh, grpcService("shop", a), route(cookie), route(all)); err != nil {
		t.Fatal(err)
	}
	run := s.startClient(t, clients[0], mesh, "shop-client", "shop", nil)
	answered(t, run, 0, "a")
	s.startClient(t, clients[0], mesh, "lost-client", "nothing", nil)
	for _, want := range []string{
		"shop-client: route/all: plugins.key-auth: a proxyless gRPC client passes no gateway",
		`shop-client: route/cookie: vars[0]: gRPC clients cannot match the variable "cookie_x": the route is left out`,
		"lost-client: xds:///nothing: the group has no service of this id or name",
	} {
		if err := eventually(ctx, followTimeout, func() error {
			out, err := s.CLI(ctx, "", "dp", "status", "--group", mesh)
			if err == nil && !strings.Contains(out, want) {
				err = fmt.Errorf("dp status lacks %q:\n%s", want, out)
			}
			return err
		}); err != nil {
			t.Error(err)
		}
	}
}

// TestTheStatusServiceTellsWhatGRPCClientsHold asks muster's CSDS for each client.
func TestTheStatusServiceTellsWhatGRPCClientsHold(t *testing.T) {
	eachClient(t, func(t *testing.T, s *site, c grpcclient.Client) {
		a := startHealth(t, "a")
		if _, err := s.commit(t.Context(), mesh, grpcService("shop", a), routeOf("shop", "/*")); err != nil {
			t.Fatal(err)
		}
		run := s.startClient(t, c, mesh, "shop-client", "shop", nil)
		answered(t, run, 0, "a")
		conn, err := grpc.NewClient(s.AdminAddr(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		csds := statusv3.NewClientStatusDiscoveryServiceClient(conn)
		if _, err := csds.FetchClientStatus(t.Context(), &statusv3.ClientStatusRequest{}); status.Code(err) != codes.Unauthenticated {
			t.Errorf("without a key: %v", err)
		}
		ctx := metadata.AppendToOutgoingContext(t.Context(), "x-api-key", s.Config.Key)
		want := map[string]string{
			"Listener": "shop", "RouteConfiguration": "grpc/service/shop",
			"Cluster": "grpc/service/shop", "ClusterLoadAssignment": "grpc/service/shop",
		}
		if err := eventually(ctx, followTimeout, func() error {
			resp, err := csds.FetchClientStatus(ctx, &statusv3.ClientStatusRequest{})
			if err != nil {
				return err
			}
			got := map[string]string{}
			for _, client := range resp.GetConfig() {
				if client.GetNode().GetId() != "shop-client" {
					return fmt.Errorf("a client %v", client.GetNode())
				}
				for _, r := range client.GetGenericXdsConfigs() {
					if r.GetClientStatus() != adminv3.ClientResourceStatus_ACKED || r.GetXdsConfig() == nil || r.GetVersionInfo() == "" {
						return fmt.Errorf("%s %s is %v at %q", r.GetTypeUrl(), r.GetName(), r.GetClientStatus(), r.GetVersionInfo())
					}
					got[r.GetTypeUrl()[strings.LastIndexByte(r.GetTypeUrl(), '.')+1:]] = r.GetName()
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(want) {
				return fmt.Errorf("the status service tells of %v, want %v", got, want)
			}
			return nil
		}); err != nil {
			t.Error(err)
		}
	})
}

// TestAGRPCServerServesOnceMusterSaysHow runs grpc-go's xDS-enabled server, and
// has a proxyless client call it.
func TestAGRPCServerServesOnceMusterSaysHow(t *testing.T) {
	s := newMesh(t)
	port, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	at := loopback(port)
	bootstrap, err := s.CLI(t.Context(), "", "bootstrap", "grpc", "--group", mesh, "--node-id", "shop-server")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "xds.json")
	if err := os.WriteFile(file, []byte(bootstrap), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(grpcServer, "-xds", "-listen", at)
	cmd.Env = append(os.Environ(), "GRPC_XDS_BOOTSTRAP="+file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the server said:\n%s", said.String())
		}
	})
	conn, err := grpc.NewClient(at, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(t.Context(), followTimeout)
	defer cancel()
	if _, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true)); err != nil {
		t.Fatalf("the server does not serve: %v", err)
	}
	if _, err := s.commit(ctx, mesh, grpcService("shop", &musterv1.Node{Host: "127.0.0.1", Port: int32(port)}), routeOf("shop", "/*")); err != nil {
		t.Fatal(err)
	}
	run := s.startClient(t, clients[0], mesh, "shop-client", "shop", nil)
	answered(t, run, 0, at)
	dp, err := s.status(ctx, mesh, "shop-server")
	if err != nil {
		t.Fatal(err)
	}
	if dp.State != musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED || len(dp.Warnings) > 0 {
		t.Errorf("dp status of the server: %v, warnings %q", dp.State, dp.Warnings)
	}
	// The group may say otherwise: a raw listener takes the template's place, and
	// one without filter chains takes no connection.
	if _, err := s.commit(ctx, mesh, put(&musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{
		Id: "closed", Name: compile.ServerListenerPrefix + at, Resource: packed(&listenerv3.Listener{Name: compile.ServerListenerPrefix + at}),
	}}})); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, followTimeout, func() error {
		dp, err := s.status(ctx, mesh, "shop-server")
		if err == nil && len(dp.Refusals) == 0 {
			err = fmt.Errorf("no refusal of a listener without an address: %v", dp.State)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	time.Sleep(200 * time.Millisecond)
	noneLost(t, run, run.Mark()-10, "a refused listener of the server")
}
