package compile

import (
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

// grpcUpstream is an upstream on its way to clusters for gRPC clients.
type grpcUpstream struct {
	*musterv1.Upstream
	name string
	// owner is the route or service that it stands in; nil for that of no call.
	owner   *state.Entry
	origins []resource.Key

	// action is how a route goes to it.
	action   *routev3.RouteAction
	limit    *routev3.RouteAction_MaxStreamDuration
	warnings resource.Problems
}

func (u *grpcUpstream) warn(path, message, hint string) {
	u.warnings = append(u.warnings, resource.Problem{Object: u.owner.Key, Path: path, Code: resource.CodeUnsupported, Message: message, Hint: hint})
}

// compile returns the upstream's clusters and endpoints.
func (u *grpcUpstream) compile() []Resource {
	u.refuse()
	u.timeout("upstream.timeout", u.GetTimeout())
	hashes := u.hashes()
	assignment, names := u.assignment(len(hashes) > 0)
	u.action = &routev3.RouteAction{HashPolicy: hashes, RetryPolicy: u.retries(), MaxStreamDuration: u.limit}

	breakers, outliers := u.breakers(), u.outliers()
	var out []Resource
	var weighted []*routev3.WeightedCluster_ClusterWeight
	add := func(cluster *clusterv3.Cluster, weight uint32) {
		cluster.CircuitBreakers, cluster.OutlierDetection = breakers, outliers
		out = append(out, Resource{Key: Key{ClusterType, cluster.GetName()}, Origins: u.origins, Body: marshal(cluster)})
		weighted = append(weighted, &routev3.WeightedCluster_ClusterWeight{Name: cluster.GetName(), Weight: wrapperspb.UInt32(weight)})
	}
	if len(names) == 0 || len(assignment.GetEndpoints()) > 0 {
		cluster := &clusterv3.Cluster{
			Name:                 u.name,
			ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
			EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
		}
		if len(hashes) > 0 {
			cluster.LbPolicy = clusterv3.Cluster_RING_HASH
		}
		out = append(out, Resource{Key: Key{EndpointType, u.name}, Origins: u.origins, Body: marshal(assignment)})
		add(cluster, firstWeight(assignment, len(hashes) > 0))
	}
	for _, n := range names {
		add(u.named(n), weight(n))
	}
	if len(weighted) == 1 {
		u.action.ClusterSpecifier = &routev3.RouteAction_Cluster{Cluster: weighted[0].GetName()}
	} else {
		u.action.ClusterSpecifier = &routev3.RouteAction_WeightedClusters{WeightedClusters: &routev3.WeightedCluster{Clusters: weighted}}
	}
	return out
}

// refuse warns of what gRPC has no setting for.
func (u *grpcUpstream) refuse() {
	switch u.GetScheme() {
	case "", "http":
		if u.owner != nil {
			u.warn("upstream.scheme", "a proxyless gRPC client speaks HTTP/2 to the nodes, gateways HTTP/1.1", "set it to grpc")
		}
	case "https", "grpcs":
		u.warn("upstream.scheme", "whether a proxyless gRPC client uses TLS, and what it verifies, is up to the credentials of its channel", "")
	}
	if t := u.GetTls(); t.GetClientCert() != "" || t.GetClientCertId() != "" {
		u.warn("upstream.tls", "a proxyless gRPC client presents the certificate that its channel has", "")
	}
	if h := u.GetPassHost(); h == "node" || h == "rewrite" {
		u.warn("upstream.pass_host", "a proxyless gRPC client sends the authority of its channel", "")
	}
	if u.KeepalivePool != nil {
		u.warn("upstream.keepalive_pool", "gRPC keeps one connection to each node", "")
	}
	if u.GetChecks().GetActive() != nil {
		u.warn("upstream.checks.active", "a proxyless gRPC client does not probe nodes: it avoids those that it cannot connect to", "")
	}
	if u.GetType() == "least_conn" {
		// LEAST_REQUEST is refused by grpc-js and by C-core.
		u.warn("upstream.type", "gRPC clients have no least_conn in common: they go round", "")
	}
}

// hashes say what chash hashes: headers only, for gRPC knows no other.
func (u *grpcUpstream) hashes() []*routev3.RouteAction_HashPolicy {
	if u.GetType() != "chash" {
		return nil
	}
	policies := (&upstream{Upstream: u.Upstream}).hashPolicy()
	for _, p := range policies {
		if h := p.GetHeader(); u.GetHashOn() == "consumer" || h == nil || strings.HasPrefix(h.GetHeaderName(), ":") || hiddenHeader(h.GetHeaderName()) {
			u.warn("upstream.key", "gRPC clients can hash request headers only: they go round", "use hash_on header")
			return nil
		}
	}
	return policies
}

// breakers lift gRPC's limit of 1024 calls to a cluster at a time.
//
// The number holds the revision that created the owner, so that a cluster that
// was deleted and made again is another one: see grpcListener. Of what grpc-js
// compares this is what matters least.
func (u *grpcUpstream) breakers() *clusterv3.CircuitBreakers {
	most := uint32(unlimited)
	if u.owner != nil {
		most += uint32(u.owner.Created % unlimited)
	}
	return &clusterv3.CircuitBreakers{Thresholds: []*clusterv3.CircuitBreakers_Thresholds{{MaxRequests: wrapperspb.UInt32(most)}}}
}

// outliers is the nearest to passive checks that gRPC has: a node of which every
// call of a while failed is left alone, and tried again later.
func (u *grpcUpstream) outliers() *clusterv3.OutlierDetection {
	p := u.GetChecks().GetPassive()
	if p == nil {
		return nil
	}
	t := p.GetUnhealthy()
	if t == nil {
		t = &musterv1.UnhealthyThreshold{}
	}
	failures := count(t.HttpFailures, defaultHTTPFailures)
	if failures == 0 {
		return nil
	}
	u.warn("upstream.checks.passive", fmt.Sprintf("gRPC clients leave a node alone for a while when all of its calls, %d at least, failed within 10 s", failures), "")
	return &clusterv3.OutlierDetection{
		Interval:         durationpb.New(10 * time.Second),
		BaseEjectionTime: durationpb.New(30 * time.Second),
		// At most half of the nodes: with all ejected, calls would fail.
		MaxEjectionPercent: wrapperspb.UInt32(50),
		// On unless it is 0, and then ends a grpc-js process after one interval.
		EnforcingSuccessRate:           wrapperspb.UInt32(0),
		EnforcingFailurePercentage:     wrapperspb.UInt32(100),
		FailurePercentageThreshold:     wrapperspb.UInt32(99),
		FailurePercentageMinimumHosts:  wrapperspb.UInt32(2),
		FailurePercentageRequestVolume: wrapperspb.UInt32(failures),
	}
}

// named is the cluster of a node with a DNS name: gRPC resolves one name a cluster.
func (u *grpcUpstream) named(n *musterv1.Node) *clusterv3.Cluster {
	sch, _ := schemeOf(u.Upstream)
	port := uint32(nodePort(n, sch))
	return &clusterv3.Cluster{
		Name:                 u.name + "/" + n.GetHost() + ":" + strconv.Itoa(int(port)),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS},
		LoadAssignment: &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{{
			Locality:    &corev3.Locality{},
			LbEndpoints: []*endpointv3.LbEndpoint{grpcEndpoint(n.GetHost(), port)},
		}}},
	}
}

func grpcEndpoint(host string, port uint32) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: socketAddress(host, port)}}}
}

// assignment lists the nodes that are IP addresses, and besides the nodes with DNS
// names of the highest priority.
func (u *grpcUpstream) assignment(hashing bool) (*endpointv3.ClusterLoadAssignment, []*musterv1.Node) {
	sch, _ := schemeOf(u.Upstream)
	out := &endpointv3.ClusterLoadAssignment{ClusterName: u.name}
	var names []*musterv1.Node
	taken := map[string]bool{} // clients refuse an address that stands twice
	for i, priority := range priorities(u.GetNodes()) {
		var nodes []*musterv1.Node
		for _, n := range u.GetNodes() {
			if n.GetPriority() != priority || weight(n) == 0 {
				continue
			}
			ip, isIP := ipOf(n)
			at := net.JoinHostPort(n.GetHost(), strconv.Itoa(int(nodePort(n, sch))))
			if isIP {
				at = net.JoinHostPort(ip.String(), strconv.Itoa(int(nodePort(n, sch))))
			}
			switch {
			case taken[at]:
				u.warn("upstream.nodes", at+" stands twice: gRPC clients take the first only", "")
			case !isIP && i > 0:
				u.warn("upstream.nodes", at+" is left out: of nodes with DNS names gRPC clients get those of the highest priority only", "use addresses")
			case isIP && len(names) > 0 && i > 0:
				u.warn("upstream.nodes", at+" is left out: beside nodes with DNS names gRPC clients get the highest priority only", "use addresses")
			case isIP:
				nodes = append(nodes, n)
			default:
				names = append(names, n)
			}
			taken[at] = true
		}
		if len(nodes) == 0 {
			continue
		}
		level := uint32(0) // without gaps
		if n := len(out.Endpoints); n > 0 {
			level = out.Endpoints[n-1].Priority + 1
		}
		out.Endpoints = append(out.Endpoints, localitiesOf(nodes, sch, level, hashing)...)
	}
	if len(names) > 0 && hashing {
		u.warn("upstream.nodes", "gRPC clients do not hash over nodes with DNS names", "use addresses")
	}
	return out, names
}

// localitiesOf are the nodes of one priority.
//
// Going round, gRPC knows no weights of endpoints, but of localities: the nodes of
// one weight are a locality, whose weight is theirs together. Hashing, it
// multiplies both, and one locality holds all. A locality without a weight would
// be ignored, and of two localities of one name grpc-java has the last only,
// whatever their priorities.
func localitiesOf(nodes []*musterv1.Node, sch scheme, priority uint32, hashing bool) []*endpointv3.LocalityLbEndpoints {
	var out []*endpointv3.LocalityLbEndpoints
	of := map[uint32]*endpointv3.LocalityLbEndpoints{}
	shift := 0 // clients refuse weights that come to 2^32 together
	for sumOf(nodes)>>shift > math.MaxUint32/2 {
		shift++
	}
	for _, n := range nodes {
		ip, _ := ipOf(n)
		e := grpcEndpoint(ip.String(), uint32(nodePort(n, sch)))
		w := max(weight(n)>>shift, 1)
		class, share := w, w
		if hashing {
			e.LoadBalancingWeight = wrapperspb.UInt32(w)
			class, share = 0, 0
		}
		l := of[class]
		if l == nil {
			l = &endpointv3.LocalityLbEndpoints{
				Locality: &corev3.Locality{SubZone: fmt.Sprintf("priority-%d-weight-%d", priority, class)},
				Priority: priority, LoadBalancingWeight: &wrapperspb.UInt32Value{},
			}
			if hashing {
				share = 1
			}
			of[class], out = l, append(out, l)
		}
		l.LoadBalancingWeight.Value += share
		l.LbEndpoints = append(l.LbEndpoints, e)
	}
	return out
}

func sumOf(nodes []*musterv1.Node) (sum uint64) {
	for _, n := range nodes {
		sum += uint64(weight(n))
	}
	return sum
}

// firstWeight is the weight of the nodes of the first priority together.
func firstWeight(a *endpointv3.ClusterLoadAssignment, hashing bool) uint32 {
	var sum uint32
	for _, l := range a.GetEndpoints() {
		if l.GetPriority() > 0 {
			continue
		}
		if !hashing {
			sum += l.GetLoadBalancingWeight().GetValue()
			continue
		}
		for _, e := range l.GetLbEndpoints() {
			sum += e.GetLoadBalancingWeight().GetValue()
		}
	}
	return max(sum, 1)
}
