package compile

import (
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

const (
	// defaultTimeout is API7's for connecting, sending and reading.
	defaultTimeout = 60 * time.Second
	// defaultKeepalive is API7's for idle connections to upstreams.
	defaultKeepalive = 60 * time.Second
	// defaultKeepalivePool is API7's size of a keepalive pool.
	defaultKeepalivePool = 320
	// unlimited lifts Envoy's circuit breakers, which API7 does not have.
	unlimited = 1 << 30
	// httpOptions is the extension that holds a cluster's HTTP settings.
	httpOptions = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
)

// upstream is an upstream on its way to a cluster.
type upstream struct {
	*musterv1.Upstream
	name    string
	connect time.Duration
	// path stands before the problems' paths: `upstream`, `upstreams[1]`.
	path     string
	problems resource.Problems
}

func (u *upstream) problem(code, path, message, hint string) {
	if path != "" {
		path = u.path + "." + path
	} else {
		path = u.path
	}
	u.problems = append(u.problems, resource.Problem{Path: path, Code: code, Message: message, Hint: hint})
}

// seconds turns a number of seconds into a duration; fallback for 0, and for
// what is no duration.
func seconds(s float64, fallback time.Duration) time.Duration {
	if !(s > 0 && s < float64(math.MaxInt64/time.Second)) {
		return fallback
	}
	return time.Duration(s * float64(time.Second))
}

func connectTimeout(u *musterv1.Upstream) time.Duration {
	return seconds(u.GetTimeout().GetConnect(), defaultTimeout)
}

// scheme is how an upstream is spoken to.
type scheme struct{ tls, http2 bool }

func schemeOf(u *musterv1.Upstream) (scheme, bool) {
	switch u.GetScheme() {
	case "", "http":
		return scheme{}, true
	case "https":
		return scheme{tls: true}, true
	case "grpc":
		return scheme{http2: true}, true
	case "grpcs":
		return scheme{tls: true, http2: true}, true
	}
	return scheme{}, false
}

func (s scheme) port() int32 {
	if s.tls {
		return 443
	}
	return 80
}

// clusterOf compiles an upstream into a cluster and, when all nodes are IP
// addresses, its endpoints, and, with a client certificate of its own, a secret.
// With problems of the kind that would mislead, nothing is returned.
func clusterOf(name, path string, u *musterv1.Upstream, connect time.Duration) ([]Resource, resource.Problems) {
	c := &upstream{Upstream: u, name: name, path: path, connect: connect}
	resources := c.compile()
	if len(c.problems) > 0 {
		return nil, c.problems
	}
	return resources, nil
}

func (u *upstream) compile() []Resource {
	u.refuse()
	sch, ok := schemeOf(u.Upstream)
	if !ok {
		u.problem(resource.CodeUnsupported, "scheme", fmt.Sprintf("the scheme %q cannot be honoured for HTTP routes", u.GetScheme()), "http, https, grpc or grpcs")
		return nil
	}
	cluster := &clusterv3.Cluster{
		Name:           u.name,
		ConnectTimeout: durationpb.New(u.connect),
		CircuitBreakers: &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{
			MaxConnections:     wrapperspb.UInt32(unlimited),
			MaxPendingRequests: wrapperspb.UInt32(unlimited),
			MaxRequests:        wrapperspb.UInt32(unlimited),
			MaxRetries:         wrapperspb.UInt32(unlimited),
		}}},
	}
	options := u.options(sch)
	u.balance(cluster, options)
	u.retry(options)
	u.checks(cluster, options)
	secret := u.tls(cluster, options, sch)
	cluster.TypedExtensionProtocolOptions = map[string]*anypb.Any{httpOptions: packed(options)}

	assignment, ips := u.assignment(sch)
	var out []Resource
	if ips {
		cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS}
		cluster.EdsClusterConfig = &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()}
		out = append(out, Resource{Key: Key{EndpointType, u.name}, Body: marshal(assignment)})
	} else {
		cluster.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
		cluster.DnsLookupFamily = clusterv3.Cluster_V4_PREFERRED
		cluster.LoadAssignment = assignment
	}
	out = append(out, Resource{Key: Key{ClusterType, u.name}, Body: marshal(cluster)})
	if secret != nil {
		out = append(out, Resource{Key: Key{SecretType, secret.Name}, Body: marshal(secret)})
	}
	return out
}

// refuse reports what no Envoy setting stands for.
func (u *upstream) refuse() {
	if u.GetServiceName() != "" || u.GetDiscoveryType() != "" {
		u.problem(resource.CodeUnsupported, "discovery_type", "service discovery is not supported", "list nodes; DNS names are resolved by the data plane")
	}
	if u.GetRetryTimeout() > 0 {
		u.problem(resource.CodeUnsupported, "retry_timeout", "Envoy does not limit for how long retries may start", "leave it out, and limit retries or the timeouts")
	}
	pool := u.GetKeepalivePool()
	if pool != nil && pool.Size != nil && pool.GetSize() != defaultKeepalivePool {
		u.problem(resource.CodeUnsupported, "keepalive_pool.size", "Envoy does not bound the number of idle connections", "leave it out; idle_timeout and requests are honoured")
	}
	switch u.GetPassHost() {
	case "", "pass", "node":
	case "rewrite":
		if u.GetUpstreamHost() == "" {
			u.problem(resource.CodeRequired, "upstream_host", "pass_host rewrite needs upstream_host", "")
		}
	default:
		u.problem(resource.CodeInvalid, "pass_host", fmt.Sprintf("pass_host %q does not exist", u.GetPassHost()), "pass, node or rewrite")
	}
}

func (u *upstream) options(sch scheme) *httpv3.HttpProtocolOptions {
	common := &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(defaultKeepalive)}
	if pool := u.GetKeepalivePool(); pool != nil {
		common.IdleTimeout = durationpb.New(seconds(pool.GetIdleTimeout(), defaultKeepalive))
		if pool.GetRequests() > 0 {
			common.MaxRequestsPerConnection = wrapperspb.UInt32(uint32(pool.GetRequests()))
		}
	}
	explicit := &httpv3.HttpProtocolOptions_ExplicitHttpConfig{
		ProtocolConfig: &httpv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
	}
	if sch.http2 {
		explicit.ProtocolConfig = &httpv3.HttpProtocolOptions_ExplicitHttpConfig_Http2ProtocolOptions{Http2ProtocolOptions: &corev3.Http2ProtocolOptions{}}
	}
	return &httpv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: common,
		UpstreamProtocolOptions:   &httpv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: explicit},
	}
}

// balance sets the balancer and what it hashes.
func (u *upstream) balance(cluster *clusterv3.Cluster, options *httpv3.HttpProtocolOptions) {
	switch u.GetType() {
	case "", "roundrobin":
	case "least_conn":
		cluster.LbPolicy = clusterv3.Cluster_LEAST_REQUEST
	case "chash":
		cluster.LbPolicy = clusterv3.Cluster_RING_HASH
		options.HashPolicy = u.hashPolicy()
	default:
		u.problem(resource.CodeUnsupported, "type", fmt.Sprintf("the balancer %q cannot be honoured", u.GetType()), "roundrobin, least_conn or chash")
	}
}

// retry lets another node try when a request surely did not reach the first.
// The policy stands in the cluster, so that it costs the routes nothing.
func (u *upstream) retry(options *httpv3.HttpProtocolOptions) {
	retries := int32(1)
	if u.Retries != nil {
		retries = u.GetRetries()
	}
	if retries <= 0 {
		return
	}
	options.RetryPolicy = &routev3.RetryPolicy{
		RetryOn:    "connect-failure,refused-stream,reset-before-request",
		NumRetries: wrapperspb.UInt32(uint32(retries)),
		RetryHostPredicate: []*routev3.RetryPolicy_RetryHostPredicate{{
			Name:       "envoy.retry_host_predicates.previous_hosts",
			ConfigType: &routev3.RetryPolicy_RetryHostPredicate_TypedConfig{TypedConfig: packed(&previoushostsv3.PreviousHostsPredicate{})},
		}},
		HostSelectionRetryMaxAttempts: 5,
	}
}

// assignment lists the nodes and tells whether all are IP addresses.
func (u *upstream) assignment(sch scheme) (*endpointv3.ClusterLoadAssignment, bool) {
	assignment := &endpointv3.ClusterLoadAssignment{ClusterName: u.name}
	ips := true
	for _, priority := range priorities(u.GetNodes()) {
		locality := &endpointv3.LocalityLbEndpoints{Priority: uint32(len(assignment.Endpoints))}
		for _, n := range u.GetNodes() {
			if n.GetPriority() != priority {
				continue
			}
			if _, ok := ipOf(n); !ok {
				ips = false
			}
			if weight(n) > 0 {
				locality.LbEndpoints = append(locality.LbEndpoints, u.endpoint(n, sch))
			}
		}
		if len(locality.LbEndpoints) > 0 {
			assignment.Endpoints = append(assignment.Endpoints, locality)
		}
	}
	if len(assignment.Endpoints) > 1 {
		// Envoy spills to the next priority as soon as too few nodes are healthy;
		// API7 only when none is.
		assignment.Policy = &endpointv3.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(100000)}
	}
	return assignment, ips
}

func weight(n *musterv1.Node) uint32 {
	if n.Weight == nil {
		return 1
	}
	return uint32(max(0, n.GetWeight()))
}

func (u *upstream) endpoint(n *musterv1.Node, sch scheme) *endpointv3.LbEndpoint {
	port := nodePort(n, sch)
	e := &endpointv3.Endpoint{Address: &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address:       unbracketed(n.GetHost()),
		PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: uint32(port)},
	}}}}
	if u.GetPassHost() == "node" {
		e.Hostname = nodeHost(n, sch)
	}
	e.HealthCheckConfig = u.probeOf(n, sch)
	lb := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: e}}
	if w := weight(n); w != 1 {
		lb.LoadBalancingWeight = wrapperspb.UInt32(w)
	}
	return lb
}

// probeOf says how an active check reaches a node where it differs from a
// request. Without a Host of its own a probe would carry the cluster's name,
// whose slash is no valid Host: strict servers answer it 400.
func (u *upstream) probeOf(n *musterv1.Node, sch scheme) *endpointv3.Endpoint_HealthCheckConfig {
	active := u.GetChecks().GetActive()
	if active == nil {
		return nil
	}
	probe := &endpointv3.Endpoint_HealthCheckConfig{PortValue: uint32(max(0, active.GetPort()))}
	if active.GetType() != "tcp" && u.probeHost(active) == "" {
		probe.Hostname = nodeHost(n, sch)
	}
	if probe.GetPortValue() == 0 && probe.GetHostname() == "" {
		return nil
	}
	return probe
}

// probeHost is the Host of all probes alike; empty when each node has its own.
func (u *upstream) probeHost(a *musterv1.ActiveCheck) string {
	if a.GetHost() == "" && u.GetPassHost() == "rewrite" {
		return u.GetUpstreamHost()
	}
	return a.GetHost()
}

// ipOf is the node's address when it is an IP address.
func ipOf(n *musterv1.Node) (netip.Addr, bool) {
	a, err := netip.ParseAddr(unbracketed(n.GetHost()))
	return a, err == nil
}

func unbracketed(host string) string {
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

func nodePort(n *musterv1.Node, sch scheme) int32 {
	if n.GetPort() == 0 {
		return sch.port()
	}
	return n.GetPort()
}

// nodeHost is the Host that pass_host node sends: with the port unless it is
// the scheme's own, as API7 does.
func nodeHost(n *musterv1.Node, sch scheme) string {
	host := unbracketed(n.GetHost())
	if a, ok := ipOf(n); ok && a.Is6() {
		host = "[" + host + "]"
	}
	if port := nodePort(n, sch); port != sch.port() {
		host += ":" + strconv.Itoa(int(port))
	}
	return host
}

// priorities lists the nodes' priorities, highest first.
func priorities(nodes []*musterv1.Node) []int32 {
	var out []int32
	for _, n := range nodes {
		i := 0
		for i < len(out) && out[i] > n.GetPriority() {
			i++
		}
		if i < len(out) && out[i] == n.GetPriority() {
			continue
		}
		out = append(out, 0)
		copy(out[i+1:], out[i:])
		out[i] = n.GetPriority()
	}
	return out
}

// ads is the config source of everything that is discovered.
func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion:    corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}
