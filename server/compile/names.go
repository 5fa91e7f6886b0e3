package compile

// The type URLs of what is emitted.
const (
	ListenerType           = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteConfigurationType = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	VirtualHostType        = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
	ClusterType            = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType           = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	SecretType             = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ExtensionConfigType    = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// Names of the resources that every group has, and parts of others.
const (
	ListenerHTTP  = "http"
	ListenerHTTPS = "https"
	// RouteConfig is the name of the one RouteConfiguration.
	RouteConfig = "muster"
	// RouteKeyHeader is the private header by which a virtual host is chosen.
	RouteKeyHeader = "x-muster-route-key"
)
