package resource_test

import (
	"fmt"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
	"pgregory.net/rapid"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// words are strings that texts could take for something else.
var words = []string{
	"a", "plain words", "", " ", "true", "no", "null", "~", "1", "0x1f", "1e3", "007", "-", "- a", "a: b", "a #b", "#c", "'q'", `"q"`, `\n`,
	"two\nlines", "ends\n", "\nbegins", "a\n\nb\n", " leads\nx", "tab\tand \x01control", "{a}", "[a]", "*a", "&a", "!a", "%a", "@a", "`a`", "<<", "é日本",
	"😀", "\u2028", "\ufeff", "\r\n", "a\rb", "<>&", "2001-01-01", "a,b", "?", ":", "|", ">", "...", "---", "y", "=", "1_000", ".inf", "10.0.0.1", "/*",
	`["a","b"]`, `["a", "b"]`, `[]`, `[1]`,
}

func genWord() *rapid.Generator[string] {
	return rapid.OneOf(rapid.SampledFrom(words), rapid.String(), rapid.StringMatching(`[a-z/.*-]{1,12}`))
}

func genFree(depth int) *rapid.Generator[*structpb.Value] {
	return rapid.Custom(func(t *rapid.T) *structpb.Value {
		most := 5
		if depth > 3 {
			most = 3
		}
		switch rapid.IntRange(0, most).Draw(t, "kind") {
		case 0:
			return structpb.NewNullValue()
		case 1:
			return structpb.NewBoolValue(rapid.Bool().Draw(t, "bool"))
		case 2:
			if rapid.Bool().Draw(t, "whole") {
				return structpb.NewNumberValue(float64(rapid.Int64Range(-1<<53, 1<<53).Draw(t, "int")))
			}
			return structpb.NewNumberValue(rapid.Float64().Draw(t, "float"))
		case 3:
			return structpb.NewStringValue(genWord().Draw(t, "string"))
		case 4:
			return structpb.NewListValue(&structpb.ListValue{Values: rapid.SliceOfN(genFree(depth+1), 0, 4).Draw(t, "list")})
		}
		return structpb.NewStructValue(genStruct(depth+1).Draw(t, "object"))
	})
}

func genStruct(depth int) *rapid.Generator[*structpb.Struct] {
	return rapid.Custom(func(t *rapid.T) *structpb.Struct {
		return &structpb.Struct{Fields: rapid.MapOfN(genWord(), genFree(depth), 0, 4).Draw(t, "fields")}
	})
}

// genMessage fills a message of muster.v1 with anything.
func genMessage(t *rapid.T, m protoreflect.Message) {
	fields := m.Descriptor().Fields()
	for i := range fields.Len() {
		fd := fields.Get(i)
		if rapid.IntRange(0, 2).Draw(t, "absent") == 0 {
			continue
		}
		switch {
		case fd.IsMap():
			entries := m.Mutable(fd).Map()
			for range rapid.IntRange(0, 3).Draw(t, "entries") {
				key := protoreflect.ValueOfString(genWord().Draw(t, "key")).MapKey()
				if fd.MapValue().Message() != nil {
					entries.Set(key, protoreflect.ValueOfMessage(genStruct(0).Draw(t, "struct").ProtoReflect()))
				} else {
					entries.Set(key, genScalar(t, fd.MapValue()))
				}
			}
		case fd.IsList():
			list := m.Mutable(fd).List()
			for range rapid.IntRange(0, 3).Draw(t, "items") {
				if fd.Message() != nil {
					element := list.NewElement()
					genMessage(t, element.Message())
					list.Append(element)
				} else {
					list.Append(genScalar(t, fd))
				}
			}
		case fd.Message() != nil:
			switch fd.Message().FullName() {
			case "google.protobuf.Struct":
				m.Set(fd, protoreflect.ValueOfMessage(genStruct(0).Draw(t, "struct").ProtoReflect()))
			case "google.protobuf.ListValue":
				m.Set(fd, protoreflect.ValueOfMessage((&structpb.ListValue{Values: rapid.SliceOfN(genFree(0), 0, 3).Draw(t, "list")}).ProtoReflect()))
			case "google.protobuf.Any":
				m.Set(fd, protoreflect.ValueOfMessage(genAny(t).ProtoReflect()))
			default:
				genMessage(t, m.Mutable(fd).Message())
			}
		default:
			m.Set(fd, genScalar(t, fd))
		}
	}
}

func genScalar(t *rapid.T, fd protoreflect.FieldDescriptor) protoreflect.Value {
	switch fd.Kind() {
	case protoreflect.StringKind:
		return protoreflect.ValueOfString(genWord().Draw(t, "string"))
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(rapid.Bool().Draw(t, "bool"))
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(rapid.Float64().Draw(t, "double"))
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(rapid.Int32().Draw(t, "int32"))
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(rapid.Int64().Draw(t, "int64"))
	}
	panic(fmt.Sprintf("no generator for %s", fd.FullName()))
}

// genAny packs an xDS message: known, unknown, or known with unknown inside.
func genAny(t *rapid.T) *anypb.Any {
	pack := func(m proto.Message) *anypb.Any {
		out := &anypb.Any{}
		if err := anypb.MarshalFrom(out, m, proto.MarshalOptions{Deterministic: true}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	unknown := &anypb.Any{TypeUrl: "type.googleapis.com/vendor.Unknown", Value: rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")}
	switch rapid.IntRange(0, 3).Draw(t, "any") {
	case 0:
		return unknown
	case 1:
		return pack(&clusterv3.Cluster{Name: genWord().Draw(t, "name"), TransportSocket: &corev3.TransportSocket{
			Name: "x", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: unknown},
		}})
	case 2:
		return pack(&tlsv3.Secret{Name: genWord().Draw(t, "name"), Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			PrivateKey: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: genWord().Draw(t, "key")}},
			Password:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineBytes{InlineBytes: rapid.SliceOf(rapid.Byte()).Draw(t, "password")}},
		}}})
	}
	return pack(&clusterv3.Cluster{
		Name:                          genWord().Draw(t, "name"),
		ConnectTimeout:                durationpb.New(1500000000),
		PerConnectionBufferLimitBytes: wrapperspb.UInt32(rapid.Uint32().Draw(t, "limit")),
		LbPolicy:                      clusterv3.Cluster_RING_HASH,
		LbConfig: &clusterv3.Cluster_RingHashLbConfig_{RingHashLbConfig: &clusterv3.Cluster_RingHashLbConfig{
			MinimumRingSize: wrapperspb.UInt64(rapid.Uint64().Draw(t, "ring")),
		}},
		Metadata: &corev3.Metadata{FilterMetadata: map[string]*structpb.Struct{"x": genStruct(0).Draw(t, "metadata")}},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"y": pack(wrapperspb.String(genWord().Draw(t, "wrapped"))),
		},
	})
}

// genResource is any resource in canonical form, valid or not.
func genResource() *rapid.Generator[*musterv1.Resource] {
	return rapid.Custom(func(t *rapid.T) *musterv1.Resource {
		kind := rapid.SampledFrom(resource.Kinds()).Draw(t, "kind")
		r := &musterv1.Resource{}
		m := r.ProtoReflect()
		genMessage(t, m.Mutable(m.Descriptor().Fields().ByNumber(protoreflect.FieldNumber(kind))).Message())
		if raw := r.GetXdsResource(); raw != nil && raw.GetResource() == nil {
			raw.Resource = genAny(t)
		}
		if metadata := r.GetPluginMetadata(); metadata != nil {
			if metadata.GetMetadata() == nil {
				metadata.Metadata = &structpb.Struct{}
			}
			// The bare object has the id beside the metadata.
			delete(metadata.Metadata.GetFields(), "id")
		}
		resource.Normalize(r)
		return r
	})
}
