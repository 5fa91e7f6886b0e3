package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/raftstore/state"
)

// Bounds of what is put into one log entry, and of the entries that are on
// their way at once. Two keep the disks busy while answers are passed on; more
// would only make the batches smaller.
const (
	maxBatch         = 256
	maxBatchBytes    = 1 << 20
	maxBatchInFlight = 2
)

// proposer gathers the commands that arrive while others are on their way into
// one log entry: an entry costs raft, on each server, several times what a
// command costs the state machine. A command that arrives alone does not wait.
type proposer struct {
	wake chan struct{}

	mu    sync.Mutex
	queue []*proposal
}

// proposal is one command that waits to be committed.
type proposal struct {
	entry []byte
	// state says whether it can still be taken back.
	state atomic.Int32
	done  chan applied // of one slot
}

const (
	proposalQueued = iota
	proposalTaken
	proposalGivenUp
)

// propose commits an entry on this server, which must lead.
func (s *Store) propose(ctx context.Context, entry []byte) (state.Result, error) {
	p, err := s.queue(entry)
	if err != nil {
		return state.Result{}, err
	}
	return s.outcome(ctx, p)
}

// queue hands an entry over to be proposed after those before it.
func (s *Store) queue(entry []byte) (*proposal, error) {
	if err := s.dog.check(); err != nil {
		return nil, err
	}
	if s.restoring.Load() {
		return nil, errHandingOver
	}
	p := &proposal{entry: entry, done: make(chan applied, 1)}
	s.proposals.add(p)
	return p, nil
}

// outcome waits for what becomes of a proposal.
func (s *Store) outcome(ctx context.Context, p *proposal) (state.Result, error) {
	select {
	case a := <-p.done:
		return a.result, a.err
	case <-s.stopped:
		if p.state.CompareAndSwap(proposalQueued, proposalGivenUp) {
			return state.Result{}, ErrStopped
		}
		return state.Result{}, &unknownError{ErrStopped}
	case <-ctx.Done():
		if p.state.CompareAndSwap(proposalQueued, proposalGivenUp) {
			return state.Result{}, fmt.Errorf("%w: the leader did not take the command in time: %w", ErrNoLeader, ctx.Err())
		}
		return state.Result{}, &unknownError{ctx.Err()}
	}
}

func (q *proposer) add(p *proposal) {
	q.mu.Lock()
	q.queue = append(q.queue, p)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take returns what goes into the next entry.
func (q *proposer) take() []*proposal {
	q.mu.Lock()
	defer q.mu.Unlock()
	var batch []*proposal
	bytes := 0
	for len(q.queue) > 0 && len(batch) < maxBatch {
		p := q.queue[0]
		if len(batch) > 0 && bytes+len(p.entry) > maxBatchBytes {
			break
		}
		q.queue = q.queue[1:]
		if p.state.CompareAndSwap(proposalQueued, proposalTaken) {
			batch = append(batch, p)
			bytes += len(p.entry)
		}
	}
	if len(q.queue) == 0 {
		q.queue = nil
	}
	return batch
}

// serveProposals proposes one batch after the other until ctx ends. It returns
// once raft has answered all of them.
func (s *Store) serveProposals(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxBatchInFlight)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		batch := s.proposals.take()
		for len(batch) == 0 {
			select {
			case <-s.proposals.wake:
				batch = s.proposals.take()
			case <-ctx.Done():
				return
			}
		}
		s.gate.RLock()
		future := s.raft.Apply(sealBatch(batch), s.cfg.ApplyTimeout)
		wg.Go(func() {
			defer func() { <-slots }()
			err := future.Error()
			s.gate.RUnlock()
			answer(batch, future, err)
		})
	}
}

// sealBatch returns the log entry of a batch.
func sealBatch(batch []*proposal) []byte {
	if len(batch) == 1 {
		return batch[0].entry
	}
	entries := make([][]byte, len(batch))
	for i, p := range batch {
		entries[i] = p.entry
	}
	return encodeBatch(entries)
}

func answer(batch []*proposal, future raft.ApplyFuture, err error) {
	answers, _ := future.Response().([]applied)
	if err == nil && len(answers) != len(batch) {
		err = errors.New("the state machine gave no answer")
	}
	for i, p := range batch {
		if err != nil {
			p.done <- applied{err: proposeError(err)}
		} else {
			p.done <- answers[i]
		}
	}
}

// proposeError sorts raft's errors by whether the entry can have been committed.
func proposeError(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader):
		return &NotLeaderError{}
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errHandingOver
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return fmt.Errorf("%w: the leader did not take the command in time", ErrNoLeader)
	}
	return &unknownError{err}
}
