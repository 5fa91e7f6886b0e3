package raftstore

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/raftstore/atrest"
)

// Raft checks a snapshot's state but not the file beside it that names the
// servers of the cluster and their addresses, and no log entry at all. One
// flipped bit there gives a server another cluster.

// sealFile holds the SHA-256 of a snapshot's meta.json.
const sealFile = "meta.sha256"

// snapshotStore is raft's store of snapshots with a seal on what raft does not
// check, and, with keys, encrypted.
type snapshotStore struct {
	*raft.FileSnapshotStore
	dir  string
	keys *atrest.Keys
}

var _ raft.SnapshotStore = (*snapshotStore)(nil)

// Create begins a snapshot, which is sealed when it is closed.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64, configuration raft.Configuration, configurationIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.FileSnapshotStore.Create(version, index, term, configuration, configurationIndex, trans)
	if err != nil {
		return nil, err
	}
	sealed := &sealedSink{SnapshotSink: sink, dir: s.dir, w: sink}
	if s.keys != nil {
		secret, err := s.keys.Encrypt(sink)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("encrypt snapshot: %w", err), sink.Cancel())
		}
		sealed.w, sealed.secret = secret, secret
	}
	return sealed, nil
}

// Open opens a snapshot whose seal holds. One without a seal, of a server that
// ended just before it could be made, counts as good.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if err := s.checkSeal(id); err != nil {
		return nil, nil, err
	}
	meta, r, err := s.FileSnapshotStore.Open(id)
	if err != nil {
		return nil, nil, err
	}
	return s.reveal(meta, r)
}

func (s *snapshotStore) checkSeal(id string) error {
	want, err := os.ReadFile(filepath.Join(s.dir, id, sealFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	meta := filepath.Join(s.dir, id, "meta.json")
	data, err := os.ReadFile(meta)
	if err != nil {
		return err
	}
	if sum := sha256.Sum256(data); !bytes.Equal(sum[:], want) {
		return fmt.Errorf("%s is not what was written", meta)
	}
	return nil
}

// complete checks that the newest snapshot on disk is the first of a list: raft
// passes over one that it cannot read, and would begin with an older one.
func (s *snapshotStore) complete(listed []*raft.SnapshotMeta) error {
	entries, err := os.ReadDir(s.dir)
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	newest, at := "", [3]uint64{}
	for _, e := range entries {
		if v, ok := snapshotOrder(e.Name()); ok && e.IsDir() && (newest == "" || less(at, v)) {
			newest, at = e.Name(), v
		}
	}
	if newest == "" || (len(listed) > 0 && listed[0].ID == newest) {
		return nil
	}
	return &CorruptError{filepath.Join(s.dir, newest, "meta.json"), "it cannot be read"}
}

// snapshotOrder reads the name of a snapshot, `term-index-milliseconds`.
func snapshotOrder(name string) (v [3]uint64, ok bool) {
	parts := strings.Split(name, "-")
	if len(parts) != len(v) {
		return v, false
	}
	for i, p := range parts {
		n, err := strconv.ParseUint(p, 10, 64)
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

func less(a, b [3]uint64) bool {
	for i := range a {
		if a[i] != b[i] {
			return a[i] < b[i]
		}
	}
	return false
}

type sealedSink struct {
	raft.SnapshotSink
	dir    string
	w      io.Writer
	secret io.Closer // completes what is encrypted; nil in clear
	closed bool
}

func (s *sealedSink) Write(p []byte) (int, error) { return s.w.Write(p) }

// Close completes the snapshot, and seals it.
func (s *sealedSink) Close() error {
	if s.closed {
		return nil // raft closes what Persist has closed
	}
	s.closed = true
	if s.secret != nil {
		if err := s.secret.Close(); err != nil {
			return errors.Join(fmt.Errorf("encrypt snapshot: %w", err), s.SnapshotSink.Cancel())
		}
	}
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	data, err := os.ReadFile(filepath.Join(s.dir, s.ID(), "meta.json"))
	if err != nil {
		return fmt.Errorf("seal snapshot: %w", err)
	}
	sum := sha256.Sum256(data)
	if err := writeFileSync(filepath.Join(s.dir, s.ID(), sealFile), sum[:], 0o600); err != nil {
		return fmt.Errorf("seal snapshot: %w", err)
	}
	return nil
}

// Cancel gives the snapshot up.
func (s *sealedSink) Cancel() error {
	s.closed = true
	return s.SnapshotSink.Cancel()
}

// stampSize is the size of an entry's checksum in bytes.
const stampSize = 4

// stampLog gives an entry that has none a checksum, which goes with it to the
// other servers. Raft keeps Extensions for its users.
func stampLog(entry *raft.Log) {
	if len(entry.Extensions) == 0 {
		entry.Extensions = binary.BigEndian.AppendUint32(nil, logSum(entry))
	}
}

// checkStamp checks an entry that has a checksum.
func checkStamp(entry *raft.Log) error {
	if len(entry.Extensions) == stampSize && binary.BigEndian.Uint32(entry.Extensions) != logSum(entry) {
		return errors.New("it is not what was written")
	}
	return nil
}

func logSum(entry *raft.Log) uint32 {
	head := binary.BigEndian.AppendUint64(nil, entry.Index)
	head = binary.BigEndian.AppendUint64(head, entry.Term)
	head = append(head, byte(entry.Type))
	return crc32.Update(crc32.Update(0, castagnoli, head), castagnoli, entry.Data)
}
