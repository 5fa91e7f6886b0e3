package state

import (
	"iter"
	"slices"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// DefaultHistoryLimit is how many revisions a group keeps unless it says otherwise.
const DefaultHistoryLimit = 200

// MaxHistoryLimit is the most revisions that a group may keep.
const MaxHistoryLimit = 10000

// Group is a gateway group at one revision, with its history.
type Group struct {
	// meta carries the revision, epoch and number of resources.
	meta    *musterv1.Group
	view    View
	history history
}

// Change is one resource's difference between two revisions. Before is nil
// when the resource was created, After when it was deleted.
type Change struct {
	Key           resource.Key
	Before, After *Entry
}

// Result tells what the change did. A resource that was changed and changed
// back is UNCHANGED.
func (c Change) Result() musterv1.ChangeResult {
	switch {
	case c.Before == nil && c.After == nil:
		return musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED
	case c.Before == nil:
		return musterv1.ChangeResult_CHANGE_RESULT_CREATED
	case c.After == nil:
		return musterv1.ChangeResult_CHANGE_RESULT_DELETED
	case c.Before == c.After || equalContent(c.Before.Resource, c.After.Resource):
		return musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED
	}
	return musterv1.ChangeResult_CHANGE_RESULT_UPDATED
}

// Proto returns the change as a message, with the bodies or without.
func (c Change) Proto(bodies bool) *musterv1.ResourceChange {
	m := &musterv1.ResourceChange{Key: c.Key.Proto(), Result: c.Result()}
	c.addBodies(m, bodies)
	return m
}

func (c Change) addBodies(m *musterv1.ResourceChange, bodies bool) {
	if bodies && c.Before != nil {
		m.Before = c.Before.Resource
	}
	if bodies && c.After != nil {
		m.After = c.After.Resource
	}
}

// Meta describes the group, revision, epoch and number of resources included.
func (g *Group) Meta() *musterv1.Group { return g.meta }

// ID is the group's id.
func (g *Group) ID() string { return g.meta.GetId() }

// Revision is the group's current revision.
func (g *Group) Revision() uint64 { return g.meta.GetRevision() }

// Epoch is the store's epoch. Versions of a group order as (epoch, revision).
func (g *Group) Epoch() uint64 { return g.meta.GetEpoch() }

// Mark names what is in the group: another revision has another, even where two
// servers each took a revision of the same number for the next one. It is 0 before
// the first transaction and where that of the revision was not recorded.
func (g *Group) Mark() uint64 {
	if r, found := g.history.get(g.Revision()); found {
		return r.mark
	}
	return 0
}

// View is the group at its current revision.
func (g *Group) View() View { return g.view }

// At returns the group at a kept revision; false when that is trimmed or not
// there yet. Revision 0 is always the empty group.
func (g *Group) At(revision uint64) (View, bool) {
	switch {
	case revision == 0:
		return View{}, true
	case revision == g.Revision():
		return g.view, true
	case revision == g.history.baseRev:
		return g.history.base, true
	}
	if r, found := g.history.get(revision); found {
		return r.view, true
	}
	return View{}, false
}

// Oldest is the oldest revision, apart from 0, that At knows.
func (g *Group) Oldest() uint64 { return max(g.history.baseRev, min(1, g.Revision())) }

// Changes returns what differs between two revisions, merged per key and in key
// order; from may be newer than to. It costs O(changes between), and
// O(resources) when either is 0. It is false when At does not know both.
func (g *Group) Changes(from, to uint64) ([]Change, bool) {
	before, ok := g.At(from)
	if !ok {
		return nil, false
	}
	after, ok := g.At(to)
	if !ok {
		return nil, false
	}
	var changes []Change
	for _, key := range g.touchedBetween(min(from, to), max(from, to), before, after) {
		b, _ := before.Get(key)
		a, _ := after.Get(key)
		if a != b {
			changes = append(changes, Change{key, b, a})
		}
	}
	return changes, true
}

// touchedBetween lists, in key order, the keys that may differ between two views.
func (g *Group) touchedBetween(low, high uint64, views ...View) []resource.Key {
	set := map[resource.Key]struct{}{}
	if low >= g.history.baseRev {
		for r := range g.history.between(low+1, high) {
			for _, c := range r.info.GetChanges() {
				set[resource.KeyFromProto(c.GetKey())] = struct{}{}
			}
		}
	} else {
		// Revision 0 of a trimmed history: everything in either view.
		for _, v := range views {
			for e := range v.Entries() {
				set[e.Key] = struct{}{}
			}
		}
	}
	keys := make([]resource.Key, 0, len(set))
	for k := range set {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, compareKeys)
	return keys
}

// Revisions yields the kept history, newest first, with the bodies before and after.
func (g *Group) Revisions() iter.Seq[*musterv1.Revision] {
	return func(yield func(*musterv1.Revision) bool) {
		for _, r := range slices.Backward(g.history.records) {
			if !yield(r.info) {
				return
			}
		}
	}
}

// RevisionInfo returns a kept revision, with the bodies before and after.
func (g *Group) RevisionInfo(revision uint64) (*musterv1.Revision, bool) {
	if r, found := g.history.get(revision); found {
		return r.info, true
	}
	return nil, false
}

// history is the kept revisions, consecutive, and the view before the oldest
// of them. It is immutable: a slice of 200 is copied sooner than a tree is
// changed.
type history struct {
	base    View
	baseRev uint64
	records []*record
}

// record is one kept revision: what it did, and the view that it made.
type record struct {
	info *musterv1.Revision
	view View
	mark uint64
}

func (h history) get(revision uint64) (*record, bool) {
	if revision <= h.baseRev || revision-h.baseRev > uint64(len(h.records)) {
		return nil, false
	}
	return h.records[revision-h.baseRev-1], true
}

// between yields the kept revisions from..to, oldest first.
func (h history) between(from, to uint64) iter.Seq[*record] {
	return func(yield func(*record) bool) {
		for revision := max(from, h.baseRev+1); revision <= to; revision++ {
			r, found := h.get(revision)
			if !found || !yield(r) {
				return
			}
		}
	}
}

// with returns the history with one more revision, trimmed to the limit.
func (h history) with(r *record, limit uint32) history {
	h = h.trimmed(max(limit, 1) - 1)
	records := make([]*record, len(h.records)+1)
	copy(records, h.records)
	records[len(h.records)] = r
	h.records = records
	return h
}

// trimmed drops the oldest revisions above the limit; the view of the last one
// dropped becomes the base.
func (h history) trimmed(limit uint32) history {
	if excess := len(h.records) - int(limit); excess > 0 {
		last := h.records[excess-1]
		h.base, h.baseRev, h.records = last.view, last.info.GetRevision(), h.records[excess:]
	}
	return h
}

func compareKeys(a, b resource.Key) int {
	switch {
	case a == b:
		return 0
	case a.Less(b):
		return -1
	}
	return 1
}
