package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net/http"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const testKey = "mst-test-key"

// node is a running server and its clients.
type node struct {
	t     *testing.T
	srv   *Server
	admin musterv1.AdminServiceClient
	dps   musterv1.FleetServiceClient
	ops   musterv1.ClusterServiceClient
	conn  *grpc.ClientConn
	stop  func() error
}

// testConfig is a server of one, on loopback ports of the system's choice.
func testConfig(t *testing.T) Config {
	t.Helper()
	return Config{
		ServerID: "srv-1", DataDir: t.TempDir(), Bootstrap: true, Insecure: true,
		AdminAddr: "127.0.0.1:0", XDSAddr: "127.0.0.1:0", OpsAddr: "127.0.0.1:0",
		Keys:          auth.NewKeys(auth.NewKey("ann", auth.RoleAdmin, testKey)),
		ShutdownGrace: 5 * time.Second,
		Logger:        slog.New(slog.NewTextHandler(testWriter{t}, nil)),
	}
}

// testWriter sends logs to the test's.
type testWriter struct{ t *testing.T }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Logf("%s", b)
	return len(b), nil
}

func start(t *testing.T, cfg Config) *node {
	t.Helper()
	n := startUnready(t, cfg)
	eventually(t, "the server is ready", func() bool { return n.srv.Ready() == nil })
	return n
}

// startUnready does not wait for the server to serve.
func startUnready(t *testing.T, cfg Config) *node {
	t.Helper()
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- srv.Run(ctx) }()
	creds := insecure.NewCredentials()
	if cfg.AdminTLS.Enabled() {
		creds = credentials.NewTLS(&tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the test's own certificate
	}
	conn, err := grpc.NewClient(srv.AdminAddr().String(), grpc.WithTransportCredentials(creds))
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, srv: srv, conn: conn, admin: musterv1.NewAdminServiceClient(conn), dps: musterv1.NewFleetServiceClient(conn), ops: musterv1.NewClusterServiceClient(conn)}
	var ended bool
	n.stop = func() error {
		if ended {
			return nil
		}
		ended = true
		cancel()
		err := <-done
		conn.Close()
		return err
	}
	t.Cleanup(func() {
		if err := n.stop(); err != nil {
			t.Errorf("server ended with %v", err)
		}
	})
	return n
}

// ctx is a call of the administrator, with a deadline.
func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	n.t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", testKey)
}

func (n *node) group(name string) {
	n.t.Helper()
	if _, err := n.admin.CreateGroup(n.ctx(), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Name: name}}); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) commit(group string, changes ...*musterv1.Change) *musterv1.CommitResponse {
	n.t.Helper()
	resp, err := n.admin.Commit(n.ctx(), &musterv1.CommitRequest{Group: group, Changes: changes})
	if err != nil {
		n.t.Fatal(err)
	}
	return resp
}

func put(r *musterv1.Resource) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Put{Put: r}}
}

func del(kind musterv1.Kind, id string) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: kind, Id: id}}}
}

func serviceOf(id string, port int32) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
		Id: id, Name: id, Hosts: []string{id + ".example.com"},
		Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: "127.0.0.1", Port: port}}},
	}}}
}

func routeOf(id, service string, uris ...string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{Id: id, Name: id, ServiceId: service, Uris: uris}}}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// get fetches a path over HTTP/1.1.
func get(t *testing.T, client *http.Client, url string, header ...string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	return resp
}
