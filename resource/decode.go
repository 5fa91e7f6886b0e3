package resource

import (
	"encoding/base64"
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"
)

// maxProblems bounds how many problems one text yields.
const maxProblems = 1000

// decoder fills messages from nodes and notes what does not fit.
type decoder struct {
	src   *source
	types Resolver
	// file selects the dialect of declarative files: `description` for `desc`.
	file     bool
	problems Problems
	dropped  int
}

// cursor is where the decoder is: in the text, by the names that the text uses,
// and in the positions of the object, by the canonical ones.
type cursor struct {
	parent *cursor
	seg    string
	place  *place
}

// field moves to a field that the text calls name and the message canonical.
func (c *cursor) field(name, canonical string, at span) *cursor {
	return &cursor{parent: c, seg: nameSegment(name), place: c.place.child(canonical, at)}
}

// entry moves to a map's entry.
func (c *cursor) entry(key string, at span) *cursor {
	seg := shownSegment(key)
	return &cursor{parent: c, seg: seg, place: c.place.grow(seg, at)}
}

// index moves to an element of a list.
func (c *cursor) index(i int, at span) *cursor {
	seg := indexSegment(i)
	return &cursor{parent: c, seg: seg, place: c.place.grow(seg, at)}
}

// String returns the path by the names of the text.
func (c *cursor) String() string {
	if c == nil {
		return ""
	}
	return joinPath(c.parent.String(), c.seg)
}

// report notes a problem with the field under the cursor.
func (d *decoder) report(c *cursor, at span, code, message, hint string) {
	if c != nil && c.place != nil {
		c.place.faulty = true
	}
	if d.full() {
		return
	}
	d.problems = append(d.problems, Problem{
		Path: c.String(), Code: code, Message: message, Hint: hint,
		File: d.src.name, Line: int(at.line), Column: int(at.col),
	})
}

// full says that no more problems are kept, and counts the one that is not.
// Finding out what was meant is not worth the time then.
func (d *decoder) full() bool {
	if len(d.problems) < maxProblems {
		return false
	}
	d.dropped++
	return true
}

// finish returns the problems in the order of the text, with excerpts.
func (d *decoder) finish() Problems {
	d.problems.Sort()
	for i := range d.problems {
		p := &d.problems[i]
		p.Excerpt = d.src.excerpt(span{line: int32(p.Line), col: int32(p.Column)})
	}
	if d.dropped > 0 {
		d.problems = append(d.problems, Problem{Code: CodeTooLarge, File: d.src.name, Message: fmt.Sprintf("there are %d more problems", d.dropped)})
	}
	return d.problems
}

// failed turns a text that could not be read into a list of one problem.
func (s *source) failed(err *syntaxError) Problems {
	p := Problem{Code: err.code, Message: err.message, Hint: err.hint, File: s.name, Line: int(err.at.line), Column: int(err.at.col)}
	if err.code != CodeTooLarge {
		p.Excerpt = s.excerpt(err.at)
	}
	return Problems{p}
}

// mismatch reports a value of the wrong type.
func (d *decoder) mismatch(c *cursor, n *node, want string, secret bool) {
	// What stands in an object's place may be what belongs inside of it.
	if !secret && (want != "an object" || n.kind == nullNode || n.kind == boolNode) {
		n.public = true
	}
	hint := ""
	switch {
	case want == "a string" && (n.kind == numberNode || n.kind == boolNode):
		hint = "put it in quotes"
	case want == "a list" && n.kind == stringNode:
		hint = "put it in brackets"
	case want == "an object" && n.kind == nullNode:
		hint = "write {} for an object without fields"
	case (want == "a number" || want == "an integer" || want == "a boolean") && n.kind == stringNode:
		if _, err := strconv.ParseFloat(n.text, 64); err == nil || n.text == "true" || n.text == "false" {
			hint = "remove the quotes"
		}
	}
	d.report(c, n.at, CodeType, "value must be "+want+", not "+n.kind.String(), hint)
}

// extras are the fields of a file's objects that their messages do not have.
type extras map[string]func(n *node, c *cursor)

// message fills m from an object. Fields that m does not have go to extras.
func (d *decoder) message(m protoreflect.Message, n *node, c *cursor, more extras) {
	if n.kind != mapNode {
		d.mismatch(c, n, "an object", false)
		return
	}
	desc := m.Descriptor()
	dialect := dialects[desc.FullName()]
	// from tells which field of the text set a message's field or extra.
	from := make(map[string]string, len(n.fields))
	given := make(map[string]bool, len(n.fields))
	for i := range n.fields {
		f := &n.fields[i]
		claim := func(canonical string) bool {
			before, taken := from[canonical]
			from[canonical] = f.key
			switch {
			case !taken:
				return true
			case before == f.key:
				d.report(&cursor{parent: c, seg: shownSegment(f.key)}, f.at, CodeDuplicate, "the field is given twice", "remove one")
			default:
				d.report(&cursor{parent: c, seg: shownSegment(f.key)}, f.at, CodeConflict, fmt.Sprintf("%s and %s are the same field", before, f.key), "keep one of them")
			}
			return false
		}
		if handle := more[f.key]; handle != nil {
			if claim(f.key) && f.value.kind != nullNode {
				handle(f.value, c.field(f.key, f.key, f.place()))
			}
			continue
		}
		fd, form := d.lookup(desc, dialect, f.key)
		if fd == nil {
			d.unknown(desc, dialect, more, f, c)
			continue
		}
		name := string(fd.Name())
		if !claim(name) || f.value.kind == nullNode && !acceptsNull(fd) {
			continue
		}
		if oneof := fd.ContainingOneof(); oneof != nil && !oneof.IsSynthetic() && m.WhichOneof(oneof) != nil {
			d.report(&cursor{parent: c, seg: shownSegment(f.key)}, f.at, CodeConflict, fmt.Sprintf("only one of the fields of %s can be set", oneof.Name()), "")
			continue
		}
		given[name] = true
		d.field(m, fd, form, f, c.field(f.key, name, f.place()))
	}
	if desc.FullName() == "muster.v1.Upstream" && !given["nodes"] && !given["service_name"] && !given["discovery_type"] {
		// Forgotten nodes and none at all are the same to the message, so it is
		// the text that must say which.
		d.report(&cursor{parent: c, seg: "nodes"}, n.at, CodeRequired, "an upstream needs nodes", "write `nodes: []` for one that has none")
	}
}

// lookup finds the field that a name of the text means.
func (d *decoder) lookup(desc protoreflect.MessageDescriptor, dialect dialect, name string) (protoreflect.FieldDescriptor, form) {
	fields := desc.Fields()
	if fd := fields.ByName(protoreflect.Name(name)); fd != nil {
		return fd, ownForm(fd)
	}
	if alias, known := dialect.aliases[name]; known && (d.file || !alias.fileOnly) {
		return fields.ByName(alias.field), alias.form
	}
	if desc.ParentFile().Package() != "muster.v1" {
		if fd := fields.ByJSONName(name); fd != nil {
			return fd, plainForm
		}
	}
	return nil, plainForm
}

// unknown reports a field that the message does not have: with the reason when
// it is API7's, with the name that was meant when there is one like it.
func (d *decoder) unknown(desc protoreflect.MessageDescriptor, dialect dialect, more extras, f *field, c *cursor) {
	if d.full() {
		return
	}
	at := &cursor{parent: c, seg: shownSegment(f.key)}
	if refusal, known := dialect.unsupported[f.key]; known {
		d.report(at, f.at, CodeUnsupported, refusal.reason, refusal.hint)
		return
	}
	var names []string
	for i := range desc.Fields().Len() {
		names = append(names, string(desc.Fields().Get(i).Name()))
	}
	for name, alias := range dialect.aliases {
		if d.file || !alias.fileOnly {
			names = append(names, name)
		}
	}
	for name := range more {
		names = append(names, name)
	}
	d.report(at, f.at, CodeUnknown, "there is no such field", suggestion(f.key, names))
}

// field sets one field of m.
func (d *decoder) field(m protoreflect.Message, fd protoreflect.FieldDescriptor, form form, f *field, c *cursor) {
	n := f.value
	switch {
	case form == singleForm:
		list := m.Mutable(fd).List()
		if value, ok := d.scalar(fd, n, c, isSecretField(fd)); ok {
			c.place.grow(indexSegment(0), n.at)
			list.Append(value)
		}
	case form == nodesForm && n.kind == mapNode:
		d.nodeMap(m.Mutable(fd).List(), n, c)
	case fd.IsMap():
		d.mapField(m, fd, n, c)
	case fd.IsList():
		if n.kind != listNode {
			d.mismatch(c, n, "a list", isSecretField(fd))
			return
		}
		list := m.Mutable(fd).List()
		for i, item := range n.items {
			at := c.index(i, item.at)
			if fd.Message() != nil {
				element := list.NewElement()
				d.submessage(element.Message(), item, at, secretRule{})
				list.Append(element)
			} else if value, ok := d.scalar(fd, item, at, isSecretField(fd)); ok {
				list.Append(value)
			}
		}
	case fd.Message() != nil:
		d.submessage(m.Mutable(fd).Message(), n, c, secretRule{}.below(string(fd.Name())))
	default:
		value, ok := d.scalar(fd, n, c, isSecretField(fd))
		if !ok {
			return
		}
		if refuseZero[fd.FullName()] && value.Equal(fd.Default()) {
			d.report(c, n.at, CodeInvalid, "0 is not allowed here", "leave the field out for its default")
			return
		}
		m.Set(fd, value)
	}
}

// mapField fills a map from an object.
func (d *decoder) mapField(m protoreflect.Message, fd protoreflect.FieldDescriptor, n *node, c *cursor) {
	if n.kind != mapNode {
		d.mismatch(c, n, "an object", false)
		return
	}
	entries := m.Mutable(fd).Map()
	value := fd.MapValue()
	for i := range n.fields {
		f := &n.fields[i]
		at := c.entry(f.key, f.place())
		key, ok := d.mapKey(fd.MapKey(), f, at)
		if !ok {
			continue
		}
		if entries.Has(key) {
			d.report(at, f.at, CodeDuplicate, "the key is given twice", "remove one")
			continue
		}
		switch {
		case value.Message() != nil:
			element := entries.NewValue()
			d.submessage(element.Message(), f.value, at, pluginSecrets(m.Descriptor().FullName(), f.key))
			entries.Set(key, element)
		case d.file && fd.Name() == "labels" && f.value.kind == listNode:
			if label, ok := d.labelList(f.value, at); ok {
				entries.Set(key, protoreflect.ValueOfString(label))
			}
		default:
			if v, ok := d.scalar(value, f.value, at, isSecretField(fd) || secretName(f.key)); ok {
				entries.Set(key, v)
			}
		}
	}
}

func (d *decoder) mapKey(fd protoreflect.FieldDescriptor, f *field, c *cursor) (protoreflect.MapKey, bool) {
	n := &node{kind: stringNode, text: f.key, at: f.at}
	switch fd.Kind() {
	case protoreflect.StringKind:
	case protoreflect.BoolKind:
		n = &node{kind: boolNode, bool: f.key == "true", at: f.at}
		if f.key != "true" && f.key != "false" {
			d.report(c, f.at, CodeType, "key must be true or false", "")
			return protoreflect.MapKey{}, false
		}
	default:
		n.kind = numberNode
	}
	value, ok := d.scalar(fd, n, c, false)
	if !ok {
		return protoreflect.MapKey{}, false
	}
	return value.MapKey(), true
}

// scalar returns the value of a field that is no message. A value of the wrong
// type or out of range is reported.
func (d *decoder) scalar(fd protoreflect.FieldDescriptor, n *node, c *cursor, secret bool) (protoreflect.Value, bool) {
	lenient := fd.ParentFile().Package() != "muster.v1"
	if secret || n.kind == stringNode && secretText(n.text) {
		n.secret, secret = true, true
	} else {
		n.public = !guardedFields[fd.FullName()]
	}
	switch kind := fd.Kind(); kind {
	case protoreflect.StringKind:
		if n.kind == stringNode {
			return protoreflect.ValueOfString(n.text), true
		}
		d.mismatch(c, n, "a string", secret)
	case protoreflect.BoolKind:
		if n.kind == boolNode {
			return protoreflect.ValueOfBool(n.bool), true
		}
		d.mismatch(c, n, "a boolean", secret)
	case protoreflect.BytesKind:
		if n.kind == stringNode {
			text := strings.NewReplacer("-", "+", "_", "/").Replace(strings.TrimRight(n.text, "="))
			if value, err := base64.RawStdEncoding.DecodeString(text); err == nil {
				return protoreflect.ValueOfBytes(value), true
			}
			d.report(c, n.at, CodeType, "value must be base64", "")
			break
		}
		d.mismatch(c, n, "a base64 string", secret)
	case protoreflect.EnumKind:
		return d.enum(fd.Enum(), n, c)
	case protoreflect.DoubleKind, protoreflect.FloatKind:
		return d.float(kind, n, c, lenient)
	default:
		return d.integer(kind, n, c, lenient)
	}
	return protoreflect.Value{}, false
}

func (d *decoder) enum(desc protoreflect.EnumDescriptor, n *node, c *cursor) (protoreflect.Value, bool) {
	switch n.kind {
	case stringNode:
		if value := desc.Values().ByName(protoreflect.Name(n.text)); value != nil {
			return protoreflect.ValueOfEnum(value.Number()), true
		}
		if d.full() {
			break
		}
		var names []string
		for i := range desc.Values().Len() {
			names = append(names, string(desc.Values().Get(i).Name()))
		}
		d.report(c, n.at, CodeInvalid, fmt.Sprintf("%s has no value of that name", desc.Name()), suggestion(n.text, names))
	case numberNode:
		if value, err := strconv.ParseInt(n.text, 10, 32); err == nil {
			return protoreflect.ValueOfEnum(protoreflect.EnumNumber(value)), true
		}
		fallthrough
	default:
		d.mismatch(c, n, "the name of a value of "+string(desc.Name()), false)
	}
	return protoreflect.Value{}, false
}

func (d *decoder) float(kind protoreflect.Kind, n *node, c *cursor, lenient bool) (protoreflect.Value, bool) {
	if n.kind != numberNode && !(lenient && n.kind == stringNode) {
		d.mismatch(c, n, "a number", n.secret)
		return protoreflect.Value{}, false
	}
	bits := 64
	if kind == protoreflect.FloatKind {
		bits = 32
	}
	value, err := strconv.ParseFloat(n.text, bits)
	if err != nil || math.IsInf(value, 0) || math.IsNaN(value) {
		d.report(c, n.at, CodeInvalid, "value must be a number that can be represented", "")
		return protoreflect.Value{}, false
	}
	if bits == 32 {
		return protoreflect.ValueOfFloat32(float32(value)), true
	}
	return protoreflect.ValueOfFloat64(value), true
}

// integer returns an integer of the field's width; `80.0` is one too.
func (d *decoder) integer(kind protoreflect.Kind, n *node, c *cursor, lenient bool) (protoreflect.Value, bool) {
	if n.kind != numberNode && !(lenient && n.kind == stringNode) {
		d.mismatch(c, n, "an integer", n.secret)
		return protoreflect.Value{}, false
	}
	bits, unsigned := 64, false
	switch kind {
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		bits = 32
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		bits, unsigned = 32, true
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		unsigned = true
	}
	text := n.text
	if value, err := strconv.ParseFloat(text, 64); err == nil && strings.ContainsAny(text, ".eE") {
		if value != math.Trunc(value) {
			d.report(c, n.at, CodeType, "value must be an integer, not a fraction", "")
			return protoreflect.Value{}, false
		}
		text = strconv.FormatFloat(value, 'f', 0, 64)
	}
	if unsigned {
		if value, err := strconv.ParseUint(text, 10, bits); err == nil {
			if bits == 32 {
				return protoreflect.ValueOfUint32(uint32(value)), true
			}
			return protoreflect.ValueOfUint64(value), true
		}
	} else if value, err := strconv.ParseInt(text, 10, bits); err == nil {
		if bits == 32 {
			return protoreflect.ValueOfInt32(int32(value)), true
		}
		return protoreflect.ValueOfInt64(value), true
	}
	sign := "signed"
	if unsigned {
		sign = "unsigned"
	}
	d.report(c, n.at, CodeInvalid, fmt.Sprintf("value must be an integer of %d bits, %s", bits, sign), "")
	return protoreflect.Value{}, false
}
