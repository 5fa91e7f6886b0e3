package raftstore

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// brokenDisk makes writes hang, or fail, on demand.
type brokenDisk struct {
	mu   sync.Mutex
	hang chan struct{} // closed when the hanging ends; nil while the disk is fine
	fail atomic.Int32  // how many of the next writes fail
	free atomic.Uint64
}

func (d *brokenDisk) hooks() diskHooks {
	d.free.Store(1 << 40)
	return diskHooks{
		before: func(string) error {
			d.mu.Lock()
			hang := d.hang
			d.mu.Unlock()
			if hang != nil {
				<-hang
				return syscall.EIO
			}
			if d.fail.Load() > 0 && d.fail.Add(-1) >= 0 {
				return syscall.EIO
			}
			return nil
		},
		free: func(string) (uint64, error) { return d.free.Load(), nil },
	}
}

func (d *brokenDisk) stall() (release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	hang := make(chan struct{})
	d.hang = hang
	return sync.OnceFunc(func() {
		close(hang)
		d.mu.Lock()
		d.hang = nil
		d.mu.Unlock()
	})
}

// TestALeaderWhoseDiskHangsGivesWay stands in for the end of the process by
// cutting the server off the moment it asks for its end.
func TestALeaderWhoseDiskHangsGivesWay(t *testing.T) {
	disks := map[string]*brokenDisk{}
	fatal := make(chan error, 3)
	var c *cluster
	cut := func(id string) { c.net.isolate(id) }
	c = newClusterLater(t, 3, func(_ int, cfg *Config) {
		d := &brokenDisk{}
		id := cfg.ServerID
		disks[id] = d
		cfg.disk, cfg.DiskTimeout = d.hooks(), 500*time.Millisecond
		cfg.Fatal = func(err error) { cut(id); fatal <- err }
	}, &c)
	mustApply(t, c.members[0].Store, groupG())
	old := c.leader()
	l := c.load(4, c.followers()...)
	l.await(t, 30)
	l.resetGap()
	begin := time.Now()
	release := disks[old.id].stall()
	defer release()
	select {
	case err := <-fatal:
		var stalled *DiskStalledError
		if !errors.As(err, &stalled) || stalled.For < 500*time.Millisecond {
			t.Errorf("got %v", err)
		}
		t.Logf("%v", err)
	case <-time.After(20 * time.Second):
		t.Fatal("the hung disk went unnoticed")
	}
	c.leader(old)
	t.Logf("a new leader after %s", time.Since(begin))
	l.await(t, 20)
	t.Logf("writes paused for %s", l.longestGap())
	release()
	c.net.heal()
	l.end(c)
}

func TestAFailedWriteOnAFollowerIsMadeUpFor(t *testing.T) {
	disks := map[string]*brokenDisk{}
	c := newCluster(t, 3, func(_ int, cfg *Config) {
		disks[cfg.ServerID] = &brokenDisk{}
		cfg.disk = disks[cfg.ServerID].hooks()
	})
	mustApply(t, c.members[0].Store, groupG())
	m := c.followers()[0]
	l := c.load(4, c.leader())
	for range 3 {
		l.await(t, 30)
		disks[m.id].fail.Store(2)
	}
	l.await(t, 30)
	l.end(c)
}

func TestAFailedWriteOnTheLeaderMakesAnotherLead(t *testing.T) {
	disks := map[string]*brokenDisk{}
	c := newCluster(t, 3, func(_ int, cfg *Config) {
		disks[cfg.ServerID] = &brokenDisk{}
		cfg.disk = disks[cfg.ServerID].hooks()
	})
	mustApply(t, c.members[0].Store, groupG())
	l := c.load(4, c.members...)
	l.await(t, 30)
	old := c.leader()
	term := old.raft.CurrentTerm()
	disks[old.id].fail.Store(1)
	eventually(t, "a new term", func() bool {
		leader := c.leaderNow()
		return leader != nil && leader.raft.CurrentTerm() > term
	})
	l.await(t, 30)
	l.end(c)
}

func TestAFullDiskRefusesWritesAndRecoversByItself(t *testing.T) {
	disks := map[string]*brokenDisk{}
	c := newCluster(t, 3, func(_ int, cfg *Config) {
		disks[cfg.ServerID] = &brokenDisk{}
		cfg.disk, cfg.MinFreeBytes = disks[cfg.ServerID].hooks(), 64<<20
		cfg.DiskTimeout = time.Second
	})
	mustApply(t, c.members[0].Store, groupG())
	leader, follower := c.leader(), c.followers()[0]
	disks[leader.id].free.Store(1 << 20)
	refused := func(m *member) bool {
		_, err := m.Apply(testCtx(t), putService("g", "a", ""))
		var full *DiskFullError
		return errors.As(err, &full) && full.Free == 1<<20 && full.Floor == 64<<20
	}
	eventually(t, "writes to be refused", func() bool { return refused(leader) })
	if !refused(follower) {
		t.Error("not refused when forwarded")
	}
	if st, err := leader.Status(); err != nil || !st.DiskFull {
		t.Errorf("status %+v, %v", st, err)
	}
	// Reads go on.
	if err := follower.ReadIndex(testCtx(t)); err != nil {
		t.Error(err)
	}
	disks[leader.id].free.Store(1 << 40)
	eventually(t, "writes to be taken again", func() bool {
		result, err := follower.Apply(testCtx(t), putService("g", "b", ""))
		return err == nil && result.Err == nil
	})
}

func TestATornOrTruncatedLogIsNamed(t *testing.T) {
	for name, damage := range map[string]func(t *testing.T, path string){
		"truncated": func(t *testing.T, path string) {
			info, _ := os.Stat(path)
			if err := os.Truncate(path, info.Size()/2); err != nil {
				t.Fatal(err)
			}
		},
		"emptied": func(t *testing.T, path string) {
			if err := os.WriteFile(path, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"both meta pages overwritten": func(t *testing.T, path string) {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			if _, err := f.WriteAt(make([]byte, 2*os.Getpagesize()), 0); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, stop := one(t, dir)
			mustApply(t, s, groupG())
			for range 50 {
				mustApply(t, s, putService("g", "a", string(make([]byte, 3000))))
				mustApply(t, s, putService("g", "a", ""))
			}
			stop()
			damage(t, filepath.Join(dir, "raft.db"))
			opened, err := Open(Config{DataDir: dir, Logger: quiet()})
			if err == nil {
				opened.Close()
			}
			if !errors.Is(err, ErrCorrupt) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestLeftoversOfACrashAreRemoved(t *testing.T) {
	dir := t.TempDir()
	s, stop := one(t, dir)
	mustApply(t, s, groupG())
	if err := s.raft.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	stop()
	half := filepath.Join(dir, "snapshots", "2-9-1.tmp")
	if err := os.MkdirAll(half, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{filepath.Join(half, "state.bin"), filepath.Join(dir, "restore-123"), filepath.Join(dir, "server-id.tmp-1")} {
		if err := os.WriteFile(path, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	before := s.State().Index()
	s, _ = one(t, dir)
	for _, pattern := range []string{"snapshots/*.tmp", "restore-*", "*.tmp-*"} {
		if left, _ := filepath.Glob(filepath.Join(dir, pattern)); len(left) != 0 {
			t.Errorf("%v is still there", left)
		}
	}
	if err := s.ReadIndex(testCtx(t)); err != nil || s.State().Index() < before {
		t.Errorf("the state is at %d, was at %d: %v", s.State().Index(), before, err)
	}
}

// Raft drops entries that a snapshot holds while it appends others: the end of
// the one write must not hide that the other hangs.
func TestAWriteThatHangsIsNoticedWhileAnotherEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &logStore{}
		fatal := make(chan error, 1)
		dog := &watchdog{log: log, limit: time.Second, floor: -1, fatal: func(err error) { fatal <- err }}
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { dog.Run(ctx) })

		hang := make(chan struct{})
		wg.Go(func() { _ = log.write("the one that hangs", func() error { <-hang; return nil }) })
		synctest.Wait()
		_ = log.write("another", func() error { time.Sleep(10 * time.Millisecond); return nil })
		time.Sleep(5 * time.Second)
		select {
		case err := <-fatal:
			var stalled *DiskStalledError
			if !errors.As(err, &stalled) || stalled.Op != "the one that hangs" || stalled.For > 2*time.Second {
				t.Errorf("got %v", err)
			}
		default:
			t.Error("the hung write went unnoticed")
		}
		close(hang)
		stop()
		wg.Wait()
	})
}
