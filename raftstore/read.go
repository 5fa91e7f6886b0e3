package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// ReadIndex returns once State reflects everything that was committed, on any
// server, before the call. It asks the leader, which asks a majority; while
// there is no leader it waits, as Apply does.
func (s *Store) ReadIndex(ctx context.Context) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.waitStarted(ctx); err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		index, err := s.readIndexOnce(ctx)
		if err == nil {
			return s.waitIndex(ctx, index)
		}
		if errors.Is(err, ErrStopped) {
			return err
		}
		if stopErr := s.pause(ctx, attempt); stopErr != nil {
			return fmt.Errorf("%w: %w: %w", ErrNoLeader, stopErr, err)
		}
	}
}

func (s *Store) readIndexOnce(ctx context.Context) (uint64, error) {
	if s.raft.State() == raft.Leader {
		return s.reads.join(ctx)
	}
	_, leader, self := s.Leader()
	if leader == "" || self || s.wire == nil {
		return 0, ErrNoLeader
	}
	return s.wire.readIndex(ctx, leader)
}

// readBatcher lets all reads that arrive while the majority is being asked
// share the next question.
type readBatcher struct {
	wake    chan struct{}
	stopped chan struct{}

	mu   sync.Mutex
	next *readBatch
}

type readBatch struct {
	done  chan struct{}
	index uint64 // valid once done is closed, as err
	err   error
}

// join waits for a question that is asked after the call.
func (b *readBatcher) join(ctx context.Context) (uint64, error) {
	b.mu.Lock()
	batch := b.next
	if batch == nil {
		batch = &readBatch{done: make(chan struct{})}
		b.next = batch
	}
	b.mu.Unlock()
	b.poke()
	select {
	case <-batch.done:
		return batch.index, batch.err
	case <-b.stopped:
		return 0, ErrStopped
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (b *readBatcher) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

func (b *readBatcher) take() *readBatch {
	b.mu.Lock()
	defer b.mu.Unlock()
	batch := b.next
	b.next = nil
	return batch
}

// beginReads answers reads until end is called, which waits for the last question.
// That must be before raft stops: raft forgets a question that it has taken in and
// not looked at by then, and whoever waits for its answer waits for ever.
func (s *Store) beginReads(ctx context.Context) (end func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.serveReads(ctx)
	}()
	return func() {
		cancel()
		<-done
		close(s.reads.stopped)
	}
}

// serveReads asks for one batch after the other until ctx ends.
func (s *Store) serveReads(ctx context.Context) {
	for ctx.Err() == nil {
		if batch := s.reads.take(); batch != nil {
			batch.index, batch.err = s.readIndexAsLeader()
			close(batch.done)
			continue
		}
		select {
		case <-s.reads.wake:
		case <-ctx.Done():
			return
		}
	}
}

// readIndexAsLeader returns an index such that a state that reflects the log up
// to it reflects everything committed before the call. The order matters: the
// commit index is read first, and counts only if this server was still the
// leader of the same term, confirmed by a majority, afterwards.
func (s *Store) readIndexAsLeader() (uint64, error) {
	term := s.leader.term.Load()
	if term == 0 {
		return 0, &NotLeaderError{}
	}
	commit := s.raft.CommitIndex()
	if err := s.raft.VerifyLeader().Error(); err != nil {
		return 0, &NotLeaderError{}
	}
	if s.leader.term.Load() != term || s.raft.CurrentTerm() != term {
		return 0, &NotLeaderError{}
	}
	return s.lastApplicable(commit), nil
}

// lastApplicable returns the last index up to commit that the state machine
// gets to see: raft keeps its own entries (the first of a term, barriers) from
// it, so its index may never reach commit itself.
func (s *Store) lastApplicable(commit uint64) uint64 {
	for i := commit; i > s.State().Index(); i-- {
		var entry raft.Log
		if s.cache.GetLog(i, &entry) != nil {
			// Compacted away, so the state machine is past it.
			break
		}
		if entry.Type == raft.LogCommand || entry.Type == raft.LogConfiguration {
			return i
		}
	}
	return s.State().Index()
}

// Ready returns nil once the server has applied everything that the leader had
// committed when the server first reached it after its start, and ErrNotReady
// before. A server that is being drained is not ready. What it knew before that
// may be older than what data planes already have.
func (s *Store) Ready() error {
	switch {
	case s.draining.Load():
		return fmt.Errorf("%w: the server is stopping", ErrNotReady)
	case !s.ready.Load():
		return ErrNotReady
	}
	return nil
}

// catchUp makes the server ready.
func (s *Store) catchUp(ctx context.Context) {
	for attempt := 0; ; attempt++ {
		step, cancel := context.WithTimeout(ctx, 5*time.Second)
		index, err := s.readIndexOnce(step)
		if err == nil {
			err = s.waitIndex(step, index)
		}
		cancel()
		if err == nil {
			s.ready.Store(true)
			s.watch.wake()
			return
		}
		if s.pause(ctx, attempt) != nil {
			return
		}
	}
}
