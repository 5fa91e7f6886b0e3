package raftstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

var (
	// ErrNotMember says that a server is not part of the cluster.
	ErrNotMember = errors.New("not a member of the cluster")
	// ErrRefused is wrapped by errors of changes to the cluster that would harm
	// it. Nothing was done.
	ErrRefused = errors.New("refused")
)

// Status is how one server is doing.
type Status struct {
	ID      string
	Address string
	// Role is `leader`, `follower`, `candidate`, or `shutdown`.
	Role                  string
	Term                  uint64
	LastIndex, LastTerm   uint64
	CommitIndex           uint64
	AppliedIndex          uint64
	SnapshotIndex         uint64
	LastContact           time.Duration // since the leader was heard of; negative when it never was
	Leader, LeaderAddress string
	Epoch                 uint64
	Ready                 bool
	DiskFull              bool
	Voters, NonVoters     int
	LogBytes, FreeBytes   uint64
}

// Peer is a server of the cluster as another sees it.
type Peer struct {
	ID      string
	Address string
	// Leader and Voter are as this server knows them.
	Leader, Voter bool
	// Self is set on the server that was asked.
	Self bool
	// Reachable says whether the server answered just now; what follows is
	// known only then.
	Reachable    bool
	Role         string
	LastIndex    uint64
	AppliedIndex uint64
	LastContact  time.Duration
	Ready        bool
}

// Status tells how this server is doing.
func (s *Store) Status() (Status, error) {
	if err := s.up(); err != nil {
		return Status{}, err
	}
	stats := s.raft.Stats()
	number := func(key string) uint64 { n, _ := strconv.ParseUint(stats[key], 10, 64); return n }
	st := Status{
		ID: s.id, Address: string(s.trans.LocalAddr()), Role: roleName(s.raft.State()),
		Term: number("term"), LastIndex: number("last_log_index"), LastTerm: number("last_log_term"),
		CommitIndex: number("commit_index"), AppliedIndex: s.State().Index(), SnapshotIndex: number("last_snapshot_index"),
		LastContact: s.lastContact(), Epoch: s.State().Epoch(), Ready: s.Ready() == nil, DiskFull: s.dog.check() != nil,
	}
	st.Leader, st.LeaderAddress, _ = s.Leader()
	for _, server := range s.servers() {
		if server.Suffrage == raft.Voter {
			st.Voters++
		} else {
			st.NonVoters++
		}
	}
	st.LogBytes = s.log.size()
	st.FreeBytes, _ = s.dog.free(s.cfg.DataDir)
	return st, nil
}

func roleName(r raft.RaftState) string {
	switch r {
	case raft.Leader:
		return "leader"
	case raft.Candidate:
		return "candidate"
	case raft.Shutdown:
		return "shutdown"
	}
	return "follower"
}

func (s *Store) lastContact() time.Duration {
	if s.raft.State() == raft.Leader {
		return 0
	}
	last := s.raft.LastContact()
	if last.IsZero() {
		return -1
	}
	return time.Since(last)
}

// Peers lists the servers of the cluster by the configuration that this server
// knows, and asks each how it is doing, for a second at most.
func (s *Store) Peers(ctx context.Context) ([]Peer, error) {
	if err := s.waitStarted(ctx); err != nil {
		return nil, err
	}
	leader, _, _ := s.Leader()
	servers := s.servers()
	peers := make([]Peer, len(servers))
	var wg sync.WaitGroup
	for i, server := range servers {
		peers[i] = Peer{
			ID: string(server.ID), Address: string(server.Address), Self: string(server.ID) == s.id,
			Leader: string(server.ID) == leader, Voter: server.Suffrage == raft.Voter,
		}
		wg.Go(func() { s.askPeer(ctx, &peers[i]) })
	}
	wg.Wait()
	return peers, nil
}

func (s *Store) askPeer(ctx context.Context, p *Peer) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	st, err := s.statusOf(ctx, p.ID)
	if err != nil {
		return
	}
	p.Reachable, p.Role, p.LastIndex, p.AppliedIndex, p.LastContact, p.Ready = true, st.Role, st.LastIndex, st.AppliedIndex, st.LastContact, st.Ready
}

func (s *Store) statusOf(ctx context.Context, id string) (Status, error) {
	if id == s.id {
		return s.Status()
	}
	client, err := s.clientOf(ctx, id)
	if err != nil {
		return Status{}, err
	}
	m, err := client.Status(ctx, &musterv1.PeerServiceStatusRequest{})
	if err != nil {
		return Status{}, err
	}
	if m.GetId() != id {
		return Status{}, fmt.Errorf("the server at the address of %q is %q", id, m.GetId())
	}
	st := Status{
		ID: m.GetId(), Address: m.GetAddress(), Role: m.GetRole(), Term: m.GetTerm(), LastIndex: m.GetLastIndex(), LastTerm: m.GetLastTerm(),
		CommitIndex: m.GetCommitIndex(), AppliedIndex: m.GetAppliedIndex(), LastContact: -1, Ready: m.GetReady(), Epoch: m.GetEpoch(),
	}
	if m.LastContact != nil {
		st.LastContact = m.GetLastContact().AsDuration()
	}
	return st, nil
}

// Join makes this server part of the cluster that any of the addresses belongs
// to, as a server without a vote; the leader gives it one once it has kept up
// for a while. A server that is a member already tells the cluster its address.
// It waits until ctx ends for a server that answers.
func (s *Store) Join(ctx context.Context, addresses []string) error {
	if err := s.waitStarted(ctx); err != nil {
		return err
	}
	if s.wire == nil {
		return fmt.Errorf("%w: a server without RaftAddr cannot join", ErrRefused)
	}
	fresh := s.raft.LastIndex() == 0 && len(s.servers()) == 0
	if !fresh && s.addressOf(s.id) == "" {
		return fmt.Errorf("%w: this server's data belongs to a cluster that it is not a member of any more; move the data directory away first", ErrRefused)
	}
	request := &musterv1.PeerServiceJoinRequest{Id: s.id, Address: string(s.trans.LocalAddr()), Fresh: fresh}
	for attempt := 0; ; attempt++ {
		var last error
		for _, addr := range addresses {
			err := s.joinAt(ctx, addr, request)
			if err == nil {
				s.admitted.Store(true)
			}
			if err == nil || errors.Is(err, ErrRefused) {
				return err
			}
			last = err
		}
		if err := s.pause(ctx, attempt+4); err != nil {
			return fmt.Errorf("join: %w: %w", err, last)
		}
	}
}

// announce joins the cluster that the configuration names, when this server is
// not part of one, and tells a cluster that it is part of a changed address.
func (s *Store) announce(ctx context.Context) {
	addresses := s.cfg.Join
	for _, server := range s.servers() {
		if string(server.ID) != s.id {
			addresses = append(addresses[:len(addresses):len(addresses)], string(server.Address))
		}
	}
	known := s.addressOf(s.id)
	if len(addresses) == 0 || known == string(s.trans.LocalAddr()) || (known == "" && len(s.cfg.Join) == 0) {
		return
	}
	if err := s.Join(ctx, addresses); err != nil && ctx.Err() == nil {
		s.logger.Error("this server could not join the cluster", "error", err)
	}
}

func (s *Store) joinAt(ctx context.Context, addr string, request *musterv1.PeerServiceJoinRequest) error {
	client, err := s.wire.clients.at(addr)
	if err != nil {
		return err
	}
	answer, err := client.Join(ctx, request)
	if err != nil {
		return callError(err)
	}
	return storeErrorFromProto(answer.GetError())
}

// admitServer adds a server, here if this server leads, else by one hop.
func (s *Store) admitServer(ctx context.Context, req *musterv1.PeerServiceJoinRequest) error {
	if s.raft.State() == raft.Leader {
		return s.addAsLeader(ctx, req)
	}
	_, leader, self := s.Leader()
	if leader == "" || self || req.GetForwarded() {
		return &NotLeaderError{}
	}
	return s.joinAt(ctx, leader, &musterv1.PeerServiceJoinRequest{Id: req.GetId(), Address: req.GetAddress(), Fresh: req.GetFresh(), Forwarded: true})
}

func (s *Store) addAsLeader(ctx context.Context, req *musterv1.PeerServiceJoinRequest) error {
	id, addr := raft.ServerID(req.GetId()), raft.ServerAddress(req.GetAddress())
	if _, _, err := net.SplitHostPort(string(addr)); err != nil || id == "" {
		return fmt.Errorf("%w: %q at %q is not a server", ErrRefused, id, addr)
	}
	suffrage, member := raft.Nonvoter, false
	servers, index := s.configuration()
	for _, server := range servers {
		member = member || server.ID == id
		switch {
		case server.ID == id && server.Suffrage == raft.Voter && req.GetFresh():
			return fmt.Errorf("%w: server %q has a vote but has lost its data; remove it first", ErrRefused, id)
		case server.ID == id && server.Address == addr:
			return nil
		case server.ID == id:
			suffrage = server.Suffrage
		case server.Address == addr:
			return fmt.Errorf("%w: %s is the address of server %q; remove it first", ErrRefused, addr, server.ID)
		}
	}
	if !member && !req.GetFresh() {
		// raft tells a server of its removal only as well as it can, so the
		// server itself may still take itself for a member.
		return fmt.Errorf("%w: server %q has data of a cluster and is no member of this one; move its data directory away first", ErrRefused, id)
	}
	var future raft.Future
	if suffrage == raft.Voter {
		future = s.raft.AddVoter(id, addr, index, s.cfg.ApplyTimeout)
	} else {
		future = s.raft.AddNonvoter(id, addr, index, s.cfg.ApplyTimeout)
	}
	if err := s.await(ctx, future); err != nil {
		return s.memberError("add", string(id), index, err)
	}
	s.logger.Info("a server joined the cluster", "id", id, "address", addr)
	return nil
}

// memberError sorts raft's errors of a change that was decided on by the
// configuration of an index.
func (s *Store) memberError(verb, id string, index uint64, err error) error {
	if errors.Is(err, raft.ErrNotLeader) {
		return &NotLeaderError{}
	}
	if errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		return errHandingOver
	}
	if _, now := s.configuration(); now != index && strings.Contains(err.Error(), "configuration changed since") {
		return errHandingOver // to be looked at afresh
	}
	return fmt.Errorf("%s server %q: %w", verb, id, err)
}

// Remove takes a server out of the cluster, by its id. It is refused, unless
// force is set, when too few of the remaining voters answer to go on without
// it. A leader that is to be removed hands leadership on first.
func (s *Store) Remove(ctx context.Context, id string, force bool) error {
	return s.askLeader(ctx, func(ctx context.Context) error {
		if id == s.id && s.voters() > 1 {
			if err := s.transfer(ctx, ""); err != nil {
				return err
			}
			return errHandingOver
		}
		return s.removeAsLeader(ctx, id, force)
	}, func(ctx context.Context, client musterv1.PeerServiceClient) (*musterv1.StoreError, error) {
		answer, err := client.Remove(ctx, &musterv1.PeerServiceRemoveRequest{Id: id, Force: force})
		return answer.GetError(), err
	})
}

func (s *Store) removeAsLeader(ctx context.Context, id string, force bool) error {
	if s.raft.State() != raft.Leader {
		return &NotLeaderError{}
	}
	_, index := s.configuration()
	if s.addressOf(id) == "" {
		return fmt.Errorf("server %q: %w", id, ErrNotMember)
	}
	if id == s.id {
		// The caller is another server; it comes back once the next one leads.
		if err := s.transfer(ctx, ""); err != nil {
			return err
		}
		return errHandingOver
	}
	if !force {
		if err := s.survives(ctx, id); err != nil {
			return err
		}
	}
	if err := s.await(ctx, s.raft.RemoveServer(raft.ServerID(id), index, s.cfg.ApplyTimeout)); err != nil {
		return s.memberError("remove", id, index, err)
	}
	s.logger.Info("a server was removed from the cluster", "id", id)
	return nil
}

// survives tells whether a majority of the voters that remain without a server
// answers.
func (s *Store) survives(ctx context.Context, without string) error {
	peers, err := s.Peers(ctx)
	if err != nil {
		return err
	}
	var voters, alive int
	for _, p := range peers {
		if !p.Voter || p.ID == without {
			continue
		}
		voters++
		if p.Reachable {
			alive++
		}
	}
	if alive <= voters/2 {
		return fmt.Errorf("%w: without server %q only %d of %d voters would be within reach", ErrRefused, without, alive, voters)
	}
	return nil
}

// TransferLeader hands leadership to a server by its id, or, when id is empty,
// to the one that is most up to date.
func (s *Store) TransferLeader(ctx context.Context, id string) error {
	return s.askLeader(ctx, func(ctx context.Context) error { return s.transferAsLeader(ctx, id) },
		func(ctx context.Context, client musterv1.PeerServiceClient) (*musterv1.StoreError, error) {
			answer, err := client.TransferLeader(ctx, &musterv1.PeerServiceTransferLeaderRequest{Id: id})
			return answer.GetError(), err
		})
}

func (s *Store) transferAsLeader(ctx context.Context, id string) error {
	if s.raft.State() != raft.Leader {
		return &NotLeaderError{}
	}
	if id == s.id {
		return nil
	}
	if id == "" && s.voters() < 2 {
		return fmt.Errorf("%w: there is no other voter", ErrRefused)
	}
	return s.transfer(ctx, id)
}

// askLeader does something on the leader: here, or by one hop. It tries again
// while there is no leader, until ctx ends.
func (s *Store) askLeader(ctx context.Context, here func(context.Context) error, there func(context.Context, musterv1.PeerServiceClient) (*musterv1.StoreError, error)) error {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.waitStarted(ctx); err != nil {
		return err
	}
	for attempt := 0; ; attempt++ {
		err := s.askLeaderOnce(ctx, here, there)
		if !errors.Is(err, ErrNotLeader) && !errors.Is(err, ErrNoLeader) && !errors.Is(err, errHandingOver) {
			return err
		}
		if stopErr := s.pause(ctx, attempt); stopErr != nil {
			return fmt.Errorf("%w: %w", ErrNoLeader, stopErr)
		}
	}
}

func (s *Store) askLeaderOnce(ctx context.Context, here func(context.Context) error, there func(context.Context, musterv1.PeerServiceClient) (*musterv1.StoreError, error)) error {
	if s.raft.State() == raft.Leader {
		return here(ctx)
	}
	_, leader, self := s.Leader()
	if leader == "" || self || s.wire == nil {
		return ErrNoLeader
	}
	client, err := s.wire.clients.at(leader)
	if err != nil {
		return err
	}
	refusal, err := there(ctx, client)
	if errors.Is(err, ErrUnknown) {
		return err
	}
	if err != nil {
		return callError(err)
	}
	return storeErrorFromProto(refusal)
}
