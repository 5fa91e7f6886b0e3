package admin

import (
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fakeStore is the real state machine without a log behind it.
type fakeStore struct {
	mu sync.Mutex
	st *state.State
	// before, when set, runs ahead of each Apply: what others do meanwhile.
	before func(*fakeStore)
	// onRead runs within the next ReadIndex: what this server did not know of.
	onRead func(*fakeStore)
	// follower makes another server lead.
	follower bool
	// fail is what Apply and ReadIndex return.
	fail    error
	applied int
	reads   int
	// held makes what is handed over wait in queue, for the test to let it go.
	held  bool
	queue []*heldCommand
}

// heldCommand is a command on its way.
type heldCommand struct {
	cmd  *musterv1.Command
	done chan heldAnswer
}

type heldAnswer struct {
	result state.Result
	err    error
}

func (f *fakeStore) Apply(ctx context.Context, cmd *musterv1.Command) (state.Result, error) {
	return f.Begin(ctx, cmd)()
}

func (f *fakeStore) Begin(_ context.Context, cmd *musterv1.Command) func() (state.Result, error) {
	f.mu.Lock()
	before, fail := f.before, f.fail
	f.before = nil
	if f.held {
		h := &heldCommand{cmd, make(chan heldAnswer, 1)}
		f.queue = append(f.queue, h)
		f.mu.Unlock()
		return func() (state.Result, error) {
			a := <-h.done
			return a.result, a.err
		}
	}
	f.mu.Unlock()
	if fail != nil {
		return func() (state.Result, error) { return state.Result{}, fail }
	}
	if before != nil {
		before(f)
	}
	res := f.commit(cmd)
	return func() (state.Result, error) { return res, nil }
}

// hold makes what is handed over from now on wait.
func (f *fakeStore) hold() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.held = true
}

// await returns once n commands wait.
func (f *fakeStore) await(t *testing.T, n int) {
	t.Helper()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		f.mu.Lock()
		have := len(f.queue)
		f.mu.Unlock()
		if have == n {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d commands wait, want %d", have, n)
		}
	}
}

// next takes the command that has waited longest: it is carried out, or, with an
// error, was never committed.
func (f *fakeStore) next(err error) {
	f.mu.Lock()
	h := f.queue[0]
	f.queue = f.queue[1:]
	f.mu.Unlock()
	if err != nil {
		h.done <- heldAnswer{err: err}
		return
	}
	h.done <- heldAnswer{result: f.commit(h.cmd)}
}

func (f *fakeStore) commit(cmd *musterv1.Command) state.Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	next, res := f.st.Apply(cmd)
	f.st = next.At(f.st.Index()+1, 1)
	f.applied++
	return res
}

func (f *fakeStore) State() *state.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st
}

func (f *fakeStore) ReadIndex(context.Context) error {
	f.mu.Lock()
	onRead, fail := f.onRead, f.fail
	f.onRead = nil
	f.reads++
	f.mu.Unlock()
	if onRead != nil {
		onRead(f)
	}
	return fail
}

func (f *fakeStore) Leader() (string, string, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return "srv-1", "127.0.0.1:7100", !f.follower
}

// fakeCompiler cannot compile services with the first description, nor two with
// the second in one group.
type fakeCompiler struct{}

const (
	uncompilable = "does not compile"
	jealous      = "does not compile beside another such"
)

func (fakeCompiler) Trial(_ *compile.Compiled, _ *state.Group, after state.View, changes []state.Change) (_ *compile.Compiled, ps resource.Problems) {
	rivals := 0
	for e := range after.Entries() {
		if e.Resource.GetService().GetDesc() == jealous {
			rivals++
		}
	}
	if rivals > 1 {
		ps = append(ps, resource.Problem{Code: resource.CodeDuplicate, Message: "two rivals"})
	}
	for _, c := range changes {
		if c.After != nil && c.After.Resource.GetService().GetDesc() == uncompilable {
			ps = append(ps, resource.Problem{Object: c.Key, Path: "upstream", Code: resource.CodeUnsupported, Message: "cannot be translated", Hint: "leave it out"})
		}
	}
	return nil, ps
}

// fakePlugins knows one plugin, with one field.
type fakePlugins struct{}

func (fakePlugins) Check(plugin string, _ resource.Where, config *structpb.Struct) (ps resource.Problems) {
	if plugin != "cors" && plugin != "key-auth" {
		return resource.Problems{{Code: resource.CodeUnknown, Message: "unknown plugin", Hint: "did you mean cors?"}}
	}
	for name := range config.GetFields() {
		if name != "max_age" && name != "key" {
			ps = append(ps, resource.Problem{Path: name, Code: resource.CodeUnknown, Message: "unknown field"})
		}
	}
	return ps
}

const (
	adminKey  = "admin-key"
	editorKey = "editor-key"
	viewerKey = "viewer-key"
)

type harness struct {
	t     *testing.T
	svc   *Service
	store *fakeStore
	// cluster is what the cluster calls reach; refreshed counts the refreshes of
	// what other servers know of data planes.
	cluster   *fakeCluster
	refreshed atomic.Int64
	fleet     *fleet.Registry
	// asked is what went to the leader, and toLeader its answer.
	asked    []*musterv1.WriteRequest
	toLeader func(context.Context, *musterv1.WriteRequest) (*musterv1.WriteResponse, error)
	admin    musterv1.AdminServiceClient
	dps      musterv1.FleetServiceClient
	ops      musterv1.ClusterServiceClient
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{t: t, store: &fakeStore{st: state.New()}, cluster: &fakeCluster{}, fleet: fleet.New(fleet.Config{Server: "srv-1", Now: time.Now})}
	svc := New(Config{
		Store: h.store, Compiler: fakeCompiler{}, Fleet: h.fleet, Plugins: fakePlugins{}, Now: time.Now,
		Cluster: h.cluster, PeerInfo: func(id string) (string, string) { return "v-" + id, "admin-" + id }, Refresh: func(context.Context) { h.refreshed.Add(1) },
		AskLeader: func(ctx context.Context, _ bool, req *musterv1.WriteRequest) (*musterv1.WriteResponse, error) {
			h.asked = append(h.asked, req)
			return h.toLeader(ctx, req)
		},
		ServerID: "srv-1", Version: "test", Logger: slog.New(slog.DiscardHandler),
	})
	h.svc = svc
	keys := auth.NewKeys(auth.NewKey("ann", auth.RoleAdmin, adminKey), auth.NewKey("ed", auth.RoleEditor, editorKey), auth.NewKey("vi", auth.RoleViewer, viewerKey))
	guard := auth.NewAuthenticator(keys, auth.DefaultPolicy())
	srv := grpc.NewServer(grpc.UnaryInterceptor(guard.Unary), grpc.StreamInterceptor(guard.Stream))
	svc.Register(srv)
	ln := bufconn.Listen(1 << 20)
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ln) }()
	conn, err := grpc.NewClient("passthrough:///bufconn", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return ln.DialContext(ctx) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn.Close()
		srv.Stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	h.admin, h.dps, h.ops = musterv1.NewAdminServiceClient(conn), musterv1.NewFleetServiceClient(conn), musterv1.NewClusterServiceClient(conn)
	return h
}

// as returns a context of a caller.
func (h *harness) as(key string) context.Context {
	ctx, cancel := context.WithTimeout(h.t.Context(), 10*time.Second)
	h.t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", key)
}

func (h *harness) group(name string) *musterv1.Group {
	h.t.Helper()
	resp, err := h.admin.CreateGroup(h.as(adminKey), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Name: name}})
	if err != nil {
		h.t.Fatal(err)
	}
	return resp.GetGroup()
}

// commit commits as ed, into group g, and fails the test when that fails.
func (h *harness) commit(changes ...*musterv1.Change) *musterv1.CommitResponse {
	h.t.Helper()
	resp, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: changes})
	if err != nil {
		h.t.Fatalf("commit: %v %v", err, violationsIn(err))
	}
	return resp
}

func put(r *musterv1.Resource) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Put{Put: r}}
}

func del(kind musterv1.Kind, id string) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: kind, Id: id}}}
}

func serviceOf(id string, nodes ...string) *musterv1.Resource {
	u := &musterv1.Upstream{}
	for _, n := range nodes {
		u.Nodes = append(u.Nodes, &musterv1.Node{Host: n, Port: 80})
	}
	return &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: id, Name: id, Upstream: u}}}
}

func routeOf(id, service string, uris ...string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{Id: id, Name: id, ServiceId: service, Uris: uris}}}
}

func wantCode(t *testing.T, err error, code codes.Code, reason string) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("err = %v, want %s", err, code)
	}
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			if info.GetReason() != reason || info.GetDomain() != Domain {
				t.Fatalf("reason = %s of %s, want %s", info.GetReason(), info.GetDomain(), reason)
			}
			return
		}
	}
	t.Fatalf("no ErrorInfo in %v", err)
}

// violationsIn returns the field violations of an error by field.
func violationsIn(err error) map[string]*errdetails.BadRequest_FieldViolation {
	m := map[string]*errdetails.BadRequest_FieldViolation{}
	for _, d := range status.Convert(err).Details() {
		if b, ok := d.(*errdetails.BadRequest); ok {
			for _, v := range b.GetFieldViolations() {
				m[v.GetField()] = v
			}
		}
	}
	return m
}

func infoIn(err error) map[string]string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetMetadata()
		}
	}
	return nil
}
