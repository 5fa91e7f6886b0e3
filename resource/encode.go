package resource

import (
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Encoder writes resources. The zero Encoder knows the xDS messages that the
// program links in.
type Encoder struct {
	// Types finds the messages of xds_resources. Nil is protoregistry.GlobalTypes.
	Types Resolver
}

func (e Encoder) writer() writer {
	w := writer{types: e.Types}
	if w.types == nil {
		w.types = protoregistry.GlobalTypes
	}
	return w
}

// EncodeObject is Encoder.Object of the zero Encoder.
func EncodeObject(r *musterv1.Resource) ([]byte, error) { return Encoder{}.Object(r) }

// Object returns the object as API7's Admin API carries it: compact JSON that
// has exactly the fields that were given, in a fixed order, secrets in clear.
// A service always has its `type`, an upstream always its `nodes`; a route's
// URIs are `paths`, as in API7 EE; the message of an xds_resource whose type is
// not known is `@bytes`. It fails on a resource without a kind.
//
// Decoding the result with DecodeObject gives an equal resource, provided that r
// is in canonical form.
func (e Encoder) Object(r *musterv1.Resource) ([]byte, error) {
	n, err := e.object(r)
	if err != nil {
		return nil, err
	}
	return appendJSON(nil, n), nil
}

// ObjectYAML is Object in YAML.
func (e Encoder) ObjectYAML(r *musterv1.Resource) ([]byte, error) {
	n, err := e.object(r)
	if err != nil {
		return nil, err
	}
	return appendYAML(nil, n), nil
}

// EncodeStruct returns a free-form object as compact JSON with sorted keys: the
// bare form of a plugin's metadata or configuration.
func EncodeStruct(s *structpb.Struct) []byte {
	return appendJSON(nil, freeStruct(s, secretRule{}))
}

func (e Encoder) object(r *musterv1.Resource) (*node, error) {
	n, err := e.writer().tree(r)
	if err != nil {
		return nil, err
	}
	switch {
	case r.GetService() != nil && n.get("type") == nil:
		n.insert("type", newString("http"), "id", "name", "desc", "labels")
	case r.GetRoute() != nil:
		n.rename("uris", "paths")
	}
	return n, nil
}

// insert adds a field behind the last of those named.
func (n *node) insert(key string, value *node, behind ...string) {
	at := 0
	for i, f := range n.fields {
		for _, name := range behind {
			if f.key == name {
				at = i + 1
			}
		}
	}
	n.fields = append(n.fields, field{})
	copy(n.fields[at+1:], n.fields[at:])
	n.fields[at] = field{key: key, value: value}
}

// rename gives a field another key.
func (n *node) rename(from, to string) {
	for i := range n.fields {
		if n.fields[i].key == from {
			n.fields[i].key = to
		}
	}
}
