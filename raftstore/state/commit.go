package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// MaxMessage bounds a revision's message, in bytes.
const MaxMessage = 1024

// Outcome is what a transaction would make of a group.
type Outcome struct {
	// Group is the group afterwards, with the content, revision and mark that Apply
	// would give it; the very group that was asked about when nothing differs.
	Group *Group
	// Changes is what differs, in key order.
	Changes []Change
	// Answer is the answer with bodies. Its revision is the one before.
	Answer *musterv1.CommitResponse
}

// Preview says what a transaction would do, by the same code that Apply runs.
// The command's group is not looked at; g is changed in no way.
func Preview(g *Group, cmd *musterv1.CommitCommand, author string, at *timestamppb.Timestamp) (Outcome, error) {
	tx, err := g.evaluate(proto.CloneOf(cmd), author, at)
	if err != nil {
		return Outcome{}, err
	}
	return Outcome{
		Group:   tx.commit(g, cmd, at),
		Changes: tx.differ,
		Answer:  &musterv1.CommitResponse{Revision: g.Revision(), Epoch: g.Epoch(), Changes: tx.answer(true)},
	}, nil
}

// transaction is an evaluated set of changes to one group.
type transaction struct {
	base  View
	edit  viewTxn
	view  View // the outcome
	stamp stamp

	// explicit lists the keys in the order of the command; cascaded those that
	// went along with a service or a consumer, in key order once finished.
	explicit []resource.Key
	cascaded []resource.Key
	touched  map[resource.Key]bool // true: explicit
	problems resource.Problems
	// order is what was touched, in key order, and differ what of it differs from the
	// base, once finished.
	order  []resource.Key
	differ []Change
}

// stamp is what a transaction writes on what it changes.
type stamp struct {
	revision uint64
	author   string
	seconds  int64
}

// evaluate takes over the resources that cmd puts.
func (g *Group) evaluate(cmd *musterv1.CommitCommand, author string, at *timestamppb.Timestamp) (*transaction, error) {
	if cmd.ExpectedRevision != nil && cmd.GetExpectedRevision() != g.Revision() || cmd.JudgedOn != nil && cmd.GetJudgedOn() != g.Mark() {
		info, _ := g.RevisionInfo(g.Revision())
		return nil, &RevisionConflict{Group: g.ID(), Expected: cmd.GetExpectedRevision(), Actual: g.Revision(), Author: info.GetAuthor()}
	}
	if len(cmd.GetMessage()) > MaxMessage || strings.ContainsFunc(cmd.GetMessage(), resource.IsUnprintable) {
		return nil, &InvalidError{"message", fmt.Sprintf("is longer than %d bytes, or holds a control character", MaxMessage)}
	}
	changes := cmd.GetChanges()
	if to := cmd.GetRollbackTo(); to != 0 {
		if len(changes) != 0 {
			return nil, &InvalidError{"rollback_to", "excludes changes"}
		}
		var err error
		if changes, err = g.changesBackTo(to); err != nil {
			return nil, err
		}
	}
	tx := &transaction{
		base:    g.view,
		edit:    g.view.txn(),
		stamp:   stamp{g.Revision() + 1, author, at.GetSeconds()},
		touched: map[resource.Key]bool{},
	}
	for i, c := range changes {
		if err := tx.apply(g.ID(), i, c); err != nil {
			return nil, err
		}
	}
	if err := tx.finish(); err != nil {
		return nil, err
	}
	return tx, nil
}

// changesBackTo lists what restores the content of a kept revision, puts first
// so that no cascade takes a route that only moved to another service.
func (g *Group) changesBackTo(to uint64) ([]*musterv1.Change, error) {
	if to > g.Revision() {
		return nil, &InvalidError{"rollback_to", fmt.Sprintf("revision %d is not there yet", to)}
	}
	diff, ok := g.Changes(g.Revision(), to)
	if !ok {
		return nil, &TrimmedError{Group: g.ID(), Revision: to, Oldest: g.Oldest()}
	}
	var puts, deletes []*musterv1.Change
	for _, c := range diff {
		if c.After != nil {
			puts = append(puts, &musterv1.Change{Action: &musterv1.Change_Put{Put: proto.CloneOf(c.After.Resource)}})
		} else {
			deletes = append(deletes, &musterv1.Change{Action: &musterv1.Change_Delete{Delete: c.Key.Proto()}})
		}
	}
	return append(puts, deletes...), nil
}

func (t *transaction) apply(group string, i int, c *musterv1.Change) error {
	var key resource.Key
	var field string
	switch a := c.GetAction().(type) {
	case *musterv1.Change_Put:
		key, field = resource.KeyOf(a.Put), "put"
	case *musterv1.Change_Delete:
		key, field = resource.KeyFromProto(a.Delete), "delete"
	default:
		t.problem(resource.Key{}, fmt.Sprintf("changes[%d]", i), resource.CodeRequired, "neither put nor delete is set", "")
		return nil
	}
	path := func() string { return fmt.Sprintf("changes[%d].%s", i, field) }
	if reason := checkKey(key); reason != "" {
		t.problem(key, path(), resource.CodeInvalid, reason, "")
		return nil
	}
	if t.touched[key] {
		t.problem(key, path(), resource.CodeDuplicate, "the transaction changes "+key.String()+" twice", "one change for each resource")
		return nil
	}
	current := t.edit.get(key)
	if field == "put" {
		t.put(key, c.GetPut())
	} else {
		if current == nil {
			if _, there := t.base.Get(key); !there {
				return &NotFoundError{Group: group, Key: key}
			}
		}
		t.remove(key)
	}
	t.touched[key] = true
	t.explicit = append(t.explicit, key)
	return nil
}

// put stores the resource with its times; when nothing else differs from the base,
// the base's own entry, so that the resource counts as unchanged.
func (t *transaction) put(key resource.Key, r *musterv1.Resource) {
	before, existed := t.base.Get(key)
	create, update := timesOf(r)
	if existed && create != nil {
		wasCreated, wasUpdated := timesOf(before.Resource)
		*create, *update = *wasCreated, *wasUpdated
	}
	if existed && proto.Equal(before.Resource, r) {
		t.edit.set(before)
		return
	}
	created := t.stamp.revision
	if existed {
		created = before.Created
	}
	if create != nil {
		*update = t.stamp.seconds
		if !existed {
			*create = t.stamp.seconds
		}
	}
	t.edit.set(&Entry{Key: key, Resource: r, Revision: t.stamp.revision, Author: t.stamp.author, Created: created})
}

// remove deletes a resource and what belongs to it. What the transaction itself
// put there does not vanish without a word.
func (t *transaction) remove(key resource.Key) {
	for _, child := range t.edit.children(key) {
		if explicit, seen := t.touched[child]; explicit {
			path, _ := parentOf(t.edit.get(child))
			t.problem(child, path, resource.CodeReference, named(key)+" is deleted by the same transaction", "delete it too, or keep what it belongs to")
		} else if !seen {
			t.touched[child] = false
		}
		t.edit.remove(child)
	}
	t.edit.remove(key)
}

// finish refuses what would leave a route without its service, a credential
// without its consumer, so that no cascade ever misses one, or an upstream without
// its client certificate.
func (t *transaction) finish() error {
	t.order = slices.SortedFunc(maps.Keys(t.touched), compareKeys)
	for _, key := range t.order {
		if !t.touched[key] {
			t.cascaded = append(t.cascaded, key)
		}
		after := t.edit.get(key)
		if after != nil {
			t.checkReferences(after)
		}
		if key.Kind == musterv1.Kind_KIND_SSL && !isClientCert(after) {
			t.checkReferrers(key)
		}
	}
	if len(t.problems) > 0 {
		return t.problems
	}
	t.view = t.edit.commit()
	for _, key := range t.order {
		if c := t.change(key); c.Before != c.After {
			t.differ = append(t.differ, c)
		}
	}
	return nil
}

func (t *transaction) checkReferences(e *Entry) {
	for _, ref := range resource.References(e.Resource) {
		switch target := t.edit.get(ref.To); {
		case target == nil:
			t.problem(e.Key, ref.Path, resource.CodeReference, named(ref.To)+" does not exist", "create the "+resource.KindName(ref.To.Kind)+" before, or in the same transaction")
		case ref.To.Kind == musterv1.Kind_KIND_SSL && !isClientCert(target):
			t.problem(e.Key, ref.Path, resource.CodeReference, named(ref.To)+" is not of type client", "refer to an ssl of type client")
		}
	}
}

// checkReferrers refuses to take a client certificate away from what the
// transaction itself does not touch; the rest was looked at already.
func (t *transaction) checkReferrers(ssl resource.Key) {
	for _, e := range t.edit.referrers(ssl.ID) {
		if _, touched := t.touched[e.Key]; touched {
			continue
		}
		for _, ref := range resource.References(e.Resource) {
			if ref.To == ssl {
				t.problem(e.Key, ref.Path, resource.CodeReferenced, named(ssl)+" is taken away, but is still referred to", "change or delete this object too")
			}
		}
	}
}

// named is a resource as messages name it, with the words of package resource.
func named(key resource.Key) string { return fmt.Sprintf("%s %q", resource.KindName(key.Kind), key.ID) }

// isClientCert says whether e is a certificate that upstreams can refer to.
func isClientCert(e *Entry) bool { return e != nil && e.Resource.GetSsl().GetType() == "client" }

// parentOf names the resource that e cannot exist without, and the field that
// refers to it.
func parentOf(e *Entry) (field string, parent resource.Key) {
	if id := parentService(e.Resource); id != "" {
		return "service_id", resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: id}
	}
	if c := e.Resource.GetCredential(); c != nil {
		return "consumer", resource.Key{Kind: musterv1.Kind_KIND_CONSUMER, ID: c.GetConsumer()}
	}
	return "", resource.Key{}
}

func (t *transaction) problem(key resource.Key, path, code, message, hint string) {
	t.problems = append(t.problems, resource.Problem{Object: key, Path: path, Code: code, Message: message, Hint: hint})
}

func (t *transaction) change(key resource.Key) Change {
	before, _ := t.base.Get(key)
	after, _ := t.view.Get(key)
	return Change{key, before, after}
}

// told is a change as a message. Unlike Change.Proto it need not compare: where
// the content is the base's, put has kept the base's entry.
func (c Change) told(bodies bool) *musterv1.ResourceChange {
	m := &musterv1.ResourceChange{Key: c.Key.Proto(), Result: musterv1.ChangeResult_CHANGE_RESULT_UPDATED}
	switch {
	case c.Before == c.After:
		m.Result = musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED
	case c.Before == nil:
		m.Result = musterv1.ChangeResult_CHANGE_RESULT_CREATED
	case c.After == nil:
		m.Result = musterv1.ChangeResult_CHANGE_RESULT_DELETED
	}
	c.addBodies(m, bodies)
	return m
}

// answer returns what each change of the command did, in the command's order,
// then what went along with them, in key order.
func (t *transaction) answer(bodies bool) []*musterv1.ResourceChange {
	out := make([]*musterv1.ResourceChange, 0, len(t.touched))
	for _, key := range t.explicit {
		out = append(out, t.change(key).told(bodies))
	}
	for _, key := range t.cascaded {
		if c := t.change(key); c.Before != c.After {
			out = append(out, c.told(bodies))
		}
	}
	return out
}

// commit makes the transaction the group's next revision; g itself when
// nothing differs.
func (t *transaction) commit(g *Group, cmd *musterv1.CommitCommand, at *timestamppb.Timestamp) *Group {
	if len(t.differ) == 0 {
		return g
	}
	info := &musterv1.Revision{
		Revision:    t.stamp.revision,
		Epoch:       g.Epoch(),
		Author:      t.stamp.author,
		Message:     cmd.GetMessage(),
		CommittedAt: at,
		RollbackTo:  cmd.GetRollbackTo(),
	}
	for _, c := range t.differ {
		info.Changes = append(info.Changes, c.told(true))
	}
	next := &Group{meta: proto.CloneOf(g.meta), view: t.view}
	next.meta.Revision = t.stamp.revision
	next.meta.Resources = uint64(t.view.Len())
	next.history = g.history.with(&record{info, t.view, cmd.GetMark()}, g.meta.GetHistoryLimit())
	return next
}
