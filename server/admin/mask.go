package admin

import (
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

const (
	// mask stands for a secret in what resource.Redact returns.
	mask = "***"
	// maskChanged stands for a secret that a change replaced.
	maskChanged = mask + " (changed)"
)

// unmask puts the stored secrets back where a put holds the mask, in place.
// stored may be nil. It reports whether anything was restored, and the fields
// for which nothing is stored.
func unmask(put, stored *musterv1.Resource) (restored bool, unresolved []string) {
	masked := false
	walkStrings(put.ProtoReflect(), "", func(_, v string) string {
		masked = masked || v == mask
		return v
	})
	if !masked {
		return false, nil
	}
	// Which of the masks stand where a secret would? Ask Redact, by a probe with
	// another value in their place: a description may read `***` for its own
	// reasons.
	probe := proto.CloneOf(put)
	walkStrings(probe.ProtoReflect(), "", func(_, v string) string {
		if v == mask {
			return "probe"
		}
		return v
	})
	secret := stringsOf(resource.Redact(probe))
	old := stringsOf(stored)
	walkStrings(put.ProtoReflect(), "", func(path, v string) string {
		if v != mask || secret[path] != mask {
			return v
		}
		if kept, ok := old[path]; ok {
			restored = true
			return kept
		}
		unresolved = append(unresolved, path)
		return v
	})
	slices.Sort(unresolved)
	return restored, unresolved
}

// redactChange returns both sides of a change without secrets; those that the
// change replaced are told apart.
func redactChange(before, after *musterv1.Resource) (*musterv1.Resource, *musterv1.Resource) {
	var was, is map[string]string
	if before != nil && after != nil {
		was, is = stringsOf(before), stringsOf(after)
	}
	b, a := redact(before), redact(after)
	if was == nil {
		return b, a
	}
	walkStrings(a.ProtoReflect(), "", func(path, v string) string {
		if v != mask {
			return v
		}
		if old, ok := was[path]; ok && old != is[path] {
			return maskChanged
		}
		return v
	})
	return b, a
}

func redact(r *musterv1.Resource) *musterv1.Resource {
	if r == nil {
		return nil
	}
	return resource.Redact(r)
}

// stringsOf returns every string of a resource by its path.
func stringsOf(r *musterv1.Resource) map[string]string {
	m := map[string]string{}
	if r == nil {
		return m
	}
	walkStrings(r.ProtoReflect(), "", func(path, v string) string {
		m[path] = v
		return v
	})
	return m
}

// walkStrings visits every string below m and replaces it by what visit
// returns. Paths are those of the JSON form: the envelope of
// google.protobuf.Struct does not show. Any stays closed.
func walkStrings(m protoreflect.Message, path string, visit func(path, value string) string) {
	switch m.Descriptor().FullName() {
	case "google.protobuf.Any":
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		at := fieldPath(path, fd)
		switch {
		case fd.IsMap():
			walkMap(fd, v.Map(), at, visit)
		case fd.IsList():
			walkList(fd, v.List(), at, visit)
		case fd.Message() != nil:
			walkStrings(v.Message(), at, visit)
		case fd.Kind() == protoreflect.StringKind:
			if nv := visit(at, v.String()); nv != v.String() {
				m.Set(fd, protoreflect.ValueOfString(nv))
			}
		}
		return true
	})
}

func walkMap(fd protoreflect.FieldDescriptor, m protoreflect.Map, path string, visit func(path, value string) string) {
	val := fd.MapValue()
	m.Range(func(k protoreflect.MapKey, v protoreflect.Value) bool {
		at := join(path, k.String())
		switch {
		case val.Message() != nil:
			walkStrings(v.Message(), at, visit)
		case val.Kind() == protoreflect.StringKind:
			if nv := visit(at, v.String()); nv != v.String() {
				m.Set(k, protoreflect.ValueOfString(nv))
			}
		}
		return true
	})
}

func walkList(fd protoreflect.FieldDescriptor, l protoreflect.List, path string, visit func(path, value string) string) {
	for i := range l.Len() {
		at := fmt.Sprintf("%s[%d]", path, i)
		switch {
		case fd.Message() != nil:
			walkStrings(l.Get(i).Message(), at, visit)
		case fd.Kind() == protoreflect.StringKind:
			if nv := visit(at, l.Get(i).String()); nv != l.Get(i).String() {
				l.Set(i, protoreflect.ValueOfString(nv))
			}
		}
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
	if path == "" {
		return name
	}
	return path + "." + name
}
