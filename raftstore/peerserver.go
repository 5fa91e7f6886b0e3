package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Handler answers a message that another server sent with Call.
type Handler func(ctx context.Context, from string, message []byte) ([]byte, error)

// peerServer answers the other servers. Every method but Join is for members.
type peerServer struct {
	musterv1.UnimplementedPeerServiceServer
	store *Store
}

// caller is the server that a call comes from, proved by its certificate;
// empty in plaintext.
func caller(ctx context.Context) string {
	p, _ := peer.FromContext(ctx)
	if p == nil {
		return ""
	}
	info, _ := p.AuthInfo.(peerIdentity)
	return info.id
}

// member refuses callers that are not part of the cluster.
func (p *peerServer) member(ctx context.Context) error {
	if err := p.store.mayRaft(caller(ctx)); err != nil {
		return status.Error(codes.PermissionDenied, err.Error())
	}
	return nil
}

func (p *peerServer) Apply(ctx context.Context, req *musterv1.PeerServiceApplyRequest) (*musterv1.PeerServiceApplyResponse, error) {
	if err := p.member(ctx); err != nil {
		return nil, err
	}
	// What another server made is checked like what comes from disk.
	if _, err := decodeCommand(req.GetEntry()); err != nil {
		return &musterv1.PeerServiceApplyResponse{Error: storeErrorToProto(err)}, nil
	}
	ctx, cancel := p.store.bound(ctx)
	defer cancel()
	result, err := p.store.propose(ctx, req.GetEntry())
	if err != nil {
		return &musterv1.PeerServiceApplyResponse{Error: storeErrorToProto(p.store.nameLeader(err))}, nil
	}
	return &musterv1.PeerServiceApplyResponse{Result: resultToProto(result)}, nil
}

// nameLeader adds the leader's address to a refusal, if there is one.
func (s *Store) nameLeader(err error) error {
	var notLeader *NotLeaderError
	if errors.As(err, &notLeader) && notLeader.Leader == "" {
		_, addr, _ := s.Leader()
		return &NotLeaderError{Leader: addr}
	}
	return err
}

func (p *peerServer) ReadIndex(ctx context.Context, _ *musterv1.PeerServiceReadIndexRequest) (*musterv1.PeerServiceReadIndexResponse, error) {
	if err := p.member(ctx); err != nil {
		return nil, err
	}
	index, err := p.store.reads.join(ctx)
	return &musterv1.PeerServiceReadIndexResponse{Index: index, Error: storeErrorToProto(p.store.nameLeader(err))}, nil
}

func (p *peerServer) Status(ctx context.Context, _ *musterv1.PeerServiceStatusRequest) (*musterv1.PeerServiceStatusResponse, error) {
	if err := p.member(ctx); err != nil {
		return nil, err
	}
	st, err := p.store.Status()
	if err != nil {
		return nil, status.Error(codes.Unavailable, err.Error())
	}
	m := &musterv1.PeerServiceStatusResponse{
		Id: st.ID, Address: st.Address, Role: st.Role, Term: st.Term,
		LastIndex: st.LastIndex, LastTerm: st.LastTerm, CommitIndex: st.CommitIndex, AppliedIndex: st.AppliedIndex,
		Ready: st.Ready, Epoch: st.Epoch,
	}
	if st.LastContact >= 0 {
		m.LastContact = durationpb.New(st.LastContact)
	}
	return m, nil
}

func (p *peerServer) Join(ctx context.Context, req *musterv1.PeerServiceJoinRequest) (*musterv1.PeerServiceJoinResponse, error) {
	s, from := p.store, caller(ctx)
	switch {
	case req.GetForwarded():
		if err := p.member(ctx); err != nil {
			return nil, err
		}
	case from != "" && from != req.GetId():
		return nil, status.Error(codes.PermissionDenied, fmt.Sprintf("server %q cannot join as %q", from, req.GetId()))
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	err := s.admitServer(ctx, req)
	return &musterv1.PeerServiceJoinResponse{Error: storeErrorToProto(err)}, nil
}

func (p *peerServer) Remove(ctx context.Context, req *musterv1.PeerServiceRemoveRequest) (*musterv1.PeerServiceRemoveResponse, error) {
	if err := p.member(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := p.store.bound(ctx)
	defer cancel()
	err := p.store.removeAsLeader(ctx, req.GetId(), req.GetForce())
	return &musterv1.PeerServiceRemoveResponse{Error: storeErrorToProto(p.store.nameLeader(err))}, nil
}

func (p *peerServer) TransferLeader(ctx context.Context, req *musterv1.PeerServiceTransferLeaderRequest) (*musterv1.PeerServiceTransferLeaderResponse, error) {
	if err := p.member(ctx); err != nil {
		return nil, err
	}
	ctx, cancel := p.store.bound(ctx)
	defer cancel()
	err := p.store.transferAsLeader(ctx, req.GetId())
	return &musterv1.PeerServiceTransferLeaderResponse{Error: storeErrorToProto(p.store.nameLeader(err))}, nil
}

func (p *peerServer) Restore(stream grpc.ClientStreamingServer[musterv1.PeerServiceRestoreRequest, musterv1.PeerServiceRestoreResponse]) error {
	if err := p.member(stream.Context()); err != nil {
		return err
	}
	info, err := p.store.restoreAsLeader(stream.Context(), &chunkReader{next: func() ([]byte, error) {
		req, err := stream.Recv()
		return req.GetChunk(), err
	}})
	return stream.SendAndClose(&musterv1.PeerServiceRestoreResponse{Epoch: info.Epoch, Error: storeErrorToProto(p.store.nameLeader(err))})
}

// chunkReader reads a stream of chunks as one.
type chunkReader struct {
	next func() ([]byte, error)
	rest []byte
}

func (r *chunkReader) Read(p []byte) (int, error) {
	for len(r.rest) == 0 {
		chunk, err := r.next()
		if err != nil {
			return 0, err
		}
		r.rest = chunk
	}
	n := copy(p, r.rest)
	r.rest = r.rest[n:]
	return n, nil
}

var _ io.Reader = (*chunkReader)(nil)

func (p *peerServer) Call(ctx context.Context, req *musterv1.PeerServiceCallRequest) (*musterv1.PeerServiceCallResponse, error) {
	if err := p.member(ctx); err != nil {
		return nil, err
	}
	handle := p.store.cfg.Handle
	if handle == nil {
		return nil, status.Error(codes.Unimplemented, "this server takes no messages")
	}
	answer, err := handle(ctx, caller(ctx), req.GetMessage())
	switch {
	case errors.Is(err, ErrNotLeader):
		return &musterv1.PeerServiceCallResponse{Error: storeErrorToProto(p.store.nameLeader(err))}, nil
	case err != nil:
		return nil, status.Error(codes.Unknown, err.Error())
	}
	return &musterv1.PeerServiceCallResponse{Message: answer}, nil
}

// CallLeader has the leader's Handler answer a message; this server's own, when it
// leads. A Handler that finds that its server does not lead returns ErrNotLeader,
// before it has done anything. While there is no leader CallLeader waits, as Apply
// does; an attempt whose outcome is not known is made again if the message is
// repeatable, and else the error wraps ErrUnknown.
func (s *Store) CallLeader(ctx context.Context, repeatable bool, message []byte) ([]byte, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.waitStarted(ctx); err != nil {
		return nil, err
	}
	return persist(repeatable,
		func() ([]byte, error) { return s.callLeaderOnce(ctx, message) },
		func(attempt int) error { return s.pause(ctx, attempt) })
}

func (s *Store) callLeaderOnce(ctx context.Context, message []byte) ([]byte, error) {
	_, leader, self := s.Leader()
	switch {
	case self && s.cfg.Handle != nil:
		return s.cfg.Handle(ctx, s.id, message)
	case leader == "" || self || s.wire == nil:
		return nil, ErrNoLeader
	}
	return s.wire.call(ctx, leader, message)
}

// Call sends a message to another member, whose Handler answers it. It fails
// when that server is out of reach.
func (s *Store) Call(ctx context.Context, id string, message []byte) ([]byte, error) {
	client, err := s.clientOf(ctx, id)
	if err != nil {
		return nil, err
	}
	answer, err := client.Call(ctx, &musterv1.PeerServiceCallRequest{Message: message})
	if err != nil {
		return nil, fmt.Errorf("call server %q: %w", id, err)
	}
	if answer.GetError() != nil {
		return nil, fmt.Errorf("call server %q: %w", id, storeErrorFromProto(answer.GetError()))
	}
	return answer.GetMessage(), nil
}

func (s *Store) clientOf(ctx context.Context, id string) (musterv1.PeerServiceClient, error) {
	if err := s.waitStarted(ctx); err != nil {
		return nil, err
	}
	addr := s.addressOf(id)
	if addr == "" || s.wire == nil {
		return nil, fmt.Errorf("server %q: %w", id, ErrNotMember)
	}
	return s.wire.clients.at(addr)
}

// statusTimeout bounds a question about a server's health.
const statusTimeout = time.Second
