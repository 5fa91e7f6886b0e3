package compile

import "strings"

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

// Names of the resources that every group has, and of things inside them.
const (
	ListenerHTTP  = "http"
	ListenerHTTPS = "https"
	// RouteConfig is the name of the one RouteConfiguration.
	RouteConfig = "muster"
	// CatchAll is the name of the virtual host that takes what no other takes.
	CatchAll = RouteConfig + "/*"
	// RouteKeyHeader is the private header by which a virtual host is chosen.
	RouteKeyHeader = "x-muster-route-key"
	// RemoteAddrKey is the filter state that holds the client's address.
	RemoteAddrKey = "muster.remote_addr"
	// FilterChainKey is the filter state that holds the name of the filter chain.
	FilterChainKey = "muster.filter_chain"
	// ClientCertificates is the HTTP filter that keeps hosts whose clients need a
	// certificate from being reached through the handshake of another host.
	ClientCertificates = "client-certificates"
)

// barred writes a path as part of a virtual host's name. Envoy takes for the
// route configuration's name everything before the last slash, so that a name
// may hold only one. Node paths are lower-cased, so `%7C` cannot collide.
var barred = strings.NewReplacer("/", "|", "|", "%7C")

// virtualHostName names the virtual host of a node; path is "" for the root.
func virtualHostName(host, path string) string {
	if path == "" {
		path = "/"
	}
	return RouteConfig + "/" + host + barred.Replace(path)
}

// Names of clusters.
func serviceCluster(serviceID string) string { return "service/" + serviceID }
func namedCluster(serviceID, upstream string) string {
	return "service/" + serviceID + "/" + upstream
}
func routeCluster(routeID string) string { return "route/" + routeID }

// lower lower-cases ASCII only, as Envoy does for a virtual host's key.
func lower(s string) string {
	for i := 0; i < len(s); i++ {
		if c := s[i]; 'A' <= c && c <= 'Z' {
			b := []byte(s)
			for ; i < len(b); i++ {
				if 'A' <= b[i] && b[i] <= 'Z' {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// reversed turns a host round, so that hosts of one domain share a prefix.
func reversed(host string) string {
	b := []byte(host)
	for i, j := 0, len(b)-1; i < j; i, j = i+1, j-1 {
		b[i], b[j] = b[j], b[i]
	}
	return string(b)
}
