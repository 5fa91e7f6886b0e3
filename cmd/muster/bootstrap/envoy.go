package bootstrap

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// xdsCluster is the name of the static cluster of muster's servers.
const xdsCluster = "muster_xds"

// The metadata keys by which a node tells its group and where it listens.
const (
	MetadataGroup  = "muster.group"
	MetadataListen = "muster.listen"
	// MetadataCluster names the cluster that an Envoy without ADS asks.
	MetadataCluster = "muster.xds_cluster"
)

// Envoy describes one Envoy.
type Envoy struct {
	// Group is the group's id or name. Required.
	Group string
	// NodeID names the Envoy among the group's data planes. Required.
	NodeID string
	// Servers are the host:port of the xDS ports of muster's servers or relays;
	// Envoy uses one of them and turns to another when it fails. At least one.
	Servers []string
	// SotW selects state of the world instead of delta. It costs more bytes, and
	// virtual hosts come inside the route configuration.
	SotW bool
	// PerType selects a stream for each type, and for most types one for each
	// resource, instead of one for everything (ADS). Nothing orders what goes on
	// different streams: a change that ADS makes without a failed request may
	// fail some. It is for an Envoy whose ADS is another control plane's.
	PerType bool
	// AdminPort is where Envoy's admin interface listens, on 127.0.0.1; 0 picks one.
	AdminPort int
	// ListenAddress, HTTPPort and HTTPSPort replace the group's own 0.0.0.0, 9080
	// and 9443. The zero value keeps them.
	ListenAddress       string
	HTTPPort, HTTPSPort int
	// TLS, when set, is how Envoy proves itself to the servers.
	TLS *TLS
}

// TLS names the files of a data plane's certificate, on the data plane's machine.
type TLS struct {
	// CAFile verifies the servers; CertFile and KeyFile are the data plane's own.
	CAFile, CertFile, KeyFile string
	// SDSDir, for Envoy alone, is the directory of [Envoy.SDSFiles]. With it Envoy reads
	// the files again when new ones are renamed into place; without, once, at its start.
	SDSDir string
}

// YAML returns the bootstrap. It is the same for the same configuration.
func (e Envoy) YAML() ([]byte, error) {
	b, err := e.message()
	if err != nil {
		return nil, err
	}
	return toYAML(b)
}

func (e Envoy) message() (*bootstrapv3.Bootstrap, error) {
	if e.Group == "" || e.NodeID == "" {
		return nil, errors.New("envoy bootstrap: group and node id are required")
	}
	metadata := map[string]any{MetadataGroup: e.Group}
	if listen := e.listen(); len(listen) > 0 {
		metadata[MetadataListen] = listen
	}
	if e.PerType {
		metadata[MetadataCluster] = xdsCluster
	}
	meta, err := structpb.NewStruct(metadata)
	if err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	servers, err := e.servers()
	if err != nil {
		return nil, err
	}
	apiType := corev3.ApiConfigSource_DELTA_GRPC
	if e.SotW {
		apiType = corev3.ApiConfigSource_GRPC
	}
	api := &corev3.ApiConfigSource{
		ApiType:                   apiType,
		TransportApiVersion:       corev3.ApiVersion_V3,
		SetNodeOnFirstMessageOnly: true,
		GrpcServices: []*corev3.GrpcService{{
			TargetSpecifier: &corev3.GrpcService_EnvoyGrpc_{
				EnvoyGrpc: &corev3.GrpcService_EnvoyGrpc{
					ClusterName: xdsCluster,
					// Envoy waits longer after each try, up to half a minute, and forgets
					// that with the next response only; to one that comes back and has
					// everything a server has nothing to say.
					RetryPolicy: &corev3.RetryPolicy{RetryBackOff: &corev3.BackoffStrategy{
						BaseInterval: durationpb.New(500 * time.Millisecond), MaxInterval: durationpb.New(5 * time.Second),
					}},
				},
			},
		}},
		// Bounds what an Envoy that refuses everything can send, far above
		// what acknowledgements need.
		RateLimitSettings: &corev3.RateLimitSettings{
			MaxTokens: wrapperspb.UInt32(1000),
			FillRate:  wrapperspb.Double(200),
		},
	}
	source := &corev3.ConfigSource{ResourceApiVersion: corev3.ApiVersion_V3}
	dynamic := &bootstrapv3.Bootstrap_DynamicResources{CdsConfig: source, LdsConfig: source}
	if e.PerType {
		source.ConfigSourceSpecifier = &corev3.ConfigSource_ApiConfigSource{ApiConfigSource: api}
	} else {
		source.ConfigSourceSpecifier = &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}}
		dynamic.AdsConfig = api
	}
	return &bootstrapv3.Bootstrap{
		Node: &corev3.Node{Id: e.NodeID, Cluster: e.Group, Metadata: meta},
		Admin: &bootstrapv3.Admin{
			Address: socketAddress("127.0.0.1", e.AdminPort),
		},
		DynamicResources: dynamic,
		StaticResources: &bootstrapv3.Bootstrap_StaticResources{
			Clusters: []*clusterv3.Cluster{servers},
		},
	}, nil
}

func (e Envoy) listen() map[string]any {
	listen := map[string]any{}
	if e.ListenAddress != "" {
		listen["address"] = e.ListenAddress
	}
	if e.HTTPPort != 0 {
		listen["http_port"] = e.HTTPPort
	}
	if e.HTTPSPort != 0 {
		listen["https_port"] = e.HTTPSPort
	}
	return listen
}

// servers is the static cluster of muster's servers.
func (e Envoy) servers() (*clusterv3.Cluster, error) {
	if len(e.Servers) == 0 {
		return nil, errors.New("envoy bootstrap: no xDS server")
	}
	kind := clusterv3.Cluster_STATIC
	endpoints := make([]*endpointv3.LbEndpoint, len(e.Servers))
	for i, s := range e.Servers {
		host, portText, err := net.SplitHostPort(s)
		if err != nil {
			return nil, fmt.Errorf("envoy bootstrap: xDS server %q is not of the form host:port", s)
		}
		port, err := strconv.ParseUint(portText, 10, 16)
		if err != nil || port == 0 || host == "" {
			return nil, fmt.Errorf("envoy bootstrap: xDS server %q is not of the form host:port", s)
		}
		if _, err := netip.ParseAddr(host); err != nil {
			kind = clusterv3.Cluster_STRICT_DNS
		}
		endpoints[i] = &endpointv3.LbEndpoint{
			HostIdentifier: &endpointv3.LbEndpoint_Endpoint{
				Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, int(port))},
			},
		}
	}
	http2, err := anypb.New(&httpv3.HttpProtocolOptions{
		UpstreamProtocolOptions: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{
			ExplicitHttpConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
				ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{
					Http2ProtocolOptions: &corev3.Http2ProtocolOptions{
						// Notices a server that went away without a word.
						ConnectionKeepalive: &corev3.KeepaliveSettings{
							Interval: durationpb.New(30 * time.Second),
							Timeout:  durationpb.New(5 * time.Second),
						},
					},
				},
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	cluster := &clusterv3.Cluster{
		Name:                 xdsCluster,
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: kind},
		ConnectTimeout:       durationpb.New(2 * time.Second),
		LoadAssignment: &endpointv3.ClusterLoadAssignment{
			ClusterName: xdsCluster,
			Endpoints:   []*endpointv3.LocalityLbEndpoints{{LbEndpoints: endpoints}},
		},
		TypedExtensionProtocolOptions: map[string]*anypb.Any{
			"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http2,
		},
	}
	if e.PerType && len(endpoints) > 1 {
		e.oneAtATime(cluster, endpoints)
	}
	if e.TLS != nil {
		if cluster.TransportSocket, err = e.TLS.transportSocket(e.Servers); err != nil {
			return nil, err
		}
	}
	return cluster, nil
}

// oneAtATime keeps all streams of an Envoy without ADS on the first server that
// is there: what a server knows of a data plane is what its streams there tell.
func (e Envoy) oneAtATime(cluster *clusterv3.Cluster, endpoints []*endpointv3.LbEndpoint) {
	cluster.LoadAssignment.Endpoints = nil
	for i, ep := range endpoints {
		cluster.LoadAssignment.Endpoints = append(cluster.LoadAssignment.Endpoints, &endpointv3.LocalityLbEndpoints{
			Priority: uint32(i), LbEndpoints: []*endpointv3.LbEndpoint{ep},
		})
	}
	cluster.HealthChecks = []*corev3.HealthCheck{{
		Timeout: durationpb.New(2 * time.Second), Interval: durationpb.New(2 * time.Second),
		// The first checks come before the first stream, and would be a minute apart.
		NoTrafficInterval:  durationpb.New(2 * time.Second),
		UnhealthyThreshold: wrapperspb.UInt32(1), HealthyThreshold: wrapperspb.UInt32(1),
		HealthChecker: &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}},
	}}
}

func (t *TLS) transportSocket(servers []string) (*corev3.TransportSocket, error) {
	if err := t.check(); err != nil {
		return nil, err
	}
	// Data planes' certificates chain to the same CA, so the name must fit too.
	names := make([]*tlsv3.SubjectAltNameMatcher, len(servers))
	for i, s := range servers {
		host, _, err := net.SplitHostPort(s)
		if err != nil {
			return nil, fmt.Errorf("envoy bootstrap: %w", err)
		}
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if addr, err := netip.ParseAddr(host); err == nil {
			kind, host = tlsv3.SubjectAltNameMatcher_IP_ADDRESS, addr.String() // as Envoy writes it
		}
		names[i] = &tlsv3.SubjectAltNameMatcher{
			SanType: kind,
			Matcher: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: host}},
		}
	}
	common := &tlsv3.CommonTlsContext{
		TlsParams: &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		},
		AlpnProtocols: []string{"h2"},
	}
	t.secrets(common, names)
	body, err := anypb.New(&tlsv3.UpstreamTlsContext{AutoHostSni: true, CommonTlsContext: common})
	if err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	return &corev3.TransportSocket{
		Name:       "envoy.transport_sockets.tls",
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: body},
	}, nil
}

func socketAddress(host string, port int) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       host,
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}
}
