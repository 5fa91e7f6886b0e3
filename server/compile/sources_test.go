package compile_test

import (
	"bytes"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/server/compile"
)

// sources counts the config sources below a message, by whether they are ADS.
func sources(m protoreflect.Message) (ads, others int) {
	switch v := m.Interface().(type) {
	case *corev3.ConfigSource:
		if v.GetAds() != nil {
			return 1, 0
		}
		return 0, 1
	case *anypb.Any:
		if inner, err := v.UnmarshalNew(); err == nil {
			return sources(inner.ProtoReflect())
		}
		return 0, 0
	}
	add := func(m protoreflect.Message) {
		a, o := sources(m)
		ads, others = ads+a, others+o
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				add(v.List().Get(i).Message())
			}
		case f.IsMap() && f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool { add(v.Message()); return true })
		case !f.IsMap():
			add(v.Message())
		}
		return true
	})
	return ads, others
}

// TestWithoutADSNothingIsAskedForOverADS runs over everything that an empty group has,
// of which the listener alone refers to routes and to discovered filters.
func TestWithoutADSNothingIsAskedForOverADS(t *testing.T) {
	from := compile.Sources{Cluster: "muster_xds"}
	replaced := 0
	for key, r := range emptyGroup(t) {
		before, _ := sources(message(t, r).ProtoReflect())
		body, err := compile.SourcedFrom(key.TypeURL, r.Body, from)
		if err != nil {
			t.Fatal(err)
		}
		if !compile.HasSources(key.TypeURL) && !bytes.Equal(body, r.Body) {
			t.Errorf("%v changed, of a type that has no sources", key)
		}
		left := r
		left.Body = body
		ads, others := sources(message(t, left).ProtoReflect())
		if ads != 0 || others != before {
			t.Errorf("%v: %d ADS sources are left of %d, %d others", key, ads, before, others)
		}
		replaced += others
	}
	if replaced < 3 { // routes, filters, virtual hosts
		t.Errorf("only %d sources were replaced", replaced)
	}
}

func TestASourceNamesTheClusterAndTheProtocol(t *testing.T) {
	rds := emptyGroup(t)[compile.Key{TypeURL: compile.RouteConfigurationType, Name: compile.RouteConfig}]
	for _, from := range []compile.Sources{{Cluster: "c1"}, {Cluster: "c2", SotW: true}} {
		body, err := compile.SourcedFrom(compile.RouteConfigurationType, rds.Body, from)
		if err != nil {
			t.Fatal(err)
		}
		sourced := rds
		sourced.Body = body
		m := message(t, sourced)
		api := proto.CloneOf(m).ProtoReflect().Get(m.ProtoReflect().Descriptor().Fields().ByName("vhds")).Message().
			Interface().(interface{ GetConfigSource() *corev3.ConfigSource }).GetConfigSource().GetApiConfigSource()
		want := corev3.ApiConfigSource_DELTA_GRPC
		if from.SotW {
			want = corev3.ApiConfigSource_GRPC
		}
		if api.GetApiType() != want || api.GetGrpcServices()[0].GetEnvoyGrpc().GetClusterName() != from.Cluster || !api.GetSetNodeOnFirstMessageOnly() {
			t.Errorf("of %+v: %v", from, api)
		}
	}
}
