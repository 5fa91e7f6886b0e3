package raftstore

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
)

// Apply commits a command and returns what it did; the error inside the result
// is the command's, the other one the store's. It may be called on any server:
// the command goes to the leader, at most one hop. While there is no leader it
// waits, until ctx ends or, when ctx has no deadline, for ApplyTimeout.
//
// A command without a time is stamped here. A command with a request_id is
// retried when an attempt's outcome is not known; without one the error wraps
// ErrUnknown then. On ErrNoLeader, ErrDiskFull, ErrTooLarge and ErrStopped
// nothing was done; on ErrPoison nothing changed.
func (s *Store) Apply(ctx context.Context, cmd *musterv1.Command) (state.Result, error) {
	return s.Begin(ctx, cmd)()
}

// Begin is Apply in two steps: it hands a command over, and wait, which must be
// called, returns what Apply would. On the leader, commands come into the log in the
// order in which they were handed over, as long as it leads and none is given up.
func (s *Store) Begin(ctx context.Context, cmd *musterv1.Command) (wait func() (state.Result, error)) {
	ctx, cancel := s.bound(ctx)
	first, again, err := s.begin(ctx, cmd)
	return func() (state.Result, error) {
		defer cancel()
		if err != nil {
			return state.Result{}, err
		}
		once := first
		return persist(cmd.GetRequestId() != "",
			func() (state.Result, error) {
				attempt := once
				once = again
				return attempt()
			},
			func(attempt int) error { return s.pause(ctx, attempt) })
	}
}

// begin returns the first attempt to commit a command, which has begun if this
// server leads, and what makes another.
func (s *Store) begin(ctx context.Context, cmd *musterv1.Command) (first, again func() (state.Result, error), err error) {
	if err := s.waitStarted(ctx); err != nil {
		return nil, nil, err
	}
	if cmd.GetTime() == nil {
		cmd = proto.CloneOf(cmd)
		cmd.Time = timestamppb.Now()
	}
	entry, err := encodeCommand(cmd)
	if err != nil {
		return nil, nil, err
	}
	again = func() (state.Result, error) { return s.applyOnce(ctx, entry) }
	if s.raft.State() != raft.Leader {
		return again, again, nil
	}
	p, refused := s.queue(entry)
	return func() (state.Result, error) {
		if refused != nil {
			return state.Result{}, refused
		}
		return s.outcome(ctx, p)
	}, again, nil
}

// persist makes attempts until one says something definite. Once the outcome of
// one is not known, only an answer to the command itself is definite: whatever
// keeps a later attempt from being made says nothing of the earlier one.
func persist[T any](repeatable bool, once func() (T, error), pause func(attempt int) error) (T, error) {
	var none T
	var unknown error
	for attempt := 0; ; attempt++ {
		result, err := once()
		switch {
		case err == nil:
			return result, nil
		case errors.Is(err, ErrUnknown):
			if !repeatable {
				return none, err
			}
			unknown = err
		case errors.Is(err, ErrNotLeader), errors.Is(err, ErrNoLeader), errors.Is(err, errHandingOver):
		case unknown != nil && !errors.Is(err, ErrPoison):
			return none, unknown
		default:
			return none, err
		}
		if stopErr := pause(attempt); stopErr != nil {
			if unknown != nil {
				return none, unknown
			}
			return none, fmt.Errorf("%w: %w", ErrNoLeader, stopErr)
		}
	}
}

// errHandingOver says that the leader takes no writes for the moment: it is
// about to step down, or to restore a snapshot. Nothing was done.
var errHandingOver = errors.New("the leader takes no writes for the moment")

// bound gives a context without a deadline the store's.
func (s *Store) bound(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, bounded := ctx.Deadline(); bounded {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, s.cfg.ApplyTimeout)
}

// pause waits a little longer each time, 50 ms at most, or for the leader to
// change.
func (s *Store) pause(ctx context.Context, attempt int) error {
	if err := s.up(); err != nil {
		return err
	}
	turn, cancel := s.turns.add()
	defer cancel()
	timer := time.NewTimer(min(time.Millisecond<<min(attempt, 7), 50*time.Millisecond))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-turn:
	case <-s.stopped:
		return ErrStopped
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

func (s *Store) applyOnce(ctx context.Context, entry []byte) (state.Result, error) {
	if s.raft.State() == raft.Leader {
		return s.propose(ctx, entry)
	}
	_, leader, self := s.Leader()
	if leader == "" || self || s.wire == nil {
		return state.Result{}, ErrNoLeader
	}
	return s.wire.apply(ctx, leader, entry)
}
