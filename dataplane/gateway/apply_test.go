package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	faultv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/fault/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/musterhq/muster/dataplane"
)

func TestWhatIsNotSupportedIsRefusedByName(t *testing.T) {
	l := newLab(t)
	edited := func(name string, edit func(*clusterv3.Cluster)) named {
		c := clusterOf(name)
		edit(c)
		return res(name, c)
	}
	listener := func(edit func(*listenerv3.Listener)) named {
		m := httpListener()
		edit(m)
		return res(m.GetName(), m)
	}
	for want, r := range map[string]named{
		`Cluster "c": type LOGICAL_DNS is not supported`: edited("c", func(c *clusterv3.Cluster) {
			c.ClusterDiscoveryType = &clusterv3.Cluster_Type{Type: clusterv3.Cluster_LOGICAL_DNS}
		}),
		`lb_policy MAGLEV is not supported`:  edited("c", func(c *clusterv3.Cluster) { c.LbPolicy = clusterv3.Cluster_MAGLEV }),
		`cleanup_interval: is not supported`: edited("c", func(c *clusterv3.Cluster) { c.CleanupInterval = durationpb.New(time.Second) }),
		`max_connections of 5 is not supported`: edited("c", func(c *clusterv3.Cluster) {
			settings(`{"circuitBreakers":{"thresholds":[{"maxConnections":5}]}}`)(c, nil)
		}),
		`enforcing_success_rate is supported as 0 only`: edited("c", func(c *clusterv3.Cluster) { settings(`{"outlierDetection":{}}`)(c, nil) }),
		`address "a.test" is no IP address`: res("e", &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{named4("a.test", 80)}}}}),
		`endpoints[0].lb_endpoints[0].endpoint.address.pipe: is not supported`: res("e", &endpointv3.ClusterLoadAssignment{Endpoints: []*endpointv3.LocalityLbEndpoints{{
			LbEndpoints: []*endpointv3.LbEndpoint{{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{
				Address: &corev3.Address{Address: &corev3.Address_Pipe{Pipe: &corev3.Pipe{Path: "/x"}}}}}}}}}}),
		`Listener "other": a listener of this name is not supported`: listener(func(m *listenerv3.Listener) { m.Name = "other" }),
		`use_original_dst: is not supported`:                         listener(func(m *listenerv3.Listener) { m.UseOriginalDst = fromBool(true) }),
		`listener "http" mixes up plaintext and TLS`:                 listener(func(m *listenerv3.Listener) { m.FilterChains = append(m.FilterChains, chain("s", "", "x.test")) }),
		`it has no HTTP connection manager`:                          listener(func(m *listenerv3.Listener) { m.FilterChains[0].Filters = m.FilterChains[0].Filters[:1] }),
		`envoy.extensions.filters.http.fault.v3.HTTPFault is not supported`: catchAll(
			`{"match":{"prefix":"/"},"directResponse":{"status":200},"typedPerFilterConfig":{"fault":{"@type":"type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"}}}`),
		`typed_config: envoy.extensions.filters.http.fault.v3.HTTPFault is not supported`: res("fault", &corev3.TypedExtensionConfig{Name: "fault", TypedConfig: pack(&faultv3.HTTPFault{})}),
		`routes[0].route.request_mirror_policies: is not supported`:                       catchAll(to("/", "c", `,"requestMirrorPolicies":[{"cluster":"x"}]`)),
		`regular expression "(": error parsing regexp`:                                    catchAll(tag("x", `{"safeRegex":{"regex":"("}}`)),
		`operator %NOPE(x)% is not supported`: catchAll(
			`{"match":{"prefix":"/"},"directResponse":{"status":200},"responseHeadersToAdd":[{"header":{"key":"a","value":"%NOPE(x)%"}}]}`),
		`header ":path": :-prefixed or host headers may not be modified`: catchAll(
			`{"match":{"prefix":"/"},"directResponse":{"status":200},"requestHeadersToRemove":[":path"]}`),
		`retry_on: "http3-post-connect-failure" is not supported`: catchAll(to("/", "c", `,"retryPolicy":{"retryOn":"http3-post-connect-failure"}`)),
		`its name "muster/b" is not the resource's`:               {name: "muster/a", kind: dataplane.VirtualHostType, msg: &routev3.VirtualHost{Name: "muster/b", Domains: []string{"b"}}},
		`RouteConfiguration "muster": internal_only_headers: is not supported`: res("muster", func() proto.Message {
			rc := routeConfiguration()
			rc.InternalOnlyHeaders = []string{"x"}
			return rc
		}()),
		`Secret "s": certificate: tls: failed to find any PEM data`: res("s", &tlsv3.Secret{Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{CertificateChain: inline("x"), PrivateKey: inline("PRIVATE")}}}),
	} {
		if got := l.refuses(r); !strings.Contains(got, want) || strings.Contains(got, "PRIVATE") {
			t.Errorf("%s\nwant: %s", got, want)
		}
	}
	unknown := pack(clusterOf("c"))
	unknown.Value = append(unknown.Value, 0xfa, 0xff, 0x0f, 0x01, 'x') // field 32767
	u := update()
	u.Types[dataplane.ClusterType] = dataplane.TypeUpdate{Upsert: map[string]*anypb.Any{"c": unknown}}
	if err := l.gw.Apply(t.Context(), u); err == nil || !strings.Contains(err.Error(), "does not know") {
		t.Errorf("a field of a later version: %v", err)
	}
}

func fromBool(b bool) *boolValue { return &boolValue{Value: b} }

func TestARefusedResourceStaysAsItWasAndTheRestIsApplied(t *testing.T) {
	a, b := echo(t, "a"), echo(t, "b")
	l := newLab(t, append(edsCluster("c", a.URL), vhost("x|", []string{"x.test/*"}, to("/", "c")), catchAll(to("/", "c")))...)
	bad := clusterOf("c")
	bad.LbPolicy = clusterv3.Cluster_MAGLEV
	why := l.refuses(res("c", bad), vhost("x|", []string{"x.test/*"}, `{"match":{"prefix":"/"}}`), res("d", clusterOf("d")), assignmentOf("d", b.URL),
		vhost("y|", []string{"y.test/*"}, to("/", "d")))
	for _, want := range []string{`Cluster "c": lb_policy`, `VirtualHost "muster/x|": routes[0]`} {
		if !strings.Contains(why, want) {
			t.Errorf("refused: %s", why)
		}
	}
	for h, want := range map[string]string{"x.test": "a", "y.test": "b", "z.test": "a"} {
		if got := l.do("GET", "/p", hostIs(h)); got.seen == nil || got.seen.Upstream != want {
			t.Errorf("%s: %d %+v, want %s", h, got.status, got.seen, want)
		}
	}
}

func TestADomainMayMoveButNotStandTwice(t *testing.T) {
	l := newLab(t, vhost("a", []string{"one.test/*", "two.test/*"}, tag("a", `{"prefix":"/"}`)), vhost("b", []string{"b.test/*"}, tag("b", `{"prefix":"/"}`)))
	who := func(h string) string { return l.do("GET", "/p", hostIs(h)).header.Get("X-Route") }
	l.apply(vhost("a", []string{"one.test/*"}, tag("a", `{"prefix":"/"}`)), vhost("b", []string{"b.test/*", "two.test/*"}, tag("b2", `{"prefix":"/"}`)))
	if who("one.test") != "a" || who("two.test") != "b2" || who("b.test") != "b2" {
		t.Errorf("after the move: %s %s %s", who("one.test"), who("two.test"), who("b.test"))
	}
	if why := l.refuses(vhost("c", []string{"c.test/*", "one.test/*"}, tag("c", `{"prefix":"/"}`))); !strings.Contains(why, `domain "one.test/*" stands in virtual host "muster/a" too`) {
		t.Errorf("twice: %s", why)
	}
	if who("one.test") != "a" || who("c.test") != "" {
		t.Errorf("after the refusal: %q %q", who("one.test"), who("c.test"))
	}
	why := l.refuses(vhost("a", []string{"b.test/*"}, tag("a3", `{"prefix":"/"}`)), vhost("d", []string{"d.test/*"}, tag("d", `{"prefix":"/"}`)))
	if !strings.Contains(why, `"muster/a"`) || who("one.test") != "a" || who("d.test") != "d" {
		t.Errorf("a changed one that clashes: %s; one.test goes to %q", why, who("one.test"))
	}
	l.apply(gone("muster/a", &routev3.VirtualHost{}), vhost("c", []string{"one.test/*"}, tag("c", `{"prefix":"/"}`)))
	if who("one.test") != "c" {
		t.Errorf("after the removal: %q", who("one.test"))
	}
}

func TestVirtualHostsInlineAndByVHDSLiveTogether(t *testing.T) {
	rc := routeConfiguration()
	rc.VirtualHosts = []*routev3.VirtualHost{vhost("in", []string{"in.test/*"}, tag("in", `{"prefix":"/"}`)).msg.(*routev3.VirtualHost)}
	l := newLab(t, res("muster", rc), vhost("v", []string{"v.test/*"}, tag("v", `{"prefix":"/"}`)))
	who := func(h string) string { return l.do("GET", "/p", hostIs(h)).header.Get("X-Route") }
	if who("in.test") != "in" || who("v.test") != "v" {
		t.Errorf("%q %q", who("in.test"), who("v.test"))
	}
	l.apply(res("muster", routeConfiguration()))
	if who("in.test") != "" || who("v.test") != "v" {
		t.Errorf("without the inline one: %q %q", who("in.test"), who("v.test"))
	}
	clash := routeConfiguration()
	clash.VirtualHosts = []*routev3.VirtualHost{vhost("in", []string{"v.test/*"}, tag("in", `{"prefix":"/"}`)).msg.(*routev3.VirtualHost)}
	if why := l.refuses(res("muster", clash)); !strings.Contains(why, "stands in virtual host") {
		t.Error(why)
	}
	l.apply(gone("muster", routeConfiguration()))
	if a := l.do("GET", "/p", hostIs("v.test")); a.status != 404 {
		t.Errorf("without the route configuration: %d", a.status)
	}
}

func TestAListenerThatCannotBeBoundIsRefused(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l := bareLab(t)
	l.gw.cfg.HTTPAddr = taken.Addr().String()
	if why := l.refuses(res("http", httpListener())); !strings.Contains(why, `Listener "http": it cannot be bound`) {
		t.Error(why)
	}
	if l.gw.Addr("http") != nil {
		t.Error("it says it is bound")
	}
}

func TestARemovedListenerIsClosedAndComesBack(t *testing.T) {
	l := newLab(t, catchAll(tag("it", `{"prefix":"/"}`)))
	l.gw.cfg.HTTPAddr = l.gw.Addr("http").String() // the same again
	l.apply(gone("http", &listenerv3.Listener{}))
	if _, err := l.try("GET", "/"); err == nil {
		t.Error("it still serves")
	}
	l.apply(res("http", httpListener()))
	if a := l.do("GET", "/"); a.status != 200 {
		t.Errorf("%d", a.status)
	}
}

func TestAListenerWithoutAnAddressIsNotBound(t *testing.T) {
	l := bareLab(t)
	l.gw.cfg.HTTPAddr = ""
	l.apply(res("http", httpListener()))
	if l.gw.Addr("http") != nil {
		t.Error("it is bound")
	}
}

func TestRequestsInFlightSurviveWhateverChanges(t *testing.T) {
	release := make(chan struct{})
	var waiting atomic.Int64
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		waiting.Add(1)
		<-release
		_, _ = io.WriteString(w, "done")
	}))
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	var requests sync.WaitGroup
	answers := make([]answer, 4)
	errs := make([]error, 4)
	for i := range answers {
		requests.Go(func() { answers[i], errs[i] = l.try("GET", "/") })
	}
	eventually(t, "the requests are at the upstream", func() bool { return waiting.Load() == 4 })
	other := clusterOf("c", policy(clusterv3.Cluster_LEAST_REQUEST), options(`{"commonHttpProtocolOptions":{"idleTimeout":"5s"}}`))
	l.apply(assignmentOf("c"))
	l.apply(res("c", other))
	l.apply(gone("c", &clusterv3.Cluster{}), gone("c", &endpointv3.ClusterLoadAssignment{}), gone("muster/*", &routev3.VirtualHost{}))
	l.apply(gone("http", &listenerv3.Listener{}))
	close(release)
	requests.Wait()
	for i, a := range answers {
		if errs[i] != nil || a.status != 200 || a.body != "done" {
			t.Errorf("request %d: %v %d %q", i, errs[i], a.status, a.body)
		}
	}
}

func TestNoRequestFailsWhileConfigurationChurns(t *testing.T) {
	urls := echoes(t, 3)
	check := settings(`{"healthChecks":[{"timeout":"1s","interval":"0.05s","unhealthyThreshold":3,"healthyThreshold":1,"httpHealthCheck":{"path":"/"}}],"commonLbConfig":{"healthyPanicThreshold":{"value":1}}}`)
	l := newLab(t, append(append(edsCluster("c", urls...), plugins()...), catchAll(to("/", "c")))...)
	stop := make(chan struct{})
	var load sync.WaitGroup
	var sent, failed atomic.Int64
	var failure atomic.Value
	for range 4 {
		load.Go(func() {
			rt := &http.Transport{}
			defer rt.CloseIdleConnections()
			for {
				select {
				case <-stop:
					return
				default:
				}
				req, err := http.NewRequestWithContext(t.Context(), "POST", l.base+"/x", strings.NewReader("body"))
				if err != nil {
					failure.Store(err.Error())
					return
				}
				sent.Add(1)
				resp, err := rt.RoundTrip(req)
				if err != nil {
					failed.Add(1)
					failure.Store(err.Error())
					continue
				}
				if a, err := read(resp); err != nil || a.status != 200 || a.seen.Body != "body" {
					failed.Add(1)
					failure.Store(fmt.Sprint(err, a.status, a.body))
				}
			}
		})
	}
	for i := range 150 {
		name := fmt.Sprint("n", i%7)
		switch i % 6 {
		case 0:
			l.apply(assignmentOf("c", urls[i%3], urls[(i+1)%3]))
		case 1:
			l.apply(res("c", clusterOf("c", policy(clusterv3.Cluster_LbPolicy(i%2)), check)))
		case 2:
			l.apply(res(name, clusterOf(name)), assignmentOf(name, urls[0]), vhost(name, []string{name + ".test/*"}, to("/", name)), catchAll(to("/", name)))
		case 3:
			l.apply(catchAll(to("/x", "c"), to("/", name)), gone(name, &clusterv3.Cluster{}), gone(name, &endpointv3.ClusterLoadAssignment{}))
		case 4:
			l.apply(res("c", clusterOf("c", options(fmt.Sprintf(`{"commonHttpProtocolOptions":{"idleTimeout":"%ds"}}`, i+1)))))
		case 5:
			l.apply(res("muster", routeConfiguration()), res("http", httpListener()), keyAuth(fmt.Sprintf(`{"key":"k%d","client":"x"}`, i)))
		}
		time.Sleep(2 * time.Millisecond)
	}
	close(stop)
	load.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, the last: %v", failed.Load(), sent.Load(), failure.Load())
	}
	if sent.Load() < 100 {
		t.Errorf("only %d requests were sent", sent.Load())
	}
}

// What cannot be provisioned comes again and again, mixed with what can: it is
// refused each time, and what serves goes on as it is.
func TestNoRequestFailsWhileWhatIsRefusedComesIn(t *testing.T) {
	urls := echoes(t, 2)
	l := newLab(t, append(append(edsCluster("c", urls...), plugins()...), catchAll(to("/", "c")))...)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	bad := clusterOf("c")
	bad.LbPolicy = clusterv3.Cluster_MAGLEV
	stop := make(chan struct{})
	var load sync.WaitGroup
	var sent, failed atomic.Int64
	var failure atomic.Value
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				sent.Add(1)
				if a, err := l.try("GET", "/x"); err != nil || a.status != 200 || a.seen == nil {
					failed.Add(1)
					failure.Store(fmt.Sprint(err, a.status, a.body))
				}
			}
		})
	}
	l.gw.cfg.HTTPSAddr = taken.Addr().String()
	for i := range 100 {
		name := fmt.Sprint("n", i)
		switch i % 4 {
		case 0:
			l.refuses(res("c", bad), res(name, clusterOf(name)), assignmentOf(name, urls[0]))
		case 1:
			l.refuses(httpsListener(), vhost(name, []string{name + ".test/*"}, to("/", "c")))
		case 2:
			l.refuses(catchAll(`{"match":{"prefix":"/"}}`), assignmentOf("c", urls[i%2], urls[(i+1)%2]))
		case 3:
			l.refuses(res("key-auth", &corev3.TypedExtensionConfig{Name: "key-auth", TypedConfig: pack(&listenerv3.Listener{})}), res("muster", routeConfiguration()))
		}
	}
	close(stop)
	load.Wait()
	if failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, the last: %v", failed.Load(), sent.Load(), failure.Load())
	}
	if sent.Load() < 50 {
		t.Errorf("only %d requests were sent", sent.Load())
	}
	if got := l.shares(10, "/x"); got["a"] != 5 || got["b"] != 5 {
		t.Errorf("afterwards: %v", got)
	}
}

func TestClustersThatConnectTheSameWayKeepTheirConnections(t *testing.T) {
	var opened atomic.Int64
	up := httptest.NewUnstartedServer(echoHandler("a"))
	up.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			opened.Add(1)
		}
	}
	up.Start()
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	l.do("GET", "/")
	l.apply(res("c", clusterOf("c", policy(clusterv3.Cluster_LEAST_REQUEST))))
	l.do("GET", "/")
	if n := opened.Load(); n != 1 {
		t.Errorf("%d connections, want 1", n)
	}
	before, _ := l.gw.table.Load().clusters.Get([]byte("c"))
	l.apply(gone("c", &clusterv3.Cluster{}))
	if n := before.transport.refs.Load(); n != 0 {
		t.Errorf("the transport of a removed cluster has %d users", n)
	}
}

func TestAChangeOfOneVirtualHostLeavesTheOthersAlone(t *testing.T) {
	var many []named
	for i := range 500 {
		many = append(many, vhost(fmt.Sprint("v", i), []string{fmt.Sprintf("v%d.test/*", i)}, tag("t", `{"prefix":"/"}`)))
	}
	l := newLab(t, many...)
	before := l.gw.table.Load()
	l.apply(vhost("v7", []string{"v7.test/*"}, tag("new", `{"prefix":"/"}`)))
	after := l.gw.table.Load()
	same := 0
	for i := range 500 {
		key := fmt.Sprintf("v%d.test/x", i)
		if before.domains["muster"].find(key) == after.domains["muster"].find(key) {
			same++
		}
	}
	if same != 499 {
		t.Errorf("%d of 500 virtual hosts are the same as before, want 499", same)
	}
}

func TestEndpointsOfAnotherNameThanTheCluster(t *testing.T) {
	a, b := echo(t, "a"), echo(t, "b")
	c := clusterOf("c")
	c.EdsClusterConfig.ServiceName = "endpoints"
	l := newLab(t, res("c", c), assignmentOf("endpoints", a.URL), catchAll(to("/", "c")))
	if s := l.do("GET", "/").seen; s.Upstream != "a" {
		t.Error(s.Upstream)
	}
	l.apply(assignmentOf("endpoints", b.URL))
	if s := l.do("GET", "/").seen; s.Upstream != "b" {
		t.Error(s.Upstream)
	}
	l.apply(gone("endpoints", &endpointv3.ClusterLoadAssignment{}))
	if r := l.do("GET", "/"); r.body != "no healthy upstream" {
		t.Errorf("%d %q", r.status, r.body)
	}
}

func TestEndpointsThatComeBeforeTheirCluster(t *testing.T) {
	a := echo(t, "a")
	l := newLab(t, assignmentOf("c", a.URL), catchAll(to("/", "c")))
	if r := l.do("GET", "/"); r.status != 503 || r.body != "" {
		t.Errorf("without the cluster: %d %q", r.status, r.body)
	}
	l.apply(res("c", clusterOf("c")))
	if r := l.do("GET", "/"); r.status != 200 {
		t.Errorf("with it: %d %q", r.status, r.body)
	}
}

func TestWebsockets(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "websocket" || r.Header.Get("X-No") != "" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Up: 1\r\n\r\n")
		_ = rw.Flush()
		for {
			line, err := rw.ReadString('\n')
			if err != nil {
				return
			}
			_, _ = rw.WriteString("<" + line)
			_ = rw.Flush()
		}
	}))
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c", `,"idleTimeout":"60s","upgradeConfigs":[{"upgradeType":"websocket"}]`)))...)
	open := func(extra string) (net.Conn, *bufio.Reader, *http.Response) {
		conn, err := net.Dial("tcp", strings.TrimPrefix(l.base, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"+extra+"\r\n"); err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(conn)
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		return conn, r, resp
	}
	conn, r, resp := open("")
	if resp.StatusCode != 101 || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") || resp.Header.Get("X-Up") != "1" {
		t.Fatalf("%d %v", resp.StatusCode, resp.Header)
	}
	for _, line := range []string{"hello\n", "again\n"} {
		if _, err := io.WriteString(conn, line); err != nil {
			t.Fatal(err)
		}
		if got, err := r.ReadString('\n'); err != nil || got != "<"+line {
			t.Errorf("%q %v", got, err)
		}
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	conn, _, resp = open("X-No: 1\r\n")
	if resp.StatusCode != http.StatusTeapot {
		t.Errorf("an upstream that does not switch: %d", resp.StatusCode)
	}
	_ = conn.Close()
	// Left open: the gateway's end closes it.
	conn, _, _ = open("")
	t.Cleanup(func() { _ = conn.Close() })
}

func TestAnswersAreStreamed(t *testing.T) {
	next := make(chan struct{})
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/long" {
			w.Header().Set("Content-Length", "10")
		}
		for range 2 {
			_, _ = io.WriteString(w, "12345")
			_ = http.NewResponseController(w).Flush()
			<-next
		}
	}))
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	for _, target := range []string{"/chunked", "/long"} {
		resp, err := http.Get(l.base + target)
		if err != nil {
			t.Fatal(err)
		}
		part := make([]byte, 5)
		for range 2 {
			if _, err := io.ReadFull(resp.Body, part); err != nil {
				t.Fatalf("%s: %v", target, err)
			}
			next <- struct{}{}
		}
		_ = resp.Body.Close()
	}
	http.DefaultClient.CloseIdleConnections()
}

func TestRequestsAreStreamed(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		b := make([]byte, 5)
		for {
			n, err := io.ReadFull(r.Body, b)
			if n > 0 {
				_, _ = w.Write(b[:n])
				_ = http.NewResponseController(w).Flush()
			}
			if err != nil {
				return
			}
		}
	}))
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	pr, pw := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "POST", l.base+"/", pr)
	if err != nil {
		t.Fatal(err)
	}
	var sender sync.WaitGroup
	echoed := make(chan struct{})
	sender.Go(func() {
		for range 3 {
			_, _ = io.WriteString(pw, "12345")
			<-echoed
		}
		_ = pw.Close()
	})
	rt := &http.Transport{}
	defer rt.CloseIdleConnections()
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 5)
	for range 3 {
		if _, err := io.ReadFull(resp.Body, b); err != nil {
			t.Fatal(err)
		}
		echoed <- struct{}{}
	}
	sender.Wait()
	_ = resp.Body.Close()
}

func TestHeadersOfAnswersPassAsTheyAre(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		h := w.Header()
		h["Content-Type"] = nil
		h.Set("Server", "mine")
		h["X-Many"] = []string{"1", "2"}
		h.Set("Connection", "x-hop")
		h.Set("X-Hop", "1")
		_, _ = io.WriteString(w, "<html>")
	}))
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	a := l.do("GET", "/")
	var got []string
	for name, v := range a.header {
		if name != "Date" {
			got = append(got, fmt.Sprint(name, v))
		}
	}
	slices.Sort(got)
	if want := "[Content-Length[6] Server[mine] X-Many[1 2]]"; fmt.Sprint(got) != want {
		t.Errorf("%v, want %s", got, want)
	}
}

func BenchmarkProxy(b *testing.B) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok") }))
	b.Cleanup(up.Close)
	gw, err := New(Config{HTTPAddr: "127.0.0.1:0", Servers: []string{"127.0.0.1:1"}, Insecure: true, Group: "g", NodeID: "n"})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(gw.close)
	resources := append(edsCluster("c", up.URL), res("http", httpListener()), res("muster", routeConfiguration()), catchAll(to("/", "c")))
	for i := range 10_000 {
		resources = append(resources, vhost(fmt.Sprint("v", i), []string{fmt.Sprintf("api.test/svc%d/*", i)}, to("/", "c")))
	}
	if err := gw.Apply(b.Context(), update(resources...)); err != nil {
		b.Fatal(err)
	}
	rt := &http.Transport{}
	b.Cleanup(rt.CloseIdleConnections)
	url := "http://" + gw.Addr("http").String()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		req, err := http.NewRequestWithContext(b.Context(), "GET", fmt.Sprint(url, "/svc", i%10_000, "/x"), nil)
		if err != nil {
			b.Fatal(err)
		}
		req.Host = "api.test"
		resp, err := rt.RoundTrip(req)
		if err != nil {
			b.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
	}
}

func BenchmarkRemoveHalfOf(b *testing.B) {
	for _, n := range []int{1000, 8000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			gw, err := New(Config{Servers: []string{"127.0.0.1:1"}, Insecure: true, Group: "g", NodeID: "n"})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(gw.close)
			var all, half []named
			for i := range n {
				name := fmt.Sprint("service/", i)
				all = append(all, edsCluster(name, "127.0.0.1:1")...)
				if i%2 == 0 {
					half = append(half, gone(name, clusterOf(name)), gone(name, assignmentOf(name).msg))
				}
			}
			for b.Loop() {
				b.StopTimer()
				err := gw.Apply(b.Context(), update(all...))
				b.StartTimer()
				if err = errors.Join(err, gw.Apply(b.Context(), update(half...))); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkApplyOneOf(b *testing.B) {
	for _, n := range []int{100, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			gw, err := New(Config{Servers: []string{"127.0.0.1:1"}, Insecure: true, Group: "g", NodeID: "n"})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(gw.close)
			resources := []named{res("muster", routeConfiguration())}
			for i := range n {
				resources = append(resources, vhost(fmt.Sprint("v", i), []string{fmt.Sprintf("api.test/svc%d/*", i)}, to("/", "c")))
			}
			if err := gw.Apply(b.Context(), update(resources...)); err != nil {
				b.Fatal(err)
			}
			u := update(vhost("v7", []string{"api.test/svc7/*"}, to("/", "d")))
			for b.Loop() {
				if err := gw.Apply(b.Context(), u); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
