package admin

import (
	"context"
	"fmt"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

// Commit implements AdminService.
func (s *Service) Commit(ctx context.Context, req *musterv1.CommitRequest) (*musterv1.CommitResponse, error) {
	tx, err := s.commitOf(req)
	if err != nil {
		return nil, toStatus(err)
	}
	resp, err := s.write(ctx, tx)
	return resp, toStatus(err)
}

// commitOf checks the shape of a transaction.
func (s *Service) commitOf(req *musterv1.CommitRequest) (*transaction, error) {
	changes, err := s.prepare(req)
	if err != nil {
		return nil, err
	}
	return &transaction{
		group: req.GetGroup(), requestID: req.GetRequestId(), dryRun: req.GetDryRun(),
		forward: &musterv1.WriteRequest{Write: &musterv1.WriteRequest_Commit{Commit: req}},
		command: func(g *state.Group) (*musterv1.CommitCommand, error) {
			changes, err := s.unmaskAll(g, changes)
			if err == nil {
				err = s.checkObjects(changes)
			}
			return &musterv1.CommitCommand{ExpectedRevision: req.ExpectedRevision, Message: req.GetMessage(), Changes: changes}, err
		},
	}, nil
}

// Rollback implements AdminService.
func (s *Service) Rollback(ctx context.Context, req *musterv1.RollbackRequest) (*musterv1.RollbackResponse, error) {
	tx, err := s.rollbackOf(req)
	if err != nil {
		return nil, toStatus(err)
	}
	resp, err := s.write(ctx, tx)
	if err != nil {
		return nil, toStatus(err)
	}
	return &musterv1.RollbackResponse{Revision: resp.GetRevision(), Epoch: resp.GetEpoch(), Changes: resp.GetChanges()}, nil
}

func (s *Service) rollbackOf(req *musterv1.RollbackRequest) (*transaction, error) {
	if req.GetToRevision() == 0 {
		return nil, requiredField("to_revision")
	}
	return &transaction{
		group: req.GetGroup(), requestID: req.GetRequestId(), dryRun: req.GetDryRun(),
		forward: &musterv1.WriteRequest{Write: &musterv1.WriteRequest_Rollback{Rollback: req}},
		command: func(*state.Group) (*musterv1.CommitCommand, error) {
			return &musterv1.CommitCommand{ExpectedRevision: req.ExpectedRevision, Message: req.GetMessage(), RollbackTo: req.GetToRevision()}, nil
		},
	}, nil
}

// unmaskAll puts stored secrets back where the changes hold the mask. The
// changes stay as they are: a second try begins with the masks again.
func (s *Service) unmaskAll(g *state.Group, changes []*musterv1.Change) ([]*musterv1.Change, error) {
	out := make([]*musterv1.Change, len(changes))
	var vs []violation
	for i, c := range changes {
		out[i] = c
		if c.GetPut() == nil {
			continue
		}
		key := resource.KeyOf(c.GetPut())
		var stored *musterv1.Resource
		if e, ok := g.View().Get(key); ok {
			stored = e.Resource
		}
		put := proto.CloneOf(c.GetPut())
		r, unresolved := unmask(put, stored)
		for _, path := range unresolved {
			vs = append(vs, violation{
				field: putPath(i, key) + "." + path, code: resource.CodeInvalid,
				message: fmt.Sprintf("is %s, which stands for a stored secret, and none is stored", mask),
				hint:    "write the secret itself, or read the object with its secrets revealed",
			})
		}
		if r {
			out[i] = &musterv1.Change{Action: &musterv1.Change_Put{Put: put}}
		}
	}
	if len(vs) > 0 {
		return nil, &invalidError{bounded(vs)}
	}
	return out, nil
}

// redactAll masks the secrets in a diff. The bodies are shared with the store,
// so they are replaced, not changed.
func redactAll(changes []*musterv1.ResourceChange) {
	for _, c := range changes {
		c.Before, c.After = redactChange(c.GetBefore(), c.GetAfter())
	}
}
