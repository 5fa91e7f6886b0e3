package compile

import (
	"bytes"
	"fmt"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// Sources says where a data plane asks for what its resources refer to: on a
// stream of each type to a cluster of its bootstrap. The zero value is over ADS,
// as compiled.
type Sources struct {
	// Cluster is the name of that cluster.
	Cluster string
	// SotW asks in the state-of-the-world protocol.
	SotW bool
}

// HasSources reports whether resources of a type may say where to ask for others.
func HasSources(typeURL string) bool {
	switch typeURL {
	case ClusterType, ListenerType, RouteConfigurationType, ExtensionConfigType:
		return true
	}
	return false
}

// encodedADS is ConfigSource.ads, which is empty, as it is encoded.
var encodedADS = []byte{3<<3 | 2, 0}

// SourcedFrom returns a resource as a data plane needs it that uses no ADS.
func SourcedFrom(typeURL string, body []byte, from Sources) ([]byte, error) {
	if from == (Sources{}) || !bytes.Contains(body, encodedADS) {
		return body, nil
	}
	var m proto.Message
	switch typeURL {
	case ClusterType:
		m = &clusterv3.Cluster{}
	case ListenerType:
		m = &listenerv3.Listener{}
	case RouteConfigurationType:
		m = &routev3.RouteConfiguration{}
	case ExtensionConfigType:
		m = &corev3.TypedExtensionConfig{}
	default:
		return body, nil
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return nil, fmt.Errorf("compile: %s: %w", typeURL, err)
	}
	if !from.replace(m.ProtoReflect()) {
		return body, nil
	}
	return marshal(m), nil
}

// replace replaces every ADS source below a message; it reports whether there was one.
func (s Sources) replace(m protoreflect.Message) (changed bool) {
	switch v := m.Interface().(type) {
	case *corev3.ConfigSource:
		if v.GetAds() == nil {
			return false
		}
		v.ConfigSourceSpecifier = &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: s.api()}
		return true
	case *anypb.Any:
		inner, err := v.UnmarshalNew()
		if err != nil || !s.replace(inner.ProtoReflect()) {
			return false // of an unknown type nothing can be said
		}
		v.Value = marshal(inner)
		return true
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				changed = s.replace(v.List().Get(i).Message()) || changed
			}
		case !f.IsMap():
			changed = s.replace(v.Message()) || changed
		case f.MapValue().Message() != nil:
			v.Map().Range(func(_ protoreflect.MapKey, v protoreflect.Value) bool {
				changed = s.replace(v.Message()) || changed
				return true
			})
		}
		return true
	})
	return changed
}

func (s Sources) api() *corev3.ApiConfigSource {
	kind := corev3.ApiConfigSource_DELTA_GRPC
	if s.SotW {
		kind = corev3.ApiConfigSource_GRPC
	}
	return &corev3.ApiConfigSource{
		ApiType: kind, TransportApiVersion: corev3.ApiVersion_V3, SetNodeOnFirstMessageOnly: true,
		GrpcServices: []*corev3.GrpcService{{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
				ClusterName: s.Cluster,
				// As in the bootstrap that muster writes.
				RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
					BaseInterval: durationpb.New(500 * time.Millisecond), MaxInterval: durationpb.New(5 * time.Second),
				}},
			}},
		}},
	}
}
