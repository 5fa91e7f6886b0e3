package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	upstreamsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

type (
	cfg  = clusterv3.Cluster
	opts = upstreamsv3.HttpProtocolOptions
)

// policy sets the balancer of a cluster.
func policy(p clusterv3.Cluster_LbPolicy) func(*cfg, *opts) {
	return func(c *cfg, _ *opts) { c.LbPolicy = p }
}

// options sets HTTP options of a cluster from JSON.
func options(json string) func(*cfg, *opts) {
	return func(_ *cfg, o *opts) {
		extra := fromJSON(&opts{}, json)
		if extra.RetryPolicy != nil {
			o.RetryPolicy = extra.RetryPolicy
		}
		if extra.HashPolicy != nil {
			o.HashPolicy = extra.HashPolicy
		}
		if extra.OutlierDetection != nil {
			o.OutlierDetection = extra.OutlierDetection
		}
		if extra.CommonHttpProtocolOptions != nil {
			o.CommonHttpProtocolOptions = extra.CommonHttpProtocolOptions
		}
		if extra.UpstreamProtocolOptions != nil {
			o.UpstreamProtocolOptions = extra.UpstreamProtocolOptions
		}
		if extra.UpstreamHttpProtocolOptions != nil {
			o.UpstreamHttpProtocolOptions = extra.UpstreamHttpProtocolOptions
		}
	}
}

// settings sets fields of a cluster from JSON.
func settings(json string) func(*cfg, *opts) {
	return func(c *cfg, _ *opts) {
		extra := fromJSON(&cfg{}, json)
		if extra.HealthChecks != nil {
			c.HealthChecks = extra.HealthChecks
		}
		if extra.OutlierDetection != nil {
			c.OutlierDetection = extra.OutlierDetection
		}
		if extra.CommonLbConfig != nil {
			c.CommonLbConfig = extra.CommonLbConfig
		}
		if extra.CircuitBreakers != nil {
			c.CircuitBreakers = extra.CircuitBreakers
		}
	}
}

const apiRetry = `{"retryPolicy":{"retryOn":"connect-failure,refused-stream,reset-before-request","numRetries":1,
	"retryHostPredicate":[{"name":"p","typedConfig":{"@type":"type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"}}],
	"hostSelectionRetryMaxAttempts":"5"}}`

// shares sends n requests and counts who answers; failures count by status.
func (l *lab) shares(n int, target string, edit ...func(*http.Request)) map[string]int {
	l.Helper()
	out := map[string]int{}
	for range n {
		a := l.do("GET", target, edit...)
		if a.seen != nil {
			out[a.seen.Upstream]++
		} else {
			out[fmt.Sprint(a.status)]++
		}
	}
	return out
}

func echoes(t *testing.T, n int) (urls []string) {
	t.Helper()
	for i := range n {
		urls = append(urls, echo(t, string(rune('a'+i))).URL)
	}
	return urls
}

func weighted(name string, levels ...[]*endpointv3.LbEndpoint) named {
	m := &endpointv3.ClusterLoadAssignment{ClusterName: name}
	for p, endpoints := range levels {
		m.Endpoints = append(m.Endpoints, &endpointv3.LocalityLbEndpoints{Priority: uint32(p), LbEndpoints: endpoints})
	}
	if len(levels) > 1 {
		m.Policy = &endpointv3.ClusterLoadAssignment_Policy{OverprovisioningFactor: wrapperspb.UInt32(100000)}
	}
	return res(name, m)
}

func TestRoundRobinGoesByWeight(t *testing.T) {
	u := echoes(t, 3)
	l := newLab(t, append(edsCluster("c", u...), catchAll(to("/", "c")))...)
	if got := l.shares(30, "/"); got["a"] != 10 || got["b"] != 10 || got["c"] != 10 {
		t.Errorf("equal weights: %v", got)
	}
	l.apply(weighted("c", []*endpointv3.LbEndpoint{lbEndpoint(u[0], 1), lbEndpoint(u[1], 2), lbEndpoint(u[2], 7)}))
	if got := l.shares(100, "/"); got["a"] != 10 || got["b"] != 20 || got["c"] != 70 {
		t.Errorf("weights 1 2 7: %v", got)
	}
}

func TestLeastRequestAvoidsTheBusy(t *testing.T) {
	hosts := []*host{{hostKey: hostKey{address: "a"}}, {hostKey: hostKey{address: "b"}}}
	hosts[0].requests.Store(50)
	c := &clusterConfig{policy: clusterv3.Cluster_LEAST_REQUEST, choices: 2, bias: 1}
	for name, weights := range map[string][2]uint32{"equal weights": {1, 1}, "the busy one twice as heavy": {2, 1}} {
		b := newBalancer(c, []member{{hosts[0], weights[0]}, {hosts[1], weights[1]}})
		idle := 0
		for range 1000 {
			if b.pick(0, 0) == hosts[1] {
				idle++
			}
		}
		if idle < 700 {
			t.Errorf("%s: the idle host had %d of 1000", name, idle)
		}
	}
}

func TestLeastRequestWithUnequalWeightsGoesByWeightWhenIdle(t *testing.T) {
	hosts := []*host{{hostKey: hostKey{address: "a"}}, {hostKey: hostKey{address: "b"}}}
	b := newBalancer(&clusterConfig{policy: clusterv3.Cluster_LEAST_REQUEST, choices: 2, bias: 1}, []member{{hosts[0], 3}, {hosts[1], 1}})
	n := 0
	for range 400 {
		if b.pick(0, 0) == hosts[0] {
			n++
		}
	}
	if n < 290 || n > 310 {
		t.Errorf("the heavier host had %d of 400", n)
	}
}

func TestARingSendsAKeyToOneHostAndMovesFewWhenHostsChange(t *testing.T) {
	var members []member
	for i := range 10 {
		members = append(members, member{&host{hostKey: hostKey{address: fmt.Sprintf("10.0.0.%d:80", i)}}, 1})
	}
	all, fewer := newRing(members, 1024, defaultMaxRing), newRing(members[:9], 1024, defaultMaxRing)
	moved, shares := 0, map[*host]int{}
	for i := range 10_000 {
		hash, _ := hashValues([]string{fmt.Sprint("key-", i)}, nil)
		h := all.pick(hash, 0)
		shares[h]++
		if h != fewer.pick(hash, 0) && h != members[9].host {
			moved++
		}
		if h != all.pick(hash, 0) {
			t.Fatal("a key has two hosts")
		}
	}
	if moved > 1000 {
		t.Errorf("%d of 10000 keys moved between hosts that stayed", moved)
	}
	for h, n := range shares {
		if n < 500 || n > 1700 {
			t.Errorf("%s has %d of 10000 keys", h.address, n)
		}
	}
	heavy := newRing([]member{{members[0].host, 9}, {members[1].host, 1}}, 1024, defaultMaxRing)
	n := 0
	for i := range 1000 {
		if hash, _ := hashValues([]string{fmt.Sprint(i)}, nil); heavy.pick(hash, 0) == members[0].host {
			n++
		}
	}
	if n < 800 {
		t.Errorf("a host of nine tenths has %d of 1000 keys", n)
	}
}

func TestWhatIsHashed(t *testing.T) {
	u := echoes(t, 5)
	for name, test := range map[string]struct {
		policy string
		same   []func(*http.Request) // all go to one host
	}{
		"a header":          {`{"header":{"headerName":"x-k"}}`, []func(*http.Request){header("x-k", "v"), header("x-k", "v")}},
		"a cookie":          {`{"cookie":{"name":"k"}}`, []func(*http.Request){header("cookie", "k=v"), header("cookie", "a=b; k=v")}},
		"a query parameter": {`{"queryParameter":{"name":"k"}}`, []func(*http.Request){query("k=v"), query("x=1&k=v"), query("k=%76")}},
		"the address":       {`{"connectionProperties":{"sourceIp":true}}`, []func(*http.Request){query(""), query("a"), header("x-forwarded-for", "9.9.9.9")}},
		"the path, without its query": {`{"header":{"headerName":":path","regexRewrite":{"pattern":{"regex":"\\?.*"},"substitution":""}}}`,
			[]func(*http.Request){query("a"), query("b"), query("c")}},
	} {
		l := newLab(t, res("c", clusterOf("c", policy(clusterv3.Cluster_RING_HASH), options(`{"hashPolicy":[`+test.policy+`]}`))), assignmentOf("c", u...), catchAll(to("/", "c")))
		first := l.do("GET", "/p", test.same[0]).seen.Upstream
		for range 3 {
			for i, edit := range test.same {
				if got := l.do("GET", "/p", edit).seen.Upstream; got != first {
					t.Errorf("%s: request %d went to %s, the first to %s", name, i, got, first)
				}
			}
		}
	}
	l := newLab(t, res("c", clusterOf("c", policy(clusterv3.Cluster_RING_HASH), options(`{"hashPolicy":[{"header":{"headerName":"x-k"}}]}`))), assignmentOf("c", u...), catchAll(to("/", "c")))
	if got := l.shares(60, "/"); len(got) < 3 {
		t.Errorf("requests with nothing to hash all went to %v", got)
	}
	spread := map[string]int{}
	for i := range 60 {
		spread[l.do("GET", "/", header("x-k", fmt.Sprint(i))).seen.Upstream]++
	}
	if len(spread) < 4 {
		t.Errorf("60 values went to %v", spread)
	}
}

func query(q string) func(*http.Request) { return func(r *http.Request) { r.URL.RawQuery = q } }

func TestALowerPriorityIsUsedWhenNoHostOfAHigherOneIsHealthy(t *testing.T) {
	u := echoes(t, 3)
	sick := &atomic.Bool{}
	probe := probeServer(t, sick)
	check := settings(`{"healthChecks":[{"timeout":"1s","interval":"0.02s","unhealthyThreshold":1,"healthyThreshold":1,"httpHealthCheck":{"path":"/"}}],"commonLbConfig":{"healthyPanicThreshold":{"value":1}}}`)
	first := []*endpointv3.LbEndpoint{checkedAt(u[0], probe), checkedAt(u[1], probe)}
	l := newLab(t, res("c", clusterOf("c", check)), weighted("c", first, []*endpointv3.LbEndpoint{lbEndpoint(u[2], 0)}), catchAll(to("/", "c")))
	if got := l.shares(20, "/"); got["a"] != 10 || got["b"] != 10 {
		t.Errorf("all healthy: %v", got)
	}
	sick.Store(true)
	eventually(t, "the second priority alone serves", func() bool { return l.shares(4, "/")["c"] == 4 })
	sick.Store(false)
	eventually(t, "the first priority serves again", func() bool { return l.shares(4, "/")["c"] == 0 })
}

// probeServer answers checks.
func probeServer(t *testing.T, sick *atomic.Bool) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if sick.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func checkedAt(addr, probe string) *endpointv3.LbEndpoint {
	e := lbEndpoint(addr, 0)
	port := lbEndpoint(probe, 0).GetEndpoint().GetAddress().GetSocketAddress().GetPortValue()
	e.GetEndpoint().HealthCheckConfig = &endpointv3.Endpoint_HealthCheckConfig{PortValue: port}
	return e
}

func TestActiveChecks(t *testing.T) {
	for name, kind := range map[string]string{
		"http": `"httpHealthCheck":{"path":"/","expectedStatuses":[{"start":"200","end":"201"}],"retriableStatuses":[{"start":"100","end":"600"}]}`,
		"tcp":  `"tcpHealthCheck":{}`,
	} {
		t.Run(name, func(t *testing.T) {
			u := echoes(t, 2)
			sick := &atomic.Bool{}
			ln := probeListener(t, sick)
			l := newLab(t, res("c", clusterOf("c", settings(`{"healthChecks":[{"timeout":"1s","interval":"0.02s","unhealthyThreshold":2,"healthyThreshold":2,`+kind+`}],"commonLbConfig":{"healthyPanicThreshold":{"value":1}}}`))),
				weighted("c", []*endpointv3.LbEndpoint{checkedAt(u[0], ln), lbEndpoint(u[1], 0)}), catchAll(to("/", "c")))
			eventually(t, "both serve", func() bool { return l.shares(4, "/")["a"] == 2 })
			sick.Store(true)
			eventually(t, "the sick one is left alone", func() bool { return l.shares(4, "/")["a"] == 0 })
			sick.Store(false)
			eventually(t, "it is back", func() bool { return l.shares(4, "/")["a"] == 2 })
		})
	}
}

// probeListener answers checks by HTTP, or refuses connections while it is sick.
func probeListener(t *testing.T, sick *atomic.Bool) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		for ctx.Err() == nil {
			if sick.Load() {
				sleep(ctx, time.Millisecond)
				continue
			}
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				sleep(ctx, time.Millisecond)
				continue
			}
			s := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
			var serving sync.WaitGroup
			serving.Go(func() { _ = s.Serve(ln) })
			for ctx.Err() == nil && !sick.Load() {
				sleep(ctx, time.Millisecond)
			}
			_ = s.Close()
			serving.Wait()
		}
	})
	t.Cleanup(func() {
		cancel()
		running.Wait()
	})
	return "http://" + addr
}

func TestWhenNoHostIsHealthyAllServe(t *testing.T) {
	u := echoes(t, 2)
	sick := &atomic.Bool{}
	sick.Store(true)
	probe := probeServer(t, sick)
	check := `"healthChecks":[{"timeout":"1s","interval":"0.02s","unhealthyThreshold":1,"healthyThreshold":1,"httpHealthCheck":{"path":"/"}}]`
	both := []*endpointv3.LbEndpoint{checkedAt(u[0], probe), checkedAt(u[1], probe)}
	l := newLab(t,
		res("panics", clusterOf("panics", settings(`{`+check+`,"commonLbConfig":{"healthyPanicThreshold":{"value":1}}}`))), weighted("panics", both),
		res("never", clusterOf("never", settings(`{`+check+`,"commonLbConfig":{"healthyPanicThreshold":{"value":0}}}`))), weighted("never", both),
		catchAll(to("/panics", "panics"), to("/never", "never")))
	if got := l.shares(10, "/panics"); got["a"] != 5 || got["b"] != 5 {
		t.Errorf("with a panic threshold: %v", got)
	}
	if a := l.do("GET", "/never"); a.status != 503 || a.body != "no healthy upstream" {
		t.Errorf("without: %d %q", a.status, a.body)
	}
}

func TestANewClusterIsCheckedBeforeItIsUsed(t *testing.T) {
	u := echoes(t, 2)
	sick := &atomic.Bool{}
	sick.Store(true)
	l := newLab(t, res("c", clusterOf("c", settings(`{"healthChecks":[{"timeout":"1s","interval":"60s","unhealthyThreshold":3,"healthyThreshold":1,"httpHealthCheck":{"path":"/"}}]}`))),
		weighted("c", []*endpointv3.LbEndpoint{checkedAt(u[0], probeServer(t, sick)), lbEndpoint(u[1], 0)}), catchAll(to("/", "c")))
	if got := l.shares(10, "/"); got["a"] != 0 {
		t.Errorf("right after the update: %v", got)
	}
}

func TestPassiveChecksEjectAndActiveOnesBringBack(t *testing.T) {
	u := echoes(t, 2)
	l := newLab(t, res("c", clusterOf("c",
		settings(`{"healthChecks":[{"timeout":"1s","interval":"2s","unhealthyThreshold":1,"healthyThreshold":1,"httpHealthCheck":{"path":"/"}}],
			"outlierDetection":{"splitExternalLocalOriginErrors":true,"consecutive5xx":2,"consecutiveLocalOriginFailure":2,"interval":"1s","baseEjectionTime":"86400s","maxEjectionTime":"86400s","maxEjectionPercent":100,
				"enforcingConsecutive5xx":100,"enforcingConsecutiveLocalOriginFailure":100,"enforcingSuccessRate":0,"enforcingLocalOriginSuccessRate":0,"enforcingConsecutiveGatewayFailure":0}}`),
		options(`{"outlierDetection":{"errorMatcher":{"httpResponseHeadersMatch":{"headers":[{"name":":status","stringMatch":{"safeRegex":{"regex":"429|500"}}}]}}}}`))),
		assignmentOf("c", u...), catchAll(to("/", "c")))
	bad := 0
	for range 20 {
		// Only a is asked to fail, by the only means there is: both are, and one is taken out first.
		if a := l.do("GET", "/", header("x-answer", "502")); a.status == 502 {
			bad++
		}
	}
	if got := l.shares(10, "/"); bad != 20 || got["a"] != 5 {
		t.Errorf("a status that is no error ejected: %d answers, then %v", bad, got)
	}
	for range 3 {
		l.do("GET", "/", header("x-answer", "429"))
	}
	if got := l.shares(10, "/"); len(got) != 1 {
		t.Errorf("two errors in a row did not eject: %v", got)
	}
	eventually(t, "the active check brings it back", func() bool { return len(l.shares(4, "/")) == 2 })
}

func TestHostsThatCannotBeReachedAreEjected(t *testing.T) {
	u := echoes(t, 1)
	l := newLab(t, res("c", clusterOf("c", options(apiRetry), settings(`{"outlierDetection":{"consecutive5xx":2,"interval":"0.05s","baseEjectionTime":"0.2s","maxEjectionPercent":50,"enforcingSuccessRate":0}}`))),
		assignmentOf("c", u[0], "127.0.0.1:1"), catchAll(to("/", "c")))
	for range 10 {
		l.do("GET", "/")
	}
	c, _ := l.gw.table.Load().clusters.Get([]byte("c"))
	dead := c.hosts[hostKey{address: "127.0.0.1:1"}]
	if dead.ejections.Load() == 0 {
		t.Error("it was not ejected")
	}
	eventually(t, "it is taken back after its time", func() bool { return !dead.ejected.Load() })
}

func TestEjectionIsBounded(t *testing.T) {
	l := newLab(t, res("c", clusterOf("c", settings(`{"outlierDetection":{"consecutive5xx":1,"maxEjectionPercent":50,"enforcingSuccessRate":0}}`))),
		assignmentOf("c", "127.0.0.1:1", "127.0.0.1:2"), catchAll(to("/", "c")))
	for range 10 {
		l.do("GET", "/")
	}
	c, _ := l.gw.table.Load().clusters.Get([]byte("c"))
	n := 0
	for _, h := range c.hosts {
		if h.ejected.Load() {
			n++
		}
	}
	if n != 1 {
		t.Errorf("%d of 2 hosts are ejected, at most half may be", n)
	}
}

func TestRetries(t *testing.T) {
	good := echo(t, "good")
	var dropped atomic.Int64
	drop := dropServer(t, &dropped)
	l := newLab(t,
		res("dead", clusterOf("dead", options(apiRetry))), assignmentOf("dead", good.URL, "127.0.0.1:1"),
		res("never", clusterOf("never")), assignmentOf("never", good.URL, "127.0.0.1:1"),
		res("drops", clusterOf("drops", options(strings.Replace(apiRetry, "reset-before-request", "reset", 1)))), assignmentOf("drops", good.URL, drop),
		res("one", clusterOf("one")), assignmentOf("one", good.URL),
		catchAll(to("/dead", "dead"), to("/never", "never"), to("/drops", "drops"),
			to("/5xx", "one", `,"retryPolicy":{"retryOn":"5xx","numRetries":2,"retryBackOff":{"baseInterval":"0.001s"}}`),
			to("/codes", "one", `,"retryPolicy":{"retryOn":"retriable-status-codes","retriableStatusCodes":[404],"numRetries":1,"retryBackOff":{"baseInterval":"0.001s"}}`),
		))
	if got := l.shares(20, "/dead"); got["good"] != 20 {
		t.Errorf("with retries: %v", got)
	}
	if got := l.shares(20, "/never"); got["good"] != 10 || got["503"] != 10 {
		t.Errorf("without: %v", got)
	}
	for range 10 {
		a := l.do("POST", "/drops", body("hello"))
		if a.status != 200 || a.seen.Body != "hello" {
			t.Errorf("a dropped connection: %d %q", a.status, a.body)
		}
	}
	if dropped.Load() == 0 {
		t.Error("no connection was dropped")
	}
	count := func(target, status string) int {
		before := requestsSeen(good)
		if a := l.do("GET", target, header("x-answer", status)); fmt.Sprint(a.status) != status {
			t.Errorf("%s: %d", target, a.status)
		}
		return requestsSeen(good) - before
	}
	for target, test := range map[string]struct {
		status string
		tries  int
	}{"/5xx": {"500", 3}, "/5xx?2": {"404", 1}, "/codes": {"404", 2}, "/codes?2": {"500", 1}, "/never?": {"200", 1}} {
		if target == "/never?" {
			continue
		}
		if n := count(target, test.status); n != test.tries {
			t.Errorf("%s answered %s: %d tries, want %d", target, test.status, n, test.tries)
		}
	}
}

func TestARetryGoesToAnotherHostAlsoOfARing(t *testing.T) {
	good := echo(t, "good")
	l := newLab(t, res("c", clusterOf("c", policy(clusterv3.Cluster_RING_HASH), options(apiRetry), options(`{"hashPolicy":[{"header":{"headerName":"x-k"}}]}`))),
		assignmentOf("c", good.URL, "127.0.0.1:1"), catchAll(to("/", "c")))
	served := 0
	for i := range 60 {
		if a := l.do("GET", "/", header("x-k", fmt.Sprint(i))); a.status == 200 {
			served++
		}
	}
	// Without it half of the keys; with it but those whose next five places are the same host's.
	if served < 48 {
		t.Errorf("%d of 60 keys were served", served)
	}
}

// requestsSeen counts the requests that an echo upstream has had.
func requestsSeen(s *httptest.Server) int { return int(s.Config.Handler.(*countingHandler).n.Load()) }

// dropServer closes each connection after the request's head.
func dropServer(t *testing.T, dropped *atomic.Int64) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		dropped.Add(1)
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = c.Close()
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

func TestABodyTooLongToKeepIsNotSentAgain(t *testing.T) {
	var dropped atomic.Int64
	drop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		dropped.Add(1)
		if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
			_ = c.Close()
		}
	}))
	t.Cleanup(drop.Close)
	l := newLab(t, append(edsCluster("c", drop.URL), catchAll(to("/", "c", `,"retryPolicy":{"retryOn":"reset","numRetries":3,"retryBackOff":{"baseInterval":"0.001s"}}`)))...)
	a := l.do("POST", "/", body(strings.Repeat("x", keepForRetry+1)))
	if a.status != 503 || dropped.Load() != 1 {
		t.Errorf("%d after %d tries", a.status, dropped.Load())
	}
}

func TestTimeouts(t *testing.T) {
	slow := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/trickle" {
			for range 14 {
				_, _ = io.WriteString(w, "x")
				_ = http.NewResponseController(w).Flush()
				sleep(r.Context(), 50*time.Millisecond)
			}
			return
		}
		if r.URL.Path == "/half" {
			_, _ = io.WriteString(w, "x")
			_ = http.NewResponseController(w).Flush()
		}
		sleep(r.Context(), 5*time.Second)
	}))
	t.Cleanup(slow.Close)
	timeout := func(prefix, fields string) string {
		return `{"match":{"prefix":"` + prefix + `"},"route":{"cluster":"c",` + fields + `}}`
	}
	l := newLab(t, append(edsCluster("c", slow.URL), catchAll(
		timeout("/overall", `"timeout":"0.1s"`), timeout("/idle", `"timeout":"0s","idleTimeout":"0.1s"`), timeout("/half", `"timeout":"0s","idleTimeout":"0.1s"`),
		timeout("/pertry", `"timeout":"0s","retryPolicy":{"retryOn":"reset","numRetries":1,"perTryTimeout":"0.1s","retryBackOff":{"baseInterval":"0.001s"}}`),
		timeout("/trickle", `"timeout":"0s","idleTimeout":"0.6s"`)))...)
	for target, want := range map[string]string{
		"/overall": "504 upstream request timeout", "/idle": "504 stream timeout", "/pertry": "504 upstream request timeout", "/trickle": "200 xxxxxxxxxxxxxx",
	} {
		a := l.do("GET", target)
		if got := fmt.Sprint(a.status, " ", a.body); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	if a, err := l.try("GET", "/half"); err == nil {
		t.Errorf("an answer that stopped half way looks whole: %d %q", a.status, a.body)
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.base, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "POST /idle HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhe"); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 12)
	if _, err := io.ReadFull(conn, b); err != nil || string(b) != "HTTP/1.1 408" {
		t.Errorf("a client that does not send its body: %q %v", b, err)
	}
}

func TestAnAnswerCutOffIsSeenAsSuch(t *testing.T) {
	cut := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "100")
		_, _ = io.WriteString(w, "abc")
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	t.Cleanup(cut.Close)
	l := newLab(t, append(edsCluster("c", cut.URL), catchAll(to("/", "c")))...)
	if a, err := l.try("GET", "/"); err == nil {
		t.Errorf("it looks whole: %d %q", a.status, a.body)
	}
}

func TestNamesAreResolvedAndFollowed(t *testing.T) {
	a, b := echo(t, "a"), echo(t, "b")
	portOf := func(s *httptest.Server) uint32 {
		return lbEndpoint(s.URL, 0).GetEndpoint().GetAddress().GetSocketAddress().GetPortValue()
	}
	l := bareLab(t)
	names := &fakeNames{addrs: map[string][]string{"a.test": {"127.0.0.1"}}}
	l.gw.resolver, l.gw.dnsRefresh = names, 10*time.Millisecond
	c := clusterOf("c")
	c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_STRICT_DNS}
	c.EdsClusterConfig, c.DnsLookupFamily = nil, clusterv3.Cluster_V4_PREFERRED
	c.LoadAssignment = &endpointv3.ClusterLoadAssignment{ClusterName: "c", Endpoints: []*endpointv3.LocalityLbEndpoints{{LbEndpoints: []*endpointv3.LbEndpoint{
		named4("a.test", portOf(a)), named4("b.test", portOf(b)),
	}}}}
	l.apply(res("http", httpListener()), res("muster", routeConfiguration()), res("c", c), catchAll(
		`{"match":{"prefix":"/auto"},"route":{"cluster":"c","timeout":"0s","autoHostRewrite":true}}`, to("/", "c")))
	l.base = "http://" + l.gw.Addr("http").String()
	if got := l.shares(6, "/"); got["a"] != 6 {
		t.Errorf("right after the update: %v", got)
	}
	if s := l.do("GET", "/auto").seen; s.Host != "a.test" {
		t.Errorf("auto_host_rewrite: %q", s.Host)
	}
	names.set("b.test", "127.0.0.1")
	eventually(t, "the second name is followed", func() bool { return l.shares(6, "/")["b"] == 3 })
	names.set("a.test")
	names.fail.Store(true)
	time.Sleep(50 * time.Millisecond)
	if got := l.shares(6, "/"); got["a"] != 3 || got["b"] != 3 {
		t.Errorf("a failing resolver changed the hosts: %v", got)
	}
}

func named4(name string, port uint32) *endpointv3.LbEndpoint {
	return &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(name, port)}}}
}

type fakeNames struct {
	fail  atomic.Bool
	mu    sync.Mutex
	addrs map[string][]string
}

func (f *fakeNames) set(name string, addrs ...string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.addrs[name] = addrs
}

func (f *fakeNames) LookupNetIP(_ context.Context, network, name string) ([]netip.Addr, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail.Load() {
		return nil, errors.New("the resolver is away")
	}
	var out []netip.Addr
	for _, a := range f.addrs[name] {
		if addr := netip.MustParseAddr(a); addr.Is4() == (network != "ip6") {
			out = append(out, addr)
		}
	}
	if len(out) == 0 {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	return out, nil
}

func TestLookupFamilies(t *testing.T) {
	names := &fakeNames{addrs: map[string][]string{"both": {"::1", "127.0.0.1"}, "six": {"::1"}}}
	for _, test := range []struct {
		family clusterv3.Cluster_DnsLookupFamily
		name   string
		want   string
	}{
		{clusterv3.Cluster_AUTO, "both", "::1"}, {clusterv3.Cluster_V4_PREFERRED, "both", "127.0.0.1"},
		{clusterv3.Cluster_V4_PREFERRED, "six", "::1"}, {clusterv3.Cluster_V4_ONLY, "six", "none"}, {clusterv3.Cluster_V6_ONLY, "both", "::1"},
	} {
		got := "none"
		if addrs, err := (&dnsConfig{family: test.family}).lookup(t.Context(), names, test.name); err == nil {
			got = addrs[0].String()
		}
		if got != test.want {
			t.Errorf("%s of %s: %s, want %s", test.family, test.name, got, test.want)
		}
	}
}

func TestHTTP2AndTrailersToAnUpstream(t *testing.T) {
	up := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "Grpc-Status")
		w.Header().Set("X-Proto", r.Proto)
		_, _ = io.Copy(w, r.Body)
		w.Header().Set("Grpc-Status", "0")
	}))
	up.Config.Protocols = new(http.Protocols)
	up.Config.Protocols.SetUnencryptedHTTP2(true)
	up.Start()
	t.Cleanup(up.Close)
	l := newLab(t, res("c", clusterOf("c", options(`{"explicitHttpConfig":{"http2ProtocolOptions":{}}}`))), assignmentOf("c", up.URL), catchAll(to("/", "c")))
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	rt := &http.Transport{Protocols: &protocols}
	defer rt.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "POST", l.base+"/svc/M", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	a, err := read(resp)
	if err != nil || a.body != "hello" || a.header.Get("X-Proto") != "HTTP/2.0" || resp.Trailer.Get("Grpc-Status") != "0" {
		t.Errorf("%v %q %q trailers %v", err, a.body, a.header.Get("X-Proto"), resp.Trailer)
	}
}

func TestAConnectionCarriesNoMoreRequestsThanItMay(t *testing.T) {
	var opened atomic.Int64
	up := httptest.NewUnstartedServer(echoHandler("a"))
	up.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	up.Start()
	t.Cleanup(up.Close)
	l := newLab(t, res("c", clusterOf("c", options(`{"commonHttpProtocolOptions":{"maxRequestsPerConnection":3,"idleTimeout":"60s"}}`))), assignmentOf("c", up.URL), catchAll(to("/", "c")))
	for range 9 {
		if a := l.do("POST", "/", body("x")); a.status != 200 {
			t.Fatalf("%d", a.status)
		}
	}
	if n := opened.Load(); n != 3 {
		t.Errorf("9 requests were carried by %d connections, want 3", n)
	}
}

func TestMaxRequestsAnswersOverflow(t *testing.T) {
	release := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-release }))
	t.Cleanup(up.Close)
	l := newLab(t, res("c", clusterOf("c", settings(`{"circuitBreakers":{"thresholds":[{"maxRequests":1}]}}`))), assignmentOf("c", up.URL), catchAll(to("/", "c")))
	var first sync.WaitGroup
	first.Go(func() { _, _ = l.try("GET", "/") })
	c, _ := l.gw.table.Load().clusters.Get([]byte("c"))
	eventually(t, "the first request is on its way", func() bool { return c.inFlight.Load() == 1 })
	a := l.do("GET", "/")
	if a.status != 503 || !strings.Contains(a.body, "overflow") {
		t.Errorf("%d %q", a.status, a.body)
	}
	close(release)
	first.Wait()
	if a := l.do("GET", "/"); a.status != 200 {
		t.Errorf("afterwards: %d", a.status)
	}
}

func TestPriorityLoad(t *testing.T) {
	for _, test := range []struct {
		availability []int
		want         []int
	}{
		{[]int{100, 100}, []int{100, 0}}, {[]int{70, 100}, []int{70, 30}}, {[]int{0, 100}, []int{0, 100}},
		{[]int{0, 0}, []int{100, 0}}, {[]int{35, 35}, []int{50, 50}},
	} {
		s := &hostSet{priorities: make([]priorityLevel, 2), load: make([]int, 2)}
		for p := range s.priorities {
			s.priorities[p].all = randomBalancer{}
		}
		s.spread(test.availability, min(100, test.availability[0]+test.availability[1]))
		if !slices.Equal(s.load, test.want) {
			t.Errorf("%v: %v, want %v", test.availability, s.load, test.want)
		}
	}
}

const sickCheck = `"healthChecks":[{"timeout":"1s","interval":"0.02s","unhealthyThreshold":1,"healthyThreshold":1,"httpHealthCheck":{"path":"/"}}],"commonLbConfig":{"healthyPanicThreshold":{"value":1}}`
