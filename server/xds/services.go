package xds

import (
	"google.golang.org/grpc"

	"github.com/musterhq/muster/server/compile"
)

// service is one discovery service: the name of its incremental and of its
// state-of-the-world method, empty where it has none, and the type it is of.
type service struct {
	name, delta, sotw string
	typeURL           string
	file              string // the .proto file, for reflection
}

var services = []service{
	{
		name:  "envoy.service.discovery.v3.AggregatedDiscoveryService",
		delta: "DeltaAggregatedResources", sotw: "StreamAggregatedResources",
		file: "envoy/service/discovery/v3/ads.proto",
	},
	{
		name:  "envoy.service.cluster.v3.ClusterDiscoveryService",
		delta: "DeltaClusters", sotw: "StreamClusters", typeURL: compile.ClusterType,
		file: "envoy/service/cluster/v3/cds.proto",
	},
	{
		name:  "envoy.service.endpoint.v3.EndpointDiscoveryService",
		delta: "DeltaEndpoints", sotw: "StreamEndpoints", typeURL: compile.EndpointType,
		file: "envoy/service/endpoint/v3/eds.proto",
	},
	{
		name:  "envoy.service.listener.v3.ListenerDiscoveryService",
		delta: "DeltaListeners", sotw: "StreamListeners", typeURL: compile.ListenerType,
		file: "envoy/service/listener/v3/lds.proto",
	},
	{
		name:  "envoy.service.route.v3.RouteDiscoveryService",
		delta: "DeltaRoutes", sotw: "StreamRoutes", typeURL: compile.RouteConfigurationType,
		file: "envoy/service/route/v3/rds.proto",
	},
	{
		name:  "envoy.service.route.v3.VirtualHostDiscoveryService",
		delta: "DeltaVirtualHosts", typeURL: compile.VirtualHostType,
		file: "envoy/service/route/v3/rds.proto",
	},
	{
		name:  "envoy.service.secret.v3.SecretDiscoveryService",
		delta: "DeltaSecrets", sotw: "StreamSecrets", typeURL: compile.SecretType,
		file: "envoy/service/secret/v3/sds.proto",
	},
	{
		name:  "envoy.service.extension.v3.ExtensionConfigDiscoveryService",
		delta: "DeltaExtensionConfigs", sotw: "StreamExtensionConfigs", typeURL: compile.ExtensionConfigType,
		file: "envoy/service/extension/v3/config_discovery.proto",
	},
}

// Register adds the discovery services to a gRPC server, which must be made with
// the ServerOptions.
func (s *Server) Register(r grpc.ServiceRegistrar) {
	for _, svc := range services {
		desc := &grpc.ServiceDesc{ServiceName: svc.name, HandlerType: (*any)(nil), Metadata: svc.file}
		add := func(method string, delta bool) {
			if method == "" {
				return
			}
			desc.Streams = append(desc.Streams, grpc.StreamDesc{
				StreamName: method, ServerStreams: true, ClientStreams: true,
				Handler: func(_ any, ss grpc.ServerStream) error { return s.serve(ss, method, delta, svc.typeURL) },
			})
		}
		add(svc.delta, true)
		add(svc.sotw, false)
		r.RegisterService(desc, s)
	}
}
