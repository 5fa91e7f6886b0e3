package resource

// What input may hold. The limits are far above any real configuration; they
// keep hostile input from taking memory or stack out of proportion to its size.
const (
	// maxObjectSize and maxFileSize bound the text, in bytes.
	maxObjectSize = 4 << 20
	maxFileSize   = 64 << 20
	// maxDepth bounds how deep lists and objects nest.
	maxDepth = 100
	// maxNodes bounds the values of one text, maxRepeated those that YAML's aliases
	// and merges repeat, which cost no text.
	maxNodes    = 4 << 20
	maxRepeated = 1 << 18
)

// nodeKind is the type of a value, as in JSON.
type nodeKind uint8

const (
	nullNode nodeKind = iota
	boolNode
	numberNode
	stringNode
	listNode
	mapNode
)

// String returns the kind as a message names it, with its article.
func (k nodeKind) String() string {
	switch k {
	case nullNode:
		return "null"
	case boolNode:
		return "a boolean"
	case numberNode:
		return "a number"
	case stringNode:
		return "a string"
	case listNode:
		return "a list"
	default:
		return "an object"
	}
}

// span is a place in a text: line and column count from 1, columns in
// characters. end is the column after the last character, 0 when the thing does
// not end on its first line.
type span struct {
	line, col, end int32
}

// node is a value of a JSON or YAML text, or of a message about to be written.
// The decoder and the encoder both work on trees of nodes, so that neither
// knows which text is at the other end.
type node struct {
	kind nodeKind
	// bool is the value of a boolNode.
	bool bool
	// public marks a value that problems may show, secret one that they must not;
	// secret wins. A value shared through a YAML alias may be marked both.
	public, secret bool
	// text is the value of a stringNode, and the literal of a numberNode in JSON's
	// notation.
	text   string
	items  []*node
	fields []field
	at     span
}

// field is one member of a mapNode. Keys may repeat; the decoder objects.
type field struct {
	key   string
	at    span
	value *node
	// hidden says that the key stands inside of a secret.
	hidden bool
}

// place is where to point for the field: at the value, unless that begins on
// another line.
func (f *field) place() span {
	if f.value.at.line != f.at.line {
		return f.at
	}
	return f.value.at
}

// get returns the value of the first field of that name, nil when there is none.
func (n *node) get(key string) *node {
	for i := range n.fields {
		if n.fields[i].key == key {
			return n.fields[i].value
		}
	}
	return nil
}

// add appends a field to a mapNode.
func (n *node) add(key string, value *node) {
	n.fields = append(n.fields, field{key: key, value: value})
}

func newMap() *node                  { return &node{kind: mapNode} }
func newList(items ...*node) *node   { return &node{kind: listNode, items: items} }
func newString(s string) *node       { return &node{kind: stringNode, text: s} }
func newNumber(literal string) *node { return &node{kind: numberNode, text: literal} }
func newBool(b bool) *node           { return &node{kind: boolNode, bool: b} }
func (n *node) isScalar() bool       { return n.kind != listNode && n.kind != mapNode }
func (n *node) markSecret() *node    { n.secret = true; return n }
func (n *node) walk(visit func(*node)) {
	visit(n)
	for _, item := range n.items {
		item.walk(visit)
	}
	for i := range n.fields {
		n.fields[i].value.walk(visit)
	}
}
