package resource

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Redact returns a copy in which every secret is `***`: private keys, what a
// consumer or credential proves itself by, and what in plugin configurations and
// raw xDS messages is a secret by its name. It hides rather too much than too
// little. A raw message of a type that the program does not link in loses its
// content altogether. Of nil it is nil.
func Redact(r *musterv1.Resource) *musterv1.Resource {
	out := proto.CloneOf(r)
	if m := body(out); m != nil {
		redactMessage(m)
	}
	return out
}

func redactMessage(m protoreflect.Message) {
	parent := m.Descriptor().FullName()
	m.SetUnknown(nil)
	m.Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		secret := isSecretField(fd)
		switch {
		case secret && fd.Message() != nil && !fd.IsMap() && !fd.IsList():
			redactAll(value.Message())
		case fd.IsMap():
			value.Map().Range(func(key protoreflect.MapKey, entry protoreflect.Value) bool {
				switch {
				case fd.MapValue().Message() != nil:
					redactValue(entry.Message(), pluginSecrets(parent, key.String()), secret)
				case fd.MapValue().Kind() == protoreflect.StringKind && (secret || secretName(key.String()) || secretText(entry.String())):
					value.Map().Set(key, protoreflect.ValueOfString(mask))
				}
				return true
			})
		case fd.IsList():
			list := value.List()
			for i := range list.Len() {
				switch {
				case fd.Message() != nil:
					redactValue(list.Get(i).Message(), secretRule{}, secret)
				case fd.Kind() == protoreflect.StringKind && (secret || secretText(list.Get(i).String())):
					list.Set(i, protoreflect.ValueOfString(mask))
				case fd.Kind() == protoreflect.BytesKind && secret:
					list.Set(i, protoreflect.ValueOfBytes([]byte(mask)))
				}
			}
		case fd.Message() != nil:
			redactValue(value.Message(), secretRule{}.below(string(fd.Name())), false)
		case fd.Kind() == protoreflect.StringKind && (secret || secretText(value.String())):
			m.Set(fd, protoreflect.ValueOfString(mask))
		case fd.Kind() == protoreflect.BytesKind && (secret || secretText(string(value.Bytes()))):
			m.Set(fd, protoreflect.ValueOfBytes([]byte(mask)))
		}
		return true
	})
}

// redactValue redacts a message that may be free-form or packed.
func redactValue(m protoreflect.Message, rule secretRule, all bool) {
	rule.all = rule.all || all
	switch value := m.Interface().(type) {
	case *structpb.Struct:
		redactFields(value, rule)
	case *structpb.ListValue:
		for _, item := range value.GetValues() {
			redactFree(item, rule)
		}
	case *structpb.Value:
		redactFree(value, rule)
	case *anypb.Any:
		redactAny(value, all)
	default:
		if all {
			redactAll(m)
			return
		}
		redactMessage(m)
	}
}

func redactFields(s *structpb.Struct, rule secretRule) {
	for key, value := range s.GetFields() {
		redactFree(value, rule.below(key))
	}
}

func redactFree(v *structpb.Value, rule secretRule) {
	switch kind := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		if rule.hides(stringNode, kind.StringValue) {
			v.Kind = &structpb.Value_StringValue{StringValue: mask}
		}
	case *structpb.Value_NumberValue:
		if rule.hides(numberNode, "") {
			v.Kind = &structpb.Value_StringValue{StringValue: mask}
		}
	case *structpb.Value_ListValue:
		for _, item := range kind.ListValue.GetValues() {
			redactFree(item, rule)
		}
	case *structpb.Value_StructValue:
		redactFields(kind.StructValue, rule)
	}
}

// redactAny unpacks, redacts and packs again; what it cannot unpack it empties.
func redactAny(m *anypb.Any, all bool) {
	if m.GetTypeUrl() == "" || len(m.GetValue()) == 0 {
		return
	}
	mt, err := protoregistry.GlobalTypes.FindMessageByURL(m.GetTypeUrl())
	if err != nil {
		m.Value = nil
		return
	}
	inner := mt.New()
	if err := proto.Unmarshal(m.GetValue(), inner.Interface()); err != nil {
		m.Value = nil
		return
	}
	redactValue(inner, secretRule{}, all)
	if m.Value, err = (proto.MarshalOptions{Deterministic: true}).Marshal(inner.Interface()); err != nil {
		m.Value = nil
	}
}

// redactAll masks every text inside of a secret message.
func redactAll(m protoreflect.Message) {
	switch m.Interface().(type) {
	case *structpb.Struct, *structpb.ListValue, *structpb.Value, *anypb.Any:
		redactValue(m, secretRule{all: true}, true)
		return
	}
	m.SetUnknown(nil)
	m.Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case fd.IsMap():
			m.Clear(fd)
		case fd.IsList() && fd.Message() != nil:
			for i := range value.List().Len() {
				redactAll(value.List().Get(i).Message())
			}
		case fd.IsList():
			m.Clear(fd)
		case fd.Message() != nil:
			redactAll(value.Message())
		case fd.Kind() == protoreflect.StringKind:
			m.Set(fd, protoreflect.ValueOfString(mask))
		case fd.Kind() == protoreflect.BytesKind:
			m.Set(fd, protoreflect.ValueOfBytes([]byte(mask)))
		}
		return true
	})
}
