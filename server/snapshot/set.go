package snapshot

import (
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"iter"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/musterhq/muster/server/compile"
)

// Set is the resources of one type in one view of one snapshot. It is immutable
// apart from its caches; all methods are safe for concurrent use. Snapshots
// between which a type did not change share its Set: pointers may be compared.
type Set struct {
	version Version  // of the last change
	lineage *lineage // sets of one lineage number their changes alike

	byName *iradix.Tree[*Resource]
	byRev  *iradix.Tree[change] // by revision, then name; one entry per name
	gone   *iradix.Tree[uint64] // tombstones: the revision by name
	// floor is the newest revision of which a tombstone was dropped: what
	// changed since an earlier one cannot be told from byRev.
	floor uint64

	print, names fingerprint
	digest       Digest
	past         []mark // of earlier sets of the lineage, oldest first
	history      int    // bounds past; 0 is maxPast

	variants *variants
	// template makes the resource of a name that is not there; may be nil.
	template template
}

// template makes a resource of a name; false when the name has none.
type template func(name string, epoch uint64) (*Resource, bool)

// lineage is the identity of a chain of snapshots that follow from each other.
type lineage struct{ _ byte }

// change is the last change of a name; resource is nil for a tombstone.
type change struct {
	name     string
	resource *Resource
}

// mark remembers what a set was at an earlier revision.
type mark struct {
	rev          uint64
	n            int
	print, names fingerprint
	digest       Digest
}

const (
	// maxPast bounds the remembered marks of a set.
	maxPast = 32
	// minTombstones is the number of tombstones that are kept of any set; of
	// larger ones as many are kept as there are resources.
	minTombstones = 1024
)

func newSet(l *lineage, epoch uint64) *Set {
	return &Set{
		version: Version{Epoch: epoch},
		lineage: l,
		byName:  iradix.New[*Resource](),
		byRev:   iradix.New[change](),
		gone:    iradix.New[uint64](),

		variants: &variants{},
	}
}

// Len returns the number of resources.
func (t *Set) Len() int { return t.byName.Len() }

// Get returns the resource of a name.
func (t *Set) Get(name string) (*Resource, bool) { return t.Find([]byte(name)) }

// Find is Get for a name that is not a string yet.
func (t *Set) Find(name []byte) (*Resource, bool) {
	r, ok := t.byName.Get(name)
	if !ok && t.template != nil {
		return t.template(string(name), t.version.Epoch)
	}
	return r, ok
}

// All yields the resources in the order of their names.
func (t *Set) All() iter.Seq[*Resource] {
	return func(yield func(*Resource) bool) {
		it := t.byName.Root().Iterator()
		for _, r, ok := it.Next(); ok; _, r, ok = it.Next() {
			if !yield(r) {
				return
			}
		}
	}
}

// Under yields the resources whose names begin with the prefix, in order.
func (t *Set) Under(prefix string) iter.Seq[*Resource] {
	return func(yield func(*Resource) bool) {
		it := t.byName.Root().Iterator()
		it.SeekPrefix([]byte(prefix))
		for _, r, ok := it.Next(); ok; _, r, ok = it.Next() {
			if !yield(r) {
				return
			}
		}
	}
}

// Version returns the version of the last change of any of the resources.
func (t *Set) Version() Version { return t.version }

// String returns `<epoch>.<revision>.<content>` of the set as a whole: what a
// state-of-the-world response carries as its version. It is a function of the
// resources and the revision.
func (t *Set) String() string {
	b := t.version.append(make([]byte, 0, 48))
	b = append(b, '.')
	b = base64.RawURLEncoding.AppendEncode(b, t.digest.Bytes()[:contentLen*6/8])
	return string(b)
}

// Digest returns the digest of the resources.
func (t *Set) Digest() Digest { return t.digest }

// ChangedSince yields each name that changed after the revision of the set's
// lineage with its resource, nil when it was removed, in the order of the
// changes. It costs O(changed). ok is false when the revision is older than the
// set remembers removals; use Changes then.
func (t *Set) ChangedSince(rev uint64) (seq iter.Seq2[string, *Resource], ok bool) {
	if rev < t.floor {
		return nil, false
	}
	return func(yield func(string, *Resource) bool) {
		it := t.byRev.Root().Iterator()
		it.SeekLowerBound(revKey(rev+1, ""))
		for _, c, ok := it.Next(); ok; _, c, ok = it.Next() {
			if !yield(c.name, c.resource) {
				return
			}
		}
	}, true
}

// Changes yields how t differs from an earlier set: each name with its resource,
// nil when it was removed. It is a range read where the sets are of one lineage
// and t remembers that far back, and else compares the sets name by name. Of nil
// it yields every resource.
func (t *Set) Changes(from *Set) iter.Seq2[string, *Resource] {
	switch {
	case from == t || from != nil && from.lineage == t.lineage && from.version == t.version:
		return func(func(string, *Resource) bool) {}
	case from == nil:
		return func(yield func(string, *Resource) bool) {
			for r := range t.All() {
				if !yield(r.Name, r) {
					return
				}
			}
		}
	}
	if from.ranges(t) {
		seq, _ := t.ChangedSince(from.version.Revision)
		return seq
	}
	return t.compare(from)
}

// ranges reports whether the changes from t to a later set are a range read.
func (t *Set) ranges(to *Set) bool {
	return t.lineage == to.lineage && t.version.Revision >= to.floor
}

// Same reports whether both are the same set of the same lineage.
func (t *Set) Same(o *Set) bool {
	return t == o || t != nil && o != nil && t.lineage == o.lineage && t.version == o.version
}

// compare merges the two sets in the order of names: O(both).
func (t *Set) compare(from *Set) iter.Seq2[string, *Resource] {
	return func(yield func(string, *Resource) bool) {
		old, now := from.byName.Root().Iterator(), t.byName.Root().Iterator()
		_, a, aok := old.Next()
		_, b, bok := now.Next()
		for aok || bok {
			switch order := compareNames(a, b, aok, bok); {
			case order < 0:
				if !yield(a.Name, nil) {
					return
				}
				_, a, aok = old.Next()
			case order > 0:
				if !yield(b.Name, b) {
					return
				}
				_, b, bok = now.Next()
			default:
				if !a.SameContent(b) && !yield(b.Name, b) {
					return
				}
				_, a, aok = old.Next()
				_, b, bok = now.Next()
			}
		}
	}
}

func compareNames(a, b *Resource, aok, bok bool) int {
	switch {
	case !aok:
		return 1
	case !bok:
		return -1
	}
	return strings.Compare(a.Name, b.Name)
}

// Holds tells which revision of the set a client is at, that holds what was
// tallied: the set itself or one of its last predecessors. ok is false when the
// tally is of no such set.
func (t *Set) Holds(c Tally) (rev uint64, ok bool) {
	if c.n == t.Len() && c.print == t.print && c.names == t.names {
		return t.version.Revision, true
	}
	for i := len(t.past) - 1; i >= 0; i-- {
		p := t.past[i]
		if p.n == c.n && p.print == c.print && p.names == c.names && p.rev >= t.floor {
			return p.rev, true
		}
	}
	return 0, false
}

// rebase returns the set in another lineage, in which everything changed at v.
func (t *Set) rebase(l *lineage, v Version) *Set {
	empty := newSet(l, v.Epoch)
	empty.template = t.template
	e := empty.edit(v)
	for r := range t.All() {
		e.put(r.at(v.Revision))
	}
	if s := e.commit(empty); s != nil {
		return s
	}
	return empty
}

// revOf is the revision in a key of byRev.
func revOf(key []byte) uint64 { return binary.BigEndian.Uint64(key) }

// revKey is the key of a change in byRev.
func revKey(rev uint64, name string) []byte {
	k := make([]byte, 8, 8+len(name))
	binary.BigEndian.PutUint64(k, rev)
	return append(k, name...)
}

// edit is a set in the making. Its methods are O(log n).
type edit struct {
	set    *Set
	to     Version
	byName *iradix.Txn[*Resource]
	byRev  *iradix.Txn[change]
	gone   *iradix.Txn[uint64]
	dirty  bool
	shown  bool // some resource has the edit's version
}

func (t *Set) edit(to Version) *edit {
	next := *t
	next.variants = &variants{}
	return &edit{set: &next, to: to, byName: t.byName.Txn(), byRev: t.byRev.Txn(), gone: t.gone.Txn()}
}

// put adds or replaces a resource whose Rev is the edit's revision.
func (e *edit) put(r *Resource) {
	key := []byte(r.Name)
	if before, ok := e.byName.Get(key); ok {
		if before.view == r.view && before.SameContent(r) && bytes.Equal(before.Body, r.Body) {
			if !r.passed || before.Version == r.Version {
				return
			}
			// Upstream its version was moved on to show a removal.
			if r.untouched = before; before.untouched != nil {
				r.untouched = before.untouched
			}
		}
		e.forget(before)
	} else if rev, ok := e.gone.Delete(key); ok {
		e.byRev.Delete(revKey(rev, r.Name))
	}
	e.insert(r)
}

// insert adds a resource that the edit has no trace of.
func (e *edit) insert(r *Resource) {
	e.byName.Insert([]byte(r.Name), r)
	e.byRev.Insert(revKey(e.to.Revision, r.Name), change{r.Name, r})
	e.set.print += r.print
	e.set.names += namePrintOf(r.Name)
	e.set.digest.add(r.digest)
	e.dirty, e.shown = true, true
}

// touched is how many resources are looked at for the smallest one to touch.
const touched = 16

// touch gives one resource the edit's version where nothing but removals would: what
// a client holds must show that it is past them, or a server that is behind could
// bring back what was removed. One of the view itself, where there is one, concerns
// nobody else. DESIGN.md tells more.
func (e *edit) touch(view compile.View) *Resource {
	if !e.dirty || e.shown {
		return nil
	}
	var least *Resource
	it := e.byName.Root().Iterator()
	_, r, ok := it.Next()
	for n := 0; ok && n < touched; n++ {
		own := r.view == view
		if len(r.content) == contentLen && (least == nil || own && least.view != view ||
			own == (least.view == view) && len(r.Body) < len(least.Body)) {
			least = r
		}
		_, r, ok = it.Next()
	}
	if least == nil {
		return nil
	}
	version := string(append(e.to.append(nil), '.')) + least.content
	e.forget(least)
	r = newResource(least.TypeURL, least.Name, version, e.to, least.Body, least.Origins, least.view)
	if r.untouched = least; least.untouched != nil {
		r.untouched = least.untouched
	}
	e.insert(r)
	return r
}

// move gives a resource the version that it got in another view.
func (e *edit) move(r *Resource) {
	if before, ok := e.byName.Get([]byte(r.Name)); ok && before.view == r.view && before.Version != r.Version {
		e.forget(before)
		e.insert(r)
	}
}

func (e *edit) remove(name string) {
	before, ok := e.byName.Delete([]byte(name))
	if !ok {
		return
	}
	e.forget(before)
	e.gone.Insert([]byte(name), e.to.Revision)
	e.byRev.Insert(revKey(e.to.Revision, name), change{name: name})
	e.dirty = true
}

// forget takes a resource out of everything but byName.
func (e *edit) forget(r *Resource) {
	e.byRev.Delete(revKey(r.Rev, r.Name))
	e.set.print -= r.print
	e.set.names -= namePrintOf(r.Name)
	e.set.digest.sub(r.digest)
}

// commit returns the edited set, or nil when nothing changed.
func (e *edit) commit(before *Set) *Set {
	if !e.dirty {
		return nil
	}
	s := e.set
	s.version = e.to
	s.byName, s.gone = e.byName.CommitOnly(), e.gone.CommitOnly()
	if s.gone.Len() > max(minTombstones, s.byName.Len()) {
		e.compact()
		s.gone = e.gone.CommitOnly()
	}
	s.byRev = e.byRev.CommitOnly()
	if before.version == e.to { // of a rebase: nobody ever saw the set before
		s.past = nil
		return s
	}
	past, limit := before.past, maxPast
	if s.history > 0 {
		limit = s.history
	}
	if len(past) >= limit {
		past = past[len(past)-limit+1:]
	}
	s.past = append(past[:len(past):len(past)], mark{before.version.Revision, before.Len(), before.print, before.names, before.digest})
	return s
}

// compact drops the older half of the tombstones.
func (e *edit) compact() {
	drop := e.set.gone.Len() / 2
	var keys [][]byte
	var names []string
	it := e.byRev.Root().Iterator()
	for k, c, ok := it.Next(); ok && len(keys) < drop; k, c, ok = it.Next() {
		if c.resource == nil {
			keys, names = append(keys, k), append(names, c.name)
			e.set.floor = binary.BigEndian.Uint64(k)
		}
	}
	for i, k := range keys {
		e.byRev.Delete(k)
		e.gone.Delete([]byte(names[i]))
	}
}
