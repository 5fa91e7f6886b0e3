package admin

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/compile"
)

// commitTimeout bounds a transaction when the call has no deadline. Until then it
// is judged again whenever the group did not become what it was judged on: a caller
// who named no revision is never told of a conflict.
const commitTimeout = 10 * time.Second

// transaction is what Commit and Rollback have in common.
type transaction struct {
	group     string // id or name
	requestID string
	dryRun    bool
	// command is the transaction as a command to a group as it is, or why it cannot
	// be one.
	command func(g *state.Group) (*musterv1.CommitCommand, error)
	// forward is the request as another server gets it, but for who asked.
	forward *musterv1.WriteRequest
}

// write judges a transaction and commits it. That is done by the leader, which
// alone knows what else of the group is on its way into the log.
func (s *Service) write(ctx context.Context, tx *transaction) (*musterv1.CommitResponse, error) {
	ctx, cancel := withDeadline(ctx, commitTimeout)
	defer cancel()
	if tx.group == "" {
		return nil, requiredField("group")
	}
	if tx.dryRun {
		return s.dryRun(ctx, tx)
	}
	resp, err := s.writeAsLeader(ctx, tx)
	if !errors.Is(err, raftstore.ErrNotLeader) {
		return resp, err
	}
	req := proto.CloneOf(tx.forward)
	req.Author = author(ctx)
	answer, err := s.cfg.AskLeader(ctx, tx.requestID != "", req)
	switch {
	case err != nil:
		return nil, err
	case answer.GetStatus() == nil:
		return answer.GetCommit(), nil
	}
	st := &spb.Status{}
	if err := proto.Unmarshal(answer.GetStatus(), st); err != nil {
		return nil, fmt.Errorf("the leader's answer: %w", err)
	}
	return nil, status.FromProto(st).Err()
}

// Write answers another server, which asks for a write because this one is the
// leader. The caller's right to it was checked there. The error is a
// *raftstore.NotLeaderError when this server does not lead; nothing was done then.
func (s *Service) Write(ctx context.Context, req *musterv1.WriteRequest) (*musterv1.WriteResponse, error) {
	ctx, cancel := withDeadline(auth.WithIdentity(ctx, auth.Identity{Name: req.GetAuthor()}), commitTimeout)
	defer cancel()
	var tx *transaction
	var err error
	switch w := req.GetWrite().(type) {
	case *musterv1.WriteRequest_Commit:
		tx, err = s.commitOf(w.Commit)
	case *musterv1.WriteRequest_Rollback:
		tx, err = s.rollbackOf(w.Rollback)
	default:
		return nil, errors.New("a write of an unknown kind")
	}
	var resp *musterv1.CommitResponse
	if err == nil {
		resp, err = s.writeAsLeader(ctx, tx)
	}
	if errors.Is(err, raftstore.ErrNotLeader) {
		return nil, err
	}
	if err == nil {
		return &musterv1.WriteResponse{Outcome: &musterv1.WriteResponse_Commit{Commit: resp}}, nil
	}
	st, err := proto.Marshal(status.Convert(toStatus(err)).Proto())
	return &musterv1.WriteResponse{Outcome: &musterv1.WriteResponse_Status{Status: st}}, err
}

// writeAsLeader judges a transaction on what the group will be once everything has
// landed that is on its way, and hands it over at once; that it holds only on that
// very content goes with it. When the group came to be another, it is judged anew.
//
// The leader's own state is new enough to judge on: the majority is asked only once,
// by the proposal itself. A refusal is told only if what it was judged on was
// committed: by those on the way once they have landed, else after the majority was
// asked whether this is the newest state.
//
// The error is a *raftstore.NotLeaderError when this server does not lead; nothing
// was done then.
func (s *Service) writeAsLeader(ctx context.Context, tx *transaction) (*musterv1.CommitResponse, error) {
	certain := false
	for {
		if _, _, leader := s.cfg.Store.Leader(); !leader {
			return nil, &raftstore.NotLeaderError{}
		}
		if certain {
			if err := s.cfg.Store.ReadIndex(ctx); err != nil {
				return nil, err
			}
		}
		handed, on, err := s.handOver(ctx, tx)
		if err == nil {
			var res state.Result
			if res, err = handed.outcome(); err == nil {
				return res.Commit, res.Err
			}
		}
		var conflict *conflictError
		switch {
		case errors.As(err, &conflict):
			// What was in the way may not have come here yet.
			certain = certain || !s.reached(tx.group, conflict.Actual)
		case on != nil && isRefusal(err):
			ok, _ := on.wait(ctx)
			// What landed meanwhile may be an earlier try of this very request.
			if _, known := s.replay(ctx, on.group.ID(), tx.requestID); ok && !known {
				return nil, err
			}
		case !certain && isRefusal(err):
			certain = true
		default:
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("group %q: other transactions came first until the time was up: %w", tx.group, ctx.Err())
		}
	}
}

// handedOver is a transaction on its way, or one that need not go.
type handedOver struct {
	wait   func() (state.Result, error)
	flight *flight
	first  state.Result // the answer that the same request got before; flight is nil then
}

// handOver judges a transaction and hands it to the store. on is what it was judged
// on, also when it was refused; nil stands for what is committed.
func (s *Service) handOver(ctx context.Context, tx *transaction) (_ *handedOver, on *flight, err error) {
	ln, err := s.lanes.enter(ctx, s.groupID(tx.group))
	if err != nil {
		return nil, nil, err
	}
	defer ln.leave()
	var g *state.Group
	var compiled *compile.Compiled
	if on = ln.tip(); on != nil {
		g, compiled = on.group, on.compiled
	} else if g, err = s.groupOf(tx.group); err != nil { // after the tip: it may just have landed
		return nil, nil, err
	}
	if first, known := s.replay(ctx, g.ID(), tx.requestID); known {
		return &handedOver{first: first}, on, nil
	}
	cmd, err := tx.command(g)
	if err != nil {
		return nil, on, err
	}
	cmd.Group = g.ID()
	cmd.Mark = 1 + rand.Uint64N(math.MaxUint64)
	full := s.command(ctx, tx.requestID)
	full.Command = &musterv1.Command_Commit{Commit: cmd}
	outcome, compiled, err := s.judge(g, compiled, full)
	if err != nil {
		return nil, on, err
	}
	cmd.ExpectedRevision, cmd.JudgedOn = proto.Uint64(g.Revision()), proto.Uint64(g.Mark())
	wait := s.cfg.Store.Begin(ctx, full)
	return &handedOver{wait: wait, flight: ln.depart(on, outcome.Group, compiled)}, on, nil
}

// outcome waits for the answer. A *conflictError says that the group had become
// another than the one that the transaction was judged on.
func (h *handedOver) outcome() (state.Result, error) {
	if h.flight == nil {
		return h.first, nil
	}
	res, err := h.wait()
	h.flight.land(err == nil && res.Err == nil && !res.Replayed && res.Commit.GetRevision() == h.flight.group.Revision())
	var conflict *state.RevisionConflict
	if errors.As(res.Err, &conflict) {
		return state.Result{}, &conflictError{conflict}
	}
	return res, err
}

// conflictError is a conflict with what this server expected. One with what the
// caller expects is found when the transaction is judged.
type conflictError struct{ *state.RevisionConflict }

func (e *conflictError) Unwrap() error { return e.RevisionConflict }

// dryRun judges a transaction on the newest state and changes nothing.
func (s *Service) dryRun(ctx context.Context, tx *transaction) (*musterv1.CommitResponse, error) {
	g, err := s.readGroup(ctx, tx.group, false)
	if err != nil {
		return nil, err
	}
	cmd, err := tx.command(g)
	if err != nil {
		return nil, err
	}
	full := s.command(ctx, "")
	full.Command = &musterv1.Command_Commit{Commit: cmd}
	outcome, _, err := s.judge(g, nil, full)
	if err != nil {
		return nil, err
	}
	redactAll(outcome.Answer.GetChanges())
	return outcome.Answer, nil
}

// judge evaluates a transaction against a group: what it does by itself, the
// references between objects, and the trial compilation. compiled is the group's
// where one is at hand.
func (s *Service) judge(g *state.Group, compiled *compile.Compiled, full *musterv1.Command) (state.Outcome, *compile.Compiled, error) {
	cmd := full.GetCommit()
	outcome, err := state.Preview(g, cmd, full.GetAuthor(), full.GetTime())
	var problems resource.Problems
	if errors.As(err, &problems) {
		return outcome, nil, &invalidError{violationsOf(problems, cmd.GetChanges())}
	}
	if err != nil || len(outcome.Changes) == 0 {
		return outcome, compiled, err
	}
	after := outcome.Group.View()
	if problems = s.checkReferences(after, outcome.Changes); len(problems) == 0 {
		// Only what makes sense is worth a trial; its problems would repeat the
		// ones found already.
		compiled, problems = s.cfg.Compiler.Trial(compiled, g, after, outcome.Changes)
	}
	if len(problems) > 0 {
		return outcome, nil, &invalidError{violationsOf(problems, cmd.GetChanges())}
	}
	return outcome, compiled, nil
}

// replay returns the first answer to a request that is made again. It comes
// before everything else: the group has moved on since, and would judge the
// transaction differently.
func (s *Service) replay(ctx context.Context, group, requestID string) (state.Result, bool) {
	if requestID == "" {
		return state.Result{}, false
	}
	cmd := s.command(ctx, requestID)
	cmd.Command = &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: group}}
	return s.cfg.Store.State().Replay(cmd)
}

// groupOf is a group by its id or name, as this server has it.
func (s *Service) groupOf(idOrName string) (*state.Group, error) {
	if g, ok := s.cfg.Store.State().Group(idOrName); ok {
		return g, nil
	}
	return nil, &state.NotFoundError{Group: idOrName}
}

// groupID is a group's id by its id or name, as far as this server knows.
func (s *Service) groupID(idOrName string) string {
	if g, err := s.groupOf(idOrName); err == nil {
		return g.ID()
	}
	return idOrName
}

// reached tells whether this server's state has a revision of a group.
func (s *Service) reached(group string, revision uint64) bool {
	g, err := s.groupOf(group)
	return err == nil && g.Revision() >= revision
}

// isRefusal tells whether an error says something about the state.
func isRefusal(err error) bool {
	switch classify(err).code {
	case codes.InvalidArgument, codes.NotFound, codes.AlreadyExists, codes.Aborted, codes.FailedPrecondition, codes.OutOfRange:
		return true
	}
	return false
}
