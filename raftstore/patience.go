package raftstore

import (
	"time"

	"github.com/hashicorp/raft"
)

// patientTransport keeps raft from giving up on a server that is away. Raft
// doubles its pause after each failed append, to 10 s, and does not cut that
// short when heartbeats get through again: a server that was away for half a
// minute would take part in no commit for seconds after its return, and if it
// is needed for the majority, no write would go through meanwhile.
type patientTransport struct {
	*raft.NetworkTransport
	s *Store
}

var (
	_ raft.Transport   = patientTransport{}
	_ raft.WithPreVote = patientTransport{}
	_ raft.WithClose   = patientTransport{}
)

// appendPause is how long to wait before the same entries are sent once more.
const appendPause = 100 * time.Millisecond

// AppendEntries sends entries until the server has answered, or must not be
// sent them any more. Sending the same entries twice does no harm. Heartbeats
// are tried once: raft counts their failures.
func (t patientTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	heartbeat := args.PrevLogEntry == 0 && args.PrevLogTerm == 0 && len(args.Entries) == 0 && args.LeaderCommitIndex == 0
	for {
		*resp = raft.AppendEntriesResponse{}
		err := t.NetworkTransport.AppendEntries(id, target, args, resp)
		if err == nil || heartbeat || !t.s.replicates(id, target, args.Term) {
			return err
		}
		time.Sleep(appendPause)
		if !t.s.replicates(id, target, args.Term) {
			return err
		}
	}
}

// replicates tells whether this server is the leader of a term and has a
// server at an address to replicate to.
func (s *Store) replicates(id raft.ServerID, addr raft.ServerAddress, term uint64) bool {
	return s.up() == nil && s.raft.State() == raft.Leader && s.raft.CurrentTerm() == term && s.addressOf(string(id)) == string(addr)
}
