package state

import (
	"iter"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// Entry is a resource with its place in history.
type Entry struct {
	Key resource.Key
	// Resource is shared; do not modify it.
	Resource *musterv1.Resource
	// Revision is the group's revision that last changed the resource, and
	// Author who made it.
	Revision uint64
	Author   string
	// Created is the group's revision that created the resource: another one when
	// it was deleted and made again. 0 when it was stored before that was kept.
	Created uint64
}

// View is one group at one revision. It cannot name anything outside the
// group. The zero View is the empty group; copying is cheap.
type View struct {
	// entries holds every resource at `<kind>/<id>`.
	entries *iradix.Tree[*Entry]
	// members holds routes and stream routes by the service they belong to, and
	// what refers to a client certificate by that.
	members *iradix.Tree[*Entry]
}

// Get returns the resource under a key.
func (v View) Get(key resource.Key) (*Entry, bool) {
	if v.entries == nil {
		return nil, false
	}
	return v.entries.Get(entryKey(key))
}

// All yields the resources of a kind by id.
func (v View) All(kind musterv1.Kind) iter.Seq[*Entry] {
	return scan(v.entries, []byte(resource.KindName(kind)+"/"))
}

// Credentials yields a consumer's credentials by id.
func (v View) Credentials(username string) iter.Seq[*Entry] {
	return scan(v.entries, entryKey(resource.CredentialKey(username, "")))
}

// RoutesOf yields the routes that belong to a service, by id.
func (v View) RoutesOf(serviceID string) iter.Seq[*Entry] {
	return scan(v.members, memberPrefix(musterv1.Kind_KIND_ROUTE, serviceID))
}

// StreamRoutesOf yields the stream routes that belong to a service, by id.
func (v View) StreamRoutesOf(serviceID string) iter.Seq[*Entry] {
	return scan(v.members, memberPrefix(musterv1.Kind_KIND_STREAM_ROUTE, serviceID))
}

// Entries yields everything, ordered by kind name, then id.
func (v View) Entries() iter.Seq[*Entry] { return scan(v.entries, nil) }

// Len is the number of resources.
func (v View) Len() int {
	if v.entries == nil {
		return 0
	}
	return v.entries.Len()
}

func scan(tree *iradix.Tree[*Entry], prefix []byte) iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		if tree == nil {
			return
		}
		tree.Root().WalkPrefix(prefix, func(_ []byte, e *Entry) bool { return !yield(e) })
	}
}

func entryKey(key resource.Key) []byte { return []byte(key.String()) }

// parentService is the service that a route or stream route belongs to.
func parentService(r *musterv1.Resource) string {
	switch r.GetKind().(type) {
	case *musterv1.Resource_Route:
		return r.GetRoute().GetServiceId()
	case *musterv1.Resource_StreamRoute:
		return r.GetStreamRoute().GetServiceId()
	}
	return ""
}

// memberPrefix ends in a NUL, which no id holds, so that service `a` does not
// see the routes of `ab`.
func memberPrefix(kind musterv1.Kind, serviceID string) []byte {
	return []byte(resource.KindName(kind) + "\x00" + serviceID + "\x00")
}

// referrerPrefix begins like no kind's members: a certificate has none.
func referrerPrefix(sslID string) []byte { return memberPrefix(musterv1.Kind_KIND_SSL, sslID) }

// memberKeys are the places of e in a view's members.
func memberKeys(e *Entry) [][]byte {
	var keys [][]byte
	if service := parentService(e.Resource); service != "" {
		keys = append(keys, append(memberPrefix(e.Key.Kind, service), e.Key.ID...))
	}
	for _, ref := range resource.References(e.Resource) {
		if ref.To.Kind == musterv1.Kind_KIND_SSL {
			keys = append(keys, append(referrerPrefix(ref.To.ID), e.Key.String()...))
		}
	}
	return keys
}

// checkKey refuses keys that would make the tree ambiguous. Nicer rules are
// resource.Validate's; this is what the tree itself needs.
func checkKey(key resource.Key) string {
	if resource.KindName(key.Kind) == "unknown" {
		return "the resource has no known kind"
	}
	id := key.ID
	if key.Kind == musterv1.Kind_KIND_CREDENTIAL {
		consumer, credential, found := strings.Cut(id, "/")
		if !found || consumer == "" {
			return "a credential needs its consumer"
		}
		id = credential
	}
	switch {
	case id == "":
		return "the id is empty"
	case len(key.ID) > maxID:
		return "the id is too long"
	case strings.ContainsAny(id, "/\x00") || strings.Contains(key.ID, "\x00"):
		return "the id holds a slash or a NUL"
	}
	return ""
}

// maxID bounds ids, in bytes; a credential's is two ids and a slash.
const maxID = 1024

// viewTxn changes a View.
type viewTxn struct{ entries, members *iradix.Txn[*Entry] }

func (v View) txn() viewTxn {
	if v.entries == nil {
		v = View{iradix.New[*Entry](), iradix.New[*Entry]()}
	}
	return viewTxn{v.entries.Txn(), v.members.Txn()}
}

func (t viewTxn) get(key resource.Key) *Entry {
	e, _ := t.entries.Get(entryKey(key))
	return e
}

func (t viewTxn) set(e *Entry) {
	old, replaced := t.entries.Insert(entryKey(e.Key), e)
	if replaced {
		t.leave(old)
	}
	for _, k := range memberKeys(e) {
		t.members.Insert(k, e)
	}
}

func (t viewTxn) remove(key resource.Key) {
	if old, found := t.entries.Delete(entryKey(key)); found {
		t.leave(old)
	}
}

func (t viewTxn) leave(e *Entry) {
	for _, k := range memberKeys(e) {
		t.members.Delete(k)
	}
}

// referrers lists what refers to an ssl.
func (t viewTxn) referrers(sslID string) []*Entry {
	var entries []*Entry
	t.members.Root().WalkPrefix(referrerPrefix(sslID), func(_ []byte, e *Entry) bool {
		entries = append(entries, e)
		return false
	})
	return entries
}

// children lists what is deleted along with the resource under key.
func (t viewTxn) children(key resource.Key) []resource.Key {
	var keys []resource.Key
	collect := func(_ []byte, e *Entry) bool { keys = append(keys, e.Key); return false }
	switch key.Kind {
	case musterv1.Kind_KIND_SERVICE:
		t.members.Root().WalkPrefix(memberPrefix(musterv1.Kind_KIND_ROUTE, key.ID), collect)
		t.members.Root().WalkPrefix(memberPrefix(musterv1.Kind_KIND_STREAM_ROUTE, key.ID), collect)
	case musterv1.Kind_KIND_CONSUMER:
		t.entries.Root().WalkPrefix(entryKey(resource.CredentialKey(key.ID, "")), collect)
	}
	return keys
}

func (t viewTxn) commit() View { return View{t.entries.CommitOnly(), t.members.CommitOnly()} }
