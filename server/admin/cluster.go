package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/resource"
)

const (
	// joinTimeout bounds JoinCluster when the call has no deadline.
	joinTimeout = 30 * time.Second
	// transferTimeout bounds snapshots when the call has no deadline.
	transferTimeout = 30 * time.Minute
	// newLeaderTimeout is how long TransferLeader waits to hear of the new leader.
	newLeaderTimeout = 2 * time.Second
	// snapshotChunk is the size of the pieces of a snapshot, in bytes.
	snapshotChunk = 256 << 10
	// maxJoinAddresses bounds the addresses of one JoinCluster.
	maxJoinAddresses = 100
)

// Cluster is the replicated store as a cluster of servers.
type Cluster interface {
	Status() (raftstore.Status, error)
	Ready() error
	Peers(ctx context.Context) ([]raftstore.Peer, error)
	Join(ctx context.Context, addresses []string) error
	Remove(ctx context.Context, id string, force bool) error
	TransferLeader(ctx context.Context, id string) error
	WaitLeader(ctx context.Context) error
	Leader() (id, addr string, isSelf bool)
	SaveSnapshot(ctx context.Context, w io.Writer) (raftstore.SnapshotInfo, error)
	RestoreSnapshot(ctx context.Context, r io.Reader) (raftstore.SnapshotInfo, error)
}

var _ Cluster = (*raftstore.Store)(nil)

// PeerInfo tells what servers said of themselves; empty while that is unknown.
type PeerInfo func(id string) (version, adminAddress string)

// ListPeers implements ClusterService.
func (s *Service) ListPeers(ctx context.Context, _ *musterv1.ListPeersRequest) (*musterv1.ListPeersResponse, error) {
	peers, err := s.cfg.Cluster.Peers(ctx)
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &musterv1.ListPeersResponse{}
	for _, p := range peers {
		m := &musterv1.Peer{
			Id: p.ID, Address: p.Address, Leader: p.Leader, Voter: p.Voter, Self: p.Self, Reachable: p.Reachable,
			Role: p.Role, Ready: p.Ready, LastIndex: p.LastIndex, AppliedIndex: p.AppliedIndex,
		}
		if p.Reachable && p.LastContact >= 0 {
			m.LastContact = durationpb.New(p.LastContact)
		}
		m.Version, m.AdminAddress = s.cfg.PeerInfo(p.ID)
		resp.Peers = append(resp.Peers, m)
	}
	slices.SortFunc(resp.Peers, func(a, b *musterv1.Peer) int { return strings.Compare(a.GetId(), b.GetId()) })
	return resp, nil
}

// GetClusterStatus implements ClusterService.
func (s *Service) GetClusterStatus(context.Context, *musterv1.GetClusterStatusRequest) (*musterv1.GetClusterStatusResponse, error) {
	st, err := s.cfg.Cluster.Status()
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &musterv1.GetClusterStatusResponse{
		ServerId: st.ID, Version: s.cfg.Version, Role: st.Role, LeaderId: st.Leader, LeaderAddress: st.LeaderAddress,
		Ready: true, Term: st.Term, CommitIndex: st.CommitIndex, AppliedIndex: st.AppliedIndex, SnapshotIndex: st.SnapshotIndex,
		Epoch: st.Epoch, Voters: uint32(st.Voters), NonVoters: uint32(st.NonVoters),
		LogBytes: st.LogBytes, FreeBytes: st.FreeBytes, DiskFull: st.DiskFull,
	}
	if st.Voters > 0 {
		resp.FaultTolerance = uint32((st.Voters - 1) / 2)
	}
	if err := s.cfg.Cluster.Ready(); err != nil {
		resp.Ready, resp.NotReadyReason = false, err.Error()
	}
	if st.LastContact >= 0 {
		resp.LastContact = durationpb.New(st.LastContact)
	}
	for g := range s.cfg.Store.State().Groups() {
		resp.Groups++
		resp.DataPlanes += uint32(s.cfg.Fleet.LiveHere(g.ID()))
	}
	return resp, nil
}

// JoinCluster implements ClusterService.
func (s *Service) JoinCluster(ctx context.Context, req *musterv1.JoinClusterRequest) (*musterv1.JoinClusterResponse, error) {
	if n := len(req.GetAddresses()); n == 0 || n > maxJoinAddresses {
		return nil, toStatus(&invalidError{[]violation{{"addresses", resource.CodeRequired,
			fmt.Sprintf("names %d servers", n), fmt.Sprintf("name 1 to %d servers of the cluster by the host:port of their raft ports", maxJoinAddresses)}}})
	}
	ctx, cancel := withDeadline(ctx, joinTimeout)
	defer cancel()
	s.audit(ctx, "join a cluster", "addresses", req.GetAddresses())
	if err := s.cfg.Cluster.Join(ctx, req.GetAddresses()); err != nil {
		return nil, toStatus(err)
	}
	return &musterv1.JoinClusterResponse{}, nil
}

// RemovePeer implements ClusterService.
func (s *Service) RemovePeer(ctx context.Context, req *musterv1.RemovePeerRequest) (*musterv1.RemovePeerResponse, error) {
	if req.GetId() == "" {
		return nil, toStatus(requiredField("id"))
	}
	s.audit(ctx, "remove a server", "id", req.GetId(), "force", req.GetForce())
	if err := s.cfg.Cluster.Remove(ctx, req.GetId(), req.GetForce()); err != nil {
		return nil, toStatus(err)
	}
	return &musterv1.RemovePeerResponse{}, nil
}

// TransferLeader implements ClusterService.
func (s *Service) TransferLeader(ctx context.Context, req *musterv1.TransferLeaderRequest) (*musterv1.TransferLeaderResponse, error) {
	s.audit(ctx, "transfer leadership", "id", req.GetId())
	before, _, _ := s.cfg.Cluster.Leader()
	if err := s.cfg.Cluster.TransferLeader(ctx, req.GetId()); err != nil {
		return nil, toStatus(err)
	}
	// This server may not have heard of the new leader yet.
	wait, cancel := context.WithTimeout(ctx, newLeaderTimeout)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		if err := s.cfg.Cluster.WaitLeader(ctx); err != nil {
			return nil, toStatus(err)
		}
		id, _, _ := s.cfg.Cluster.Leader()
		if id == req.GetId() || req.GetId() == "" && id != before || wait.Err() != nil {
			return &musterv1.TransferLeaderResponse{LeaderId: id}, nil
		}
		select {
		case <-wait.Done():
		case <-poll.C:
		}
	}
}

// SaveSnapshot implements ClusterService.
func (s *Service) SaveSnapshot(_ *musterv1.SaveSnapshotRequest, stream grpc.ServerStreamingServer[musterv1.SaveSnapshotResponse]) error {
	ctx, cancel := withDeadline(stream.Context(), transferTimeout)
	defer cancel()
	s.audit(ctx, "save a snapshot")
	w := bufio.NewWriterSize(writerFunc(func(p []byte) (int, error) {
		return len(p), stream.Send(&musterv1.SaveSnapshotResponse{Part: &musterv1.SaveSnapshotResponse_Chunk{Chunk: p}})
	}), snapshotChunk)
	info, err := s.cfg.Cluster.SaveSnapshot(ctx, w)
	if err == nil {
		err = w.Flush()
	}
	if err != nil && ctx.Err() != nil {
		err = ctx.Err() // the caller went away; what Send says of it is no failure of ours
	}
	if err != nil {
		return toStatus(err)
	}
	return stream.Send(&musterv1.SaveSnapshotResponse{Part: &musterv1.SaveSnapshotResponse_Info{Info: infoMessage(info)}})
}

// InspectSnapshot implements ClusterService.
func (s *Service) InspectSnapshot(stream grpc.ClientStreamingServer[musterv1.InspectSnapshotRequest, musterv1.InspectSnapshotResponse]) error {
	info, err := raftstore.InspectSnapshot(&chunkReader{next: func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetChunk(), err
	}})
	if err != nil {
		return toStatus(err)
	}
	return stream.SendAndClose(&musterv1.InspectSnapshotResponse{Info: infoMessage(info)})
}

// RestoreSnapshot implements ClusterService.
func (s *Service) RestoreSnapshot(stream grpc.ClientStreamingServer[musterv1.RestoreSnapshotRequest, musterv1.RestoreSnapshotResponse]) error {
	ctx, cancel := withDeadline(stream.Context(), transferTimeout)
	defer cancel()
	s.audit(ctx, "restore a snapshot")
	info, err := s.cfg.Cluster.RestoreSnapshot(ctx, &chunkReader{next: func() ([]byte, error) {
		m, err := stream.Recv()
		return m.GetChunk(), err
	}})
	if err != nil {
		return toStatus(err)
	}
	return stream.SendAndClose(&musterv1.RestoreSnapshotResponse{Info: infoMessage(info)})
}

// audit logs who runs the cluster how: these calls leave no revision behind.
func (s *Service) audit(ctx context.Context, action string, args ...any) {
	s.cfg.Logger.InfoContext(ctx, "the cluster is operated", append([]any{"action", action, "author", author(ctx)}, args...)...)
}

func infoMessage(i raftstore.SnapshotInfo) *musterv1.SnapshotInfo {
	return &musterv1.SnapshotInfo{
		Epoch: i.Epoch, Index: i.Index, Term: i.Term, Groups: uint64(i.Groups), Resources: uint64(i.Resources),
		Bytes: uint64(i.Bytes), Checksum: i.Checksum[:],
	}
}

// withDeadline gives a call without a deadline one.
func withDeadline(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// chunkReader reads the pieces of a stream as one.
type chunkReader struct {
	next func() ([]byte, error)
	rest []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		chunk, err := r.next()
		if err != nil {
			if errors.Is(err, io.EOF) {
				return 0, io.EOF
			}
			return 0, fmt.Errorf("receive snapshot: %w", err)
		}
		r.rest = chunk
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}
