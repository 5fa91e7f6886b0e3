package raftstore

import (
	"context"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
)

// clients holds one gRPC connection to each server that was talked to.
type clients struct {
	w *wire
	s *Store

	mu     sync.Mutex
	byAddr map[string]*grpc.ClientConn
	closed bool
}

func newClients(w *wire, s *Store) *clients {
	return &clients{w: w, s: s, byAddr: map[string]*grpc.ClientConn{}}
}

// at returns a client of the server at an address. It does not connect yet.
func (c *clients) at(addr string) (musterv1.PeerServiceClient, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrStopped
	}
	if cc := c.byAddr[addr]; cc != nil {
		return musterv1.NewPeerServiceClient(cc), nil
	}
	cc, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(connIdentity{}),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return c.w.dial(ctx, addr, protoPeer, c.s.idAt(addr))
		}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 500 * time.Millisecond},
			MinConnectTimeout: handshakeTimeout,
		}),
		grpc.WithDisableServiceConfig(),
		grpc.WithStatsHandler(sentMarker{}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(2*MaxCommand)),
	)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	c.byAddr[addr] = cc
	return musterv1.NewPeerServiceClient(cc), nil
}

// keepOnly closes the connections to addresses that no member has any more.
func (c *clients) keepOnly(servers []raft.Server) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(servers) == 0 {
		return
	}
	keep := map[string]bool{}
	for _, s := range servers {
		keep[string(s.Address)] = true
	}
	for addr, cc := range c.byAddr {
		if !keep[addr] {
			_ = cc.Close()
			delete(c.byAddr, addr)
		}
	}
}

func (c *clients) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, cc := range c.byAddr {
		_ = cc.Close()
	}
	c.byAddr = nil
}

// sentMarker notes whether a call's message was handed to the network: one
// that was not can be repeated without asking whether it may.
type sentMarker struct{}

type sentKey struct{}

func withSent(ctx context.Context) (context.Context, *atomic.Bool) {
	sent := &atomic.Bool{}
	return context.WithValue(ctx, sentKey{}, sent), sent
}

func (sentMarker) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (sentMarker) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context {
	return ctx
}
func (sentMarker) HandleConn(context.Context, stats.ConnStats) {}

func (sentMarker) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, out := s.(*stats.OutPayload); !out {
		return
	}
	if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
		sent.Store(true)
	}
}

// apply forwards an entry to the leader.
func (w *wire) apply(ctx context.Context, leader string, entry []byte) (state.Result, error) {
	client, err := w.clients.at(leader)
	if err != nil {
		return state.Result{}, err
	}
	ctx, sent := withSent(ctx)
	answer, err := client.Apply(ctx, &musterv1.PeerServiceApplyRequest{Entry: entry})
	switch {
	case err != nil && sent.Load():
		return state.Result{}, &unknownError{err}
	case err != nil:
		return state.Result{}, callError(err)
	case answer.GetError() != nil:
		return state.Result{}, storeErrorFromProto(answer.GetError())
	}
	return resultFromProto(answer.GetResult()), nil
}

// call sends the leader a message.
func (w *wire) call(ctx context.Context, leader string, message []byte) ([]byte, error) {
	client, err := w.clients.at(leader)
	if err != nil {
		return nil, err
	}
	ctx, sent := withSent(ctx)
	answer, err := client.Call(ctx, &musterv1.PeerServiceCallRequest{Message: message})
	switch {
	case err != nil && sent.Load() && !refusedCall(err):
		return nil, &unknownError{err}
	case err != nil:
		return nil, callError(err)
	case answer.GetError() != nil:
		return nil, storeErrorFromProto(answer.GetError())
	}
	return answer.GetMessage(), nil
}

// refusedCall tells whether the other server says that it did not act on a message.
func refusedCall(err error) bool {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unimplemented:
		return true
	}
	return false
}

// readIndex asks the leader for an index that covers everything committed.
func (w *wire) readIndex(ctx context.Context, leader string) (uint64, error) {
	client, err := w.clients.at(leader)
	if err != nil {
		return 0, err
	}
	answer, err := client.ReadIndex(ctx, &musterv1.PeerServiceReadIndexRequest{})
	if err != nil {
		return 0, callError(err)
	}
	return answer.GetIndex(), storeErrorFromProto(answer.GetError())
}

// callError sorts the errors of calls that changed nothing: what may pass is
// tried again like the absence of a leader.
func callError(err error) error {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.Unimplemented, codes.InvalidArgument:
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return fmt.Errorf("%w: %w", ErrNoLeader, err)
}

// connIdentity lets gRPC use connections that have shaken hands already, and
// carries the peer's identity along.
type connIdentity struct{}

// peerIdentity is the AuthInfo of a connection between servers.
type peerIdentity struct {
	credentials.CommonAuthInfo
	// id is the server that the certificate names; empty in plaintext.
	id string
}

func (peerIdentity) AuthType() string { return "muster-peer" }

func (connIdentity) ClientHandshake(_ context.Context, _ string, c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, identityOf(c), nil
}

func (connIdentity) ServerHandshake(c net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c, identityOf(c), nil
}

func identityOf(c net.Conn) peerIdentity {
	info := peerIdentity{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	if p, ok := c.(*peerConn); ok {
		info.id = p.id
	}
	return info
}

func (connIdentity) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "muster-peer"}
}
func (connIdentity) Clone() credentials.TransportCredentials { return connIdentity{} }
func (connIdentity) OverrideServerName(string) error         { return nil }
