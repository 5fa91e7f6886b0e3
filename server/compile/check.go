package compile

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	matcherconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// API7's defaults of health checks.
var (
	defaultHealthyStatuses          = []int32{200, 302}
	defaultUnhealthyStatuses        = []int32{429, 404, 500, 501, 502, 503, 504, 505}
	defaultPassiveUnhealthyStatuses = []int32{429, 500, 503}
)

const (
	defaultHTTPFailures    = 5
	defaultTCPFailures     = 2
	defaultTimeouts        = 3
	defaultPassiveTimeouts = 7
	defaultSuccesses       = 2
	defaultConcurrency     = 10
	// ejectionTime keeps a node that passive checks ejected out until an active
	// check succeeds, which is what brings it back.
	ejectionTime = 24 * time.Hour
)

// checks sets active and passive health checks.
func (u *upstream) checks(cluster *clusterv3.Cluster, options *httpv3.HttpProtocolOptions) {
	if u.GetChecks() == nil {
		return
	}
	if u.GetChecks().GetActive() == nil {
		u.problem(resource.CodeRequired, "checks.active", "passive checks need an active one, which brings nodes back", "add checks.active")
		return
	}
	// Like API7, and unlike Envoy by default: nodes that fail are not used while
	// any other is healthy, and all are when none is.
	cluster.CommonLbConfig = &clusterv3.Cluster_CommonLbConfig{HealthyPanicThreshold: &typev3.Percent{Value: 1}}
	// Envoy by default sends to a node that was taken away until it fails a check.
	cluster.IgnoreHealthOnHostRemoval = true
	u.active(cluster, u.GetChecks().GetActive())
	if p := u.GetChecks().GetPassive(); p != nil {
		u.passive(cluster, options, p)
	}
}

func (u *upstream) active(cluster *clusterv3.Cluster, a *musterv1.ActiveCheck) {
	if c := a.GetConcurrency(); c != 0 && c != defaultConcurrency {
		u.problem(resource.CodeUnsupported, "checks.active.concurrency", "Envoy probes every node on its own schedule, without a bound on how many at once", "leave it out")
	}
	healthy, unhealthy := a.GetHealthy(), a.GetUnhealthy()
	check := &corev3.HealthCheck{
		Timeout:           durationpb.New(seconds(a.GetTimeout(), time.Second)),
		Interval:          durationpb.New(seconds(healthy.GetInterval(), time.Second)),
		UnhealthyInterval: durationpb.New(seconds(unhealthy.GetInterval(), time.Second)),
		// Envoy probes an idle cluster every 60 s unless told otherwise.
		NoTrafficInterval:  durationpb.New(seconds(healthy.GetInterval(), time.Second)),
		HealthyThreshold:   wrapperspb.UInt32(successes(healthy)),
		UnhealthyThreshold: wrapperspb.UInt32(u.failures(a.GetType(), unhealthy)),
	}
	switch a.GetType() {
	case "", "http", "https":
		check.HealthChecker = &corev3.HealthCheck_HttpHealthCheck_{HttpHealthCheck: u.httpCheck(a)}
	case "tcp":
		check.HealthChecker = &corev3.HealthCheck_TcpHealthCheck_{TcpHealthCheck: &corev3.HealthCheck_TcpHealthCheck{}}
	default:
		u.problem(resource.CodeInvalid, "checks.active.type", fmt.Sprintf("the check type %q does not exist", a.GetType()), "http, https or tcp")
	}
	cluster.HealthChecks = []*corev3.HealthCheck{check}
}

func (u *upstream) httpCheck(a *musterv1.ActiveCheck) *corev3.HealthCheck_HttpHealthCheck {
	sch, _ := schemeOf(u.Upstream)
	if sch.tls && a.GetType() == "http" || !sch.tls && a.GetType() == "https" {
		u.problem(resource.CodeUnsupported, "checks.active.type", "Envoy probes a node as it speaks to it, with or without TLS by the upstream's scheme", "leave it out, or give the type that the scheme asks for")
	}
	if sch.tls && a.HttpsVerifyCertificate != nil && a.GetHttpsVerifyCertificate() != u.GetTls().GetVerify() {
		u.problem(resource.CodeUnsupported, "checks.active.https_verify_certificate", "Envoy verifies certificates in probes as it does in requests, by tls.verify", "leave it out, or set it to what tls.verify is")
	}
	check := &corev3.HealthCheck_HttpHealthCheck{
		Host:             u.probeHost(a),
		Path:             a.GetHttpPath(),
		ExpectedStatuses: statusRanges(a.GetHealthy().GetHttpStatuses(), defaultHealthyStatuses),
		// Without it any other status makes a node unhealthy at once.
		RetriableStatuses: []*typev3.Int64Range{{Start: 100, End: 600}},
	}
	if check.Path == "" {
		check.Path = "/"
	}
	if sch.http2 {
		check.CodecClientType = typev3.CodecClientType_HTTP2
	}
	if s := a.GetUnhealthy().GetHttpStatuses(); len(s) > 0 && !sameStatuses(s, defaultUnhealthyStatuses) {
		u.problem(resource.CodeUnsupported, "checks.active.unhealthy.http_statuses", "Envoy counts every status that is not healthy as a failure", "leave it out, and list all good ones in checks.active.healthy.http_statuses")
	}
	for i, h := range a.GetReqHeaders() {
		name, value, found := strings.Cut(h, ":")
		if !found || strings.TrimSpace(name) == "" {
			u.problem(resource.CodeInvalid, fmt.Sprintf("checks.active.req_headers[%d]", i), "not a header", "for example \"User-Agent: probe\"")
			continue
		}
		check.RequestHeadersToAdd = append(check.RequestHeadersToAdd, &corev3.HeaderValueOption{
			Header:       &corev3.HeaderValue{Key: strings.TrimSpace(name), Value: strings.ReplaceAll(strings.TrimSpace(value), "%", "%%")},
			AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
		})
	}
	return check
}

// failures is Envoy's one count of consecutive failures, where API7 has one for
// each kind. Kinds that are left at their defaults follow the main one.
func (u *upstream) failures(kind string, t *musterv1.UnhealthyThreshold) uint32 {
	if t == nil {
		t = &musterv1.UnhealthyThreshold{}
	}
	main, others := count(t.HttpFailures, defaultHTTPFailures), []failureCount{
		{"tcp_failures", t.TcpFailures, defaultTCPFailures}, {"timeouts", t.Timeouts, defaultTimeouts},
	}
	if kind == "tcp" {
		main, others = count(t.TcpFailures, defaultTCPFailures), others[1:]
	}
	u.sameCount("checks.active.unhealthy", main, others)
	return main
}

// failureCount is one of API7's failure counts; set is nil when it is absent.
type failureCount struct {
	name     string
	set      *int32
	fallback int32
}

func (u *upstream) sameCount(path string, main uint32, others []failureCount) {
	for _, o := range others {
		if o.set != nil && *o.set != o.fallback && uint32(*o.set) != main {
			u.problem(resource.CodeUnsupported, path+"."+o.name, fmt.Sprintf("Envoy has one count for all kinds of failures, which is %d here", main), "leave it out, or give the same number")
		}
	}
}

// passive makes Envoy eject nodes by the answers to ordinary requests.
func (u *upstream) passive(cluster *clusterv3.Cluster, options *httpv3.HttpProtocolOptions, p *musterv1.PassiveCheck) {
	t := p.GetUnhealthy()
	if t == nil {
		t = &musterv1.UnhealthyThreshold{}
	}
	http, tcp := count(t.HttpFailures, defaultHTTPFailures), count(t.TcpFailures, defaultTCPFailures)
	u.sameCount("checks.passive.unhealthy", tcp, []failureCount{{"timeouts", t.Timeouts, defaultPassiveTimeouts}})
	if p.GetType() == "tcp" {
		http = 0
	}
	outlier := &clusterv3.OutlierDetection{
		Consecutive_5Xx:                    wrapperspb.UInt32(http),
		SplitExternalLocalOriginErrors:     true,
		ConsecutiveLocalOriginFailure:      wrapperspb.UInt32(tcp),
		MaxEjectionPercent:                 wrapperspb.UInt32(100),
		BaseEjectionTime:                   durationpb.New(ejectionTime),
		MaxEjectionTime:                    durationpb.New(ejectionTime),
		EnforcingSuccessRate:               wrapperspb.UInt32(0),
		EnforcingLocalOriginSuccessRate:    wrapperspb.UInt32(0),
		EnforcingConsecutiveGatewayFailure: wrapperspb.UInt32(0),
	}
	if http == 0 {
		outlier.Consecutive_5Xx, outlier.EnforcingConsecutive_5Xx = nil, wrapperspb.UInt32(0)
	}
	if tcp == 0 {
		outlier.ConsecutiveLocalOriginFailure, outlier.EnforcingConsecutiveLocalOriginFailure = nil, wrapperspb.UInt32(0)
	}
	cluster.OutlierDetection = outlier
	statuses := t.GetHttpStatuses()
	if len(statuses) == 0 {
		statuses = defaultPassiveUnhealthyStatuses
	}
	options.OutlierDetection = &httpv3.HttpProtocolOptions_OutlierDetection{ErrorMatcher: statusIn(statuses)}
}

// statusIn matches answers with one of the statuses.
func statusIn(statuses []int32) *matcherconfigv3.MatchPredicate {
	names := make([]string, len(statuses))
	for i, s := range sortedStatuses(statuses) {
		names[i] = strconv.Itoa(int(s))
	}
	return &matcherconfigv3.MatchPredicate{Rule: &matcherconfigv3.MatchPredicate_HttpResponseHeadersMatch{
		HttpResponseHeadersMatch: &matcherconfigv3.HttpHeadersMatch{Headers: []*routev3.HeaderMatcher{{
			Name:                 ":status",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: oneOf(names)},
		}}},
	}}
}

func statusRanges(statuses, fallback []int32) []*typev3.Int64Range {
	if len(statuses) == 0 {
		statuses = fallback
	}
	var out []*typev3.Int64Range
	for _, s := range sortedStatuses(statuses) {
		if n := len(out); n > 0 && out[n-1].End >= int64(s) {
			out[n-1].End = int64(s) + 1
			continue
		}
		out = append(out, &typev3.Int64Range{Start: int64(s), End: int64(s) + 1})
	}
	return out
}

func sortedStatuses(statuses []int32) []int32 {
	sorted := slices.Clone(statuses)
	slices.Sort(sorted)
	return slices.Compact(sorted)
}

func sameStatuses(a, b []int32) bool { return slices.Equal(sortedStatuses(a), sortedStatuses(b)) }

func successes(t *musterv1.HealthyThreshold) uint32 {
	if t == nil {
		return defaultSuccesses
	}
	return max(1, count(t.Successes, defaultSuccesses))
}

// count is a threshold or its default when absent.
func count(n *int32, fallback uint32) uint32 {
	if n == nil {
		return fallback
	}
	return uint32(max(0, *n))
}
