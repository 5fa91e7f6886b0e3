package resource

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"
)

// Resolver finds the message types that an xds_resource may hold, by type URL.
// *protoregistry.Types is one.
type Resolver interface {
	protoregistry.MessageTypeResolver
	protoregistry.ExtensionTypeResolver
}

// acceptsNull says whether null is a value of the field rather than its absence.
func acceptsNull(fd protoreflect.FieldDescriptor) bool {
	return fd.Message() != nil && fd.Message().FullName() == "google.protobuf.Value" ||
		fd.Enum() != nil && fd.Enum().FullName() == "google.protobuf.NullValue"
}

// submessage fills a message that is a field's value: those that JSON writes
// in a way of their own, and all others field by field.
func (d *decoder) submessage(m protoreflect.Message, n *node, c *cursor, rule secretRule) {
	switch value := m.Interface().(type) {
	case *structpb.Struct:
		if n.kind != mapNode {
			d.mismatch(c, n, "an object", rule.all)
			return
		}
		value.Fields = d.freeFields(n, c, rule)
	case *structpb.ListValue:
		if n.kind != listNode {
			d.mismatch(c, n, "a list", rule.all)
			return
		}
		value.Values = d.freeItems(n, c, rule)
	case *structpb.Value:
		if free := d.free(n, c, rule); free != nil {
			value.Kind = free.Kind
		}
	case *anypb.Any:
		d.any(value, n, c)
	default:
		if strings.HasPrefix(string(m.Descriptor().FullName()), "google.protobuf.") {
			d.wellKnown(m, n, c)
			return
		}
		d.message(m, n, c, nil)
	}
}

// free returns the value of a free-form field, nil when it has none.
func (d *decoder) free(n *node, c *cursor, rule secretRule) *structpb.Value {
	if n.isScalar() {
		n.secret = n.secret || rule.hides(n.kind, n.text)
		n.public = n.public || rule.shows(n.kind, n.text)
	}
	switch n.kind {
	case nullNode:
		return structpb.NewNullValue()
	case boolNode:
		return structpb.NewBoolValue(n.bool)
	case stringNode:
		return structpb.NewStringValue(n.text)
	case numberNode:
		value, err := strconv.ParseFloat(n.text, 64)
		if err != nil || math.IsInf(value, 0) {
			d.report(c, n.at, CodeInvalid, "value must be a number that can be represented", "")
			return nil
		}
		if whole := strings.TrimPrefix(n.text, "-"); !strings.ContainsAny(whole, ".eE") && !isExact(math.Abs(value), whole) {
			d.report(c, n.at, CodeInvalid, "the integer is too large to be kept exactly", "put it in quotes if it is an identifier")
			return nil
		}
		return structpb.NewNumberValue(value)
	case listNode:
		return structpb.NewListValue(&structpb.ListValue{Values: d.freeItems(n, c, rule)})
	}
	return structpb.NewStructValue(&structpb.Struct{Fields: d.freeFields(n, c, rule)})
}

// isExact says whether an integer's literal is how the number that it became is
// written: in full, or with no more digits than tell it from its neighbours.
func isExact(value float64, literal string) bool {
	return strconv.FormatFloat(value, 'f', 0, 64) == literal || strconv.FormatFloat(value, 'f', -1, 64) == literal
}

func (d *decoder) freeItems(n *node, c *cursor, rule secretRule) []*structpb.Value {
	values := make([]*structpb.Value, 0, len(n.items))
	for i, item := range n.items {
		if value := d.free(item, c.index(i, item.at), rule); value != nil {
			values = append(values, value)
		}
	}
	return values
}

func (d *decoder) freeFields(n *node, c *cursor, rule secretRule) map[string]*structpb.Value {
	values := make(map[string]*structpb.Value, len(n.fields))
	for i := range n.fields {
		f := &n.fields[i]
		f.hidden = f.hidden || rule.all
		at := c.entry(f.key, f.place())
		if values[f.key] != nil {
			d.report(at, f.at, CodeDuplicate, "the key is given twice", "remove one")
			continue
		}
		if value := d.free(f.value, at, rule.below(f.key)); value != nil {
			values[f.key] = value
		}
	}
	return values
}

// any packs the message that an object with `@type` describes: by its fields,
// or, for a type that the program does not link in, by its encoding in `@bytes`.
func (d *decoder) any(out *anypb.Any, n *node, c *cursor) {
	if n.kind != mapNode {
		d.mismatch(c, n, "an object", false)
		return
	}
	name := n.get("@type")
	if name == nil || name.kind != stringNode {
		d.report(c, n.at, CodeRequired, "the object needs `@type`, the type URL of the message", `for example "@type": type.googleapis.com/envoy.config.cluster.v3.Cluster`)
		return
	}
	name.public = true
	url := name.text
	if !strings.Contains(url, "/") {
		url = "type.googleapis.com/" + url
	}
	if n.get("@bytes") != nil {
		d.anyBytes(out, url, n, c)
		return
	}
	mt, err := d.types.FindMessageByURL(url)
	if err != nil {
		d.report(&cursor{parent: c, seg: nameSegment("@type")}, name.at, CodeUnknown, "no message of that type is known here", "check the name; a type that muster does not know can be given as base64 of its encoding in `@bytes`")
		return
	}
	m := mt.New()
	before := len(d.problems) + d.dropped
	if strings.HasPrefix(string(m.Descriptor().FullName()), "google.protobuf.") {
		value := n.get("value")
		if value == nil {
			value = &node{kind: nullNode, at: n.at}
		}
		d.submessage(m, value, c.field("value", "value", value.at), secretRule{})
	} else {
		d.message(m, n, c, extras{"@type": func(*node, *cursor) {}})
	}
	if len(d.problems)+d.dropped > before {
		return
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(m.Interface())
	if err != nil {
		d.report(c, n.at, CodeInvalid, "the message cannot be packed", "")
		return
	}
	out.TypeUrl, out.Value = url, body
}

// anyBytes packs a message that comes encoded.
func (d *decoder) anyBytes(out *anypb.Any, url string, n *node, c *cursor) {
	value := out.ProtoReflect().Descriptor().Fields().ByName("value")
	for i := range n.fields {
		f := &n.fields[i]
		switch f.key {
		case "@type":
		case "@bytes":
			f.value.secret = true
			if body, ok := d.scalar(value, f.value, c.field(f.key, f.key, f.value.at), true); ok {
				out.TypeUrl, out.Value = url, body.Bytes()
			}
		default:
			d.report(&cursor{parent: c, seg: nameSegment(f.key)}, f.at, CodeConflict, "`@bytes` is the whole message, other fields cannot stand beside it", "remove the field")
		}
	}
}

// wellKnown fills a message of google.protobuf, such as a Duration.
func (d *decoder) wellKnown(m protoreflect.Message, n *node, c *cursor) {
	n.walk(func(part *node) { part.public = true })
	options := protojson.UnmarshalOptions{Resolver: d.types, RecursionLimit: maxDepth}
	if err := options.Unmarshal(appendJSON(nil, n), m.Interface()); err != nil {
		proto.Reset(m.Interface())
		hint := ""
		if m.Descriptor().FullName() == "google.protobuf.Duration" {
			hint = `a duration is a string like "1.5s"`
		}
		d.report(c, n.at, CodeType, fmt.Sprintf("value must be a %s", m.Descriptor().Name()), hint)
	}
}
