package cli

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/admin"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/compile/plugin"
	"github.com/musterhq/muster/server/fleet"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// fakeServer is the real admin API over a store in memory and a fleet that is
// made up: what the command line talks to, without raft or data planes.
type fakeServer struct {
	addr  string
	store *fakeStore
	fleet *fakeFleet
	grpc  *grpc.Server
	done  chan struct{}

	mu       sync.Mutex
	failures int    // calls to refuse as unavailable, before they are carried out
	losses   int    // answers to lose, after the calls were carried out
	rival    string // what another operator commits before the next write
}

func startFakeServer() (*fakeServer, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	s := &fakeServer{
		addr:  ln.Addr().String(),
		store: &fakeStore{st: state.New()},
		fleet: &fakeFleet{Registry: fleet.New(fleet.Config{Server: "fake", Now: func() time.Time { return noon }})},
		done:  make(chan struct{}),
	}
	keys := auth.NewKeys(
		auth.NewKey("alice", auth.RoleEditor, "alice-key"),
		auth.NewKey("victor", auth.RoleViewer, "victor-key"),
	)
	guard := auth.NewAuthenticator(keys, auth.DefaultPolicy())
	s.grpc = grpc.NewServer(
		grpc.ChainUnaryInterceptor(guard.Unary, s.misbehave),
		grpc.ChainStreamInterceptor(guard.Stream),
		grpc.MaxRecvMsgSize(maxMessage),
	)
	admin.New(admin.Config{
		Store: s.store, Compiler: noTrial{}, Fleet: s.fleet, Refresh: func(context.Context) {}, Plugins: plugin.Set(),
		Now: func() time.Time { return noon.Add(-time.Minute) }, ServerID: "fake", Version: "test",
		Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	}).Register(s.grpc)
	go func() {
		defer close(s.done)
		_ = s.grpc.Serve(ln)
	}()
	return s, nil
}

func (s *fakeServer) stop() {
	s.grpc.Stop()
	<-s.done
}

// option makes the server misbehave: fail-twice, lose-answer, no-leader, rival.
func (s *fakeServer) option(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch name {
	case "fail-twice":
		s.failures = 2
	case "no-leader":
		s.store.setErr(raftstore.ErrNoLeader)
	case "lose-answer":
		s.losses = 1
	case "rival":
		s.rival = "bob"
	default:
		return fmt.Errorf("unknown option %q", name)
	}
	return nil
}

func (s *fakeServer) misbehave(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	s.mu.Lock()
	fail := s.failures > 0
	if fail {
		s.failures--
	}
	commit, isCommit := req.(*musterv1.CommitRequest)
	isCommit = isCommit && !commit.GetDryRun()
	lose := isCommit && s.losses > 0
	if lose {
		s.losses--
	}
	rival := ""
	if isCommit {
		rival, s.rival = s.rival, ""
	}
	s.mu.Unlock()
	if fail {
		return nil, status.Error(codes.Unavailable, "the connection was lost")
	}
	if rival != "" {
		s.commitAs(rival)
	}
	resp, err := next(ctx, req)
	if lose {
		return nil, status.Error(codes.Unavailable, "the connection was lost")
	}
	return resp, err
}

// commitAs is another operator's change.
func (s *fakeServer) commitAs(author string) {
	_, _ = s.store.Apply(context.Background(), &musterv1.Command{ // vet:allow no deadline, it is a map
		Author: author, Time: timestamppb.New(noon.Add(-10 * time.Second)),
		Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{
			Group:   "default",
			Message: "quick fix",
			Changes: []*musterv1.Change{{Action: &musterv1.Change_Put{Put: &musterv1.Resource{
				Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{Username: "rival"}},
			}}}},
		}},
	})
}

// fakeStore is the state machine without replication.
type fakeStore struct {
	mu  sync.Mutex
	st  *state.State
	err error
}

func (f *fakeStore) setErr(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *fakeStore) Apply(_ context.Context, cmd *musterv1.Command) (state.Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err != nil {
		return state.Result{}, f.err
	}
	next, res := f.st.Apply(proto.CloneOf(cmd))
	f.st = next
	return res, nil
}

func (f *fakeStore) Begin(ctx context.Context, cmd *musterv1.Command) func() (state.Result, error) {
	res, err := f.Apply(ctx, cmd)
	return func() (state.Result, error) { return res, err }
}

func (f *fakeStore) State() *state.State {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.st
}

func (f *fakeStore) ReadIndex(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *fakeStore) Leader() (id, addr string, isSelf bool) { return "fake", "", true }

type noTrial struct{}

func (noTrial) Trial(*compile.Compiled, *state.Group, state.View, []state.Change) (*compile.Compiled, resource.Problems) {
	return nil, nil
}

// fakeFleet shows data planes that never existed.
type fakeFleet struct {
	*fleet.Registry // an empty one, for what is not made up

	mu    sync.Mutex
	scene string
}

func (f *fakeFleet) set(scene string) error {
	switch scene {
	case "none", "synced", "mixed":
	default:
		return fmt.Errorf("unknown scene %q", scene)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scene = scene
	return nil
}

func (f *fakeFleet) List(group string, opts fleet.ListOptions) []*musterv1.DataPlane {
	f.mu.Lock()
	defer f.mu.Unlock()
	var all []*musterv1.DataPlane
	if f.scene == "synced" || f.scene == "mixed" {
		all = append(all, &musterv1.DataPlane{
			Id: "envoy-1", Group: group, State: musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED,
			Revision: 2, Epoch: 1, GroupRevision: 2, UserAgent: "envoy/1.40.0", Protocol: "delta", Address: "10.0.0.1:4711",
			ConnectedAt: timestamppb.New(noon.Add(-time.Hour)), LastSeen: timestamppb.New(noon), Server: "fake",
		})
	}
	if f.scene == "mixed" {
		all = append(all,
			&musterv1.DataPlane{
				Id: "envoy-2", Group: group, State: musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED,
				Revision: 1, Epoch: 1, GroupRevision: 2, UserAgent: "envoy/1.37.0", Protocol: "sotw", Address: "10.0.0.2:4711",
				Lag: durationpb.New(90 * time.Second), LastSeen: timestamppb.New(noon), Server: "fake",
				Refusals: []*musterv1.Refusal{{
					TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster", ResourceName: "bad",
					Detail: "unknown field", Field: "resource", Author: "bob", Revision: 2, ServingVersion: "1.1.ab",
					Objects: []*musterv1.ResourceKey{{Kind: musterv1.Kind_KIND_XDS_RESOURCE, Id: "bad"}},
				}},
			},
			&musterv1.DataPlane{
				Id: "gateway-1", Group: group, State: musterv1.DataPlaneState_DATA_PLANE_STATE_STALE,
				Revision: 1, Epoch: 1, GroupRevision: 2, UserAgent: "muster-gateway/0.1.0", Protocol: "delta", Address: "10.0.0.3:4711",
				Lag: durationpb.New(1500 * time.Millisecond), LastSeen: timestamppb.New(noon), Server: "fake",
			},
			&musterv1.DataPlane{
				Id: "gateway-2", Group: group, State: musterv1.DataPlaneState_DATA_PLANE_STATE_OFFLINE,
				Revision: 1, Epoch: 1, GroupRevision: 2, UserAgent: "muster-gateway/0.1.0", Protocol: "delta",
				LastSeen: timestamppb.New(noon.Add(-3 * time.Hour)), Server: "fake",
			},
		)
	}
	var out []*musterv1.DataPlane
	for _, dp := range all {
		if len(opts.IDs) > 0 && dp.GetId() != opts.IDs[0] {
			continue
		}
		if opts.Types {
			dp.Types = []*musterv1.TypeStatus{{
				TypeUrl: "type.googleapis.com/envoy.config.cluster.v3.Cluster", State: dp.GetState(),
				AckedRevision: dp.GetRevision(), SentRevision: 2, Wildcard: true,
			}, {
				TypeUrl: "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment", State: dp.GetState(),
				AckedRevision: dp.GetRevision(), SentRevision: 2, Subscriptions: 3,
			}}
		}
		out = append(out, dp)
	}
	return out
}

// Wait is met at once when every connected data plane is synced, and never otherwise.
func (f *fakeFleet) Wait(ctx context.Context, group string, spec fleet.WaitSpec, progress func(*musterv1.WaitResponse) error) error {
	resp := &musterv1.WaitResponse{Revision: spec.Version.Revision}
	for _, dp := range f.List(group, fleet.ListOptions{}) {
		switch dp.GetState() {
		case musterv1.DataPlaneState_DATA_PLANE_STATE_OFFLINE:
			continue
		case musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED:
			resp.Acked++
		default:
			resp.Missing = append(resp.Missing, dp)
		}
		resp.Connected++
	}
	resp.Done = resp.Connected >= spec.Min && resp.Acked*100 >= resp.Connected*spec.Percent
	if err := progress(resp); err != nil || resp.Done {
		return err
	}
	<-ctx.Done()
	return &fleet.NotReachedError{Last: resp}
}

func (f *fakeFleet) Live(group string) int {
	n := 0
	for _, dp := range f.List(group, fleet.ListOptions{}) {
		if dp.GetState() != musterv1.DataPlaneState_DATA_PLANE_STATE_OFFLINE {
			n++
		}
	}
	return n
}
