package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/raftstore/atrest"
)

// sealerFile holds the key that encrypts log entries, itself encrypted.
const sealerFile = "log-key.age"

// openSealer returns what encrypts the log of a data directory: nil when there are
// no keys.
func openSealer(dir string, keys *atrest.Keys) (*atrest.Sealer, error) {
	path := filepath.Join(dir, sealerFile)
	wrapped, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && keys == nil:
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		sealer, wrapped, err := keys.NewSealer()
		if err == nil {
			err = writeFileSync(path, wrapped, 0o600)
		}
		if err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
		return sealer, nil
	case err != nil:
		return nil, fmt.Errorf("open store: %w", err)
	case keys == nil:
		return nil, &LockedError{path, errNoKeys}
	}
	sealer, rewrapped, err := keys.OpenSealer(wrapped)
	switch {
	case errors.Is(err, atrest.ErrKey):
		return nil, &LockedError{path, err}
	case err != nil:
		return nil, &CorruptError{path, err.Error()}
	case rewrapped != nil:
		if err := writeFileSync(path, rewrapped, 0o600); err != nil {
			return nil, fmt.Errorf("open store: %w", err)
		}
	}
	return sealer, nil
}

var errNoKeys = errors.New("it is encrypted, and no key file was given")

// conceal returns the entries as they are to be kept. Raft goes on to use its own,
// which stay as they are. The checksum of a sealed entry is left out: it is one of
// what is not to be seen, and the seal does what it does.
func (l *logStore) conceal(entries []*raft.Log) []*raft.Log {
	if l.sealer == nil {
		return entries
	}
	kept := make([]*raft.Log, len(entries))
	for i, entry := range entries {
		kept[i] = entry
		if entry.Type != raft.LogCommand {
			continue
		}
		sealed := *entry
		sealed.Data = l.sealer.Seal(entry.Data, place(entry))
		if len(entry.Extensions) == stampSize {
			sealed.Extensions = nil
		}
		kept[i] = &sealed
	}
	return kept
}

// place is what a sealed entry is bound to.
func place(entry *raft.Log) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, entry.Index), entry.Term)
}

// reveal checks an entry as it was kept and makes it what raft gave.
func (l *logStore) reveal(index uint64, entry *raft.Log) error {
	if entry.Type == raft.LogCommand && atrest.Sealed(entry.Data) {
		if l.sealer == nil {
			return fmt.Errorf("log entry %d is encrypted, and %s is not there", index, sealerFile)
		}
		data, err := l.sealer.Open(entry.Data, place(entry))
		if err != nil {
			return fmt.Errorf("log entry %d: %w", index, err)
		}
		entry.Data = data
		stampLog(entry)
	}
	return checkLog(index, entry)
}

// reveal returns a snapshot as it was written, whether it is encrypted or not.
func (s *snapshotStore) reveal(meta *raft.SnapshotMeta, r io.ReadCloser) (_ *raft.SnapshotMeta, _ io.ReadCloser, err error) {
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	buffered := bufio.NewReaderSize(r, 64<<10)
	// What is too short to be encrypted shows when it is read.
	head, _ := buffered.Peek(atrest.MagicSize)
	var plain io.Reader = buffered
	if atrest.IsStream(head) {
		path := filepath.Join(s.dir, meta.ID)
		if s.keys == nil {
			return nil, nil, &LockedError{path, errNoKeys}
		}
		if plain, err = s.keys.Decrypt(buffered); errors.Is(err, atrest.ErrKey) {
			return nil, nil, &LockedError{path, err}
		} else if err != nil {
			return nil, nil, fmt.Errorf("decrypt snapshot: %w", err)
		}
		sized := *meta
		meta = &sized
		if meta.Size, err = s.plainSize(meta); err != nil {
			return nil, nil, err
		}
	}
	return meta, struct {
		io.Reader
		io.Closer
	}{plain, r}, nil
}

// plainSize is the size of an encrypted snapshot as raft sends it, in bytes.
func (s *snapshotStore) plainSize(meta *raft.SnapshotMeta) (int64, error) {
	f, err := os.Open(filepath.Join(s.dir, meta.ID, "state.bin"))
	if err != nil {
		return 0, fmt.Errorf("size of snapshot: %w", err)
	}
	defer f.Close()
	size, err := s.keys.PlainSize(f, meta.Size)
	if err != nil {
		return 0, fmt.Errorf("size of snapshot: %w", err)
	}
	return size, nil
}
