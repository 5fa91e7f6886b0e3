package server

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// peerMessages answers what other servers send.
type peerMessages struct {
	presence *presence
	write    func(context.Context, *musterv1.WriteRequest) (*musterv1.WriteResponse, error)
}

// handle is the store's handler of messages.
func (p peerMessages) handle(ctx context.Context, message []byte) ([]byte, error) {
	m := &musterv1.PeerMessage{}
	if err := proto.Unmarshal(message, m); err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	answer := &musterv1.PeerMessage{}
	switch q := m.GetMessage().(type) {
	case *musterv1.PeerMessage_PresenceRequest:
		answer.Message = &musterv1.PeerMessage_PresenceResponse{PresenceResponse: p.presence.answer(q.PresenceRequest)}
	case *musterv1.PeerMessage_WriteRequest:
		resp, err := p.write(ctx, q.WriteRequest)
		if err != nil {
			return nil, err
		}
		answer.Message = &musterv1.PeerMessage_WriteResponse{WriteResponse: resp}
	default:
		return nil, errors.New("message of an unknown kind")
	}
	return proto.Marshal(answer)
}

// askLeader passes a write on; see admin.Config.
func (s *Server) askLeader(ctx context.Context, repeatable bool, req *musterv1.WriteRequest) (*musterv1.WriteResponse, error) {
	message, err := proto.Marshal(&musterv1.PeerMessage{Message: &musterv1.PeerMessage_WriteRequest{WriteRequest: req}})
	if err != nil {
		return nil, err
	}
	answer, err := s.store.CallLeader(ctx, repeatable, message)
	if err != nil {
		return nil, err
	}
	m := &musterv1.PeerMessage{}
	if err := proto.Unmarshal(answer, m); err != nil {
		return nil, fmt.Errorf("the leader's answer: %w", err)
	}
	if m.GetWriteResponse() == nil {
		return nil, errors.New("the leader's answer is of an unknown kind")
	}
	return m.GetWriteResponse(), nil
}
