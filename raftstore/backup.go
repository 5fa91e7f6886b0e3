package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/hashicorp/raft"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
)

// SnapshotInfo describes a snapshot file.
type SnapshotInfo struct {
	Epoch, Index, Term uint64
	Groups             int
	Resources          int
	// Bytes is the size of the file.
	Bytes int64
	// Checksum is over the content, log index and term left out.
	Checksum [32]byte
}

func describe(s *state.State, size int64) (SnapshotInfo, error) {
	info := SnapshotInfo{Epoch: s.Epoch(), Index: s.Index(), Term: s.Term(), Bytes: size}
	for g := range s.Groups() {
		info.Groups++
		info.Resources += g.View().Len()
	}
	var err error
	info.Checksum, err = s.Checksum()
	return info, err
}

// SaveSnapshot writes everything that was committed before the call to w. The
// file holds secrets as the store does.
func (s *Store) SaveSnapshot(ctx context.Context, w io.Writer) (SnapshotInfo, error) {
	if err := s.ReadIndex(ctx); err != nil {
		return SnapshotInfo{}, err
	}
	// A state never changes, so writing it out slowly holds nothing up.
	st := s.State()
	counted := &countingWriter{w: w}
	buffered := bufio.NewWriterSize(counted, 64<<10)
	if err := writeSnapshot(buffered, st); err != nil {
		return SnapshotInfo{}, err
	}
	if err := buffered.Flush(); err != nil {
		return SnapshotInfo{}, fmt.Errorf("write snapshot: %w", err)
	}
	return describe(st, counted.n)
}

type countingWriter struct {
	w io.Writer
	n int64
}

func (c *countingWriter) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	return n, err
}

// InspectSnapshot reads a snapshot file to its end, checks all of it and tells
// what is in it. The error wraps state.ErrSnapshot when it does not hold.
func InspectSnapshot(r io.Reader) (SnapshotInfo, error) {
	counted := &countingReader{r: r}
	st, err := readSnapshot(counted)
	if err != nil {
		return SnapshotInfo{}, err
	}
	return describe(st, counted.n)
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// RestoreSnapshot replaces the state of the whole cluster by a snapshot file's.
// The file is read to its end and checked before anything is touched. The
// epoch becomes higher than both the cluster's and the file's, so that no data
// plane takes the restored state for an old one. Writes under way may have an
// unknown outcome.
func (s *Store) RestoreSnapshot(ctx context.Context, r io.Reader) (SnapshotInfo, error) {
	ctx, cancel := s.bound(ctx)
	defer cancel()
	if err := s.waitStarted(ctx); err != nil {
		return SnapshotInfo{}, err
	}
	// Checked here, before the leader is bothered with it.
	st, err := readSnapshot(r)
	if err != nil {
		return SnapshotInfo{}, err
	}
	var info SnapshotInfo
	err = s.askLeader(ctx, func(ctx context.Context) error {
		info, err = s.restore(ctx, st)
		return err
	}, func(ctx context.Context, client musterv1.PeerServiceClient) (*musterv1.StoreError, error) {
		ctx, sent := withSent(ctx)
		answer, err := sendSnapshot(ctx, client, st)
		if err != nil && sent.Load() {
			// Not to be repeated: writes acknowledged since would be lost.
			return nil, &unknownError{err}
		}
		if err == nil && answer.GetError() == nil {
			info, err = describe(st.WithEpoch(answer.GetEpoch()), 0)
		}
		return answer.GetError(), err
	})
	return info, err
}

const snapshotChunk = 256 << 10

// sendSnapshot streams a state to the leader as a snapshot file.
func sendSnapshot(ctx context.Context, client musterv1.PeerServiceClient, st *state.State) (*musterv1.PeerServiceRestoreResponse, error) {
	stream, err := client.Restore(ctx)
	if err != nil {
		return nil, err
	}
	w := bufio.NewWriterSize(writerFunc(func(p []byte) (int, error) {
		return len(p), stream.Send(&musterv1.PeerServiceRestoreRequest{Chunk: p})
	}), snapshotChunk)
	err = writeSnapshot(w, st)
	if err == nil {
		err = w.Flush()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	// On io.EOF the leader has answered early; its answer says why.
	return stream.CloseAndRecv()
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func (s *Store) restoreAsLeader(ctx context.Context, r io.Reader) (SnapshotInfo, error) {
	if s.raft.State() != raft.Leader {
		return SnapshotInfo{}, &NotLeaderError{}
	}
	st, err := readSnapshot(r)
	if err != nil {
		return SnapshotInfo{}, err
	}
	ctx, cancel := s.bound(ctx)
	defer cancel()
	return s.restore(ctx, st)
}

// restore puts a state in place of the current one, on the leader.
func (s *Store) restore(ctx context.Context, st *state.State) (SnapshotInfo, error) {
	if err := s.dog.check(); err != nil {
		return SnapshotInfo{}, err
	}
	if !s.leads() {
		return SnapshotInfo{}, &NotLeaderError{}
	}
	if !s.restoring.CompareAndSwap(false, true) {
		return SnapshotInfo{}, fmt.Errorf("%w: another restore is under way", ErrRefused)
	}
	defer s.restoring.Store(false)
	if err := s.lockGate(ctx); err != nil {
		return SnapshotInfo{}, err
	}
	defer s.gate.Unlock()
	// No proposal is under way and none can begin. Raft will burn the index
	// after its last one for the restored state; that is what the state must
	// say, whatever log it came from.
	index := s.raft.LastIndex()
	st = st.WithEpoch(max(st.Epoch(), s.State().Epoch())+1).At(index+1, s.raft.CurrentTerm())
	file, size, err := s.stage(st)
	if err != nil {
		return SnapshotInfo{}, err
	}
	defer file.Close()
	plain, err := s.staged(file)
	if err != nil {
		return SnapshotInfo{}, err
	}
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: index, Size: size}
	if err := s.raft.Restore(meta, plain, restoreTimeout); err != nil {
		if errors.Is(err, raft.ErrNotLeader) {
			return SnapshotInfo{}, &NotLeaderError{}
		}
		return SnapshotInfo{}, fmt.Errorf("restore: %w", err)
	}
	s.logger.Warn("the state was replaced by a snapshot's", "epoch", st.Epoch(), "index", index+1)
	return describe(st, size)
}

// restoreTimeout bounds a restore in raft, which takes no context.
const restoreTimeout = 30 * time.Second

// stage writes a state to an unnamed file that raft can read it from, and returns
// its size in bytes, encryption left out.
func (s *Store) stage(st *state.State) (*os.File, int64, error) {
	file, err := os.CreateTemp(s.cfg.DataDir, "restore-*")
	if err != nil {
		return nil, 0, fmt.Errorf("stage snapshot: %w", err)
	}
	_ = os.Remove(file.Name())
	size, err := s.stageInto(file, st)
	if err == nil {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		_ = file.Close()
		return nil, 0, fmt.Errorf("stage snapshot: %w", err)
	}
	return file, size, nil
}

func (s *Store) stageInto(file io.Writer, st *state.State) (int64, error) {
	var secret io.WriteCloser
	if s.cfg.AtRest != nil {
		var err error
		if secret, err = s.cfg.AtRest.Encrypt(file); err != nil {
			return 0, err
		}
		file = secret
	}
	counted := &countingWriter{w: file}
	w := bufio.NewWriterSize(counted, 64<<10)
	err := writeSnapshot(w, st)
	if err == nil {
		err = w.Flush()
	}
	if err == nil && secret != nil {
		err = secret.Close()
	}
	return counted.n, err
}

// staged reads what stage wrote.
func (s *Store) staged(file io.Reader) (io.Reader, error) {
	if s.cfg.AtRest == nil {
		return file, nil
	}
	return s.cfg.AtRest.Decrypt(file)
}

// lockGate waits for the proposals under way, new ones being turned away. It
// does not queue for the lock, which a proposal that hangs could hold for ever.
func (s *Store) lockGate(ctx context.Context) error {
	for attempt := 0; !s.gate.TryLock(); attempt++ {
		if err := s.pause(ctx, attempt); err != nil {
			return fmt.Errorf("restore: writes are still under way: %w", err)
		}
	}
	return nil
}
