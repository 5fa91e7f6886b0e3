package faultfs

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// FS is a mounted directory. All methods are safe for concurrent use.
type FS struct {
	backing string
	server  *fuse.Server

	mu   sync.Mutex
	hung chan struct{} // closed by Resume; nil when not hung
	full bool
	// free is what statfs tells; 0 is what the backing disk has.
	free uint64
	// failing is how many more writes fail, with errno.
	failing int
	errno   syscall.Errno
	// match, when set, is the armed breakpoint; hit is where it reports.
	match func(Event) bool
	hit   chan Event
	// unsynced holds, by file, how to undo the writes since the last fsync.
	unsynced map[uint64][]undo
	// writes counts the writes that succeeded, syncs the fsyncs.
	writes, syncs int
}

// Op is a kind of operation that changes a disk.
type Op string

// What a disk does.
const (
	OpWrite  Op = "write" // truncations and new files, too
	OpSync   Op = "sync"
	OpRename Op = "rename"
)

// Event is an operation that is about to be carried out.
type Event struct {
	Op Op
	// Path is relative to the mount; of a rename, the old name.
	Path string
}

// undo restores what one write or truncation replaced.
type undo struct {
	path    string
	off     int64
	old     []byte
	oldSize int64
	new     []byte // what was written; nil for a truncation
}

// Mount serves backing at mountpoint until Close. It needs root and /dev/fuse.
func Mount(backing, mountpoint string) (*FS, error) {
	f := &FS{backing: backing, unsynced: map[uint64][]undo{}}
	var st syscall.Stat_t
	if err := syscall.Stat(backing, &st); err != nil {
		return nil, fmt.Errorf("faultfs: %s: %w", backing, err)
	}
	root := &fs.LoopbackRoot{Path: backing, Dev: uint64(st.Dev)}
	//lint:ignore SA1019 NodeWrapChilder would wrap a node that has been made; this one must be made as ours
	root.NewNode = func(r *fs.LoopbackRoot, _ *fs.Inode, _ string, _ *syscall.Stat_t) fs.InodeEmbedder {
		return &node{LoopbackNode: fs.LoopbackNode{RootData: r}, disk: f}
	}
	top := &node{LoopbackNode: fs.LoopbackNode{RootData: root}, disk: f}
	root.RootNode = top
	server, err := fs.Mount(mountpoint, top, &fs.Options{
		MountOptions: fuse.MountOptions{DirectMount: true, FsName: "faultfs", Name: "faultfs", DisableXAttrs: true},
	})
	if err != nil {
		return nil, fmt.Errorf("faultfs: mount %s: %w", mountpoint, err)
	}
	f.server = server
	return f, nil
}

// Close resumes and unmounts. Processes that use the mount must have ended.
func (f *FS) Close() error {
	f.Resume()
	if err := f.server.Unmount(); err != nil {
		return fmt.Errorf("faultfs: unmount: %w", err)
	}
	f.server.Wait()
	return nil
}

// Hang makes every write and fsync wait until Resume.
func (f *FS) Hang() {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hung == nil {
		f.hung = make(chan struct{})
	}
}

// Break hangs the disk just before the first operation that match accepts, and
// sends that on the channel. Resume ends it, met or not.
func (f *FS) Break(match func(Event) bool) <-chan Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.match, f.hit = match, make(chan Event, 1)
	return f.hit
}

// Resume ends a Hang, and a Break.
func (f *FS) Resume() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.match = nil
	if f.hung != nil {
		close(f.hung)
		f.hung = nil
	}
}

// Fill makes the disk full: every write fails with ENOSPC, and statfs tells so.
func (f *FS) Fill() { f.setFull(true) }

// Shrink makes statfs tell that so many bytes are free, more than 0; writes go on.
func (f *FS) Shrink(free uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free = free
}

// Free ends a Fill and a Shrink.
func (f *FS) Free() { f.Shrink(0); f.setFull(false) }

func (f *FS) setFull(full bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.full = full
}

// FailWrites makes the next n writes fail with errno, for example EIO.
func (f *FS) FailWrites(n int, errno syscall.Errno) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.failing, f.errno = n, errno
}

// Counts returns how many writes succeeded and how many fsyncs there were.
func (f *FS) Counts() (writes, syncs int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.writes, f.syncs
}

// PowerCut undoes what was written and not fsynced, each file from its newest
// write back to one that rng chooses; of the oldest write undone a random prefix
// stays: a torn write. The processes that had the files open must be dead. It
// returns how many writes were lost.
func (f *FS) PowerCut(rng *rand.Rand) (lost int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, ino := range slices.Sorted(maps.Keys(f.unsynced)) { // in order, so that rng decides alike
		list := f.unsynced[ino]
		keep := rng.IntN(len(list) + 1)
		for i := len(list) - 1; i >= keep; i-- {
			torn := 0
			if i == keep && len(list[i].new) > 1 && rng.IntN(2) == 0 {
				torn = 1 + rng.IntN(len(list[i].new)-1)
			}
			if err := list[i].revert(ino, torn); err != nil {
				return lost, fmt.Errorf("faultfs: power cut: %w", err)
			}
			lost++
		}
		delete(f.unsynced, ino)
	}
	return lost, nil
}

// revert undoes a write, but for the first torn bytes of it.
func (u undo) revert(ino uint64, torn int) error {
	file, err := os.OpenFile(u.path, os.O_RDWR, 0)
	if os.IsNotExist(err) {
		return nil // removed since: nothing to undo
	}
	if err != nil {
		return err
	}
	defer file.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(file.Fd()), &st); err != nil || st.Ino != ino {
		return err // another file has the name now
	}
	if _, err := file.WriteAt(u.old, u.off); err != nil {
		return err
	}
	if err := file.Truncate(u.oldSize); err != nil {
		return err
	}
	if torn > 0 {
		_, err = file.WriteAt(u.new[:torn], u.off)
	}
	return err
}

// wait returns when the disk does not hang, or EINTR when the caller is killed.
func (f *FS) wait(ctx context.Context, op Op, path string) syscall.Errno {
	f.mu.Lock()
	if f.match != nil {
		if rel, err := filepath.Rel(f.backing, path); err == nil && f.match(Event{op, rel}) {
			f.hit <- Event{op, rel}
			f.match = nil
			if f.hung == nil {
				f.hung = make(chan struct{})
			}
		}
	}
	hung := f.hung
	f.mu.Unlock()
	if hung == nil {
		return 0
	}
	select {
	case <-hung:
		return 0
	case <-ctx.Done():
	}
	// The caller got a signal. A disk lets nobody go for that, so that a program
	// sees no error; only one that is being killed is let go, to end.
	caller, _ := fuse.FromContext(ctx)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !dying(caller) {
		select {
		case <-hung:
			return 0
		case <-tick.C:
		}
	}
	return syscall.EINTR
}

// dying tells whether a thread is being killed.
func dying(caller *fuse.Caller) bool {
	if caller == nil {
		return true
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", caller.Pid))
	if err != nil {
		return true
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		name, value, _ := strings.Cut(line, ":")
		if name != "SigPnd" && name != "ShdPnd" {
			continue
		}
		pending, err := strconv.ParseUint(strings.TrimSpace(value), 16, 64)
		if err == nil && pending&(1<<(syscall.SIGKILL-1)) != 0 {
			return true
		}
	}
	return false
}

// admit says whether a write may go on.
func (f *FS) admit() syscall.Errno {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.full:
		return syscall.ENOSPC
	case f.failing > 0:
		f.failing--
		return f.errno
	}
	return 0
}

func (f *FS) remember(ino uint64, u undo) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.writes++
	f.unsynced[ino] = append(f.unsynced[ino], u)
}

func (f *FS) synced(ino uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.syncs++
	delete(f.unsynced, ino)
}
