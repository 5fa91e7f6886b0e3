//go:build e2e

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/cmd/muster/bootstrap"
	"github.com/musterhq/muster/cmd/muster/echo"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/control"
	"github.com/musterhq/muster/test/e2e/envoy"
	"github.com/musterhq/muster/test/e2e/ports"
)

// How long writes may pause while a server of three is restarted in order: on a
// machine that does other work besides, where writes pause anyway, by some times
// that longer, within reason.
const (
	writeGap       = 100 * time.Millisecond
	writeGapFactor = 8
	maxWriteGap    = time.Second
)

// rollingCluster is three servers, each a process, with TLS on every port.
type rollingCluster struct {
	t       *testing.T
	dir     string
	procs   [3]*control.Process
	args    [3][]string
	admin   [3]string
	xds     [3]string
	clients [3]musterv1.AdminServiceClient
	cluster [3]musterv1.ClusterServiceClient
	key     string
}

func freeAddr(t *testing.T) string {
	t.Helper()
	port, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
}

func startRolling(t *testing.T) *rollingCluster {
	t.Helper()
	c := newRolling(t)
	for _, node := range []string{"gw", "envoy"} {
		c.recipe("dataplane", c.dir, "default", node)
	}
	raft := c.first()
	for i := 1; i < len(c.procs); i++ {
		c.add(i, freeAddr(t), "--join", raft)
	}
	c.settled()
	return c
}

// newRolling makes the authority and the API key, and starts nothing.
func newRolling(t *testing.T) *rollingCluster {
	t.Helper()
	c := &rollingCluster{t: t, dir: t.TempDir()}
	c.recipe("ca", c.dir, "example.org")
	c.key = c.recipe("api-key", c.dir, "ops", "admin")
	t.Cleanup(func() {
		for i, p := range c.procs {
			if p == nil {
				continue
			}
			p.Kill()
			if t.Failed() {
				t.Logf("s%d:\n%s", i, p.Output())
			}
		}
	})
	return c
}

// recipe runs the example's own.
func (c *rollingCluster) recipe(args ...string) string {
	c.t.Helper()
	cmd := exec.Command("sh", append([]string{"../../examples/cluster/certificates.sh"}, args...)...)
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("certificates.sh %v: %v", args, err)
	}
	return strings.TrimSpace(string(out))
}

// first starts the server that bootstraps the cluster and returns its raft address.
func (c *rollingCluster) first() string {
	c.t.Helper()
	raft := freeAddr(c.t)
	c.add(0, raft, "--bootstrap")
	return raft
}

func (c *rollingCluster) add(i int, raft string, how ...string) {
	c.t.Helper()
	id := fmt.Sprintf("s%d", i)
	c.recipe("server", c.dir, id, "localhost", "127.0.0.1")
	cert, key, ca := c.path("server-"+id+".pem"), c.path("server-"+id+".key"), c.path("ca.pem")
	c.admin[i], c.xds[i] = freeAddr(c.t), freeAddr(c.t)
	c.args[i] = append([]string{
		"server", "--server-id", id, "--data-dir", c.path(id), "--api-keys-file", c.path("api-keys.json"), "--trust-domain", "example.org",
		"--admin-addr", c.admin[i], "--xds-addr", c.xds[i], "--raft-addr", raft, "--promote-after", "300ms", "--log-level", "info",
		"--admin-tls-cert-file", cert, "--admin-tls-key-file", key,
		"--xds-tls-cert-file", cert, "--xds-tls-key-file", key, "--xds-tls-client-ca-file", ca,
		"--raft-tls-cert-file", cert, "--raft-tls-key-file", key, "--raft-tls-ca-file", ca,
	}, how...)
	c.start(i)
	c.clients[i], c.cluster[i] = c.dial(c.admin[i])
}

func (c *rollingCluster) path(name string) string { return filepath.Join(c.dir, name) }

func (c *rollingCluster) start(i int) {
	c.t.Helper()
	p, err := control.Start(muster, c.args[i]...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.procs[i] = p
}

func (c *rollingCluster) dial(addr string) (musterv1.AdminServiceClient, musterv1.ClusterServiceClient) {
	c.t.Helper()
	ca, err := os.ReadFile(c.path("ca.pem"))
	if err != nil {
		c.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: pool, ServerName: "localhost"})))
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	return musterv1.NewAdminServiceClient(conn), musterv1.NewClusterServiceClient(conn)
}

func (c *rollingCluster) as(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", c.key)
}

// settled waits until every server says that all have a vote and are ready.
func (c *rollingCluster) settled() {
	c.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		good := 0
		for _, cl := range c.cluster {
			ctx, cancel := context.WithTimeout(c.as(c.t.Context()), 2*time.Second)
			resp, err := cl.ListPeers(ctx, &musterv1.ListPeersRequest{})
			cancel()
			if err != nil {
				continue
			}
			for _, p := range resp.GetPeers() {
				if p.GetVoter() && p.GetReady() {
					good++
				}
			}
		}
		if good == 9 {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("the cluster does not settle: %d of 9", good)
		}
	}
}

func (c *rollingCluster) leader() int {
	c.t.Helper()
	for _, cl := range c.cluster {
		resp, err := cl.ListPeers(c.as(c.t.Context()), &musterv1.ListPeersRequest{})
		if err != nil {
			continue
		}
		for i, p := range resp.GetPeers() {
			if p.GetLeader() {
				return i
			}
		}
	}
	c.t.Fatal("no leader")
	return -1
}

// put writes the number that requests carry from then on, through whichever
// server takes it, and returns which.
func (c *rollingCluster) put(ctx context.Context, at, n int, upstream *net.TCPAddr) (int, error) {
	plugins := map[string]*structpb.Struct{}
	rewrite, err := structpb.NewStruct(map[string]any{"headers": map[string]any{"set": map[string]any{"x-revision": strconv.Itoa(n)}}})
	if err != nil {
		return at, err
	}
	plugins["proxy-rewrite"] = rewrite
	req := &musterv1.CommitRequest{Group: "default", RequestId: fmt.Sprintf("n%d", n), Changes: []*musterv1.Change{
		{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
			Id: "s", Name: "s", Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: "127.0.0.1", Port: int32(upstream.Port)}}}}}}}},
		{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{
			Id: "r", Name: "r", ServiceId: "s", Uris: []string{"/r"}, Plugins: plugins}}}}},
	}}
	for try := 0; ; try++ {
		// One that is gone is noticed at once; one that hangs, after this.
		call, cancel := context.WithTimeout(c.as(ctx), 2*time.Second)
		_, err := c.clients[at].Commit(call, req)
		cancel()
		switch status.Code(err) {
		case codes.OK:
			return at, nil
		case codes.Unavailable, codes.Unknown, codes.DeadlineExceeded:
			at = (at + 1) % len(c.clients)
			if try%len(c.clients) == 2 {
				time.Sleep(time.Millisecond)
			}
		default:
			return at, err
		}
		if ctx.Err() != nil {
			return at, err
		}
	}
}

// traffic sends one request after the other over one connection and looks at
// the number that the data plane adds: it must not fall, and no request may fail.
type traffic struct {
	name     string
	requests atomic.Int64
	newest   atomic.Int64
	problem  atomic.Pointer[string]
}

func (tr *traffic) fail(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	tr.problem.CompareAndSwap(nil, &s)
}

func (tr *traffic) run(ctx context.Context, addr string) {
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 1}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	for ctx.Err() == nil {
		n, err := tr.once(ctx, client, addr)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			tr.fail("request %d: %v", tr.requests.Load(), err)
			return
		}
		if last := tr.newest.Load(); n < last {
			tr.fail("request %d: went back from %d to %d", tr.requests.Load(), last, n)
			return
		}
		tr.newest.Store(n)
		tr.requests.Add(1)
	}
}

func (tr *traffic) once(ctx context.Context, client *http.Client, addr string) (int64, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/r", nil)
	if err != nil {
		return 0, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("status %d, %s, %v", resp.StatusCode, body, err)
	}
	var answer echo.Answer
	if err := json.Unmarshal(body, &answer); err != nil || len(answer.Headers["X-Revision"]) != 1 {
		return 0, fmt.Errorf("answer %s, %v", body, err)
	}
	return strconv.ParseInt(answer.Headers["X-Revision"][0], 10, 64)
}

func TestARollingRestartUnderLoadFailsNoRequestAndMovesNoDataPlaneBack(t *testing.T) {
	c := startRolling(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var upstream sync.WaitGroup
	stopped, stop := context.WithCancel(t.Context())
	upstream.Go(func() { _ = echo.Serve(stopped, ln, "echo") })
	defer upstream.Wait()
	defer stop()
	if _, err := c.clients[0].CreateGroup(c.as(ctx), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: "default"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.put(ctx, 0, 1, ln.Addr().(*net.TCPAddr)); err != nil {
		t.Fatal(err)
	}

	// A data plane of each kind, and a client of each.
	planes := map[string]string{"gateway": freeAddr(t)}
	files := func(node string) []string {
		return []string{"--xds-ca-file", c.path("ca.pem"), "--xds-cert-file", c.path("dp-default-" + node + ".pem"), "--xds-key-file", c.path("dp-default-" + node + ".key")}
	}
	gw, err := control.Start(muster, append([]string{"gateway", "--group", "default", "--node-id", "gw", "--servers", strings.Join(c.xds[:], ","),
		"--http-addr", planes["gateway"], "--https-addr", "", "--status-addr", "", "--log-level", "warn"}, files("gw")...)...)
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Kill()
	for _, b := range envoys {
		if b.SotW {
			continue
		}
		port, err := ports.Free()
		if err != nil {
			t.Fatal(err)
		}
		https, err := ports.Free()
		if err != nil {
			t.Fatal(err)
		}
		adminPort, err := ports.Free()
		if err != nil {
			t.Fatal(err)
		}
		e := bootstrap.Envoy{NodeID: "envoy", Group: "default", Servers: c.xds[:], HTTPPort: port, HTTPSPort: https, ListenAddress: "127.0.0.1", AdminPort: adminPort,
			TLS: &bootstrap.TLS{CAFile: c.path("ca.pem"), CertFile: c.path("dp-default-envoy.pem"), KeyFile: c.path("dp-default-envoy.key")}}
		config, err := e.YAML()
		if err != nil {
			t.Fatal(err)
		}
		proc, err := envoy.Start(ctx, envoy.Config{Binary: b, Bootstrap: config, Admin: net.JoinHostPort("127.0.0.1", strconv.Itoa(adminPort)), Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		defer proc.Stop()
		planes["envoy "+b.Version] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		break // one node id, so one Envoy
	}
	var all []*traffic
	var requests sync.WaitGroup
	for name, addr := range planes {
		tr := &traffic{name: name}
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if n, err := tr.once(ctx, http.DefaultClient, addr); err == nil && n == 1 {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("%s does not serve: %v\n%s", name, err, gw.Output())
			}
		}
		all = append(all, tr)
		requests.Go(func() { tr.run(ctx, addr) })
	}
	http.DefaultClient.CloseIdleConnections()

	// The writer, and the longest pause between two acknowledgements so far.
	var gap, wrote atomic.Int64
	var failed atomic.Pointer[error]
	var writer sync.WaitGroup
	writing, stopWriting := context.WithCancel(ctx)
	writer.Go(func() {
		at, last := 0, time.Now()
		for n := 2; writing.Err() == nil; n++ {
			var err error
			if at, err = c.put(ctx, at, n, ln.Addr().(*net.TCPAddr)); err != nil {
				failed.Store(&err)
				return
			}
			now := time.Now()
			if d := int64(now.Sub(last)); d > gap.Load() {
				gap.Store(d)
			}
			last = now
			wrote.Store(int64(n))
			time.Sleep(2 * time.Millisecond)
		}
	})

	time.Sleep(time.Second)
	usual := time.Duration(gap.Load())
	allowed := min(writeGap+writeGapFactor*usual, maxWriteGap)
	t.Logf("before any restart the longest pause between writes is %s; at a restart %s are allowed",
		usual.Round(time.Millisecond), allowed.Round(time.Millisecond))
	for step := range 6 {
		i := step % 3
		if step >= 3 {
			i = c.leader() // the steps that matter most, three more times
		}
		role := "follower"
		if c.leader() == i {
			role = "leader"
		}
		gap.Store(0)
		if err := c.procs[i].Stop(); err != nil {
			t.Fatalf("s%d: %v", i, err)
		}
		c.start(i)
		c.settled()
		pause := time.Duration(gap.Load())
		t.Logf("step %d: s%d, %s, restarted: writes paused for %s", step+1, i, role, pause.Round(time.Millisecond))
		if pause > allowed {
			t.Errorf("step %d: writes paused for %s, at most %s are allowed", step+1, pause, allowed)
		}
	}
	stopWriting()
	writer.Wait()
	if err := failed.Load(); err != nil {
		t.Fatalf("a write failed: %v", *err)
	}
	for _, tr := range all {
		for deadline := time.Now().Add(20 * time.Second); tr.problem.Load() == nil && tr.newest.Load() != wrote.Load() && time.Now().Before(deadline); {
			time.Sleep(10 * time.Millisecond)
		}
		if p := tr.problem.Load(); p != nil {
			t.Errorf("%s: %s", tr.name, *p)
		} else if tr.newest.Load() != wrote.Load() {
			t.Errorf("%s stays at %d of %d", tr.name, tr.newest.Load(), wrote.Load())
		}
		t.Logf("%s: %d requests, none failed, none saw an older revision", tr.name, tr.requests.Load())
	}
	t.Logf("%d writes", wrote.Load())
	cancel()
	requests.Wait()
}
