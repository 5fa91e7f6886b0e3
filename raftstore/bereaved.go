package raftstore

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A leader whose process ends closes its connections: the kernel says so at once,
// while raft waits for a heartbeat for HeartbeatTimeout to twice that. What follows
// is safe whatever the reason was, because votes are as raft has them; only a leader
// that is alive could be disturbed, and so a new election is begun early only when
// nothing listens any more at the leader's address.

const (
	// probeTimeout bounds the question whether somebody listens there, which is asked
	// so many times with a pause between.
	probeTimeout = 200 * time.Millisecond
	probes       = 4
	probePause   = 10 * time.Millisecond
	// successionStep is by how much later each voter than the one before stands for
	// election, by their ids: two at once may split the votes, and lose a timeout.
	successionStep = 120 * time.Millisecond
)

// lost notes that a connection has ended over which another server sent raft's
// messages. In plaintext nobody knows which: then it may have been the leader.
func (s *Store) lost(id string) {
	leader, _, self := s.Leader()
	if leader == "" || self || (id != "" && id != leader) {
		return
	}
	select {
	case s.bereaved <- leader:
	default: // one is looked into already
	}
}

// succeed stands for election when the leader's process has ended, until ctx ends.
func (s *Store) succeed(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case id := <-s.bereaved:
			turn, votes := s.turn(id)
			// One that is yet to catch up would not be elected, only be in the way.
			if votes && s.ready.Load() && s.follows(id) && s.gone(ctx, s.addressOf(id)) && sleep(ctx, turn) == nil && s.orphaned(id) {
				s.logger.Info("the leader's process has ended; standing for election", "leader", id)
				// Raft asks each server for its vote once: not over a connection that was
				// left from before that server's last restart.
				s.wire.trans.CloseStreams()
				if err := s.stand(); err != nil {
					s.logger.Warn("this server could not stand for election", "error", err)
				}
			}
		}
	}
}

// follows tells whether this server is a follower of a leader.
func (s *Store) follows(id string) bool {
	leader, _, _ := s.Leader()
	return leader == id && s.raft.State() == raft.Follower
}

// orphaned tells whether this server still has no other leader than that one, be it
// that nobody stood or that nobody won.
func (s *Store) orphaned(id string) bool {
	leader, _, _ := s.Leader()
	return (leader == "" || leader == id) && s.raft.State() == raft.Follower
}

// gone tells whether nobody listens at an address. A host that does not answer says
// nothing of its processes. A process that is ending may close its port last, so it is
// asked a few times.
func (s *Store) gone(ctx context.Context, addr string) bool {
	for range probes {
		if addr == "" {
			return false
		}
		c, err := s.wire.dialRaw(addr, probeTimeout)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
		if err != nil {
			return false
		}
		_ = c.Close()
		if sleep(ctx, probePause) != nil {
			return false
		}
	}
	return false
}

// turn is how long this server waits before it stands for election in place of a
// leader; false when it has no vote.
func (s *Store) turn(leader string) (time.Duration, bool) {
	var voters []string
	for _, server := range s.servers() {
		if server.Suffrage == raft.Voter && string(server.ID) != leader {
			voters = append(voters, string(server.ID))
		}
	}
	slices.Sort(voters)
	place := slices.Index(voters, s.id)
	return time.Duration(place) * successionStep, place >= 0
}
