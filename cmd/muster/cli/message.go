package cli

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
)

// messageJSON writes an API message as the command line's stable JSON: the
// proto's field names in the proto's order, 64-bit numbers as numbers, enum
// values without their type's prefix. It differs from protojson in these, which
// scripts trip over. A message about resources (a group, a data plane, ...) has
// every scalar and list field even when it is empty; a resource itself has only
// the fields that are set, as in API7's own JSON.
func messageJSON(m proto.Message) ([]byte, error) {
	var b bytes.Buffer
	if err := writeMessage(&b, m.ProtoReflect(), false); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func writeMessage(b *bytes.Buffer, m protoreflect.Message, sparse bool) error {
	name := m.Descriptor().FullName()
	if name == "google.protobuf.Any" {
		return writeAny(b, m)
	}
	if strings.HasPrefix(string(name), "google.protobuf.") {
		raw, err := protojson.Marshal(m.Interface())
		if err != nil {
			return err
		}
		return json.Compact(b, raw) // protojson varies its spaces on purpose
	}
	if name == (&musterv1.Resource{}).ProtoReflect().Descriptor().FullName() {
		sparse = true
	}
	b.WriteByte('{')
	first := true
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if !m.Has(fd) && (sparse || fd.HasPresence()) {
			continue
		}
		if !first {
			b.WriteByte(',')
		}
		first = false
		fmt.Fprintf(b, "%q:", fd.Name())
		if err := writeField(b, fd, m.Get(fd), sparse); err != nil {
			return fmt.Errorf("%s: %w", fd.FullName(), err)
		}
	}
	b.WriteByte('}')
	return nil
}

func writeField(b *bytes.Buffer, fd protoreflect.FieldDescriptor, v protoreflect.Value, sparse bool) error {
	switch {
	case fd.IsMap():
		keys := make([]protoreflect.MapKey, 0, v.Map().Len())
		v.Map().Range(func(k protoreflect.MapKey, _ protoreflect.Value) bool {
			keys = append(keys, k)
			return true
		})
		slices.SortFunc(keys, func(x, y protoreflect.MapKey) int { return strings.Compare(x.String(), y.String()) })
		b.WriteByte('{')
		for i, k := range keys {
			if i > 0 {
				b.WriteByte(',')
			}
			writeString(b, k.String())
			b.WriteByte(':')
			if err := writeValue(b, fd.MapValue(), v.Map().Get(k), sparse); err != nil {
				return err
			}
		}
		b.WriteByte('}')
		return nil
	case fd.IsList():
		b.WriteByte('[')
		for i := range v.List().Len() {
			if i > 0 {
				b.WriteByte(',')
			}
			if err := writeValue(b, fd, v.List().Get(i), sparse); err != nil {
				return err
			}
		}
		b.WriteByte(']')
		return nil
	default:
		return writeValue(b, fd, v, sparse)
	}
}

func writeValue(b *bytes.Buffer, fd protoreflect.FieldDescriptor, v protoreflect.Value, sparse bool) error {
	switch fd.Kind() {
	case protoreflect.MessageKind, protoreflect.GroupKind:
		return writeMessage(b, v.Message(), sparse)
	case protoreflect.EnumKind:
		writeString(b, enumName(fd.Enum(), v.Enum()))
	case protoreflect.BoolKind:
		b.WriteString(strconv.FormatBool(v.Bool()))
	case protoreflect.StringKind:
		writeString(b, v.String())
	case protoreflect.BytesKind:
		writeString(b, base64.StdEncoding.EncodeToString(v.Bytes()))
	case protoreflect.FloatKind, protoreflect.DoubleKind:
		if f := v.Float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return fmt.Errorf("%v has no JSON form", f)
		}
		raw, err := json.Marshal(v.Float())
		if err != nil {
			return err
		}
		b.Write(raw)
	default: // the integers
		b.WriteString(v.String())
	}
	return nil
}

// writeAny writes the message inside, when this program knows its type, and
// otherwise its type and its bytes.
func writeAny(b *bytes.Buffer, m protoreflect.Message) error {
	box := m.Interface().(*anypb.Any)
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(box)
	if err != nil {
		raw, err = json.Marshal(struct {
			Type  string `json:"@type"`
			Value []byte `json:"value"`
		}{box.GetTypeUrl(), box.GetValue()})
		if err != nil {
			return err
		}
	}
	return json.Compact(b, raw)
}

// enumName returns SYNCED for DATA_PLANE_STATE_SYNCED.
func enumName(ed protoreflect.EnumDescriptor, n protoreflect.EnumNumber) string {
	v := ed.Values().ByNumber(n)
	if v == nil {
		return strconv.Itoa(int(n))
	}
	zero := ed.Values().Get(0)
	prefix := strings.TrimSuffix(string(zero.Name()), "UNSPECIFIED")
	return strings.TrimPrefix(string(v.Name()), prefix)
}

// short returns an enum value's name without its type's prefix.
func short(e protoreflect.Enum) string { return enumName(e.Descriptor(), e.Number()) }

func writeString(b *bytes.Buffer, s string) {
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	_ = enc.Encode(s)       // a string and a buffer do not fail
	b.Truncate(b.Len() - 1) // the encoder's line end
}
