package raftstore

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/hashicorp/raft"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
)

func testFSM(t *testing.T) (f *fsm, published *int, halted *error) {
	published, halted = new(int), new(error)
	return newFSM(quiet(), func() { *published++ }, func(err error) { *halted = err }), published, halted
}

func entry(t *testing.T, index uint64, cmd *musterv1.Command) *raft.Log {
	data, err := encodeCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return &raft.Log{Index: index, Term: 1, Type: raft.LogCommand, Data: data}
}

func TestABatchIsPublishedOnce(t *testing.T) {
	f, published, _ := testFSM(t)
	answers := f.ApplyBatch([]*raft.Log{
		entry(t, 3, createGroup("g")),
		{Index: 4, Term: 1, Type: raft.LogConfiguration},
		entry(t, 5, putService("g", "a", "")),
		entry(t, 6, putService("nope", "a", "")),
	})
	if len(answers) != 4 || *published != 1 {
		t.Fatalf("%d answers, published %d times", len(answers), *published)
	}
	if f.state.Load().Index() != 6 {
		t.Errorf("index %d", f.state.Load().Index())
	}
	if a := answers[2].([]applied)[0]; a.err != nil || a.result.Commit.GetRevision() != 1 {
		t.Errorf("answer %+v", a)
	}
	if a := answers[3].([]applied)[0]; !errors.Is(a.result.Err, state.ErrNotFound) {
		t.Errorf("answer %+v", a)
	}
}

func TestAnUnknownRequiredEntryHaltsTheServerBeforeIt(t *testing.T) {
	f, _, halted := testFSM(t)
	answers := f.ApplyBatch([]*raft.Log{
		entry(t, 3, createGroup("g")),
		{Index: 4, Term: 1, Type: raft.LogCommand, Data: sealEntry(codecVersion, flagRequired, 99, nil)},
		entry(t, 5, createGroup("h")),
	})
	if !errors.Is(*halted, ErrIncompatible) {
		t.Fatalf("halted with %v", *halted)
	}
	s := f.state.Load()
	if _, found := s.Group("h"); found || s.Index() != 3 {
		t.Errorf("it went on: index %d", s.Index())
	}
	if a := answers[2].([]applied)[0]; !errors.Is(a.err, ErrIncompatible) {
		t.Errorf("answer %+v", a)
	}
	f.Apply(entry(t, 6, createGroup("i")))
	if f.state.Load() != s {
		t.Error("it went on with the next batch")
	}
	if _, err := f.Snapshot(); err == nil {
		t.Error("a halted server takes a snapshot")
	}
}

func TestABatchInOneEntryIsCarriedOutWhole(t *testing.T) {
	f, published, halted := testFSM(t)
	sealed := func(cmds ...*musterv1.Command) (out [][]byte) {
		for _, cmd := range cmds {
			out = append(out, entry(t, 0, cmd).Data)
		}
		return out
	}
	batch := encodeBatch(append(sealed(createGroup("g"), putService("g", "a", ""), createGroup("g"), createGroup("h")),
		sealEntry(codecVersion, flagRequired, typeCommit, []byte{0xff}), sealEntry(codecVersion, 0, 99, nil)))
	answers := f.Apply(&raft.Log{Index: 3, Term: 1, Type: raft.LogCommand, Data: batch}).([]applied)
	if len(answers) != 6 || *published != 1 || f.state.Load().Index() != 3 || *halted != nil {
		t.Fatalf("%d answers, published %d times, halted %v", len(answers), *published, *halted)
	}
	if answers[1].result.Commit.GetRevision() != 1 || !errors.Is(answers[2].result.Err, state.ErrExists) || answers[3].result.Group.GetId() != "h" || !errors.Is(answers[4].err, ErrPoison) {
		t.Errorf("answers %+v", answers)
	}
	was := f.state.Load()
	batch = encodeBatch(append(sealed(createGroup("i")), sealEntry(codecVersion, flagRequired, 99, nil)))
	answers = f.Apply(&raft.Log{Index: 4, Term: 1, Type: raft.LogCommand, Data: batch}).([]applied)
	if !errors.Is(*halted, ErrIncompatible) || f.state.Load() != was {
		t.Error("half of a batch was carried out")
	}
	for _, a := range answers {
		if !errors.Is(a.err, ErrIncompatible) {
			t.Errorf("answer %+v", a)
		}
	}
}

func TestAnUnknownIgnorableEntryIsSkipped(t *testing.T) {
	f, _, halted := testFSM(t)
	f.Apply(&raft.Log{Index: 3, Type: raft.LogCommand, Data: sealEntry(codecVersion, 0, 99, nil)})
	f.Apply(entry(t, 4, createGroup("g")))
	if *halted != nil {
		t.Fatal(*halted)
	}
	if _, found := f.state.Load().Group("g"); !found || f.state.Load().Index() != 4 {
		t.Error("it did not go on")
	}
}

func TestADamagedEntryHaltsTheServer(t *testing.T) {
	f, _, halted := testFSM(t)
	l := entry(t, 3, createGroup("g"))
	l.Data[len(l.Data)-1] ^= 1
	f.Apply(l)
	if !errors.Is(*halted, ErrCorrupt) {
		t.Errorf("halted with %v", *halted)
	}
}

func TestAPoisonedEntryIsPassedOver(t *testing.T) {
	f, _, halted := testFSM(t)
	a := f.Apply(&raft.Log{Index: 3, Type: raft.LogCommand, Data: sealEntry(codecVersion, flagRequired, typeCommit, []byte{0xff})}).([]applied)[0]
	if !errors.Is(a.err, ErrPoison) || *halted != nil {
		t.Errorf("answer %+v, halted %v", a, *halted)
	}
	f.Apply(entry(t, 4, createGroup("g")))
	if _, found := f.state.Load().Group("g"); !found {
		t.Error("it did not go on")
	}
}

func TestAPanicOfTheStateMachineChangesNothing(t *testing.T) {
	f, _, _ := testFSM(t)
	// A nil state panics like a bug would.
	if _, a := f.apply(nil, 1, entry(t, 1, createGroup("g")).Data); !errors.Is(a.err, ErrPoison) || strings.Contains(a.err.Error(), "goroutine") {
		t.Fatalf("the sender is told the stack: %v", a.err)
	}
	if _, _, err := safely(nil, createGroup("g")); !errors.Is(err, ErrPoison) {
		t.Errorf("got %v", err)
	}
}

// sink collects a snapshot in memory.
type sink struct {
	bytes.Buffer
	closed, cancelled bool
	fail              error
}

func (s *sink) Write(p []byte) (int, error) {
	if s.fail != nil {
		return 0, s.fail
	}
	return s.Buffer.Write(p)
}
func (s *sink) Close() error  { s.closed = true; return nil }
func (s *sink) Cancel() error { s.cancelled = true; return nil }
func (s *sink) ID() string    { return "test" }

func TestASnapshotGoesThroughASink(t *testing.T) {
	f, _, _ := testFSM(t)
	f.ApplyBatch([]*raft.Log{entry(t, 3, createGroup("g")), entry(t, 4, putService("g", "a", "x"))})
	snapshot, err := f.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	// What is applied while the snapshot is written is not in it.
	f.Apply(entry(t, 5, putService("g", "b", "x")))
	var s sink
	if err := snapshot.Persist(&s); err != nil || !s.closed {
		t.Fatalf("%v, closed %v", err, s.closed)
	}
	g, published, _ := testFSM(t)
	if err := g.Restore(io.NopCloser(bytes.NewReader(s.Bytes()))); err != nil {
		t.Fatal(err)
	}
	if got := g.state.Load(); got.Index() != 4 || *published != 1 {
		t.Errorf("index %d", got.Index())
	}
	// A cut file leaves the state as it was.
	was := g.state.Load()
	for cut := range s.Len() {
		if err := g.Restore(io.NopCloser(bytes.NewReader(s.Bytes()[:cut]))); err == nil {
			t.Fatalf("a snapshot cut at %d was restored", cut)
		}
	}
	if g.state.Load() != was {
		t.Error("a refused snapshot changed the state")
	}
}

func TestASnapshotThatCannotBeWrittenIsCancelled(t *testing.T) {
	f, _, _ := testFSM(t)
	f.Apply(entry(t, 3, createGroup("g")))
	snapshot, _ := f.Snapshot()
	s := sink{fail: errors.New("no space")}
	if err := snapshot.Persist(&s); !errors.Is(err, s.fail) || !s.cancelled || s.closed {
		t.Errorf("%v, cancelled %v, closed %v", err, s.cancelled, s.closed)
	}
}

func FuzzReadSnapshot(f *testing.F) {
	var good bytes.Buffer
	if err := writeSnapshot(&good, state.New()); err != nil {
		f.Fatal(err)
	}
	f.Add(good.Bytes())
	f.Add([]byte(snapshotMagic))
	f.Fuzz(func(t *testing.T, data []byte) {
		if s, err := readSnapshot(bytes.NewReader(data)); err == nil && s == nil {
			t.Error("neither a state nor an error")
		}
	})
}
