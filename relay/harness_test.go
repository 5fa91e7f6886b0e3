package relay

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/dataplane"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/xds"
)

// testWriter sends logs to the test's, until that has ended.
type testWriter struct {
	mu sync.Mutex
	t  testing.TB
}

func (w *testWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.t != nil {
		w.t.Logf("%s", b)
	}
	return len(b), nil
}

func testLogger(t testing.TB, who string) *slog.Logger {
	w := &testWriter{t: t}
	t.Cleanup(func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.t = nil
	})
	return slog.New(slog.NewTextHandler(w, nil)).With("who", who)
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// running is something with a Run method that a test starts and stops.
type running struct {
	cancel context.CancelFunc
	done   chan error
}

func run(t testing.TB, what string, f func(context.Context) error) *running {
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	r := &running{cancel: cancel, done: make(chan error, 1)}
	go func() { r.done <- f(ctx) }()
	t.Cleanup(func() {
		if err := r.stop(); err != nil {
			t.Errorf("%s ended with %v", what, err)
		}
	})
	return r
}

func (r *running) stop() error {
	r.cancel()
	err, ok := <-r.done
	if ok {
		close(r.done)
	}
	return err
}

// centre is a muster server.
type centre struct {
	t   testing.TB
	srv *server.Server
	run *running
	dir string
}

func newCentre(t testing.TB, change ...func(*server.Config)) *centre {
	t.Helper()
	return centreIn(t, t.TempDir(), "127.0.0.1:0", change...)
}

func centreIn(t testing.TB, dir, addr string, change ...func(*server.Config)) *centre {
	t.Helper()
	cfg := server.Config{
		ServerID: "centre", DataDir: dir, Bootstrap: true, Insecure: true,
		AdminAddr: "127.0.0.1:0", XDSAddr: addr,
		Keys:   auth.NewKeys(auth.NewKey("ann", auth.RoleAdmin, "key")),
		Logger: testLogger(t, "centre"),
	}
	for _, f := range change {
		f(&cfg)
	}
	srv, err := server.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	c := &centre{t: t, srv: srv, dir: dir}
	c.run = run(t, "centre", srv.Run)
	eventually(t, "the centre is ready", func() bool { return srv.Ready() == nil })
	return c
}

func (c *centre) addr() string { return c.srv.XDSAddr().String() }

func (c *centre) as() context.Context {
	ctx, cancel := context.WithTimeout(c.t.Context(), 20*time.Second)
	c.t.Cleanup(cancel)
	return auth.WithIdentity(ctx, auth.Identity{Name: "ann", Role: auth.RoleAdmin})
}

func (c *centre) group(name string, labels map[string]string) {
	c.t.Helper()
	if _, err := c.srv.Admin().CreateGroup(c.as(), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: name, Name: name, Labels: labels}}); err != nil {
		c.t.Fatal(err)
	}
}

// service commits a service of a name with a route; port tells contents apart.
func (c *centre) service(group, name string, port int32) uint64 {
	c.t.Helper()
	resp, err := c.srv.Admin().Commit(c.as(), &musterv1.CommitRequest{Group: group, Changes: []*musterv1.Change{
		{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
			Id: name, Name: name, Hosts: []string{name + ".example.com"},
			Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: "127.0.0.1", Port: port}}},
		}}}}},
		{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{
			Id: name, Name: name, ServiceId: name, Uris: []string{"/*"},
		}}}}},
	}})
	if err != nil {
		c.t.Fatal(err)
	}
	return resp.GetRevision()
}

// counterTo commits a cluster that counts.
func (c *centre) counterTo(n int) {
	c.t.Helper()
	_, err := c.srv.Admin().Commit(c.as(), &musterv1.CommitRequest{Group: "edge", Changes: []*musterv1.Change{{
		Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
			Id: "counter", Name: "counter", Hosts: []string{"counter.example.com"},
			Upstream: &musterv1.Upstream{
				Timeout: &musterv1.Timeout{Connect: float64(n) / 1000, Send: 60, Read: 60},
				Nodes:   []*musterv1.Node{{Host: "127.0.0.1", Port: 80}},
			},
		}}}},
	}}})
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *centre) remove(group, name string) {
	c.t.Helper()
	_, err := c.srv.Admin().Commit(c.as(), &musterv1.CommitRequest{Group: group, Changes: []*musterv1.Change{
		{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_ROUTE, Id: name}}},
		{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SERVICE, Id: name}}},
	}})
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *centre) planes(group string) *musterv1.ListDataPlanesResponse {
	c.t.Helper()
	resp, err := c.srv.Admin().ListDataPlanes(c.as(), &musterv1.ListDataPlanesRequest{Group: group, Types: true})
	if err != nil {
		c.t.Fatal(err)
	}
	return resp
}

// quick are waiting times for tests.
var quick = dataplane.Timing{BackoffMin: 10 * time.Millisecond, BackoffMax: 100 * time.Millisecond, Connect: time.Second}

type testRelay struct {
	*Relay
	run *running
}

func newRelay(t testing.TB, id string, upstream []string, change ...func(*Config)) *testRelay {
	t.Helper()
	cfg := Config{
		ID: id, Upstream: upstream, UpstreamInsecure: true, Insecure: true, Addr: "127.0.0.1:0",
		DataDir: t.TempDir(), Upstreaming: quick, Logger: testLogger(t, id), ShutdownGrace: time.Second,
		Timing: xds.Timing{CatchUp: 500 * time.Millisecond},
		Limits: xds.Limits{Replacements: -1},
	}
	for _, f := range change {
		f(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &testRelay{r, run(t, "relay "+id, r.Run)}
}

func (r *testRelay) addr() string { return r.Addr().String() }

// plane is a data plane that keeps what it is given.
type plane struct {
	*dataplane.Client
	run *running

	mu      sync.Mutex
	refuse  string // the name of a resource to refuse
	seen    []seen
	fetched int // upserts that came from a server
}

type seen struct {
	epoch, revision uint64
	resources       int
}

func newPlane(t testing.TB, id, group string, servers []string, change ...func(*dataplane.Config)) *plane {
	t.Helper()
	p := &plane{}
	cfg := dataplane.Config{
		Servers: servers, Order: dataplane.OrderPreferred, Insecure: true, Group: group, NodeID: id,
		UserAgentName: "muster-test", Handler: dataplane.HandlerFunc(p.apply), Timing: quick, Logger: testLogger(t, id),
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if p.Client, err = dataplane.New(cfg); err != nil {
		t.Fatal(err)
	}
	p.run = run(t, id, p.Client.Run)
	return p
}

func (p *plane) apply(_ context.Context, u *dataplane.Update) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := seen{epoch: u.Epoch, revision: u.Revision}
	var refused dataplane.Refused
	for typeURL, t := range u.Types {
		if !u.Cached {
			p.fetched += len(t.Upsert)
		}
		if _, ok := t.Upsert[p.refuse]; ok && p.refuse != "" {
			refused.Add(typeURL, p.refuse, "upstream.nodes: the test does not like it")
		}
	}
	for _, typeURL := range u.State.Types() {
		s.resources += u.State.Len(typeURL)
	}
	p.seen = append(p.seen, s)
	return refused.Err()
}

func (p *plane) at(revision uint64) func() bool {
	return func() bool { return p.Status().Revision >= revision }
}

// text is everything that a data plane holds.
func text(s *dataplane.State) string {
	out := ""
	for _, typeURL := range s.Types() {
		if typeURL == dataplane.ManifestType {
			continue
		}
		for r := range s.All(typeURL) {
			out += fmt.Sprintf("%s %s %s %x\n", typeURL, r.Name, r.Version, r.Body.GetValue())
		}
	}
	return out
}

// link is a TCP proxy that can be cut, counts, and forgets who connected.
type link struct {
	t      testing.TB
	ln     net.Listener
	target string

	mu       sync.Mutex
	cut      bool
	stalled  bool
	resume   chan struct{} // closed when no longer stalled
	conns    map[net.Conn]struct{}
	accepted int
	down     int64 // bytes from the target
	up       int64
	wg       sync.WaitGroup
}

func newLink(t testing.TB, target string) *link {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &link{t: t, ln: ln, target: target, conns: map[net.Conn]struct{}{}, resume: make(chan struct{})}
	l.wg.Go(l.accept)
	t.Cleanup(func() {
		_ = ln.Close()
		l.set(true, false)
		l.wg.Wait()
	})
	return l
}

func (l *link) addr() string { return l.ln.Addr().String() }

func (l *link) accept() {
	for {
		c, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.mu.Lock()
		cut, target := l.cut, l.target
		l.mu.Unlock()
		if cut {
			_ = c.Close()
			continue
		}
		d, err := net.Dial("tcp", target)
		if err != nil {
			_ = c.Close()
			continue
		}
		l.mu.Lock()
		l.accepted++
		l.conns[c], l.conns[d] = struct{}{}, struct{}{}
		l.mu.Unlock()
		l.wg.Go(func() { l.pipe(d, c, &l.up) })
		l.wg.Go(func() { l.pipe(c, d, &l.down) })
	}
}

func (l *link) pipe(to, from net.Conn, count *int64) {
	defer func() {
		_ = to.Close()
		_ = from.Close()
		l.mu.Lock()
		delete(l.conns, to)
		delete(l.conns, from)
		l.mu.Unlock()
	}()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		l.mu.Lock()
		*count += int64(n)
		stalled, resume := l.stalled, l.resume
		l.mu.Unlock()
		if stalled {
			<-resume
		}
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// set cuts, or stalls, the link.
func (l *link) set(cut, stalled bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.cut = cut
	if l.stalled && !stalled {
		close(l.resume)
		l.resume = make(chan struct{})
	}
	l.stalled = stalled
	if cut {
		for c := range l.conns {
			_ = c.Close()
		}
	}
}

// to points the link to another target and cuts who is connected.
func (l *link) to(target string) {
	l.mu.Lock()
	l.target = target
	for c := range l.conns {
		_ = c.Close()
	}
	l.mu.Unlock()
}

func (l *link) counts() (accepted int, down, up int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.accepted, l.down, l.up
}
