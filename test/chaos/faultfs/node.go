package faultfs

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// node is a file or directory of the mount.
type node struct {
	fs.LoopbackNode
	disk *FS
}

var (
	_ fs.NodeOpener    = (*node)(nil)
	_ fs.NodeCreater   = (*node)(nil)
	_ fs.NodeSetattrer = (*node)(nil)
	_ fs.NodeStatfser  = (*node)(nil)
	_ fs.NodeFsyncer   = (*node)(nil)
	_ fs.NodeRenamer   = (*node)(nil)
)

func (n *node) path() string {
	return filepath.Join(n.RootData.Path, n.Path(n.Root()))
}

// Open implements fs.NodeOpener.
func (n *node) Open(_ context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	// Writes are undone by reading first, so a write-only file is opened for both.
	f, err := os.OpenFile(n.path(), int(flags)&^(syscall.O_APPEND|syscall.O_ACCMODE)|accessMode(flags), 0)
	if err != nil {
		return nil, 0, fs.ToErrno(err)
	}
	return &file{f: f, node: n}, 0, 0
}

func accessMode(flags uint32) int {
	if flags&syscall.O_ACCMODE == syscall.O_RDONLY {
		return syscall.O_RDONLY
	}
	return syscall.O_RDWR
}

// Create implements fs.NodeCreater.
func (n *node) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	path := filepath.Join(n.path(), name)
	if errno := n.disk.wait(ctx, OpWrite, path); errno != 0 {
		return nil, nil, 0, errno
	}
	if errno := n.disk.admit(); errno != 0 {
		return nil, nil, 0, errno
	}
	f, err := os.OpenFile(path, int(flags)&^(syscall.O_APPEND|syscall.O_ACCMODE)|syscall.O_RDWR|syscall.O_CREAT, os.FileMode(mode).Perm())
	if err != nil {
		return nil, nil, 0, fs.ToErrno(err)
	}
	inode, errno := n.Lookup(ctx, name, out)
	if errno != 0 {
		_ = f.Close()
		return nil, nil, 0, errno
	}
	child, ok := inode.Operations().(*node)
	if !ok {
		_ = f.Close()
		return nil, nil, 0, syscall.EIO
	}
	return inode, &file{f: f, node: child}, 0, 0
}

// Setattr implements fs.NodeSetattrer: a truncation can be undone like a write.
func (n *node) Setattr(ctx context.Context, h fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	if size, ok := in.GetSize(); ok {
		if errno := n.disk.wait(ctx, OpWrite, n.path()); errno != 0 {
			return errno
		}
		if errno := n.disk.admit(); errno != 0 {
			return errno
		}
		u := undo{path: n.path()}
		st, err := os.Stat(u.path)
		if err != nil {
			return fs.ToErrno(err)
		}
		u.oldSize, u.off = st.Size(), int64(size)
		if lost := st.Size() - int64(size); lost > 0 {
			if u.old, err = readAt(u.path, int64(size), lost); err != nil {
				return fs.ToErrno(err)
			}
		}
		n.disk.remember(n.StableAttr().Ino, u)
	}
	return n.LoopbackNode.Setattr(ctx, nil, in, out)
}

func readAt(path string, off, n int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b := make([]byte, n)
	got, err := f.ReadAt(b, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return b[:got], err
}

// Statfs implements fs.NodeStatfser: a full disk says so.
func (n *node) Statfs(ctx context.Context, out *fuse.StatfsOut) syscall.Errno {
	errno := n.LoopbackNode.Statfs(ctx, out)
	n.disk.mu.Lock()
	defer n.disk.mu.Unlock()
	if free := n.disk.free / max(uint64(out.Frsize), 1); n.disk.free > 0 {
		out.Bfree, out.Bavail = min(out.Bfree, free), min(out.Bavail, free)
	}
	if n.disk.full {
		out.Bfree, out.Bavail = 0, 0
	}
	return errno
}

// Fsync implements fs.NodeFsyncer, for directories: their names are not at risk here.
func (n *node) Fsync(ctx context.Context, h fs.FileHandle, _ uint32) syscall.Errno {
	if f, ok := h.(*file); ok {
		return f.Fsync(ctx, 0)
	}
	return n.disk.wait(ctx, OpSync, n.path())
}

// Rename implements fs.NodeRenamer.
func (n *node) Rename(ctx context.Context, name string, newParent fs.InodeEmbedder, newName string, flags uint32) syscall.Errno {
	if errno := n.disk.wait(ctx, OpRename, filepath.Join(n.path(), name)); errno != 0 {
		return errno
	}
	if errno := n.disk.admit(); errno != 0 {
		return errno
	}
	return n.LoopbackNode.Rename(ctx, name, newParent, newName, flags)
}

// file is an open file.
type file struct {
	f    *os.File
	node *node
}

var (
	_ fs.FileReader    = (*file)(nil)
	_ fs.FileWriter    = (*file)(nil)
	_ fs.FileFsyncer   = (*file)(nil)
	_ fs.FileReleaser  = (*file)(nil)
	_ fs.FileFlusher   = (*file)(nil)
	_ fs.FileAllocater = (*file)(nil)
	_ fs.FileGetattrer = (*file)(nil)
)

func (h *file) Read(_ context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	n, err := h.f.ReadAt(dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, fs.ToErrno(err)
	}
	return fuse.ReadResultData(dest[:n]), 0
}

func (h *file) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	disk := h.node.disk
	if errno := disk.wait(ctx, OpWrite, h.f.Name()); errno != 0 {
		return 0, errno
	}
	if errno := disk.admit(); errno != 0 {
		return 0, errno
	}
	st, err := h.f.Stat()
	if err != nil {
		return 0, fs.ToErrno(err)
	}
	u := undo{path: h.f.Name(), off: off, oldSize: st.Size(), new: append([]byte(nil), data...)}
	if have := min(int64(len(data)), st.Size()-off); have > 0 {
		u.old = make([]byte, have)
		if _, err := h.f.ReadAt(u.old, off); err != nil {
			return 0, fs.ToErrno(err)
		}
	}
	n, err := h.f.WriteAt(data, off)
	if err != nil {
		return uint32(n), fs.ToErrno(err)
	}
	disk.remember(h.node.StableAttr().Ino, u)
	return uint32(n), 0
}

// Fsync makes the file's writes survive a PowerCut. The backing file itself is
// not fsynced: what matters is the mount's own books.
func (h *file) Fsync(ctx context.Context, _ uint32) syscall.Errno {
	if errno := h.node.disk.wait(ctx, OpSync, h.f.Name()); errno != 0 {
		return errno
	}
	h.node.disk.synced(h.node.StableAttr().Ino)
	return 0
}

// Getattr works by the open file, which may have no name any more.
func (h *file) Getattr(_ context.Context, out *fuse.AttrOut) syscall.Errno {
	var st syscall.Stat_t
	if err := syscall.Fstat(int(h.f.Fd()), &st); err != nil {
		return fs.ToErrno(err)
	}
	out.FromStat(&st)
	return 0
}

func (h *file) Flush(context.Context) syscall.Errno { return 0 }

func (h *file) Release(context.Context) syscall.Errno { return fs.ToErrno(h.f.Close()) }

// Allocate is refused, so that programs write instead, which can be undone.
func (h *file) Allocate(context.Context, uint64, uint64, uint32) syscall.Errno {
	return syscall.EOPNOTSUPP
}
