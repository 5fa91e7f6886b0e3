package state

import (
	"crypto/sha256"
	"hash"
	"iter"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// SnapshotFormat is the format that Snapshot writes and the newest that
// Restore reads.
const SnapshotFormat = 1

// Snapshot yields the state as records: the header; for each group by id its
// description, the resources at the revision before its oldest kept one, and
// the kept revisions; a group record without a prefix for each deleted group
// whose last revision is remembered; the remembered requests, oldest first;
// the trailer. Equal states yield equal records, whichever way they came about.
func (s *State) Snapshot() iter.Seq2[*musterv1.SnapshotRecord, error] {
	return func(yield func(*musterv1.SnapshotRecord, error) bool) {
		sum := newChecksum()
		for r := range s.records() {
			data, err := marshal.Marshal(r)
			if err != nil {
				yield(nil, err)
				return
			}
			sum.add(data)
			if !yield(r, nil) {
				return
			}
		}
		yield(sum.trailer(), nil)
	}
}

// Encoded yields the same records encoded; the checksum in the trailer is over
// exactly these bytes.
func (s *State) Encoded() iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		sum := newChecksum()
		for r := range s.records() {
			data, err := marshal.Marshal(r)
			if err != nil {
				yield(nil, err)
				return
			}
			sum.add(data)
			if !yield(data, nil) {
				return
			}
		}
		yield(marshal.Marshal(sum.trailer()))
	}
}

// Checksum is the SHA-256 over the state's snapshot with log index and term
// left out: equal on all servers that hold the same content.
func (s *State) Checksum() ([sha256.Size]byte, error) {
	sum := newChecksum()
	for r := range s.At(0, 0).records() {
		data, err := marshal.Marshal(r)
		if err != nil {
			return [sha256.Size]byte{}, err
		}
		sum.add(data)
	}
	return [sha256.Size]byte(sum.hash.Sum(nil)), nil
}

var marshal = proto.MarshalOptions{Deterministic: true}

// checksum counts and hashes encoded records.
type checksum struct {
	hash    hash.Hash
	records uint64
}

func newChecksum() *checksum { return &checksum{hash: sha256.New()} }

func (c *checksum) add(record []byte) {
	// Records are hashed with their lengths, so that no two sequences of
	// records hash alike.
	var length [8]byte
	for i, n := 0, uint64(len(record)); i < 8; i++ {
		length[7-i] = byte(n >> (8 * i))
	}
	c.hash.Write(length[:])
	c.hash.Write(record)
	c.records++
}

func (c *checksum) trailer() *musterv1.SnapshotRecord {
	return &musterv1.SnapshotRecord{Record: &musterv1.SnapshotRecord_Trailer{
		Trailer: &musterv1.SnapshotTrailer{Records: c.records, Sha256: c.hash.Sum(nil)},
	}}
}

// records yields everything but the trailer.
func (s *State) records() iter.Seq[*musterv1.SnapshotRecord] {
	return func(yield func(*musterv1.SnapshotRecord) bool) {
		header := &musterv1.SnapshotHeader{Format: SnapshotFormat, Epoch: s.epoch, Index: s.index, Term: s.term}
		if !yield(&musterv1.SnapshotRecord{Record: &musterv1.SnapshotRecord_Header{Header: header}}) {
			return
		}
		for g := range s.Groups() {
			if !g.yieldRecords(yield) {
				return
			}
		}
		stopped := false
		s.graves.Root().Walk(func(id []byte, last uint64) bool {
			grave := &musterv1.Group{Id: string(id), Revision: last}
			stopped = !yield(&musterv1.SnapshotRecord{Record: &musterv1.SnapshotRecord_Group{Group: grave}})
			return stopped
		})
		if stopped {
			return
		}
		s.requests.bySeq.Root().Walk(func(_ []byte, m *remembered) bool {
			return !yield(&musterv1.SnapshotRecord{Record: &musterv1.SnapshotRecord_Request{Request: m.record()}})
		})
	}
}

func (g *Group) yieldRecords(yield func(*musterv1.SnapshotRecord) bool) bool {
	if !yield(&musterv1.SnapshotRecord{Record: &musterv1.SnapshotRecord_Group{Group: g.meta}}) {
		return false
	}
	for e := range g.history.base.Entries() {
		r := &musterv1.SnapshotResource{
			Group:  g.ID(),
			Key:    e.Key.Proto(),
			Stored: &musterv1.StoredResource{Resource: e.Resource, Revision: e.Revision, Author: e.Author, CreatedRevision: e.Created},
		}
		if !yield(&musterv1.SnapshotRecord{Record: &musterv1.SnapshotRecord_Resource{Resource: r}}) {
			return false
		}
	}
	for _, r := range g.history.records {
		rev := &musterv1.SnapshotRevision{Group: g.ID(), Revision: r.info, Mark: r.mark}
		if !yield(&musterv1.SnapshotRecord{Record: &musterv1.SnapshotRecord_Revision{Revision: rev}}) {
			return false
		}
	}
	return true
}

// record encodes a remembered request. Its result is a CommitResponse or a
// Group, told apart by the first byte.
func (m *remembered) record() *musterv1.SnapshotRequest {
	var result []byte
	switch {
	case m.result.Commit != nil:
		// Marshalling these messages cannot fail: they hold valid UTF-8 only,
		// having come through the log.
		body, _ := marshal.Marshal(m.result.Commit)
		group, _ := marshal.Marshal(m.result.Group)
		result = encodeResult('c', body, group)
	case m.result.Group != nil:
		group, _ := marshal.Marshal(m.result.Group)
		result = encodeResult('g', nil, group)
	default:
		result = []byte{'-'}
	}
	return &musterv1.SnapshotRequest{RequestId: m.key, Result: result}
}
