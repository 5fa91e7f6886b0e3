package admin

import (
	"context"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
)

// ListRevisions implements AdminService.
func (s *Service) ListRevisions(ctx context.Context, req *musterv1.ListRevisionsRequest) (*musterv1.ListRevisionsResponse, error) {
	g, err := s.readGroup(ctx, req.GetGroup(), req.GetStale())
	if err != nil {
		return nil, toStatus(err)
	}
	resp := &musterv1.ListRevisionsResponse{}
	for rev := range g.Revisions() {
		if n := req.GetLimit(); n > 0 && len(resp.Revisions) == int(n) {
			break
		}
		resp.Revisions = append(resp.Revisions, withoutBodies(rev))
	}
	return resp, nil
}

// withoutBodies copies a revision without the objects before and after: they
// are large and hold secrets.
func withoutBodies(rev *musterv1.Revision) *musterv1.Revision {
	out := &musterv1.Revision{
		Revision:    rev.GetRevision(),
		Epoch:       rev.GetEpoch(),
		Author:      rev.GetAuthor(),
		Message:     rev.GetMessage(),
		CommittedAt: rev.GetCommittedAt(),
		RollbackTo:  rev.GetRollbackTo(),
		Changes:     make([]*musterv1.ResourceChange, 0, len(rev.GetChanges())),
	}
	for _, c := range rev.GetChanges() {
		out.Changes = append(out.Changes, &musterv1.ResourceChange{Key: proto.CloneOf(c.GetKey()), Result: c.GetResult()})
	}
	return out
}

// DiffRevisions implements AdminService.
func (s *Service) DiffRevisions(ctx context.Context, req *musterv1.DiffRevisionsRequest) (*musterv1.DiffRevisionsResponse, error) {
	resp, err := s.diffRevisions(ctx, req)
	return resp, toStatus(err)
}

func (s *Service) diffRevisions(ctx context.Context, req *musterv1.DiffRevisionsRequest) (*musterv1.DiffRevisionsResponse, error) {
	g, err := s.readGroup(ctx, req.GetGroup(), false)
	if err != nil {
		return nil, err
	}
	to := req.GetTo()
	if to == 0 {
		to = g.Revision()
	}
	for _, rev := range []uint64{req.GetFrom(), to} {
		if rev != 0 {
			if _, _, err := viewAt(g, rev); err != nil {
				return nil, err
			}
		}
	}
	changes, ok := g.Changes(req.GetFrom(), to)
	if !ok {
		return nil, &state.TrimmedError{Group: g.ID(), Revision: min(req.GetFrom(), to), Oldest: g.Oldest()}
	}
	resp := &musterv1.DiffRevisionsResponse{From: req.GetFrom(), To: to}
	for _, c := range changes {
		if c.Result() != musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED {
			resp.Changes = append(resp.Changes, c.Proto(true))
		}
	}
	redactAll(resp.Changes)
	return resp, nil
}
