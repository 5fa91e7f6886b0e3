package admin

import (
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

const (
	// mask stands for a secret in what resource.Redact returns.
	mask = "***"
	// maskChanged stands for a secret that a change replaced.
	maskChanged = mask + " (changed)"
)

// leaf is one text in a resource: of a string or bytes field, or, with value
// set, of a free-form object, where it may be a number.
type leaf struct {
	text  string
	value *structpb.Value
}

// unmask puts the stored secrets back where a put holds the mask, in place.
// stored may be nil. It reports whether anything was restored, and the fields
// for which nothing is stored.
func unmask(put, stored *musterv1.Resource) (restored bool, unresolved []string) {
	masked := false
	walk(put.ProtoReflect(), "", func(_ string, l leaf) leaf {
		masked = masked || l.text == mask
		return l
	})
	if !masked {
		return false, nil
	}
	kept, hidden := leavesOf(stored), leavesOf(redact(stored))
	// Does a mask for which nothing is stored stand where a secret would? Redact
	// knows, by a probe with another value in its place: a description may read
	// `***` for its own reasons.
	probe := proto.CloneOf(put)
	walk(probe.ProtoReflect(), "", func(_ string, l leaf) leaf {
		if l.text == mask {
			return leaf{text: "probe"}
		}
		return l
	})
	secret := leavesOf(resource.Redact(probe))
	walk(put.ProtoReflect(), "", func(path string, l leaf) leaf {
		if l.text != mask {
			return l
		}
		if old, ok := kept[path]; ok && hidden[path].text == mask {
			restored = true
			return old
		}
		if secret[path].text == mask {
			unresolved = append(unresolved, path)
		}
		return l
	})
	slices.Sort(unresolved)
	return restored, unresolved
}

// redactChange returns both sides of a change without secrets; those that the
// change replaced are told apart.
func redactChange(before, after *musterv1.Resource) (*musterv1.Resource, *musterv1.Resource) {
	b, a := redact(before), redact(after)
	if before == nil || after == nil {
		return b, a
	}
	was, is := leavesOf(before), leavesOf(after)
	walk(a.ProtoReflect(), "", func(path string, l leaf) leaf {
		if old, ok := was[path]; ok && l.text == mask && old.text != is[path].text {
			return leaf{text: maskChanged}
		}
		return l
	})
	return b, a
}

func redact(r *musterv1.Resource) *musterv1.Resource {
	if r == nil {
		return nil
	}
	return resource.Redact(r)
}

// leavesOf returns every text of a resource by its path.
func leavesOf(r *musterv1.Resource) map[string]leaf {
	m := map[string]leaf{}
	if r == nil {
		return m
	}
	// Only a copy is walked: walking opens and closes packed messages.
	walk(proto.CloneOf(r).ProtoReflect(), "", func(path string, l leaf) leaf {
		m[path] = l
		return l
	})
	return m
}

// walk visits every text below m and replaces it by what visit returns. Paths
// are those of the JSON form: the envelopes of google.protobuf.Struct do not
// show. Packed messages of known types are opened.
func walk(m protoreflect.Message, path string, visit func(path string, l leaf) leaf) {
	switch v := m.Interface().(type) {
	case *anypb.Any:
		walkAny(v, path, visit)
		return
	case *structpb.Value:
		switch v.GetKind().(type) {
		case *structpb.Value_StringValue, *structpb.Value_NumberValue:
			walkFree(v, path, visit)
			return
		}
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := fieldPath(path, fd)
		switch {
		case fd.IsMap():
			val := fd.MapValue()
			v.Map().Range(func(k protoreflect.MapKey, entry protoreflect.Value) bool {
				// A key may hold a dot: it must not pass for two names.
				key := join(at, resource.FieldPath(k.String()))
				if val.Message() != nil {
					walk(entry.Message(), key, visit)
				} else if nv, ok := visited(val, entry, key, visit); ok {
					v.Map().Set(k, nv)
				}
				return true
			})
		case fd.IsList():
			for i := range v.List().Len() {
				item := fmt.Sprintf("%s[%d]", at, i)
				if fd.Message() != nil {
					walk(v.List().Get(i).Message(), item, visit)
				} else if nv, ok := visited(fd, v.List().Get(i), item, visit); ok {
					v.List().Set(i, nv)
				}
			}
		case fd.Message() != nil:
			walk(v.Message(), at, visit)
		default:
			if nv, ok := visited(fd, v, at, visit); ok {
				m.Set(fd, nv)
			}
		}
		return true
	})
}

// visited visits a scalar and reports what replaces it, if anything does.
func visited(fd protoreflect.FieldDescriptor, v protoreflect.Value, path string, visit func(string, leaf) leaf) (protoreflect.Value, bool) {
	switch fd.Kind() {
	case protoreflect.StringKind:
		if l := visit(path, leaf{text: v.String()}); l.text != v.String() {
			return protoreflect.ValueOfString(l.text), true
		}
	case protoreflect.BytesKind:
		if l := visit(path, leaf{text: string(v.Bytes())}); l.text != string(v.Bytes()) {
			return protoreflect.ValueOfBytes([]byte(l.text)), true
		}
	}
	return v, false
}

func walkFree(v *structpb.Value, path string, visit func(string, leaf) leaf) {
	before := leaf{text: v.GetStringValue(), value: &structpb.Value{Kind: v.GetKind()}}
	if _, number := v.GetKind().(*structpb.Value_NumberValue); number {
		// The NUL keeps the number 1 and the text "1" apart.
		before.text = fmt.Sprintf("\x00%v", v.GetNumberValue())
	}
	after := visit(path, before)
	switch {
	case after.text == before.text:
	case after.value != nil:
		v.Kind = after.value.GetKind()
	default:
		v.Kind = &structpb.Value_StringValue{StringValue: after.text}
	}
}

// walkAny opens a packed message, and packs it again only when it was changed:
// its bytes may not be what encoding would make of them.
func walkAny(packed *anypb.Any, path string, visit func(string, leaf) leaf) {
	m, err := packed.UnmarshalNew()
	if err != nil {
		return
	}
	before := proto.Clone(m)
	walk(m.ProtoReflect(), path, visit)
	if proto.Equal(before, m) {
		return
	}
	if b, err := (proto.MarshalOptions{Deterministic: true}).Marshal(m); err == nil {
		packed.Value = b
	}
}

func fieldPath(path string, fd protoreflect.FieldDescriptor) string {
	switch fd.ContainingMessage().FullName() {
	case "google.protobuf.Struct", "google.protobuf.Value", "google.protobuf.ListValue":
		return path
	case "muster.v1.Resource":
		// Paths are relative to the object, not to its envelope.
		return path
	}
	return join(path, string(fd.Name()))
}

func join(path, name string) string {
	if path == "" || strings.HasPrefix(name, "[") {
		return path + name
	}
	return path + "." + name
}
