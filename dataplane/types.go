package dataplane

// Type URLs of the xDS resources a muster control plane serves.
const (
	ClusterType            = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EndpointType           = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	ListenerType           = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RouteConfigurationType = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	VirtualHostType        = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
	ExtensionConfigType    = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
	SecretType             = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ManifestType           = "type.googleapis.com/muster.v1.Manifest"
	// RelayType is what relays subscribe to: all resources of a group, of every type
	// and for every kind of data plane, under names that say which.
	RelayType                = "type.googleapis.com/muster.v1.Relayed"
	musterResourceVersionLen = 3 // parts of `<epoch>.<revision>.<hash>`
)

// DefaultTypes returns the types that a client subscribes to when
// Config.TypeURLs is empty, in the order of subscription.
func DefaultTypes() []string {
	return []string{
		ClusterType, EndpointType, SecretType, ExtensionConfigType,
		ListenerType, RouteConfigurationType, VirtualHostType,
	}
}
