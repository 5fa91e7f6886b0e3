package resource

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// writer turns messages into nodes, secrets marked.
type writer struct {
	types Resolver
}

// tree returns the object as API7's JSON has it.
func (w writer) tree(r *musterv1.Resource) (*node, error) {
	m := body(r)
	if m == nil {
		return nil, fmt.Errorf("resource: the resource has no kind")
	}
	if metadata := r.GetPluginMetadata(); metadata != nil {
		n := freeStruct(metadata.GetMetadata(), secretRule{})
		if metadata.GetId() != "" {
			n.fields = slices.Insert(n.fields, 0, field{key: "id", value: newString(metadata.GetId())})
		}
		return n, nil
	}
	n, err := w.message(m)
	if err != nil {
		return nil, fmt.Errorf("resource: %s: %w", KeyOf(r), err)
	}
	return n, nil
}

// message returns the fields that are set, in the order of their numbers. Of
// fields that do not tell absence from zero, zero is absence.
func (w writer) message(m protoreflect.Message) (*node, error) {
	out := newMap()
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) {
			// An upstream always says what its nodes are.
			if fd.FullName() == "muster.v1.Upstream.nodes" {
				out.add("nodes", newList())
			}
			continue
		}
		value, err := w.field(m.Descriptor().FullName(), fd, m.Get(fd))
		if err != nil {
			return nil, err
		}
		out.add(string(fd.Name()), value)
	}
	return out, nil
}

func (w writer) field(parent protoreflect.FullName, fd protoreflect.FieldDescriptor, value protoreflect.Value) (*node, error) {
	secret := isSecretField(fd)
	switch {
	case fd.IsMap():
		out := newMap()
		keys := make([]string, 0, value.Map().Len())
		value.Map().Range(func(key protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, key.String())
			return true
		})
		slices.Sort(keys)
		for _, key := range keys {
			entry := value.Map().Get(protoreflect.ValueOfString(key).MapKey())
			element, err := w.value(fd.MapValue(), entry, secret || secretName(key), pluginSecrets(parent, key))
			if err != nil {
				return nil, err
			}
			out.add(key, element)
		}
		return out, nil
	case fd.IsList():
		out := newList()
		for i := range value.List().Len() {
			element, err := w.value(fd, value.List().Get(i), secret, secretRule{})
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, element)
		}
		return out, nil
	}
	return w.value(fd, value, secret, secretRule{}.below(string(fd.Name())))
}

func (w writer) value(fd protoreflect.FieldDescriptor, value protoreflect.Value, secret bool, rule secretRule) (*node, error) {
	var out *node
	switch fd.Kind() {
	case protoreflect.MessageKind:
		switch m := value.Message().Interface().(type) {
		case *structpb.Struct:
			return freeStruct(m, rule), nil
		case *structpb.ListValue:
			return freeList(m, rule), nil
		case *anypb.Any:
			return w.any(m)
		}
		return w.message(value.Message())
	case protoreflect.StringKind:
		out = newString(value.String())
		secret = secret || secretText(value.String())
	case protoreflect.BoolKind:
		out = newBool(value.Bool())
	case protoreflect.DoubleKind:
		out = newNumber(formatNumber(value.Float()))
	case protoreflect.BytesKind:
		out = newString(base64.StdEncoding.EncodeToString(value.Bytes()))
	default:
		out = newNumber(strconv.FormatInt(value.Int(), 10))
	}
	out.secret = secret
	return out, nil
}

// any returns the packed message by its fields when they tell all of it, and by
// its encoding otherwise.
func (w writer) any(m *anypb.Any) (*node, error) {
	if m.GetTypeUrl() == "" {
		return newMap(), nil
	}
	if unpacked := w.unpack(m); unpacked != nil {
		text, err := protojson.MarshalOptions{Resolver: w.types, UseProtoNames: true}.Marshal(m)
		if err == nil {
			out, failure := parseJSON(text)
			if failure != nil {
				return nil, fmt.Errorf("message of type %s: %w", m.GetTypeUrl(), failure)
			}
			w.markSecrets(unpacked.Descriptor(), out)
			return out, nil
		}
	}
	out := newMap()
	out.add("@type", newString(m.GetTypeUrl()))
	out.add("@bytes", newString(base64.StdEncoding.EncodeToString(m.GetValue())).markSecret())
	return out, nil
}

// unpack returns the message, nil when its type is not known or its fields do
// not tell all that it holds.
func (w writer) unpack(m *anypb.Any) protoreflect.Message {
	mt, err := w.types.FindMessageByURL(m.GetTypeUrl())
	if err != nil {
		return nil
	}
	unpacked := mt.New()
	if err := proto.Unmarshal(m.GetValue(), unpacked.Interface()); err != nil || w.holdsUnknown(unpacked) {
		return nil
	}
	return unpacked
}

// holdsUnknown says that there are fields of which JSON would tell nothing.
func (w writer) holdsUnknown(m protoreflect.Message) bool {
	if len(m.GetUnknown()) > 0 {
		return true
	}
	if packed, ok := m.Interface().(*anypb.Any); ok {
		return packed.GetTypeUrl() != "" && w.unpack(packed) == nil
	}
	unknown := false
	m.Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				break
			}
			value.Map().Range(func(_ protoreflect.MapKey, entry protoreflect.Value) bool {
				unknown = w.holdsUnknown(entry.Message())
				return !unknown
			})
		case fd.Message() == nil:
		case fd.IsList():
			for i := range value.List().Len() {
				unknown = unknown || w.holdsUnknown(value.List().Get(i).Message())
			}
		default:
			unknown = w.holdsUnknown(value.Message())
		}
		return !unknown
	})
	return unknown
}

// markSecrets marks what is secret in the JSON of a message.
func (w writer) markSecrets(desc protoreflect.MessageDescriptor, n *node) {
	for _, f := range n.fields {
		fd := desc.Fields().ByName(protoreflect.Name(f.key))
		switch {
		case fd != nil && isSecretField(fd) || secretName(f.key):
			f.value.walk(func(part *node) { part.secret = part.isScalar() })
		case fd == nil:
			f.value.walk(func(part *node) { part.secret = part.secret || part.kind == stringNode && secretText(part.text) })
		case fd.Message() == nil:
			f.value.walk(func(part *node) { part.secret = part.secret || part.kind == stringNode && secretText(part.text) })
		case fd.IsMap():
			if fd.MapValue().Message() != nil {
				for _, entry := range f.value.fields {
					w.markSecrets(fd.MapValue().Message(), entry.value)
				}
			}
		case fd.IsList():
			for _, item := range f.value.items {
				w.markMessage(fd.Message(), item)
			}
		default:
			w.markMessage(fd.Message(), f.value)
		}
	}
}

// markMessage is markSecrets for a message that may be an Any or free-form.
func (w writer) markMessage(desc protoreflect.MessageDescriptor, n *node) {
	switch {
	case desc.FullName() == "google.protobuf.Any":
		if name := n.get("@type"); name != nil {
			if mt, err := w.types.FindMessageByURL(name.text); err == nil {
				w.markSecrets(mt.Descriptor(), n)
			}
		}
	case desc.FullName() == "google.protobuf.Struct":
		markFree(n, secretRule{})
	default:
		w.markSecrets(desc, n)
	}
}

// markFree marks what is secret in a free-form value.
func markFree(n *node, rule secretRule) {
	if n.isScalar() {
		n.secret = n.secret || rule.hides(n.kind, n.text)
	}
	for _, item := range n.items {
		markFree(item, rule)
	}
	for _, f := range n.fields {
		markFree(f.value, rule.below(f.key))
	}
}

func freeStruct(s *structpb.Struct, rule secretRule) *node {
	out := newMap()
	keys := make([]string, 0, len(s.GetFields()))
	for key := range s.GetFields() {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	for _, key := range keys {
		out.add(key, freeValue(s.Fields[key], rule.below(key)))
	}
	return out
}

func freeList(l *structpb.ListValue, rule secretRule) *node {
	out := newList()
	for _, value := range l.GetValues() {
		out.items = append(out.items, freeValue(value, rule))
	}
	return out
}

func freeValue(v *structpb.Value, rule secretRule) *node {
	var out *node
	switch kind := v.GetKind().(type) {
	case *structpb.Value_BoolValue:
		out = newBool(kind.BoolValue)
	case *structpb.Value_NumberValue:
		out = newNumber(formatNumber(kind.NumberValue))
	case *structpb.Value_StringValue:
		out = newString(kind.StringValue)
	case *structpb.Value_ListValue:
		return freeList(kind.ListValue, rule)
	case *structpb.Value_StructValue:
		return freeStruct(kind.StructValue, rule)
	default:
		out = &node{kind: nullNode}
	}
	out.secret = rule.hides(out.kind, out.text)
	return out
}

// appendJSON appends the node as JSON, without blanks.
func appendJSON(b []byte, n *node) []byte {
	switch n.kind {
	case nullNode:
		return append(b, "null"...)
	case boolNode:
		return strconv.AppendBool(b, n.bool)
	case numberNode:
		return append(b, n.text...)
	case stringNode:
		return appendString(b, n.text)
	case listNode:
		b = append(b, '[')
		for i, item := range n.items {
			if i > 0 {
				b = append(b, ',')
			}
			b = appendJSON(b, item)
		}
		return append(b, ']')
	}
	b = append(b, '{')
	for i, f := range n.fields {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(appendString(b, f.key), ':')
		b = appendJSON(b, f.value)
	}
	return append(b, '}')
}

// appendString appends a JSON string that leaves `<`, `>` and `&` as they are.
func appendString(b []byte, s string) []byte {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	// A string always encodes.
	_ = encoder.Encode(s)
	return append(b, strings.TrimSuffix(out.String(), "\n")...)
}
