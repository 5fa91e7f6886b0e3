package resource

import (
	"fmt"
	"net"
	"regexp"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// maxSeconds bounds timeouts and intervals: a year, beyond which a number is a mistake.
const maxSeconds = 365 * 24 * 3600

// hashVars are the variables of API7 that chash hashes with hash_on `vars`.
var hashVars = regexp.MustCompile(`^((uri|server_name|server_addr|request_uri|remote_port|remote_addr|query_string|host|hostname|mqtt_client_id)|(arg|http|cookie)_[0-9a-zA-Z_-]+)$`)

// upstream checks an upstream; stream says that it serves connections, not requests.
func (c *checker) upstream(path string, u *musterv1.Upstream, stream bool) {
	at := func(name string) string { return joinPath(path, name) }
	c.text(at("name"), u.GetName())
	c.text(at("desc"), u.GetDesc())
	if u.GetType() == "ewma" {
		c.add(at("type"), CodeUnsupported, "ewma is not supported: data planes do not measure latencies that way", "use least_conn")
	} else {
		c.oneOf(at("type"), u.GetType(), "roundrobin", "least_conn", "chash")
	}
	c.scheme(at("scheme"), u.GetScheme(), stream)
	c.nodes(at("nodes"), u.GetNodes())
	c.hashing(path, u)

	c.oneOf(at("pass_host"), u.GetPassHost(), "pass", "node", "rewrite")
	if u.GetPassHost() == "rewrite" && u.GetUpstreamHost() == "" {
		c.add(at("upstream_host"), CodeRequired, "pass_host rewrite needs the host to send", "set upstream_host, or use pass_host node")
	}
	if host := u.GetUpstreamHost(); host != "" {
		name := host
		if h, port, err := net.SplitHostPort(host); err == nil {
			name = h
			if number, err := strconv.ParseUint(port, 10, 16); err != nil || number == 0 {
				c.add(at("upstream_host"), CodeInvalid, fmt.Sprintf("%s has a port that is not 1 to 65535", quote(host)), "")
			}
		}
		c.host(at("upstream_host"), name, false)
	}
	if u.Retries != nil {
		c.within(at("retries"), float64(u.GetRetries()), 0, 65535)
	}
	if u.RetryTimeout != nil {
		c.within(at("retry_timeout"), u.GetRetryTimeout(), 0, maxSeconds)
	}
	c.timeout(at("timeout"), u.GetTimeout())
	c.keepalive(at("keepalive_pool"), u.GetKeepalivePool())
	if u.GetTls() != nil {
		c.upstreamTLS(at("tls"), u.GetTls())
	}
	if u.GetChecks() != nil {
		c.checks(at("checks"), u.GetChecks())
	}
	discovery := "service discovery is not supported"
	hint := "list the nodes, or a node with a DNS name"
	c.unsupported(at("service_name"), u.GetServiceName() != "", discovery, hint)
	c.unsupported(at("discovery_type"), u.GetDiscoveryType() != "", discovery, hint)
	c.unsupported(at("discovery_args"), len(u.GetDiscoveryArgs().GetFields()) > 0, discovery, hint)
}

func (c *checker) scheme(path, scheme string, stream bool) {
	switch {
	case scheme == "kafka":
		c.add(path, CodeUnsupported, "kafka upstreams are not supported", "use scheme tcp in a stream service")
	case stream && scheme == "":
		c.add(path, CodeRequired, "an upstream of a stream service needs a scheme", "one of tcp, tls, udp")
	case stream:
		c.oneOf(path, scheme, "tcp", "tls", "udp")
	case isStreamScheme(scheme):
		c.add(path, CodeConflict, fmt.Sprintf("scheme %s is for services of type stream", scheme), "set the service's type to stream, or use http, https, grpc or grpcs")
	default:
		c.oneOf(path, scheme, "http", "https", "grpc", "grpcs")
	}
}

func (c *checker) nodes(path string, nodes []*musterv1.Node) {
	type address struct {
		host string
		port int32
	}
	seen := make(map[address]int, len(nodes))
	for i, node := range nodes {
		at := joinPath(path, indexSegment(i))
		host := node.GetHost()
		switch {
		case host == "":
			c.add(at+".host", CodeRequired, "the node has no host", "an IP address or a DNS name")
		case net.ParseIP(host) != nil:
		default:
			c.host(at+".host", host, false)
		}
		if node.GetPort() != 0 {
			c.within(at+".port", float64(node.GetPort()), 1, 65535)
		}
		if node.Weight != nil {
			c.within(at+".weight", float64(node.GetWeight()), 0, 1000000)
		}
		key := address{strings.ToLower(strings.Trim(host, "[]")), node.GetPort()}
		if first, taken := seen[key]; taken {
			c.add(at, CodeDuplicate, fmt.Sprintf("the node is in the list already, at %s", indexSegment(first)), "remove one, and add their weights")
			continue
		}
		seen[key] = i
	}
}

// hashing checks what chash hashes. With other types the fields are tolerated:
// API7's tools send hash_on always.
func (c *checker) hashing(path string, u *musterv1.Upstream) {
	c.oneOf(joinPath(path, "hash_on"), u.GetHashOn(), "vars", "header", "cookie", "consumer", "vars_combinations")
	if u.GetType() != "chash" {
		return
	}
	at, key := joinPath(path, "key"), u.GetKey()
	switch on := u.GetHashOn(); {
	case on == "consumer":
	case key == "":
		c.add(at, CodeRequired, "chash needs a key", "what to hash, for example remote_addr, or the header's name with hash_on header")
	case on == "" || on == "vars":
		if !hashVars.MatchString(key) {
			c.add(at, CodeInvalid, fmt.Sprintf("%s is not a variable that can be hashed", quote(key)), "for example remote_addr, uri, query_string, host, arg_NAME, http_NAME, cookie_NAME")
		}
	case on == "vars_combinations":
		if !strings.Contains(key, "$") {
			c.add(at, CodeInvalid, fmt.Sprintf("%s holds no variable", quote(key)), "for example $remote_addr$uri")
		}
	case on == "header" || on == "cookie":
		if !tokenPattern.MatchString(key) {
			c.add(at, CodeInvalid, fmt.Sprintf("%s is not the name of a %s", quote(key), on), "")
		}
	}
}

func (c *checker) timeout(path string, t *musterv1.Timeout) {
	if t == nil {
		return
	}
	c.within(joinPath(path, "connect"), t.GetConnect(), 0, maxSeconds)
	c.within(joinPath(path, "send"), t.GetSend(), 0, maxSeconds)
	c.within(joinPath(path, "read"), t.GetRead(), 0, maxSeconds)
}

func (c *checker) keepalive(path string, pool *musterv1.KeepalivePool) {
	if pool == nil {
		return
	}
	if pool.Size != nil {
		c.within(joinPath(path, "size"), float64(pool.GetSize()), 1, 1<<31-1)
	}
	if pool.IdleTimeout != nil {
		c.within(joinPath(path, "idle_timeout"), pool.GetIdleTimeout(), 0, maxSeconds)
	}
	if pool.Requests != nil {
		c.within(joinPath(path, "requests"), float64(pool.GetRequests()), 1, 1<<31-1)
	}
}

func (c *checker) upstreamTLS(path string, tls *musterv1.UpstreamTls) {
	at := func(name string) string { return joinPath(path, name) }
	if id := tls.GetClientCertId(); id != "" {
		c.id(at("client_cert_id"), id)
		if tls.GetClientCert() != "" || tls.GetClientKey() != "" {
			c.add(at("client_cert_id"), CodeConflict, "client_cert_id excludes client_cert and client_key", "keep either the id or the pair")
		}
		return
	}
	if tls.GetClientCert() != "" || tls.GetClientKey() != "" {
		c.pair(at("client_cert"), tls.GetClientCert(), at("client_key"), tls.GetClientKey())
	}
}

// checks checks the health checks.
func (c *checker) checks(path string, checks *musterv1.Checks) {
	active, passive := checks.GetActive(), checks.GetPassive()
	if passive != nil && active == nil {
		c.add(joinPath(path, "passive"), CodeRequired, "passive checks need active checks, which bring a node back", "add checks.active")
	}
	if active != nil {
		c.activeCheck(joinPath(path, "active"), active)
	}
	if passive != nil {
		at := joinPath(path, "passive")
		c.oneOf(joinPath(at, "type"), passive.GetType(), "http", "https", "tcp")
		c.healthy(joinPath(at, "healthy"), passive.GetHealthy(), 0, true)
		c.unhealthy(joinPath(at, "unhealthy"), passive.GetUnhealthy(), 0, true)
	}
}

func (c *checker) activeCheck(path string, active *musterv1.ActiveCheck) {
	at := func(name string) string { return joinPath(path, name) }
	c.oneOf(at("type"), active.GetType(), "http", "https", "tcp")
	if active.Timeout != nil {
		c.seconds(at("timeout"), active.GetTimeout())
	}
	if active.Concurrency != nil {
		c.within(at("concurrency"), float64(active.GetConcurrency()), 1, 1<<31-1)
	}
	if active.GetHost() != "" {
		c.host(at("host"), active.GetHost(), false)
	}
	if active.GetPort() != 0 {
		c.within(at("port"), float64(active.GetPort()), 1, 65535)
	}
	if probe := active.GetHttpPath(); probe != "" && !strings.HasPrefix(probe, "/") {
		c.add(at("http_path"), CodeInvalid, fmt.Sprintf("%s does not begin with /", quote(probe)), "")
	}
	for i, header := range active.GetReqHeaders() {
		// A header may hold a token: the message must not repeat it.
		name, _, found := strings.Cut(header, ":")
		if !found || !tokenPattern.MatchString(strings.TrimSpace(name)) {
			c.add(joinPath(at("req_headers"), indexSegment(i)), CodeInvalid, "this is not a header", "write `Name: value`")
		}
	}
	c.healthy(at("healthy"), active.GetHealthy(), 1, false)
	c.unhealthy(at("unhealthy"), active.GetUnhealthy(), 1, false)
}

// seconds checks a duration that cannot be nothing.
func (c *checker) seconds(path string, seconds float64) {
	if seconds <= 0 || seconds > maxSeconds {
		c.add(path, CodeInvalid, fmt.Sprintf("%s is not a number of seconds above 0", formatNumber(seconds)), "")
	}
}

// maxThreshold is the most that a health check counts to, in API7.
const maxThreshold = 254

func (c *checker) healthy(path string, t *musterv1.HealthyThreshold, least float64, passive bool) {
	if t == nil {
		return
	}
	c.interval(joinPath(path, "interval"), t.Interval, passive)
	c.statuses(joinPath(path, "http_statuses"), t.GetHttpStatuses())
	c.threshold(joinPath(path, "successes"), t.Successes, least)
}

func (c *checker) unhealthy(path string, t *musterv1.UnhealthyThreshold, least float64, passive bool) {
	if t == nil {
		return
	}
	c.interval(joinPath(path, "interval"), t.Interval, passive)
	c.statuses(joinPath(path, "http_statuses"), t.GetHttpStatuses())
	c.threshold(joinPath(path, "http_failures"), t.HttpFailures, least)
	c.threshold(joinPath(path, "tcp_failures"), t.TcpFailures, least)
	c.threshold(joinPath(path, "timeouts"), t.Timeouts, least)
}

func (c *checker) interval(path string, interval *float64, passive bool) {
	switch {
	case interval == nil:
	case passive:
		c.add(path, CodeUnknown, "passive checks have no interval", "remove the field; it belongs to checks.active")
	default:
		c.seconds(path, *interval)
	}
}

func (c *checker) threshold(path string, value *int32, least float64) {
	if value != nil {
		c.within(path, float64(*value), least, maxThreshold)
	}
}

func (c *checker) statuses(path string, statuses []int32) {
	seen := map[int32]bool{}
	for i, status := range statuses {
		at := joinPath(path, indexSegment(i))
		c.within(at, float64(status), 100, 599)
		if seen[status] {
			c.add(at, CodeDuplicate, fmt.Sprintf("%d is in the list already", status), "remove one")
		}
		seen[status] = true
	}
}
