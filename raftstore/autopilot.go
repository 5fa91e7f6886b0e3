package raftstore

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// keepMembers is the leader's care for the cluster until ctx ends: it gives
// servers that keep up a vote and, if configured, removes dead ones.
func (s *Store) keepMembers(ctx context.Context) {
	s.updateOwnAddress(ctx)
	pilot := &pilot{s: s, ctx: ctx, seen: map[raft.ServerID]time.Time{}}
	ap := autopilot.New(pilotRaft{s.raft, s}, pilot,
		autopilot.WithLogger(newRaftLogger(s.logger, "raft")),
		autopilot.WithUpdateInterval(s.cfg.Autopilot.interval),
		autopilot.WithReconcileInterval(s.cfg.Autopilot.interval),
	)
	ap.Start(ctx)
	<-ctx.Done()
	<-ap.Stop()
	pilot.removals.Wait()
}

// updateOwnAddress makes the configuration say where the leader is reached
// now, so that servers that join learn it.
func (s *Store) updateOwnAddress(ctx context.Context) {
	own := s.trans.LocalAddr()
	servers, index := s.configuration()
	if !slices.ContainsFunc(servers, func(m raft.Server) bool { return string(m.ID) == s.id && m.Address != own }) {
		return
	}
	if err := s.await(ctx, s.raft.AddVoter(raft.ServerID(s.id), own, index, s.cfg.ApplyTimeout)); err != nil {
		s.logger.Warn("this server's new address could not be made known", "address", own, "error", err)
	}
}

// pilotRaft is raft as autopilot sees it. Autopilot decides by a view of the
// cluster that may be a second old: without the check it gives a vote to, and
// so brings back, a server that was removed meanwhile.
type pilotRaft struct {
	*raft.Raft
	s *Store
}

// AddVoter gives a vote to a server that is still a member without one, at the
// address that it has now.
func (r pilotRaft) AddVoter(id raft.ServerID, _ raft.ServerAddress, _ uint64, timeout time.Duration) raft.IndexFuture {
	servers, index := r.s.configuration()
	for _, server := range servers {
		switch {
		case server.ID != id:
		case server.Suffrage == raft.Voter:
			return doneFuture{index: index}
		default:
			return r.Raft.AddVoter(id, server.Address, index, timeout)
		}
	}
	return doneFuture{err: fmt.Errorf("server %q: %w", id, ErrNotMember)}
}

// doneFuture is a future whose outcome is known.
type doneFuture struct {
	index uint64
	err   error
}

func (f doneFuture) Error() error  { return f.err }
func (f doneFuture) Index() uint64 { return f.index }

// pilot tells autopilot about the servers. Autopilot calls it from its own
// goroutines.
type pilot struct {
	s        *Store
	ctx      context.Context // of the term
	removals sync.WaitGroup

	mu   sync.Mutex
	seen map[raft.ServerID]time.Time // when a server last answered
}

var _ autopilot.ApplicationIntegration = (*pilot)(nil)

func (p *pilot) AutopilotConfig() *autopilot.Config {
	c := p.s.cfg.Autopilot
	return &autopilot.Config{
		CleanupDeadServers:      c.MinQuorum > 0,
		LastContactThreshold:    2 * p.s.cfg.HeartbeatTimeout,
		MaxTrailingLogs:         c.MaxTrailing,
		MinQuorum:               c.MinQuorum,
		ServerStabilizationTime: c.Stabilize,
	}
}

func (p *pilot) NotifyState(*autopilot.State) {}

func (p *pilot) FetchServerStats(ctx context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	type answer struct {
		id raft.ServerID
		st Status
		ok bool
	}
	answers := make(chan answer, len(servers))
	var wg sync.WaitGroup
	for id := range servers {
		wg.Go(func() {
			st, err := p.s.statusOf(ctx, string(id))
			answers <- answer{id, st, err == nil}
		})
	}
	wg.Wait()
	close(answers)
	stats := map[raft.ServerID]*autopilot.ServerStats{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for a := range answers {
		// One that does not answer is out of contact; left out, autopilot would
		// go on with what it last said.
		stats[a.id] = &autopilot.ServerStats{LastContact: -1}
		if a.ok {
			p.seen[a.id] = time.Now()
			stats[a.id] = &autopilot.ServerStats{LastContact: a.st.LastContact, LastTerm: a.st.LastTerm, LastIndex: a.st.LastIndex}
		}
	}
	return stats
}

func (p *pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	known := map[raft.ServerID]*autopilot.Server{}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, server := range p.s.servers() {
		if _, there := p.seen[server.ID]; !there {
			// A new leader does not know for how long a server has been silent.
			p.seen[server.ID] = time.Now()
		}
		status := autopilot.NodeAlive
		if time.Since(p.seen[server.ID]) > p.s.cfg.Autopilot.DeadAfter {
			status = autopilot.NodeFailed
		}
		known[server.ID] = &autopilot.Server{
			ID: server.ID, Name: string(server.ID), Address: server.Address,
			NodeStatus: status, NodeType: autopilot.NodeVoter, RaftVersion: int(raft.ProtocolVersionMax),
			IsLeader: string(server.ID) == p.s.id,
		}
	}
	return known
}

// RemoveFailedServer removes a dead server, in the background as autopilot asks.
func (p *pilot) RemoveFailedServer(server *autopilot.Server) {
	p.removals.Go(func() {
		ctx, cancel := p.s.bound(p.ctx)
		defer cancel()
		p.s.logger.Warn("removing a server that has been out of reach for too long", "id", server.ID, "address", server.Address)
		if err := p.s.removeAsLeader(ctx, string(server.ID), false); err != nil {
			p.s.logger.Warn("the dead server could not be removed", "id", server.ID, "error", err)
		}
	})
}
