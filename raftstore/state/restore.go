package state

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// Restore rebuilds a state from the records of Snapshot. Everything is checked;
// the error is a *SnapshotError, or what the sequence yielded.
func Restore(records iter.Seq2[*musterv1.SnapshotRecord, error]) (*State, error) {
	return RestoreEncoded(func(yield func([]byte, error) bool) {
		for r, err := range records {
			var data []byte
			if err == nil {
				data, err = marshal.Marshal(r)
			}
			if !yield(data, err) || err != nil {
				return
			}
		}
	})
}

// RestoreEncoded rebuilds a state from the records of Encoded. It keeps no
// reference to the yielded slices.
func RestoreEncoded(records iter.Seq2[[]byte, error]) (*State, error) {
	b := &builder{state: New(), sum: newChecksum()}
	for data, err := range records {
		if err != nil {
			return nil, err
		}
		if err := b.add(data); err != nil {
			return nil, &SnapshotError{Record: b.sum.records, Reason: err.Error()}
		}
	}
	if !b.done {
		return nil, &SnapshotError{Record: b.sum.records, Reason: "the trailer is missing: the snapshot is cut short"}
	}
	return b.state, nil
}

// builder puts a state together, record by record.
type builder struct {
	state  *State
	sum    *checksum
	header bool
	done   bool

	// group is the one whose resources and revisions are being read.
	group  *Group
	edit   viewTxn
	newest uint64 // the newest revision of a resource record of the group
	from   uint64 // the revision of the last revision record, 0 before the first
	tail   bool   // only deleted groups and requests may follow
}

func (b *builder) add(data []byte) error {
	if b.done {
		return errors.New("follows the trailer")
	}
	var r musterv1.SnapshotRecord
	if err := proto.Unmarshal(data, &r); err != nil {
		return fmt.Errorf("does not decode: %w", err)
	}
	if !b.header && r.GetHeader() == nil {
		return errors.New("is not a header")
	}
	if t := r.GetTrailer(); t != nil {
		return b.trailer(t)
	}
	var err error
	switch {
	case r.GetHeader() != nil:
		err = b.readHeader(r.GetHeader())
	case r.GetGroup().GetControlPlaneKeyPrefix() != "":
		err = b.beginGroup(r.GetGroup())
	case r.GetGroup() != nil:
		err = b.grave(r.GetGroup())
	case r.GetResource() != nil:
		err = b.resource(r.GetResource())
	case r.GetRevision() != nil:
		err = b.revision(r.GetRevision())
	case r.GetRequest() != nil:
		err = b.request(r.GetRequest())
	default:
		err = errors.New("is of an unknown kind")
	}
	if err != nil {
		return err
	}
	b.sum.add(data)
	return nil
}

func (b *builder) readHeader(h *musterv1.SnapshotHeader) error {
	switch {
	case b.header:
		return errors.New("is a second header")
	case h.GetFormat() == 0 || h.GetFormat() > SnapshotFormat:
		return fmt.Errorf("has format %d; this version reads up to %d", h.GetFormat(), SnapshotFormat)
	case h.GetEpoch() == 0 || h.GetEpoch() > maxVersion:
		return fmt.Errorf("has epoch %d", h.GetEpoch())
	}
	b.header = true
	b.state.epoch, b.state.index, b.state.term = h.GetEpoch(), h.GetIndex(), h.GetTerm()
	return nil
}

func (b *builder) beginGroup(meta *musterv1.Group) error {
	if err := b.endGroup(); err != nil {
		return err
	}
	if b.tail {
		return errors.New("is a group after the last one")
	}
	if err := checkGroup(meta); err != nil {
		return fmt.Errorf("group %q: %w", meta.GetId(), err)
	}
	if err := b.state.checkFree(meta); err != nil {
		return err
	}
	if meta.GetRevision() > maxVersion {
		return fmt.Errorf("group %q is at revision %d", meta.GetId(), meta.GetRevision())
	}
	if meta.GetEpoch() != b.state.epoch {
		return fmt.Errorf("group %q is of epoch %d, the header of %d", meta.GetId(), meta.GetEpoch(), b.state.epoch)
	}
	b.group = &Group{meta: meta, history: history{baseRev: meta.GetRevision()}}
	b.edit, b.from, b.newest = View{}.txn(), 0, 0
	return nil
}

func (b *builder) resource(r *musterv1.SnapshotResource) error {
	key := resource.KeyOf(r.GetStored().GetResource())
	switch {
	case b.group == nil || r.GetGroup() != b.group.ID():
		return fmt.Errorf("is a resource of group %q, out of place", r.GetGroup())
	case b.from != 0:
		return errors.New("is a resource after revisions")
	case key != resource.KeyFromProto(r.GetKey()):
		return fmt.Errorf("holds %s under the key %s", key, resource.KeyFromProto(r.GetKey()))
	case checkKey(key) != "":
		return fmt.Errorf("%s: %s", key, checkKey(key))
	case b.edit.get(key) != nil:
		return fmt.Errorf("repeats %s", key)
	}
	stored := r.GetStored()
	if stored.GetRevision() == 0 || stored.GetCreatedRevision() > stored.GetRevision() {
		return fmt.Errorf("%s is of revision %d, made in %d", key, stored.GetRevision(), stored.GetCreatedRevision())
	}
	b.newest = max(b.newest, stored.GetRevision())
	b.edit.set(&Entry{
		Key: key, Resource: stored.GetResource(), Revision: stored.GetRevision(),
		Author: stored.GetAuthor(), Created: stored.GetCreatedRevision(),
	})
	return nil
}

// revision replays one revision on top of the ones before it.
func (b *builder) revision(r *musterv1.SnapshotRevision) error {
	info := r.GetRevision()
	if b.group == nil || r.GetGroup() != b.group.ID() {
		return fmt.Errorf("is a revision of group %q, out of place", r.GetGroup())
	}
	if b.from == 0 {
		if info.GetRevision() == 0 {
			return errors.New("is a revision 0")
		}
		if err := b.setBase(info.GetRevision() - 1); err != nil {
			return err
		}
	} else if info.GetRevision() != b.from+1 {
		return fmt.Errorf("is revision %d after %d", info.GetRevision(), b.from)
	}
	b.from = info.GetRevision()
	tx := b.group.view.txn()
	for _, c := range info.GetChanges() {
		if err := replay(tx, c, info); err != nil {
			return fmt.Errorf("revision %d: %w", info.GetRevision(), err)
		}
	}
	b.group.view = tx.commit()
	// The builder alone holds the history, so it may grow in place.
	b.group.history.records = append(b.group.history.records, &record{info, b.group.view, r.GetMark()})
	return nil
}

// setBase ends the resources of the group: they are what there was at a revision.
func (b *builder) setBase(revision uint64) error {
	if b.newest > revision {
		return fmt.Errorf("group %q at revision %d holds a resource of revision %d", b.group.ID(), revision, b.newest)
	}
	b.group.view = b.edit.commit()
	b.group.history = history{base: b.group.view, baseRev: revision}
	return nil
}

func replay(tx viewTxn, c *musterv1.ResourceChange, info *musterv1.Revision) error {
	key := resource.KeyFromProto(c.GetKey())
	if reason := checkKey(key); reason != "" {
		return errors.New(reason)
	}
	before := tx.get(key)
	if (before == nil) != (c.GetBefore() == nil) || (before != nil && !proto.Equal(before.Resource, c.GetBefore())) {
		return fmt.Errorf("%s was not as the revision says", key)
	}
	if c.GetAfter() == nil {
		if before == nil {
			return fmt.Errorf("%s has neither a before nor an after", key)
		}
		tx.remove(key)
		return nil
	}
	if resource.KeyOf(c.GetAfter()) != key {
		return fmt.Errorf("holds %s under the key %s", resource.KeyOf(c.GetAfter()), key)
	}
	created := info.GetRevision()
	if before != nil {
		created = before.Created
	}
	tx.set(&Entry{Key: key, Resource: c.GetAfter(), Revision: info.GetRevision(), Author: info.GetAuthor(), Created: created})
	return nil
}

// endGroup checks the group that was being read against its description, and
// puts it in place.
func (b *builder) endGroup() error {
	g := b.group
	if g == nil {
		return nil
	}
	if b.from == 0 {
		if err := b.setBase(g.Revision()); err != nil {
			return err
		}
	} else if b.from != g.Revision() {
		return fmt.Errorf("ends group %q at revision %d, which should be at %d", g.ID(), b.from, g.Revision())
	}
	if uint64(g.view.Len()) != g.meta.GetResources() {
		return fmt.Errorf("ends group %q with %d resources, which should have %d", g.ID(), g.view.Len(), g.meta.GetResources())
	}
	for e := range g.view.Entries() {
		if _, parent := parentOf(e); parent != (resource.Key{}) {
			if _, found := g.view.Get(parent); !found {
				return fmt.Errorf("ends group %q, where %s lacks %s", g.ID(), e.Key, parent)
			}
		}
	}
	s := b.state
	s.groups, _, _ = s.groups.Insert([]byte(g.ID()), g)
	s.names, _, _ = s.names.Insert([]byte(g.meta.GetName()), g.ID())
	s.prefixes, _, _ = s.prefixes.Insert(prefixKey(g.meta), g.ID())
	b.group = nil
	return nil
}

func (b *builder) grave(g *musterv1.Group) error {
	if err := b.endGroup(); err != nil {
		return err
	}
	b.tail = true
	if _, alive := b.state.groups.Get([]byte(g.GetId())); alive || g.GetRevision() == 0 || g.GetRevision() > maxVersion {
		return fmt.Errorf("remembers a deletion of group %q that does not hold", g.GetId())
	}
	b.state.graves, _, _ = b.state.graves.Insert([]byte(g.GetId()), g.GetRevision())
	return nil
}

func (b *builder) request(r *musterv1.SnapshotRequest) error {
	if err := b.endGroup(); err != nil {
		return err
	}
	b.tail = true
	result, err := decodeResult(r.GetResult())
	if err != nil {
		return err
	}
	if _, known := b.state.requests.get(r.GetRequestId()); known || r.GetRequestId() == "" {
		return errors.New("repeats a request")
	}
	b.state.requests = b.state.requests.remember(r.GetRequestId(), result)
	return nil
}

func (b *builder) trailer(t *musterv1.SnapshotTrailer) error {
	if err := b.endGroup(); err != nil {
		return err
	}
	if t.GetRecords() != b.sum.records {
		return fmt.Errorf("counts %d records, there are %d", t.GetRecords(), b.sum.records)
	}
	if sum := b.sum.hash.Sum(nil); len(t.GetSha256()) != sha256.Size || !bytes.Equal(sum, t.GetSha256()) {
		return errors.New("has another checksum than the records before it")
	}
	b.done = true
	return nil
}

// encodeResult writes a remembered answer: its kind, then the body with its
// length, then the group.
func encodeResult(kind byte, body, group []byte) []byte {
	out := binary.AppendUvarint([]byte{kind}, uint64(len(body)))
	return append(append(out, body...), group...)
}

func decodeResult(data []byte) (Result, error) {
	bad := errors.New("holds a request whose answer does not decode")
	if len(data) == 0 {
		return Result{}, bad
	}
	if data[0] == '-' && len(data) == 1 {
		return Result{}, nil
	}
	size, n := binary.Uvarint(data[1:])
	if n <= 0 || uint64(len(data)-1-n) < size {
		return Result{}, bad
	}
	body, group := data[1+n:1+n+int(size)], data[1+n+int(size):]
	result := Result{Group: &musterv1.Group{}}
	if err := proto.Unmarshal(group, result.Group); err != nil {
		return Result{}, bad
	}
	switch data[0] {
	case 'c':
		result.Commit = &musterv1.CommitResponse{}
		if err := proto.Unmarshal(body, result.Commit); err != nil {
			return Result{}, bad
		}
	case 'g':
	default:
		return Result{}, bad
	}
	return result, nil
}
