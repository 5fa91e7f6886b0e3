package raftstore

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync/atomic"

	"github.com/hashicorp/raft"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/failpoint"
	"github.com/musterhq/muster/raftstore/state"
)

// fsm hands committed entries to the state machine. Raft calls Apply,
// ApplyBatch, Snapshot and Restore from one goroutine; state may be read from
// any.
type fsm struct {
	state atomic.Pointer[state.State]
	// published is called after each new state was stored.
	published func()
	// halt is called once, when this server must not go on.
	halt   func(error)
	logger *slog.Logger

	// halted is set when an entry could not be understood: from then on the
	// state stands still, because anything after it would build on a state that
	// this server does not have.
	halted error
}

var _ raft.BatchingFSM = (*fsm)(nil)

func newFSM(logger *slog.Logger, published func(), halt func(error)) *fsm {
	f := &fsm{published: published, halt: halt, logger: logger}
	f.state.Store(state.New())
	return f
}

// applied is what the FSM answers for one command.
type applied struct {
	result state.Result
	err    error
}

// Apply carries out one entry.
func (f *fsm) Apply(l *raft.Log) any { return f.ApplyBatch([]*raft.Log{l})[0] }

// ApplyBatch carries out a batch of entries and publishes one state for all of
// it. The answer to an entry is an []applied, one for each command in it.
func (f *fsm) ApplyBatch(logs []*raft.Log) []any {
	failpoint.Hit("apply")
	current := f.state.Load()
	next := current
	answers := make([]any, len(logs))
	for i, l := range logs {
		var entry []applied
		if l.Type == raft.LogCommand {
			next, entry = f.applyEntry(next, l)
		}
		if f.halted == nil {
			next = next.At(l.Index, l.Term)
		}
		answers[i] = entry
	}
	if next != current {
		f.state.Store(next)
		f.published()
	}
	return answers
}

// applyEntry carries out the commands of one entry: all of them, or, when one
// cannot be understood, none.
func (f *fsm) applyEntry(s *state.State, l *raft.Log) (*state.State, []applied) {
	entries, err := splitBatch(l.Data)
	if err != nil {
		f.stop(&CorruptError{Path: fmt.Sprintf("log entry %d", l.Index), Detail: err.Error()})
		entries = [][]byte{nil}
	}
	answers := make([]applied, len(entries))
	next := s
	for i, data := range entries {
		if f.halted == nil {
			next, answers[i] = f.apply(next, l.Index, data)
		}
	}
	if f.halted == nil {
		return next, answers
	}
	for i := range answers {
		answers[i] = applied{err: f.halted}
	}
	return s, answers
}

// stop makes the state stand still.
func (f *fsm) stop(err error) {
	if f.halted == nil {
		f.halted = err
		f.halt(err)
	}
}

func (f *fsm) apply(s *state.State, index uint64, data []byte) (*state.State, applied) {
	cmd, err := decodeCommand(data)
	switch {
	case err == nil:
	case errors.Is(err, errSkip):
		f.logger.Warn("skipped a log entry of an unknown type", "index", index)
		return s, applied{}
	case errors.Is(err, ErrPoison):
		// The same bytes fail alike everywhere, so all servers pass over it.
		f.logger.Error("skipped a log entry that cannot be carried out", "index", index, "error", err)
		return s, applied{err: err}
	case errors.Is(err, errDamaged):
		f.stop(&CorruptError{Path: fmt.Sprintf("log entry %d", index), Detail: err.Error()})
		return s, applied{}
	default:
		f.stop(fmt.Errorf("log entry %d: %w", index, err))
		return s, applied{}
	}
	next, result, err := safely(s, cmd)
	if err != nil {
		// The panic's own words and the stack are for the log: whoever sent the
		// command has no use for them, and they may hold what others sent.
		f.logger.Error("a command made the state machine panic and was passed over", "index", index, "error", err)
		return s, applied{err: ErrPoison}
	}
	return next, applied{result: result}
}

// safely keeps a command that makes the state machine panic from taking down
// every server of the cluster: the state is immutable, so it is as before.
func safely(s *state.State, cmd *musterv1.Command) (next *state.State, result state.Result, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", ErrPoison, p, debug.Stack())
		}
	}()
	next, result = s.Take(cmd)
	return next, result, nil
}

// Snapshot takes the pointer; writing it out happens in Persist.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.halted != nil {
		return nil, f.halted
	}
	return fsmSnapshot{f.state.Load()}, nil
}

// Restore replaces the state by a snapshot's.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	if f.halted != nil {
		return f.halted
	}
	s, err := readSnapshot(r)
	if err != nil {
		return err
	}
	failpoint.Hit("restore")
	f.state.Store(s)
	f.published()
	return nil
}

// fsmSnapshot is a state to be written out.
type fsmSnapshot struct{ state *state.State }

// Persist writes the state to the sink.
func (s fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	w := bufio.NewWriterSize(sink, 64<<10)
	err := writeSnapshot(w, s.state)
	if err == nil {
		err = w.Flush()
	}
	if err != nil {
		return errors.Join(err, sink.Cancel())
	}
	failpoint.Hit("persist")
	err = sink.Close()
	failpoint.Hit("persisted")
	return err
}

// Release does nothing: the state is garbage once nobody points at it.
func (fsmSnapshot) Release() {}
