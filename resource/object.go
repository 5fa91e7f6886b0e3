package resource

import (
	"fmt"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Decoder reads resources. The zero Decoder knows the xDS messages that the
// program links in.
type Decoder struct {
	// Types finds the messages of xds_resources. Nil is protoregistry.GlobalTypes.
	Types Resolver
}

// DecodeObject is Decoder.Object of the zero Decoder.
func DecodeObject(kind musterv1.Kind, data []byte) (*musterv1.Resource, Positions, Problems) {
	return Decoder{}.Object(kind, data)
}

// Object reads one object as the Admin API carries it, in JSON or YAML, at most
// 4 MiB. Ids may be missing, as they are where the URL has them: a credential's
// consumer and any kind's id are then empty, for the caller to fill in. The
// object of a plugin_metadata is the metadata itself, beside an optional `id`.
//
// The resource is nil when the text cannot be read at all; otherwise it holds
// what could be read, beside the problems. Paths of problems are relative to the
// object, by the names that the text uses.
func (d Decoder) Object(kind musterv1.Kind, data []byte) (*musterv1.Resource, Positions, Problems) {
	src, failure := parseSource("", data, maxObjectSize)
	if failure != nil {
		return nil, Positions{}, src.failed(failure)
	}
	r, m := newResource(kind)
	if r == nil {
		return nil, Positions{}, Problems{{Code: CodeUnknown, Message: fmt.Sprintf("there is no resource kind %d", kind)}}
	}
	w := d.decoder(src)
	top := &place{at: src.root.at}
	c := &cursor{place: top}
	if kind == musterv1.Kind_KIND_PLUGIN_METADATA {
		w.metadata(r.GetPluginMetadata(), src.root, c)
	} else {
		w.message(m, src.root, c, nil)
	}
	Normalize(r)
	return r, Positions{only: &object{src: src, place: top}}, w.finish()
}

func (d Decoder) decoder(src *source) *decoder {
	w := &decoder{src: src, types: d.Types}
	if w.types == nil {
		w.types = protoregistry.GlobalTypes
	}
	return w
}

// metadata fills the metadata of a plugin from the bare object.
func (d *decoder) metadata(m *musterv1.PluginMetadata, n *node, c *cursor) {
	if n.kind != mapNode {
		d.mismatch(c, n, "an object", false)
		return
	}
	body := &node{kind: mapNode, at: n.at}
	for _, f := range n.fields {
		if f.key != "id" {
			body.fields = append(body.fields, f)
			continue
		}
		id := m.ProtoReflect().Descriptor().Fields().ByName("id")
		if value, ok := d.scalar(id, f.value, c.field("id", "id", f.value.at), false); ok {
			m.Id = value.String()
		}
	}
	// The canonical path has the field `metadata`, the text does not.
	inner := &cursor{parent: c.parent, seg: c.seg, place: c.place.child("metadata", n.at)}
	m.Metadata = &structpb.Struct{Fields: d.freeFields(body, inner, secretRule{guarded: true})}
}

// newResource returns an empty resource of the kind and its message, nil for an
// unknown kind.
func newResource(kind musterv1.Kind) (*musterv1.Resource, protoreflect.Message) {
	r := &musterv1.Resource{}
	m := r.ProtoReflect()
	// The fields of Resource have the numbers of their kinds.
	fd := m.Descriptor().Fields().ByNumber(protoreflect.FieldNumber(kind))
	if fd == nil {
		return nil, nil
	}
	return r, m.Mutable(fd).Message()
}

// body returns the resource's message, nil when it has none.
func body(r *musterv1.Resource) protoreflect.Message {
	m := r.ProtoReflect()
	if !m.IsValid() {
		return nil
	}
	fd := m.WhichOneof(m.Descriptor().Oneofs().ByName("kind"))
	if fd == nil {
		return nil
	}
	return m.Get(fd).Message()
}
