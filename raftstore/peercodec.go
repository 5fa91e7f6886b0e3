package raftstore

import (
	"errors"
	"fmt"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

// remoteError is an error of another server whose type did not travel.
type remoteError struct {
	message string
	kind    error
}

func (e *remoteError) Error() string { return e.message }
func (e *remoteError) Unwrap() error { return e.kind }

func resultToProto(r state.Result) *musterv1.CommandResult {
	return &musterv1.CommandResult{Group: r.Group, Commit: r.Commit, Replayed: r.Replayed, Error: commandErrorToProto(r.Err)}
}

func resultFromProto(m *musterv1.CommandResult) state.Result {
	return state.Result{Group: m.GetGroup(), Commit: m.GetCommit(), Replayed: m.GetReplayed(), Err: commandErrorFromProto(m.GetError())}
}

func commandErrorToProto(err error) *musterv1.CommandError {
	if err == nil {
		return nil
	}
	var (
		notFound *state.NotFoundError
		exists   *state.ExistsError
		conflict *state.RevisionConflict
		invalid  *state.InvalidError
		trimmed  *state.TrimmedError
		problems resource.Problems
	)
	switch {
	case errors.As(err, &notFound):
		m := &musterv1.CommandNotFound{Group: notFound.Group}
		if notFound.Key != (resource.Key{}) {
			m.Key = notFound.Key.Proto()
		}
		return &musterv1.CommandError{Error: &musterv1.CommandError_NotFound{NotFound: m}}
	case errors.As(err, &exists):
		return &musterv1.CommandError{Error: &musterv1.CommandError_Exists{Exists: &musterv1.CommandExists{Group: exists.Group, Field: exists.Field, Value: exists.Value}}}
	case errors.As(err, &conflict):
		return &musterv1.CommandError{Error: &musterv1.CommandError_RevisionConflict{RevisionConflict: &musterv1.CommandRevisionConflict{
			Group: conflict.Group, Expected: conflict.Expected, Actual: conflict.Actual, Author: conflict.Author,
		}}}
	case errors.As(err, &invalid):
		return &musterv1.CommandError{Error: &musterv1.CommandError_Invalid{Invalid: &musterv1.CommandInvalid{Field: invalid.Field, Reason: invalid.Reason}}}
	case errors.As(err, &trimmed):
		return &musterv1.CommandError{Error: &musterv1.CommandError_Trimmed{Trimmed: &musterv1.CommandTrimmed{Group: trimmed.Group, Revision: trimmed.Revision, Oldest: trimmed.Oldest}}}
	case errors.As(err, &problems):
		m := &musterv1.CommandProblems{}
		for _, p := range problems {
			m.Problems = append(m.Problems, &musterv1.CommandProblem{Object: p.Object.Proto(), Path: p.Path, Code: p.Code, Message: p.Message, Hint: p.Hint})
		}
		return &musterv1.CommandError{Error: &musterv1.CommandError_Problems{Problems: m}}
	case errors.Is(err, state.ErrGroupNotEmpty):
		return &musterv1.CommandError{Error: &musterv1.CommandError_GroupNotEmpty{GroupNotEmpty: err.Error()}}
	}
	return &musterv1.CommandError{Error: &musterv1.CommandError_Other{Other: err.Error()}}
}

func commandErrorFromProto(m *musterv1.CommandError) error {
	switch e := m.GetError().(type) {
	case nil:
		return nil
	case *musterv1.CommandError_NotFound:
		return &state.NotFoundError{Group: e.NotFound.GetGroup(), Key: resource.KeyFromProto(e.NotFound.GetKey())}
	case *musterv1.CommandError_Exists:
		return &state.ExistsError{Group: e.Exists.GetGroup(), Field: e.Exists.GetField(), Value: e.Exists.GetValue()}
	case *musterv1.CommandError_RevisionConflict:
		c := e.RevisionConflict
		return &state.RevisionConflict{Group: c.GetGroup(), Expected: c.GetExpected(), Actual: c.GetActual(), Author: c.GetAuthor()}
	case *musterv1.CommandError_Invalid:
		return &state.InvalidError{Field: e.Invalid.GetField(), Reason: e.Invalid.GetReason()}
	case *musterv1.CommandError_Trimmed:
		return &state.TrimmedError{Group: e.Trimmed.GetGroup(), Revision: e.Trimmed.GetRevision(), Oldest: e.Trimmed.GetOldest()}
	case *musterv1.CommandError_Problems:
		var problems resource.Problems
		for _, p := range e.Problems.GetProblems() {
			problems = append(problems, resource.Problem{Object: resource.KeyFromProto(p.GetObject()), Path: p.GetPath(), Code: p.GetCode(), Message: p.GetMessage(), Hint: p.GetHint()})
		}
		return problems
	case *musterv1.CommandError_GroupNotEmpty:
		return &remoteError{e.GroupNotEmpty, state.ErrGroupNotEmpty}
	case *musterv1.CommandError_Other:
		return errors.New(e.Other)
	}
	return errors.New("the leader refused for a reason that this version does not know")
}

func storeErrorToProto(err error) *musterv1.StoreError {
	if err == nil {
		return nil
	}
	m := &musterv1.StoreError{Message: err.Error(), Code: musterv1.StoreErrorCode_STORE_ERROR_CODE_REFUSED}
	var notLeader *NotLeaderError
	var full *DiskFullError
	switch {
	case errors.As(err, &notLeader):
		m.Code, m.Leader = musterv1.StoreErrorCode_STORE_ERROR_CODE_NOT_LEADER, notLeader.Leader
	case errors.Is(err, ErrUnknown):
		m.Code = musterv1.StoreErrorCode_STORE_ERROR_CODE_UNKNOWN_OUTCOME
	case errors.Is(err, ErrNoLeader), errors.Is(err, ErrStopped), errors.Is(err, ErrNotReady):
		m.Code = musterv1.StoreErrorCode_STORE_ERROR_CODE_NOT_LEADER
	case errors.Is(err, errHandingOver):
		m.Code = musterv1.StoreErrorCode_STORE_ERROR_CODE_HANDING_OVER
	case errors.As(err, &full):
		m.Code, m.Free, m.Floor, m.Dir = musterv1.StoreErrorCode_STORE_ERROR_CODE_DISK_FULL, full.Free, full.Floor, full.Dir
	case errors.Is(err, ErrPoison):
		m.Code = musterv1.StoreErrorCode_STORE_ERROR_CODE_POISON
	case errors.Is(err, ErrNotMember):
		m.Code = musterv1.StoreErrorCode_STORE_ERROR_CODE_NOT_MEMBER
	case errors.Is(err, state.ErrSnapshot):
		m.Code = musterv1.StoreErrorCode_STORE_ERROR_CODE_BAD_SNAPSHOT
	}
	return m
}

func storeErrorFromProto(m *musterv1.StoreError) error {
	if m == nil {
		return nil
	}
	switch m.GetCode() {
	case musterv1.StoreErrorCode_STORE_ERROR_CODE_NOT_LEADER:
		return &NotLeaderError{Leader: m.GetLeader()}
	case musterv1.StoreErrorCode_STORE_ERROR_CODE_HANDING_OVER:
		return errHandingOver
	case musterv1.StoreErrorCode_STORE_ERROR_CODE_UNKNOWN_OUTCOME:
		return &remoteError{m.GetMessage(), ErrUnknown}
	case musterv1.StoreErrorCode_STORE_ERROR_CODE_DISK_FULL:
		return &DiskFullError{Dir: m.GetDir(), Free: m.GetFree(), Floor: m.GetFloor()}
	case musterv1.StoreErrorCode_STORE_ERROR_CODE_POISON:
		return &remoteError{m.GetMessage(), ErrPoison}
	case musterv1.StoreErrorCode_STORE_ERROR_CODE_NOT_MEMBER:
		return &remoteError{m.GetMessage(), ErrNotMember}
	case musterv1.StoreErrorCode_STORE_ERROR_CODE_BAD_SNAPSHOT:
		return &remoteError{m.GetMessage(), state.ErrSnapshot}
	}
	return fmt.Errorf("refused by the leader: %w", &remoteError{m.GetMessage(), ErrRefused})
}
