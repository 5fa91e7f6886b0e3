package resource

import (
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Normalize brings the resource into canonical form, in place, so that what
// means the same and reads the same is equal. It is idempotent, and fills in no
// defaults. What decoding yields is canonical already; messages that come over
// gRPC need not be.
//
// The one default that is dropped is the service type `http`: API7's tools
// always send it and need it back, muster's files never have it. EncodeObject
// always writes it.
func Normalize(r *musterv1.Resource) {
	if service := r.GetService(); service.GetType() == "http" {
		service.Type = ""
	}
	if m := body(r); m != nil {
		normalizeMessage(m)
	}
}

// normalizeMessage gives free-form values that have no kind the kind null, which
// is what they mean and the only way to write them, messages that are nil in
// maps and lists their empty value, and negative zero its plain form.
func normalizeMessage(m protoreflect.Message) {
	if value, ok := m.Interface().(*structpb.Value); ok {
		switch kind := value.GetKind().(type) {
		case nil:
			value.Kind = &structpb.Value_NullValue{}
			return
		case *structpb.Value_NumberValue:
			kind.NumberValue += 0 // -0 + 0 is 0
			return
		}
	}
	if m.Descriptor().FullName() == "google.protobuf.Any" {
		return
	}
	m.Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			if fd.MapValue().Message() == nil {
				break
			}
			entries := value.Map()
			entries.Range(func(key protoreflect.MapKey, entry protoreflect.Value) bool {
				if !entry.Message().IsValid() {
					entry = entries.NewValue()
					entries.Set(key, entry)
				}
				normalizeMessage(entry.Message())
				return true
			})
		case fd.IsList():
			if fd.Message() == nil {
				break
			}
			list := value.List()
			for i := range list.Len() {
				if !list.Get(i).Message().IsValid() {
					list.Set(i, list.NewElement())
				}
				normalizeMessage(list.Get(i).Message())
			}
		case fd.Message() != nil:
			normalizeMessage(value.Message())
		case fd.Kind() == protoreflect.DoubleKind:
			m.Set(fd, protoreflect.ValueOfFloat64(value.Float()+0))
		}
		return true
	})
}
