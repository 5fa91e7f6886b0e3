package admin

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

// commitTimeout bounds a transaction when the call has no deadline. Until then it
// is judged again whenever another server's changes the group between judgement
// and commit: a caller who named no revision is never told of a conflict.
const commitTimeout = 10 * time.Second

// Commit implements AdminService.
func (s *Service) Commit(ctx context.Context, req *musterv1.CommitRequest) (*musterv1.CommitResponse, error) {
	changes, err := s.prepare(req)
	if err != nil {
		return nil, toStatus(err)
	}
	resp, err := s.judged(ctx, req, func(g *state.Group) (*musterv1.CommitResponse, error) {
		return s.commit(ctx, g, req, changes)
	})
	return resp, toStatus(err)
}

// proposal is what Commit and Rollback have in common.
type proposal interface {
	GetGroup() string
	GetRequestId() string
	GetDryRun() bool
}

// judged evaluates and proposes a transaction on a group. The leader's own state
// is new enough for that: what a transaction passes by is checked again when it
// is applied, and the majority is asked only once, by the proposal itself. But a
// refusal may be due to the state of a leader that is none any more, so before
// it is told, the state is made certain and the transaction judged again.
//
// What is proposed is pinned to the revision that it was judged at, for judged
// at another one it might not pass. If the group has moved on when it would be
// committed, and the caller named no revision, it is judged anew.
func (s *Service) judged(ctx context.Context, req proposal, do func(*state.Group) (*musterv1.CommitResponse, error)) (*musterv1.CommitResponse, error) {
	ctx, cancel := withDeadline(ctx, commitTimeout)
	defer cancel()
	if !req.GetDryRun() {
		leave, err := s.lanes.enter(ctx, s.groupID(req.GetGroup()))
		if err != nil {
			return nil, err
		}
		defer leave()
	}
	_, _, leader := s.cfg.Store.Leader()
	certain := req.GetDryRun() || !leader
	for {
		g, err := s.readGroup(ctx, req.GetGroup(), !certain)
		var resp *musterv1.CommitResponse
		if err == nil {
			if first, known := s.replay(ctx, g, req); known {
				return first.Commit, first.Err
			}
			resp, err = do(g)
		}
		var pinned *pinnedConflict
		switch {
		case err == nil:
			return resp, nil
		case errors.As(err, &pinned) && ctx.Err() == nil:
			// The revision that was in the way may not have come here yet.
			certain = certain || !s.reached(req.GetGroup(), pinned.Actual)
		case !certain && isRefusal(err):
			certain = true
		case errors.As(err, &pinned):
			return nil, fmt.Errorf("group %q: other transactions came first until the time was up: %w", g.ID(), ctx.Err())
		default:
			return nil, err
		}
	}
}

// replay returns the first answer to a request that is made again. It comes
// before everything else: the group has moved on since, and would judge the
// transaction differently.
func (s *Service) replay(ctx context.Context, g *state.Group, req proposal) (state.Result, bool) {
	if req.GetRequestId() == "" || req.GetDryRun() {
		return state.Result{}, false
	}
	cmd := s.command(ctx, req.GetRequestId())
	cmd.Command = &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: g.ID()}}
	return s.cfg.Store.State().Replay(cmd)
}

// groupID is a group's id by its id or name, as far as this server knows.
func (s *Service) groupID(idOrName string) string {
	if g, ok := s.cfg.Store.State().Group(idOrName); ok {
		return g.ID()
	}
	return idOrName
}

// reached tells whether this server's state has a revision of a group.
func (s *Service) reached(group string, revision uint64) bool {
	g, ok := s.cfg.Store.State().Group(group)
	return ok && g.Revision() >= revision
}

// isRefusal tells whether an error says something about the state.
func isRefusal(err error) bool {
	switch classify(err).code {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.Aborted, codes.FailedPrecondition, codes.OutOfRange:
		return true
	}
	return false
}

// pinnedConflict is a conflict with a revision that this server expected, not
// the caller.
type pinnedConflict struct{ *state.RevisionConflict }

func (e *pinnedConflict) Unwrap() error { return e.RevisionConflict }

// commit evaluates and proposes once.
func (s *Service) commit(ctx context.Context, g *state.Group, req *musterv1.CommitRequest, changes []*musterv1.Change) (*musterv1.CommitResponse, error) {
	cmd := &musterv1.CommitCommand{
		Group:            g.ID(),
		ExpectedRevision: req.ExpectedRevision,
		Message:          req.GetMessage(),
	}
	var err error
	if cmd.Changes, err = s.unmaskAll(g, changes); err != nil {
		return nil, err
	}
	if err := s.checkObjects(cmd.Changes); err != nil {
		return nil, err
	}
	return s.propose(ctx, g, cmd, req.GetRequestId(), req.GetDryRun())
}

// propose is the common end of Commit and Rollback.
func (s *Service) propose(ctx context.Context, g *state.Group, cmd *musterv1.CommitCommand, requestID string, dryRun bool) (*musterv1.CommitResponse, error) {
	full := s.command(ctx, requestID)
	full.Command = &musterv1.Command_Commit{Commit: cmd}
	after, diff, answer, err := state.Preview(g, cmd, full.GetAuthor(), full.GetTime())
	if err != nil {
		var problems resource.Problems
		if errors.As(err, &problems) {
			return nil, &invalidError{violationsOf(problems, cmd.GetChanges())}
		}
		return nil, err
	}
	if err := s.judge(g, cmd.GetChanges(), after, diff); err != nil {
		return nil, err
	}
	if dryRun {
		redactAll(answer.GetChanges())
		return answer, nil
	}
	pinned := cmd.ExpectedRevision == nil
	cmd.ExpectedRevision = proto.Uint64(g.Revision())
	res, err := s.apply(ctx, full)
	var conflict *state.RevisionConflict
	if pinned && errors.As(err, &conflict) {
		return nil, &pinnedConflict{conflict}
	}
	if err != nil {
		return nil, err
	}
	return res.Commit, nil
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

// Rollback implements AdminService.
func (s *Service) Rollback(ctx context.Context, req *musterv1.RollbackRequest) (*musterv1.RollbackResponse, error) {
	if req.GetToRevision() == 0 {
		return nil, toStatus(requiredField("to_revision"))
	}
	resp, err := s.judged(ctx, req, func(g *state.Group) (*musterv1.CommitResponse, error) {
		return s.propose(ctx, g, &musterv1.CommitCommand{
			Group:            g.ID(),
			ExpectedRevision: req.ExpectedRevision,
			Message:          req.GetMessage(),
			RollbackTo:       req.GetToRevision(),
		}, req.GetRequestId(), req.GetDryRun())
	})
	if err != nil {
		return nil, toStatus(err)
	}
	return &musterv1.RollbackResponse{Revision: resp.GetRevision(), Epoch: resp.GetEpoch(), Changes: resp.GetChanges()}, nil
}
