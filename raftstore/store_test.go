package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

func quiet() *slog.Logger {
	if os.Getenv("RAFTSTORE_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return slog.New(slog.DiscardHandler)
}

func testCtx(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// start opens a store and runs it until the test ends or stop is called.
func start(t testing.TB, cfg Config) (s *Store, stop func()) {
	t.Helper()
	if cfg.Logger == nil {
		cfg.Logger = quiet()
	}
	if cfg.Fatal == nil {
		cfg.Fatal = func(err error) { t.Errorf("fatal: %v", err) }
	}
	s, err := Open(cfg)
	if err != nil {
		t.Fatalf("open: %v", err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	if err := s.waitStarted(testCtx(t)); err != nil {
		t.Fatalf("start: %v", err)
	}
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				t.Errorf("run: %v", err)
			}
		})
	}
	t.Cleanup(stop)
	return s, stop
}

func one(t testing.TB, dir string) (*Store, func()) {
	t.Helper()
	return start(t, Config{DataDir: dir, Bootstrap: true})
}

func createGroup(id string) *musterv1.Command {
	return &musterv1.Command{Author: "test", Command: &musterv1.Command_CreateGroup{CreateGroup: &musterv1.Group{Id: id}}}
}

func putService(group, id, desc string) *musterv1.Command {
	return &musterv1.Command{Author: "test", Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{
		Group: group,
		Changes: []*musterv1.Change{{Action: &musterv1.Change_Put{Put: &musterv1.Resource{
			Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: id, Desc: desc}},
		}}}},
	}}}
}

func mustApply(t testing.TB, s *Store, cmd *musterv1.Command) state.Result {
	t.Helper()
	result, err := s.Apply(testCtx(t), cmd)
	if err == nil {
		err = result.Err
	}
	if err != nil {
		t.Fatalf("apply: %v", err)
	}
	return result
}

func serviceKey(id string) resource.Key {
	return resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: id}
}

func TestASingleServerElectsItselfInTensOfMilliseconds(t *testing.T) {
	begin := time.Now()
	s, _ := one(t, t.TempDir())
	if err := s.WaitLeader(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(begin); took > 400*time.Millisecond {
		t.Errorf("took %s, an ordinary election takes from 500ms on", took)
	} else {
		t.Logf("took %s", took)
	}
	if id, _, self := s.Leader(); id != s.ServerID() || !self {
		t.Errorf("leader is %q, self %v", id, self)
	}
}

func TestWritesAreReadBackAndSurviveARestart(t *testing.T) {
	dir := t.TempDir()
	s, stop := one(t, dir)
	mustApply(t, s, createGroup("g"))
	for i := range 10 {
		mustApply(t, s, putService("g", fmt.Sprint("s", i), "d"))
	}
	sum, _ := s.State().Checksum()
	id := s.ServerID()
	stop()

	s, _ = one(t, dir)
	if err := s.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.State().Checksum(); again != sum {
		t.Error("the state differs after a restart")
	}
	if s.ServerID() != id {
		t.Error("the server has another id after a restart")
	}
}

func TestASnapshotCarriesTheStateOverARestart(t *testing.T) {
	dir := t.TempDir()
	s, stop := one(t, dir)
	mustApply(t, s, createGroup("g"))
	mustApply(t, s, putService("g", "a", ""))
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	mustApply(t, s, putService("g", "b", ""))
	sum, _ := s.State().Checksum()
	stop()

	opened, err := Open(Config{DataDir: dir, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	if g, found := opened.State().Group("g"); !found || g.View().Len() != 1 {
		t.Error("an opened store does not show the snapshot's state")
	}
	if err := opened.Close(); err != nil {
		t.Fatal(err)
	}
	s, _ = one(t, dir)
	if err := s.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if again, _ := s.State().Checksum(); again != sum {
		t.Error("the state differs after a restart")
	}
}

func TestReadIndexShowsEveryWriteAcknowledgedBefore(t *testing.T) {
	s, _ := one(t, t.TempDir())
	mustApply(t, s, createGroup("g"))
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := range 30 {
				id := fmt.Sprintf("w%d-%d", w, i)
				mustApply(t, s, putService("g", id, ""))
				if err := s.ReadIndex(testCtx(t)); err != nil {
					t.Error(err)
					return
				}
				g, _ := s.State().Group("g")
				if _, found := g.View().Get(serviceKey(id)); !found {
					t.Errorf("%s was acknowledged and is not there", id)
				}
			}
		})
	}
	wg.Wait()
}

func TestWatchWakesAfterEveryPublishedState(t *testing.T) {
	s, _ := one(t, t.TempDir())
	ch, cancel := s.Watch()
	mustApply(t, s, createGroup("g"))
	deadline := testCtx(t)
	for {
		if _, found := s.State().Group("g"); found {
			break
		}
		select {
		case <-ch:
		case <-deadline.Done():
			t.Fatal("no wake-up for a published state")
		}
	}
	cancel()
	for len(ch) > 0 {
		<-ch
	}
	mustApply(t, s, createGroup("h"))
	if len(ch) != 0 {
		t.Error("a cancelled watch is still woken")
	}
}

func TestACommandsErrorIsInTheResult(t *testing.T) {
	s, _ := one(t, t.TempDir())
	result, err := s.Apply(testCtx(t), putService("nope", "a", ""))
	if err != nil || !errors.Is(result.Err, state.ErrNotFound) {
		t.Errorf("got %v, %v", result.Err, err)
	}
}

func TestARepeatedRequestIsAnsweredOnce(t *testing.T) {
	s, _ := one(t, t.TempDir())
	mustApply(t, s, createGroup("g"))
	cmd := putService("g", "a", "")
	cmd.RequestId = "r1"
	first := mustApply(t, s, cmd)
	mustApply(t, s, putService("g", "a", "changed meanwhile"))
	second := mustApply(t, s, cmd)
	if !second.Replayed || second.Commit.GetRevision() != first.Commit.GetRevision() {
		t.Errorf("the repeated request was answered %v", second)
	}
	if g, _ := s.State().Group("g"); g.Revision() != 2 {
		t.Errorf("revision is %d", g.Revision())
	}
}

func TestACommandThatIsTooLargeIsRefusedBeforeItIsWritten(t *testing.T) {
	s, _ := one(t, t.TempDir())
	mustApply(t, s, createGroup("g"))
	before := s.raft.LastIndex()
	_, err := s.Apply(testCtx(t), putService("g", "a", string(make([]byte, MaxCommand))))
	if !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if s.raft.LastIndex() != before {
		t.Error("it was written")
	}
}

func TestASecondProcessCannotUseTheDataDirectory(t *testing.T) {
	t.Parallel() // it mostly waits
	dir := t.TempDir()
	one(t, dir)
	if _, err := Open(Config{DataDir: dir, Logger: quiet()}); err == nil {
		t.Error("opened twice")
	}
}

func TestANewDataDirectoryIsNotMadeAClusterUnasked(t *testing.T) {
	if _, err := Open(Config{DataDir: t.TempDir(), Logger: quiet()}); err == nil {
		t.Error("opened")
	}
}

func TestADataDirectoryKeepsItsServer(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(Config{DataDir: dir, ServerID: "a", Bootstrap: true, Logger: quiet()})
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	if _, err := Open(Config{DataDir: dir, ServerID: "b", Logger: quiet()}); err == nil {
		t.Error("opened under another id")
	}
}

func TestAStoppedStoreRefuses(t *testing.T) {
	s, stop := one(t, t.TempDir())
	mustApply(t, s, createGroup("g"))
	stop()
	if _, err := s.Apply(testCtx(t), createGroup("h")); !errors.Is(err, ErrStopped) && !errors.Is(err, ErrUnknown) && !errors.Is(err, ErrNoLeader) {
		t.Errorf("Apply: %v", err)
	}
	if err := s.ReadIndex(testCtx(t)); err == nil {
		t.Error("ReadIndex succeeded")
	}
	if id, _, _ := s.Leader(); id != "" {
		t.Errorf("knows a leader: %q", id)
	}
}

func TestReadyOnlyAfterCatchingUp(t *testing.T) {
	s, _ := one(t, t.TempDir())
	mustApply(t, s, createGroup("g"))
	deadline := time.Now().Add(10 * time.Second)
	for s.Ready() != nil {
		if time.Now().After(deadline) {
			t.Fatal(s.Ready())
		}
		time.Sleep(time.Millisecond)
	}
	if err := s.Drain(testCtx(t)); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(s.Ready(), ErrNotReady) {
		t.Error("ready while draining")
	}
}

// The data directory may have been made by someone else, with the mode that they
// thought right: what holds secrets in it does not rely on that.
func TestWhatHoldsSecretsIsReadByTheOwnerOnly(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s, _ := start(t, Config{DataDir: dir, Bootstrap: true})
	mustApply(t, s, createGroup("g"))
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"raft.db", "snapshots"} {
		info, err := os.Stat(filepath.Join(dir, name))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v, %v", name, info.Mode(), err)
		}
	}
}

// Raft never answers a question about its leadership that it is asked as it stops.
func TestAStopIsNotHeldUpByReads(t *testing.T) {
	for range 20 {
		s, stop := one(t, t.TempDir())
		mustApply(t, s, createGroup("g"))
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for s.ReadIndex(t.Context()) == nil {
				}
			})
		}
		time.Sleep(2 * time.Millisecond)
		stopped := make(chan struct{})
		go func() {
			defer close(stopped)
			stop()
		}()
		select {
		case <-stopped:
		case <-time.After(20 * time.Second):
			t.Fatal("the stop does not end")
		}
		wg.Wait()
	}
}
