package admin

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/server/fleet"
)

// maxIDs bounds the data planes that one list may name.
const maxIDs = 1000

// ListDataPlanes implements FleetService. Presence is never linearizable: it is
// what the servers that can be reached say of the data planes connected to them.
func (s *Service) ListDataPlanes(ctx context.Context, req *musterv1.ListDataPlanesRequest) (*musterv1.ListDataPlanesResponse, error) {
	if len(req.GetIds()) > maxIDs {
		return nil, toStatus(&state.InvalidError{Field: "ids", Reason: fmt.Sprintf("are more than %d", maxIDs)})
	}
	g, err := s.readGroup(ctx, req.GetGroup(), true)
	if err != nil {
		return nil, toStatus(err)
	}
	s.cfg.Refresh(ctx)
	return &musterv1.ListDataPlanesResponse{
		DataPlanes:    s.cfg.Fleet.List(g.ID(), fleet.ListOptions{IDs: req.GetIds(), Types: req.GetTypes()}),
		GroupRevision: g.Revision(),
		Relays:        s.cfg.Fleet.Relays(g.ID()),
	}, nil
}

// Wait implements FleetService.
func (s *Service) Wait(req *musterv1.WaitRequest, stream grpc.ServerStreamingServer[musterv1.WaitResponse]) error {
	ctx := stream.Context()
	percent, least := uint32(100), uint32(1)
	if p := req.GetAckedPercent(); p != 0 {
		percent = p
	}
	if req.MinDataPlanes != nil {
		least = req.GetMinDataPlanes()
	}
	if percent > 100 {
		return toStatus(&state.InvalidError{Field: "acked_percent", Reason: "is above 100"})
	}
	g, err := s.readGroup(ctx, req.GetGroup(), false)
	if err != nil {
		return toStatus(err)
	}
	target := fleet.Version{Epoch: g.Epoch(), Revision: g.Revision()}
	if rev := req.GetRevision(); rev > target.Revision {
		return toStatus(&state.InvalidError{Field: "revision", Reason: fmt.Sprintf("%d is not there yet; the group is at %d", rev, target.Revision)})
	} else if rev != 0 {
		target.Revision = rev
	}
	if req.GetTimeout() != nil {
		// Ended here rather than by the caller's own deadline, the answer can still
		// say who is missing.
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, req.GetTimeout().AsDuration())
		defer cancel()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(s.draining, func() { cancel(errStopping) })()
	err = s.cfg.Fleet.Wait(ctx, g.ID(), fleet.WaitSpec{Version: target, Percent: percent, Min: least}, stream.Send)
	if err != nil && errors.Is(context.Cause(ctx), errStopping) {
		err = errStopping
	}
	return toStatus(err)
}

// GetServerInfo implements AdminService.
func (s *Service) GetServerInfo(context.Context, *musterv1.GetServerInfoRequest) (*musterv1.GetServerInfoResponse, error) {
	_, addr, self := s.cfg.Store.Leader()
	return &musterv1.GetServerInfoResponse{
		ServerId:      s.cfg.ServerID,
		Version:       s.cfg.Version,
		Leader:        self,
		LeaderAddress: addr,
		Epoch:         s.cfg.Store.State().Epoch(),
	}, nil
}
