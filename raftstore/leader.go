package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// leadership is what this server knows of its own term as leader.
type leadership struct {
	// term is set while this server leads and has committed an entry of its
	// own term, 0 otherwise. Only then does its commit index cover everything
	// that was acknowledged before.
	term atomic.Uint64
}

// lead follows raft's leadership: on gain it starts the leader's work, on loss
// it stops that and waits for its end. Raft blocks until a change is taken, so
// this never waits for the network.
func (s *Store) lead(ctx context.Context, notify <-chan bool) {
	var stop func()
	end := func() {
		if stop != nil {
			stop()
			stop = nil
		}
	}
	defer end()
	for {
		select {
		case <-ctx.Done():
			return
		case gained := <-notify:
			end()
			if gained {
				stop = s.beginTerm(ctx)
			}
		}
	}
}

// beginTerm starts the leader's work and returns what stops it.
func (s *Store) beginTerm(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.workAsLeader(ctx) })
	return func() {
		s.leader.term.Store(0)
		cancel()
		wg.Wait()
		s.leader.term.Store(0)
	}
}

func (s *Store) workAsLeader(ctx context.Context) {
	term := s.raft.CurrentTerm()
	for {
		// Committed in this term, and everything before it is applied.
		err := s.raft.Barrier(s.cfg.ApplyTimeout).Error()
		if err == nil {
			break
		}
		if ctx.Err() != nil || errors.Is(err, raft.ErrNotLeader) || errors.Is(err, raft.ErrLeadershipLost) || errors.Is(err, raft.ErrRaftShutdown) {
			return
		}
		s.logger.Warn("the leader's first entry was not committed yet", "error", err)
		if sleep(ctx, 50*time.Millisecond) != nil {
			return
		}
	}
	if ctx.Err() != nil {
		return
	}
	s.leader.term.Store(term)
	s.reads.poke()
	s.watch.wake()
	s.logger.Info("leads the cluster", "term", term)
	if s.wire != nil {
		s.keepMembers(ctx)
	}
}

// leads tells whether this server leads and may answer for the cluster.
func (s *Store) leads() bool {
	return s.leader.term.Load() != 0 && s.raft.State() == raft.Leader
}

// electSole makes the only voter of a cluster stand for election at once,
// instead of waiting for a leader that cannot be.
func (s *Store) electSole() {
	future := s.raft.GetConfiguration()
	if future.Error() != nil {
		return
	}
	voters := 0
	for _, server := range future.Configuration().Servers {
		if server.Suffrage != raft.Voter {
			continue
		}
		voters++
		if string(server.ID) != s.id {
			return
		}
	}
	if voters != 1 {
		return
	}
	if err := s.stand(); err != nil {
		s.logger.Warn("the only server could not shorten its election", "error", err)
	}
}

// stand makes this server stand for election at once.
func (s *Store) stand() error {
	request := &raft.TimeoutNowRequest{RPCHeader: raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax,
		ID:              []byte(s.id),
		Addr:            s.trans.EncodePeer(raft.ServerID(s.id), s.trans.LocalAddr()),
	}}
	return s.trans.TimeoutNow(raft.ServerID(s.id), s.trans.LocalAddr(), request, &raft.TimeoutNowResponse{})
}

// WaitLeader returns once the cluster has a leader that can commit, known to
// this server.
func (s *Store) WaitLeader(ctx context.Context) error {
	if err := s.waitStarted(ctx); err != nil {
		return err
	}
	for {
		if id, _, self := s.Leader(); id != "" && (!self || s.leads()) {
			return nil
		}
		if err := s.up(); err != nil {
			return err
		}
		if err := sleep(ctx, 5*time.Millisecond); err != nil {
			return fmt.Errorf("%w: %w", ErrNoLeader, err)
		}
	}
}

// Drain makes the server not ready and, if it leads, hands leadership to
// another voter. Writes keep being forwarded. It returns nil when the server
// does not lead any more, or is the only voter.
func (s *Store) Drain(ctx context.Context) error {
	s.draining.Store(true)
	if err := s.up(); err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		if s.raft.State() != raft.Leader || s.voters() < 2 {
			return nil
		}
		err := s.transfer(ctx, "")
		if err == nil {
			return nil
		}
		if attempt == 2 || ctx.Err() != nil {
			return err
		}
	}
}

func (s *Store) voters() (n int) {
	for _, server := range s.servers() {
		if server.Suffrage == raft.Voter {
			n++
		}
	}
	return n
}

// servers is the newest configuration that this server knows.
func (s *Store) servers() []raft.Server {
	servers, _ := s.configuration()
	return servers
}

// configuration is servers with the log index of its last change. A change
// that was decided on by it passes the index on, and fails if it is outdated.
func (s *Store) configuration() ([]raft.Server, uint64) {
	future := s.raft.GetConfiguration()
	if future.Error() != nil {
		return nil, 0
	}
	return future.Configuration().Servers, future.Index()
}

// transfer hands leadership to a server, or to the one that is most up to date.
func (s *Store) transfer(ctx context.Context, id string) error {
	var future raft.Future
	if id == "" {
		future = s.raft.LeadershipTransfer()
	} else {
		addr := s.addressOf(id)
		if addr == "" {
			return fmt.Errorf("server %q: %w", id, ErrNotMember)
		}
		future = s.raft.LeadershipTransferToServer(raft.ServerID(id), raft.ServerAddress(addr))
	}
	switch err := s.await(ctx, future); {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader):
		return &NotLeaderError{} // it was lost meanwhile: the next one is to be asked
	case errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errHandingOver
	default:
		return fmt.Errorf("hand leadership on: %w", err)
	}
}

// await waits for a future of raft, which takes no context. Raft answers every
// future, at the latest when it stops; Run waits for the gate, and so for this.
func (s *Store) await(ctx context.Context, future raft.Future) error {
	s.gate.RLock()
	done := make(chan error, 1)
	go func() {
		defer s.gate.RUnlock()
		done <- future.Error()
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
