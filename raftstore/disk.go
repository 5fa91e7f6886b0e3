package raftstore

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
	bbolterrors "go.etcd.io/bbolt/errors"

	"github.com/musterhq/muster/raftstore/atrest"
	"github.com/musterhq/muster/raftstore/failpoint"
)

// diskHooks replace parts of the disk in tests.
type diskHooks struct {
	// before is called before each write, by the name of the operation; an
	// error fails the write.
	before func(op string) error
	// free returns the free bytes of the file system of a directory.
	free func(dir string) (uint64, error)
}

// logStore is what raft keeps its log and its votes in: a bolt file, watched.
type logStore struct {
	*raftboltdb.BoltStore
	path  string
	hooks diskHooks
	// inFlight are the writes under way: raft appends from one goroutine, and
	// drops what a snapshot holds from another.
	inFlight writes
	// spent is set while so little space is free that no entry may be stored.
	spent atomic.Bool
	// fatal is called when what is read back is not what was written, and when a
	// write failed.
	fatal func(error)
	// sealer encrypts the entries of commands; nil keeps them in clear.
	sealer *atrest.Sealer
}

type write struct {
	op    string
	since time.Time
}

// writes are what is on its way to disk.
type writes struct {
	mu  sync.Mutex
	all map[*write]struct{}
}

// begin notes a write; the function that it returns notes its end.
func (w *writes) begin(op string) (end func()) {
	one := &write{op, time.Now()}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.all == nil {
		w.all = map[*write]struct{}{}
	}
	w.all[one] = struct{}{}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.all, one)
	}
}

// oldest is the write that has been under way for the longest; nil when there
// is none.
func (w *writes) oldest() *write {
	w.mu.Lock()
	defer w.mu.Unlock()
	var oldest *write
	for one := range w.all {
		if oldest == nil || one.since.Before(oldest.since) {
			oldest = one
		}
	}
	return oldest
}

var (
	_ raft.LogStore    = (*logStore)(nil)
	_ raft.StableStore = (*logStore)(nil)
)

// openLog opens the log of a data directory, and refuses one that is damaged.
func openLog(dir string, hooks diskHooks, fatal func(error)) (_ *logStore, err error) {
	path := filepath.Join(dir, "raft.db")
	if err := walkPages(path); err != nil {
		return nil, err
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer damageAsError(path, &err)
	db, err := raftboltdb.New(raftboltdb.Options{
		Path: path,
		BoltOptions: &bbolt.Options{
			NoFreelistSync: true,
			FreelistType:   bbolt.FreelistMapType,
			Timeout:        time.Second,
		},
	})
	if err != nil {
		return nil, openError(path, err)
	}
	return &logStore{BoltStore: db, path: path, hooks: hooks, fatal: fatal}, nil
}

func openError(path string, err error) error {
	switch {
	case errors.Is(err, bbolterrors.ErrTimeout):
		return fmt.Errorf("open %s: another process uses this data directory", path)
	case errors.Is(err, bbolterrors.ErrInvalid), errors.Is(err, bbolterrors.ErrChecksum), errors.Is(err, bbolterrors.ErrVersionMismatch):
		return &CorruptError{path, err.Error()}
	}
	return fmt.Errorf("open %s: %w", path, err)
}

// walkPages reads every page of a bolt file that is in use. Bolt itself does so
// when it opens a file without a freelist for writing, but in a goroutine of
// its own, where its panic on a damaged page would end the process unnamed.
func walkPages(path string) (err error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && info.Size() == 0) {
		return nil
	}
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer damageAsError(path, &err)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return openError(path, err)
	}
	defer db.Close()
	sum := uint32(0) // of no use but to read every byte
	return db.View(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(_ []byte, b *bbolt.Bucket) error {
			return b.ForEach(func(_, v []byte) error {
				sum = crc32.Update(sum, castagnoli, v)
				return nil
			})
		})
	})
}

// damageAsError turns the panics of bolt on damaged pages, and faults on a file
// that is shorter than its pages say, into an error.
func damageAsError(path string, err *error) {
	if p := recover(); p != nil {
		*err = &CorruptError{path, fmt.Sprint(p)}
	}
}

// verify reads every entry from an index on and checks it.
func (l *logStore) verify(from uint64) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer damageAsError(l.path, &err)
	first, err := l.FirstIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	last, err := l.LastIndex()
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	for i := max(first, from); i <= last && last > 0; i++ {
		var entry raft.Log
		if err := l.BoltStore.GetLog(i, &entry); err != nil {
			return &CorruptError{l.path, fmt.Sprintf("log entry %d of %d to %d: %v", i, first, last, err)}
		}
		if err := l.reveal(i, &entry); err != nil {
			return &CorruptError{l.path, err.Error()}
		}
	}
	return nil
}

// size is the size of the file, in bytes.
func (l *logStore) size() uint64 {
	info, err := os.Stat(l.path)
	if err != nil {
		return 0
	}
	return uint64(info.Size())
}

func checkLog(index uint64, entry *raft.Log) error {
	if entry.Index != index {
		return fmt.Errorf("log entry %d says it is %d", index, entry.Index)
	}
	if err := checkStamp(entry); err != nil {
		return fmt.Errorf("log entry %d: %w", index, err)
	}
	if entry.Type == raft.LogCommand {
		if err := checkEntry(entry.Data); err != nil {
			return fmt.Errorf("log entry %d: %w", index, err)
		}
	}
	return nil
}

// GetLog reads one entry and checks it: a damaged one must reach neither the
// state machine nor a follower.
func (l *logStore) GetLog(index uint64, entry *raft.Log) error {
	if err := l.BoltStore.GetLog(index, entry); err != nil {
		return err
	}
	if err := l.reveal(index, entry); err != nil {
		corrupt := &CorruptError{l.path, err.Error()}
		l.fatal(corrupt)
		return corrupt
	}
	return nil
}

func (l *logStore) StoreLog(entry *raft.Log) error {
	return l.StoreLogs([]*raft.Log{entry})
}

func (l *logStore) StoreLogs(entries []*raft.Log) error {
	if l.spent.Load() {
		// Refused before bolt begins: what is left is for votes.
		return fmt.Errorf("%s: %w", l.path, ErrDiskFull)
	}
	for _, entry := range entries {
		stampLog(entry)
	}
	kept := l.conceal(entries)
	return l.write("storing log entries", func() error {
		failpoint.Hit("store")
		err := l.BoltStore.StoreLogs(kept)
		failpoint.Hit("stored")
		return err
	})
}

func (l *logStore) DeleteRange(from, to uint64) error {
	return l.write("dropping log entries", func() error { return l.BoltStore.DeleteRange(from, to) })
}

func (l *logStore) Set(key, value []byte) error {
	return l.write("storing a vote", func() error { return l.BoltStore.Set(key, value) })
}

func (l *logStore) SetUint64(key []byte, value uint64) error {
	return l.write("storing the term", func() error { return l.BoltStore.SetUint64(key, value) })
}

func (l *logStore) write(op string, do func() error) error {
	defer l.inFlight.begin(op)()
	if l.hooks.before != nil {
		if err := l.hooks.before(op); err != nil {
			return err
		}
	}
	err := do()
	if err != nil && !errors.Is(err, bbolterrors.ErrDatabaseNotOpen) {
		// A page that could not be written may show in bolt's view of the file all
		// the same, and vanish from it later: what bolt takes for free then may be in
		// use. Only a new start, which reads the file anew, can be trusted.
		l.fatal(fmt.Errorf("%s: %s failed: %w", l.path, op, err))
	}
	return err
}

// watchdog ends the process when a write hangs: raft's heartbeats bypass the
// disk, so a leader with a hung disk would lead for ever without committing
// anything. A write that was merely given up on could still reach the disk
// later, behind newer ones; only the end of the process rules that out.
type watchdog struct {
	dir   string
	log   *logStore
	limit time.Duration
	fatal func(error)

	free  func(dir string) (uint64, error)
	floor int64
	full  atomic.Pointer[DiskFullError]
}

const watchdogTick = 500 * time.Millisecond

// Run watches until ctx ends.
func (w *watchdog) Run(ctx context.Context) {
	tick := watchdogTick
	if w.limit > 0 {
		tick = min(tick, w.limit/4)
	}
	ticker := time.NewTicker(max(tick, time.Millisecond))
	defer ticker.Stop()
	last, resumed := time.Now(), time.Time{}
	for {
		w.measure()
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		if now.Sub(last) > max(2*tick, time.Second) {
			// It was this process that stood still (stopped, or its machine was),
			// which says nothing of the disk.
			resumed = now
		}
		last = now
		f := w.log.inFlight.oldest()
		if f == nil || w.limit <= 0 {
			continue
		}
		since := f.since
		if since.Before(resumed) {
			since = resumed
		}
		if now.Sub(since) > w.limit {
			w.fatal(&DiskStalledError{f.op, now.Sub(f.since)})
			return
		}
	}
}

// measure looks at the free space.
func (w *watchdog) measure() {
	if w.floor < 0 {
		return
	}
	free, err := w.free(w.dir)
	w.log.spent.Store(err == nil && free < uint64(w.floor)/8)
	if err == nil && free < uint64(w.floor) {
		w.full.Store(&DiskFullError{Dir: w.dir, Free: free, Floor: uint64(w.floor)})
		return
	}
	w.full.Store(nil)
}

// check returns a *DiskFullError while writes must be refused.
func (w *watchdog) check() error {
	if full := w.full.Load(); full != nil {
		return full
	}
	return nil
}

func freeBytes(dir string) (uint64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, err
	}
	return st.Bavail * uint64(st.Bsize), nil
}

// removeLeftovers removes what a crash in the middle of a snapshot, or of
// writeFileSync, left behind: nothing else ever would, and snapshots are large.
func removeLeftovers(dir string) error {
	for _, pattern := range []string{filepath.Join("snapshots", "*.tmp"), "*.tmp-*", "restore-*"} {
		left, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return fmt.Errorf("clean the data directory: %w", err)
		}
		for _, path := range left {
			if err := os.RemoveAll(path); err != nil {
				return fmt.Errorf("clean the data directory: %w", err)
			}
		}
	}
	return nil
}

// writeFileSync writes a small file so that it is there whole, or not at all,
// after a power failure.
func writeFileSync(path string, data []byte, mode os.FileMode) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	err = errors.Join(err, tmp.Chmod(mode), tmp.Sync(), tmp.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
