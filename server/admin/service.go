package admin

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/fleet"
)

// Store is the replicated store, as far as the API needs it.
type Store interface {
	// Apply commits a command; it returns when the leader has applied it, which need
	// not be here.
	Apply(ctx context.Context, cmd *musterv1.Command) (state.Result, error)
	// Begin hands a command over and returns what waits for Apply's answer; it must be
	// called. On the leader, commands are applied in the order of Begin.
	Begin(ctx context.Context, cmd *musterv1.Command) (wait func() (state.Result, error))
	// State is the state as this server has it.
	State() *state.State
	// ReadIndex returns once State reflects everything that was committed before
	// the call.
	ReadIndex(ctx context.Context) error
	// Leader tells who leads, if anyone.
	Leader() (id, addr string, isSelf bool)
}

// Compiler tries a transaction out.
type Compiler interface {
	// Trial compiles what a transaction would make of a group and returns that, and
	// what cannot be compiled, for the objects it touches. on is what the group itself
	// compiles to, as an earlier Trial returned it; nil for a group that is committed.
	Trial(on *compile.Compiled, g *state.Group, after state.View, changes []state.Change) (*compile.Compiled, resource.Problems)
}

// Fleet knows the data planes.
type Fleet interface {
	List(group string, opts fleet.ListOptions) []*musterv1.DataPlane
	Relays(group string) []*musterv1.Relay
	Wait(ctx context.Context, group string, spec fleet.WaitSpec, progress func(*musterv1.WaitResponse) error) error
	// Live counts the data planes that are connected to any server, LiveHere
	// those that are to this one.
	Live(group string) int
	LiveHere(group string) int
}

// Config holds what the services work with. All fields but Logger are required.
type Config struct {
	Store    Store
	Cluster  Cluster
	Compiler Compiler
	Fleet    Fleet
	// PeerInfo tells more of the servers of the cluster.
	PeerInfo PeerInfo
	// Refresh asks the other servers for what they know of their data planes,
	// before these are listed. It takes a fraction of a second at most.
	Refresh func(context.Context)
	// AskLeader has the leader's Write answer; this server's own, when it leads. It
	// waits while there is no leader. A repeatable request is made again when the
	// outcome of an attempt is not known; else the error wraps raftstore.ErrUnknown.
	AskLeader func(ctx context.Context, repeatable bool, req *musterv1.WriteRequest) (*musterv1.WriteResponse, error)
	// Plugins checks plugin configurations.
	Plugins resource.PluginSet
	// Now is the clock: it stamps revisions and judges certificates.
	Now func() time.Time
	// ServerID and Version are what GetServerInfo answers.
	ServerID, Version string
	Logger            *slog.Logger
}

// Service implements the services of admin.proto, fleet.proto and cluster.proto. Its methods
// may be called concurrently.
type Service struct {
	musterv1.UnimplementedAdminServiceServer
	musterv1.UnimplementedFleetServiceServer
	musterv1.UnimplementedClusterServiceServer
	cfg   Config
	lanes lanes

	draining context.Context // ends with Drain
	drain    context.CancelFunc
}

var (
	_ musterv1.AdminServiceServer   = (*Service)(nil)
	_ musterv1.FleetServiceServer   = (*Service)(nil)
	_ musterv1.ClusterServiceServer = (*Service)(nil)
)

// New returns the services.
func New(cfg Config) *Service {
	s := &Service{cfg: cfg}
	s.draining, s.drain = context.WithCancel(context.Background())
	return s
}

// Drain ends the calls that could go on for long, waits for acknowledgements,
// with UNAVAILABLE: their callers should ask another server. Those that come
// later end at once.
func (s *Service) Drain() { s.drain() }

// Register adds the services to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) {
	musterv1.RegisterAdminServiceServer(r, s)
	musterv1.RegisterFleetServiceServer(r, s)
	musterv1.RegisterClusterServiceServer(r, s)
}

// command returns a command of the caller, stamped by this server's clock.
func (s *Service) command(ctx context.Context, requestID string) *musterv1.Command {
	return &musterv1.Command{
		Author:    author(ctx),
		Time:      timestamppb.New(s.cfg.Now().UTC()),
		RequestId: requestID,
	}
}

// author is who asked, as recorded with the revision.
func author(ctx context.Context) string {
	id, _ := auth.FromContext(ctx)
	return id.Name
}

// apply proposes a command and returns its result or the reason against it.
func (s *Service) apply(ctx context.Context, cmd *musterv1.Command) (state.Result, error) {
	res, err := s.cfg.Store.Apply(ctx, cmd)
	if err != nil {
		return state.Result{}, err
	}
	return res, res.Err
}

// read returns the state to answer from: linearizable unless stale is good
// enough.
func (s *Service) read(ctx context.Context, stale bool) (*state.State, error) {
	if !stale {
		if err := s.cfg.Store.ReadIndex(ctx); err != nil {
			return nil, err
		}
	}
	return s.cfg.Store.State(), nil
}

// readGroup is read for one group, by id or name. That there is none is said only of
// the newest state, if that can be had: the caller may have made it a moment ago,
// through this server or another.
func (s *Service) readGroup(ctx context.Context, idOrName string, stale bool) (*state.Group, error) {
	if idOrName == "" {
		return nil, requiredField("group")
	}
	st, err := s.read(ctx, stale)
	if err != nil {
		return nil, err
	}
	g, ok := st.Group(idOrName)
	if !ok && stale {
		if st, err := s.read(ctx, false); err == nil {
			g, ok = st.Group(idOrName)
		}
	}
	if !ok {
		return nil, &state.NotFoundError{Group: idOrName}
	}
	return g, nil
}
