package raftstore

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"
)

// peersFile, put into the data directory of a stopped server, replaces the
// cluster's configuration when the server is opened: the way out when a
// majority is lost for good. It is a JSON array of
// `{"id": "...", "address": "host:port", "non_voter": false}`.
const peersFile = "peers.json"

// recoveryEpoch remembers, across a crash in the middle of a recovery, which
// epoch it leads to.
const recoveryEpoch = "recovery-epoch"

// recoverPeers carries out a peers.json, if there is one. Entries of the log
// that were never committed become committed by it, and what other servers
// committed may be gone, so the epoch rises: no data plane goes back.
func (s *Store) recoverPeers() error {
	path := filepath.Join(s.cfg.DataDir, peersFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	servers, err := raft.ReadConfigJSON(path)
	if err != nil {
		return fmt.Errorf("recover: %s: %w", path, err)
	}
	throwaway := &recoveryFSM{fsm: newFSM(s.logger, func() {}, func(error) {})}
	if throwaway.epoch, err = s.recoveryTarget(); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := raft.RecoverCluster(s.raftConfig(nil), throwaway, s.log, s.log, s.snaps, s.trans, servers); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	if err := os.Rename(path, path+".done"); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	_ = os.Remove(filepath.Join(s.cfg.DataDir, recoveryEpoch))
	if err := syncDir(s.cfg.DataDir); err != nil {
		return fmt.Errorf("recover: %w", err)
	}
	st := throwaway.state.Load().WithEpoch(throwaway.epoch)
	s.fsm.state.Store(st)
	s.logger.Warn("recovered the cluster from peers.json", "servers", len(servers.Servers), "epoch", st.Epoch(), "index", st.Index())
	return nil
}

// recoveryTarget is the epoch that this recovery leads to: one more than the
// newest snapshot's or the log's. It is kept first, so that a recovery that is
// cut short and done again leads to the same.
func (s *Store) recoveryTarget() (uint64, error) {
	path := filepath.Join(s.cfg.DataDir, recoveryEpoch)
	data, err := os.ReadFile(path)
	if err == nil && len(data) == 8 {
		return binary.BigEndian.Uint64(data), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return 0, err
	}
	epoch, err := s.lastEpoch()
	if err != nil {
		return 0, err
	}
	return epoch + 1, writeFileSync(path, binary.BigEndian.AppendUint64(nil, epoch+1), 0o600)
}

// lastEpoch replays the log on top of the snapshot that was read by checkData.
func (s *Store) lastEpoch() (uint64, error) {
	replay := newFSM(s.logger, func() {}, func(error) {})
	replay.state.Store(s.fsm.state.Load())
	last, err := s.log.LastIndex()
	if err != nil {
		return 0, err
	}
	for i := s.snapshotIndex + 1; i <= last; i++ {
		var entry raft.Log
		if err := s.log.GetLog(i, &entry); err != nil {
			return 0, err
		}
		replay.ApplyBatch([]*raft.Log{&entry})
		if replay.halted != nil {
			return 0, replay.halted
		}
	}
	return replay.state.Load().Epoch(), nil
}

// recoveryFSM is an FSM whose snapshots are of a given epoch.
type recoveryFSM struct {
	*fsm
	epoch uint64
}

// Apply carries out commands only: RecoverCluster does not batch.
func (f *recoveryFSM) Apply(l *raft.Log) any { return f.fsm.Apply(l) }

func (f *recoveryFSM) Snapshot() (raft.FSMSnapshot, error) {
	if f.halted != nil {
		return nil, f.halted
	}
	return fsmSnapshot{f.state.Load().WithEpoch(f.epoch)}, nil
}

// PeersFile returns the content of a peers.json for the given servers.
func PeersFile(peers []Peer) []byte {
	var out bytes.Buffer
	out.WriteString("[\n")
	for i, p := range peers {
		end := ","
		if i == len(peers)-1 {
			end = ""
		}
		fmt.Fprintf(&out, "  {\"id\": %q, \"address\": %q, \"non_voter\": %v}%s\n", p.ID, p.Address, !p.Voter, end)
	}
	out.WriteString("]\n")
	return out.Bytes()
}
