package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	upstreamsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// clusterConfig is a compiled Cluster. It is immutable.
type clusterConfig struct {
	name           string
	assignmentName string        // of EDS; empty otherwise
	static         *assignment   // of STATIC and STRICT_DNS
	dns            *dnsConfig    // of STRICT_DNS
	connectTimeout time.Duration // at most, TLS included
	policy         clusterv3.Cluster_LbPolicy
	minRing        uint64
	maxRing        uint64
	choices        int
	bias           float64
	panicThreshold float64 // percent
	check          *healthCheck
	outlier        *outlierConfig
	transport      transportConfig
	maxRequests    int64        // in flight; 0 is no limit
	retry          *retryPolicy // of routes that say none
	hash           []hashPolicy // of routes that say none
	isError        func(status int) bool
	judging        string // equal for configurations that judge hosts the same way
}

// assignment is a compiled ClusterLoadAssignment.
type assignment struct {
	endpoints        []endpoint
	overprovisioning uint32
}

// cluster is a running cluster: its hosts and the connections to them. The exported
// behaviour is safe for concurrent use.
type cluster struct {
	cfg       *clusterConfig
	gw        *Gateway
	transport *transport
	inFlight  atomic.Int64 // counted when the cluster bounds it

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup

	set atomic.Pointer[hostSet]

	mu       sync.Mutex
	current  *assignment       // what was assigned; names are not resolved
	resolved []endpoint        // what hosts is made of
	hosts    map[hostKey]*host // guarded by mu, replaced whole
	checkers map[hostKey]context.CancelFunc
	sweeping bool
	ready    chan struct{} // closed when names are resolved and hosts checked once
	waiting  int           // first answers still to come
}

func (g *Gateway) decodeCluster(body *anypb.Any) (*clusterConfig, error) {
	m := &clusterv3.Cluster{}
	if err := g.checker.decode(body, m); err != nil {
		return nil, err
	}
	return newClusterConfig(m)
}

func newClusterConfig(m *clusterv3.Cluster) (*clusterConfig, error) {
	c := &clusterConfig{
		name: m.GetName(), connectTimeout: 5 * time.Second, policy: m.GetLbPolicy(),
		minRing: defaultMinRing, maxRing: defaultMaxRing, choices: 2, bias: 1, panicThreshold: defaultPanicThreshold,
	}
	if m.GetConnectTimeout() != nil {
		c.connectTimeout = m.GetConnectTimeout().AsDuration()
	}
	if err := c.setDiscovery(m); err != nil {
		return nil, err
	}
	if err := c.setBalancing(m); err != nil {
		return nil, err
	}
	if t := m.GetCommonLbConfig().GetHealthyPanicThreshold(); t != nil {
		c.panicThreshold = t.GetValue()
	}
	for _, t := range m.GetCircuitBreakers().GetThresholds() {
		if err := unbounded(t); err != nil {
			return nil, fmt.Errorf("circuit_breakers: %w", err)
		}
		if t.GetPriority() == corev3.RoutingPriority_DEFAULT {
			c.maxRequests = int64(t.GetMaxRequests().GetValue())
		}
	}
	opts, err := httpOptions(m)
	if err != nil {
		return nil, fmt.Errorf("typed_extension_protocol_options: %w", err)
	}
	if c.check, err = newHealthCheck(m.GetHealthChecks()); err != nil {
		return nil, fmt.Errorf("health_checks: %w", err)
	}
	if c.outlier, err = newOutlierConfig(m.GetOutlierDetection()); err != nil {
		return nil, fmt.Errorf("outlier_detection: %w", err)
	}
	if c.retry, err = newRetryPolicy(opts.GetRetryPolicy()); err != nil {
		return nil, fmt.Errorf("retry_policy: %w", err)
	}
	if c.hash, err = newHashPolicies(opts.GetHashPolicy()); err != nil {
		return nil, fmt.Errorf("hash_policy: %w", err)
	}
	if c.isError, err = newErrorMatch(opts.GetOutlierDetection().GetErrorMatcher()); err != nil {
		return nil, fmt.Errorf("error_matcher: %w", err)
	}
	c.judging = fingerprintOf(&clusterv3.Cluster{HealthChecks: m.GetHealthChecks(), OutlierDetection: m.GetOutlierDetection()}) +
		fingerprintOf(&upstreamsv3.HttpProtocolOptions{OutlierDetection: opts.GetOutlierDetection()})
	return c, c.setTransport(m, opts)
}

// unbounded refuses bounds that the gateway does not keep to. So high a number is
// none.
func unbounded(t *clusterv3.CircuitBreakers_Thresholds) error {
	const high = 1 << 20
	for name, v := range map[string]*wrapperspb.UInt32Value{
		"max_connections": t.GetMaxConnections(), "max_pending_requests": t.GetMaxPendingRequests(), "max_retries": t.GetMaxRetries(),
	} {
		if v != nil && v.GetValue() < high {
			return fmt.Errorf("%s of %d is not supported, only max_requests is", name, v.GetValue())
		}
	}
	return nil
}

// httpOptions returns the cluster's HTTP options, nil when it has none.
func httpOptions(m *clusterv3.Cluster) (*upstreamsv3.HttpProtocolOptions, error) {
	var opts *upstreamsv3.HttpProtocolOptions
	for name, a := range m.GetTypedExtensionProtocolOptions() {
		if opts != nil {
			return nil, errors.New("there is more than one")
		}
		opts = &upstreamsv3.HttpProtocolOptions{}
		if err := a.UnmarshalTo(opts); err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
	}
	return opts, nil
}

func (c *clusterConfig) setDiscovery(m *clusterv3.Cluster) (err error) {
	switch m.GetType() {
	case clusterv3.Cluster_EDS:
		if m.GetEdsClusterConfig().GetEdsConfig().GetAds() == nil {
			return errors.New("eds_cluster_config: only ads is supported as eds_config")
		}
		c.assignmentName = orText(m.GetEdsClusterConfig().GetServiceName(), m.GetName())
		return nil
	case clusterv3.Cluster_STATIC:
		c.static, err = newAssignment(m.GetLoadAssignment(), false)
		return err
	case clusterv3.Cluster_STRICT_DNS:
		c.dns = &dnsConfig{family: m.GetDnsLookupFamily()}
		c.static, err = newAssignment(m.GetLoadAssignment(), true)
		return err
	}
	return fmt.Errorf("type %s is not supported", m.GetType())
}

func (c *clusterConfig) setBalancing(m *clusterv3.Cluster) error {
	switch c.policy {
	case clusterv3.Cluster_ROUND_ROBIN, clusterv3.Cluster_RANDOM:
	case clusterv3.Cluster_LEAST_REQUEST:
		if n := m.GetLeastRequestLbConfig().GetChoiceCount(); n != nil {
			c.choices = int(n.GetValue())
		}
		if b := m.GetLeastRequestLbConfig().GetActiveRequestBias(); b != nil {
			c.bias = b.GetDefaultValue()
		}
	case clusterv3.Cluster_RING_HASH:
		r := m.GetRingHashLbConfig()
		if r.GetHashFunction() != clusterv3.Cluster_RingHashLbConfig_XX_HASH {
			return fmt.Errorf("ring_hash_lb_config: hash function %s is not supported", r.GetHashFunction())
		}
		if r.GetMinimumRingSize() != nil {
			c.minRing = r.GetMinimumRingSize().GetValue()
		}
		if r.GetMaximumRingSize() != nil {
			c.maxRing = r.GetMaximumRingSize().GetValue()
		}
	default:
		return fmt.Errorf("lb_policy %s is not supported", c.policy)
	}
	return nil
}

func (c *clusterConfig) setTransport(m *clusterv3.Cluster, opts *upstreamsv3.HttpProtocolOptions) error {
	t := &c.transport
	common := opts.GetCommonHttpProtocolOptions()
	t.connectTimeout = c.connectTimeout
	t.http2 = opts.GetExplicitHttpConfig().GetHttp2ProtocolOptions() != nil
	t.autoSNI = opts.GetUpstreamHttpProtocolOptions().GetAutoSni()
	t.maxRequests = int64(common.GetMaxRequestsPerConnection().GetValue())
	t.idleTimeout = time.Hour // Envoy's default
	if d := common.GetIdleTimeout(); d != nil {
		t.idleTimeout = d.AsDuration()
	}
	t.fingerprint = fingerprintOf(&clusterv3.Cluster{
		TransportSocket: m.GetTransportSocket(), ConnectTimeout: m.GetConnectTimeout(),
	}) + fingerprintOf(&upstreamsv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: common, UpstreamProtocolOptions: opts.GetUpstreamProtocolOptions(),
		UpstreamHttpProtocolOptions: opts.GetUpstreamHttpProtocolOptions(),
	})
	if m.GetTransportSocket() == nil {
		return nil
	}
	u := &tlsv3.UpstreamTlsContext{}
	if err := m.GetTransportSocket().GetTypedConfig().UnmarshalTo(u); err != nil {
		return fmt.Errorf("transport_socket: %w", err)
	}
	var err error
	if t.tls, err = newUpstreamTLS(u); err != nil {
		return fmt.Errorf("transport_socket: %w", err)
	}
	t.tls.autoSNI = t.autoSNI
	t.tls.sniSAN = opts.GetUpstreamHttpProtocolOptions().GetAutoSanValidation()
	return nil
}

func (g *Gateway) decodeAssignment(body *anypb.Any) (*assignment, error) {
	m := &endpointv3.ClusterLoadAssignment{}
	if err := g.checker.decode(body, m); err != nil {
		return nil, err
	}
	return newAssignment(m, false)
}

// newAssignment compiles a load assignment; names are DNS names where allowed.
func newAssignment(m *endpointv3.ClusterLoadAssignment, names bool) (*assignment, error) {
	a := &assignment{overprovisioning: m.GetPolicy().GetOverprovisioningFactor().GetValue()}
	for i, l := range m.GetEndpoints() {
		for j, lb := range l.GetLbEndpoints() {
			e, err := newEndpoint(lb, names)
			if err != nil {
				return nil, fmt.Errorf("endpoints[%d].lb_endpoints[%d]: %w", i, j, err)
			}
			e.priority = l.GetPriority()
			a.endpoints = append(a.endpoints, e)
		}
	}
	return a, nil
}

func newEndpoint(lb *endpointv3.LbEndpoint, names bool) (endpoint, error) {
	e := endpoint{weight: 1}
	if lb.GetLoadBalancingWeight() != nil {
		e.weight = lb.GetLoadBalancingWeight().GetValue()
	}
	switch lb.GetHealthStatus() {
	case corev3.HealthStatus_UNKNOWN, corev3.HealthStatus_HEALTHY:
	case corev3.HealthStatus_UNHEALTHY, corev3.HealthStatus_DRAINING, corev3.HealthStatus_TIMEOUT:
		e.unhealthy = true
	default:
		return e, fmt.Errorf("health_status %s is not supported", lb.GetHealthStatus())
	}
	sa := lb.GetEndpoint().GetAddress().GetSocketAddress()
	e.port = sa.GetPortValue()
	e.hostname = lb.GetEndpoint().GetHostname()
	e.checkPort = lb.GetEndpoint().GetHealthCheckConfig().GetPortValue()
	e.checkHost = lb.GetEndpoint().GetHealthCheckConfig().GetHostname()
	if e.port == 0 || e.port > 65535 {
		return e, fmt.Errorf("port %d is invalid", e.port)
	}
	if net.ParseIP(sa.GetAddress()) == nil {
		if !names {
			return e, fmt.Errorf("address %q is no IP address", sa.GetAddress())
		}
		e.resolvable = sa.GetAddress()
		if e.hostname == "" {
			e.hostname = sa.GetAddress()
		}
		return e, nil
	}
	e.address = net.JoinHostPort(sa.GetAddress(), strconv.FormatUint(uint64(e.port), 10))
	return e, nil
}
