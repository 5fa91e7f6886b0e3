package resource

import (
	"google.golang.org/protobuf/reflect/protoregistry"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// FieldDiff is one field that differs between two states of an object.
type FieldDiff struct {
	// Path is the field, `upstream.nodes[0].weight`.
	Path string
	// Before and After are the values as JSON; empty when the field is absent. A
	// secret is `"***"`, also where it changed.
	Before, After string
}

// DiffFields returns the fields that differ, in the order of the messages'
// fields. Either resource may be nil, which has no fields. Objects are compared
// field by field, lists element by element; the times that the server sets are
// passed over.
func DiffFields(before, after *musterv1.Resource) []FieldDiff {
	d := &differ{}
	d.compare("", treeOf(before), treeOf(after))
	return d.diffs
}

// treeOf returns the object's tree, nil of nil.
func treeOf(r *musterv1.Resource) *node {
	if body(r) == nil {
		return nil
	}
	n, err := writer{types: protoregistry.GlobalTypes}.tree(r)
	if err != nil {
		return nil
	}
	n.remove("create_time")
	n.remove("update_time")
	return n
}

type differ struct{ diffs []FieldDiff }

// compare adds the differences between two values, of which one may be absent.
func (d *differ) compare(path string, before, after *node) {
	switch {
	case before == nil && after == nil:
	case hasParts(before) && hasParts(after) && before.kind == after.kind,
		before == nil && hasParts(after), after == nil && hasParts(before):
		d.parts(path, before, after)
	case before == nil || after == nil || string(appendJSON(nil, before)) != string(appendJSON(nil, after)):
		d.diffs = append(d.diffs, FieldDiff{Path: path, Before: shown(before), After: shown(after)})
	}
}

// hasParts says that a value consists of parts that can differ by themselves.
func hasParts(n *node) bool {
	return n != nil && (n.kind == mapNode && len(n.fields) > 0 || n.kind == listNode && len(n.items) > 0)
}

// parts compares the parts of two values of the same kind, or of one.
func (d *differ) parts(path string, before, after *node) {
	var none node
	if before == nil {
		before = &none
	}
	if after == nil {
		after = &none
	}
	for i := range max(len(before.items), len(after.items)) {
		var b, a *node
		if i < len(before.items) {
			b = before.items[i]
		}
		if i < len(after.items) {
			a = after.items[i]
		}
		d.compare(joinPath(path, indexSegment(i)), b, a)
	}
	for _, f := range before.fields {
		d.compare(joinPath(path, nameSegment(f.key)), f.value, after.get(f.key))
	}
	for _, f := range after.fields {
		if before.get(f.key) == nil {
			d.compare(joinPath(path, nameSegment(f.key)), nil, f.value)
		}
	}
}

// shown is a value as JSON, with secrets masked.
func shown(n *node) string {
	if n == nil {
		return ""
	}
	return string(appendJSON(nil, masked(n)))
}

// masked returns the tree with `***` for secrets.
func masked(n *node) *node {
	if n.secret && n.isScalar() {
		return newString(mask)
	}
	out := *n
	out.items = make([]*node, len(n.items))
	for i, item := range n.items {
		out.items[i] = masked(item)
	}
	out.fields = make([]field, len(n.fields))
	for i, f := range n.fields {
		out.fields[i] = field{key: f.key, value: masked(f.value)}
	}
	return &out
}
