package raftstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// A flipped bit once turned the address of another server in a snapshot's
// meta.json into one that cannot be dialled; the server led with it, and the
// other was lost to the cluster.
func TestASnapshotWhoseConfigurationIsDamagedIsNamed(t *testing.T) {
	dir := t.TempDir()
	s, stop := one(t, dir)
	mustApply(t, s, createGroup("g"))
	for range 2 {
		mustApply(t, s, putService("g", "a", time.Now().String()))
		if err := s.raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	metas, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "meta.json"))
	if err != nil || len(metas) != 2 {
		t.Fatalf("snapshots %q, %v", metas, err)
	}
	newest := metas[1]
	good, err := os.ReadFile(newest)
	if err != nil {
		t.Fatal(err)
	}
	damage := map[string]func() error{
		"it is cut short": func() error { return os.Truncate(newest, int64(len(good)/2)) },
		"it is gone":      func() error { return os.Remove(newest) },
	}
	for _, at := range []int{len(good) / 4, len(good) / 2, len(good) - 10} {
		bad := append([]byte(nil), good...)
		bad[at] ^= 1
		damage["a bit is flipped before "+string(good[at+1:min(at+9, len(good))])] = func() error { return os.WriteFile(newest, bad, 0o600) }
	}
	for name, do := range damage {
		if err := do(); err != nil {
			t.Fatal(err)
		}
		opened, err := Open(Config{DataDir: dir, Logger: quiet()})
		var corrupt *CorruptError
		if !errors.As(err, &corrupt) || !strings.Contains(corrupt.Path, filepath.Base(filepath.Dir(newest))) {
			t.Errorf("%s: %v, want a CorruptError that names it", name, err)
		}
		if err == nil {
			_ = opened.Close()
		}
		if err := os.WriteFile(newest, good, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// A server that ended before it could seal its snapshot has a good one.
	if err := os.Remove(filepath.Join(filepath.Dir(newest), sealFile)); err != nil {
		t.Fatal(err)
	}
	s, _ = one(t, dir)
	if err := s.ReadIndex(testCtx(t)); err != nil {
		t.Fatal(err)
	}
}

func TestALogEntryOfAnyTypeIsCheckedWhenItIsRead(t *testing.T) {
	for name, change := range map[string]func(*raft.Log){
		"its data":  func(l *raft.Log) { l.Data[3] ^= 1 },
		"its term":  func(l *raft.Log) { l.Term ^= 1 },
		"its type":  func(l *raft.Log) { l.Type = raft.LogNoop },
		"its stamp": func(l *raft.Log) { l.Extensions[0] ^= 1 },
	} {
		entry := &raft.Log{Index: 7, Term: 2, Type: raft.LogConfiguration, Data: []byte("n1 at 10.0.0.1:7100")}
		stampLog(entry)
		if err := checkLog(7, entry); err != nil {
			t.Fatal(err)
		}
		change(entry)
		if err := checkLog(7, entry); err == nil {
			t.Errorf("%s has changed, and nothing was noticed", name)
		}
	}
	// Entries of before there were stamps have none.
	if err := checkLog(7, &raft.Log{Index: 7, Term: 2, Type: raft.LogConfiguration, Data: []byte("n1")}); err != nil {
		t.Error(err)
	}
}

func TestConfigurationsAreStampedOnDisk(t *testing.T) {
	s, _ := one(t, t.TempDir())
	mustApply(t, s, createGroup("g"))
	first, _ := s.log.FirstIndex()
	last, _ := s.log.LastIndex()
	stamped := 0
	for i := first; i <= last; i++ {
		var entry raft.Log
		if err := s.log.GetLog(i, &entry); err != nil {
			t.Fatal(err)
		}
		if len(entry.Extensions) == 4 {
			stamped++
		}
	}
	if stamped < 2 {
		t.Errorf("%d of %d entries are stamped", stamped, last-first+1)
	}
}

// Bolt's view of its file is not to be trusted after a failed write: going on
// led to "page already freed", and could have led to pages used twice.
func TestAFailedWriteEndsTheServer(t *testing.T) {
	var fatal error
	log := &logStore{path: "raft.db", fatal: func(err error) { fatal = err }}
	if err := log.write("storing log entries", func() error { return syscall.EIO }); !errors.Is(err, syscall.EIO) {
		t.Fatalf("err = %v", err)
	}
	if !errors.Is(fatal, syscall.EIO) || !strings.Contains(fatal.Error(), "raft.db: storing log entries failed") {
		t.Fatalf("fatal = %v", fatal)
	}
}

func TestNothingIsStoredWhenOnlyRoomForVotesIsLeft(t *testing.T) {
	disk := &brokenDisk{}
	hooks := disk.hooks()
	log, err := openLog(t.TempDir(), hooks, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	dog := &watchdog{log: log, free: hooks.free, floor: 64 << 20}
	store := func(index uint64) error {
		return log.StoreLogs([]*raft.Log{{Index: index, Term: 1, Type: raft.LogNoop}})
	}

	disk.free.Store(30 << 20) // no new writes; those under way go on
	dog.measure()
	if err := store(1); err != nil {
		t.Fatal(err)
	}
	disk.free.Store(4 << 20)
	dog.measure()
	if err := store(2); !errors.Is(err, ErrDiskFull) {
		t.Fatalf("err = %v, want ErrDiskFull", err)
	}
	if err := log.SetUint64([]byte("CurrentTerm"), 3); err != nil {
		t.Fatalf("a vote: %v", err)
	}
	disk.free.Store(1 << 30)
	dog.measure()
	if err := store(2); err != nil {
		t.Fatal(err)
	}
}

// A stopped process, or machine, finds a write that began before it stood still.
func TestTheWatchdogDoesNotTakeAPauseForAHungDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var pause atomic.Int64
		log := &logStore{}
		fatal := make(chan error, 1)
		dog := &watchdog{log: log, limit: 2 * time.Second, floor: 1, fatal: func(err error) { fatal <- err }}
		// Looking at the free space stands in for the whole process.
		dog.free = func(string) (uint64, error) {
			time.Sleep(time.Duration(pause.Swap(0)))
			return 1 << 40, nil
		}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { dog.Run(ctx) })
		hang := make(chan struct{})
		wg.Go(func() { _ = log.write("a write", func() error { <-hang; return nil }) })
		synctest.Wait()
		pause.Store(int64(10 * time.Second))
		time.Sleep(11 * time.Second)
		select {
		case err := <-fatal:
			t.Errorf("the pause counted: %v", err)
		default:
		}
		time.Sleep(3 * time.Second)
		select {
		case <-fatal:
		default:
			t.Error("the write hangs on, and nothing was noticed")
		}
		close(hang)
		stop()
		wg.Wait()
	})
}
