package gateway

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	mutationv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	setstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/common/set_filter_state/v3"
	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	earlyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/http/early_header_mutation/header_mutation/v3"
	upstreamsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"go.uber.org/goleak"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/musterhq/muster/dataplane"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// lab is a gateway without a control plane: the test calls Apply itself.
type lab struct {
	*testing.T
	gw   *Gateway
	base string // of the listener `http`
}

// newLab starts a gateway with the listener, the route configuration and whatever
// else is given.
func newLab(t *testing.T, resources ...named) *lab {
	t.Helper()
	l := bareLab(t)
	l.apply(append([]named{
		res("http", httpListener()),
		res("muster", routeConfiguration()),
	}, resources...)...)
	l.base = "http://" + l.gw.Addr("http").String()
	return l
}

func bareLab(t *testing.T) *lab {
	t.Helper()
	gw, err := New(Config{
		HTTPAddr: "127.0.0.1:0", HTTPSAddr: "127.0.0.1:0", DrainTimeout: time.Second,
		Servers: []string{"127.0.0.1:1"}, Insecure: true, Group: "g", NodeID: "n", Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	gw.restTimeout = 100 * time.Millisecond
	t.Cleanup(gw.close)
	return &lab{T: t, gw: gw}
}

// named is a resource with its name.
type named struct {
	name string
	msg  proto.Message // nil removes
	kind string        // type URL
}

func res(name string, m proto.Message) named { return named{name, m, typeURLOf(m)} }

func gone(name string, m proto.Message) named { return named{name, nil, typeURLOf(m)} }

func typeURLOf(m proto.Message) string {
	return "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName())
}

// update builds the update that changes resources.
func update(resources ...named) *dataplane.Update {
	u := &dataplane.Update{Whole: true, Types: map[string]dataplane.TypeUpdate{}}
	for _, r := range resources {
		t, ok := u.Types[r.kind]
		if !ok {
			t.Upsert = map[string]*anypb.Any{}
		}
		if r.msg == nil {
			t.Remove = append(t.Remove, r.name)
		} else {
			t.Upsert[r.name] = pack(r.msg)
		}
		u.Types[r.kind] = t
	}
	return u
}

// apply applies resources and wants none refused.
func (l *lab) apply(resources ...named) {
	l.Helper()
	if err := l.gw.Apply(l.Context(), update(resources...)); err != nil {
		l.Fatalf("apply: %v", err)
	}
}

// refuses applies resources and returns why some were refused.
func (l *lab) refuses(resources ...named) string {
	l.Helper()
	err := l.gw.Apply(l.Context(), update(resources...))
	if err == nil {
		l.Fatal("nothing was refused")
	}
	return err.Error()
}

// answer is what a request got.
type answer struct {
	status int
	header http.Header
	body   string
	seen   *seen // by the echo upstream; nil when it did not answer
}

// seen is a request as the echo upstream saw it.
type seen struct {
	Upstream string
	Method   string
	URI      string
	Host     string
	Proto    string
	Header   http.Header
	Body     string
	SNI      string
	Peer     string // the subject of the client's certificate
}

// do sends a request to the listener `http`.
func (l *lab) do(method, target string, edit ...func(*http.Request)) answer {
	l.Helper()
	a, err := l.try(method, target, edit...)
	if err != nil {
		l.Fatalf("%s %s: %v", method, target, err)
	}
	return a
}

func (l *lab) try(method, target string, edit ...func(*http.Request)) (answer, error) {
	req, err := http.NewRequestWithContext(l.Context(), method, l.base+target, nil)
	if err != nil {
		return answer{}, err
	}
	for _, e := range edit {
		e(req)
	}
	rt := &http.Transport{DisableKeepAlives: true, DisableCompression: true}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		return answer{}, err
	}
	return read(resp)
}

func read(resp *http.Response) (answer, error) {
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	a := answer{status: resp.StatusCode, header: resp.Header, body: string(b)}
	if resp.Header.Get("X-Echo") != "" {
		a.seen = &seen{}
		if jerr := json.Unmarshal(b, a.seen); jerr != nil && err == nil {
			err = jerr
		}
	}
	return a, err
}

// raw sends bytes and returns the answer to them.
func (l *lab) raw(request string) answer {
	l.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.base, "http://"))
	if err != nil {
		l.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		l.Fatal(err)
	}
	if _, err := io.WriteString(conn, request); err != nil {
		l.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		l.Fatalf("%q: %v", request, err)
	}
	a, err := read(resp)
	if err != nil {
		l.Fatalf("%q: %v", request, err)
	}
	return a
}

func hostIs(h string) func(*http.Request) { return func(r *http.Request) { r.Host = h } }

func header(name, value string) func(*http.Request) {
	return func(r *http.Request) {
		r.Header[http.CanonicalHeaderKey(name)] = append(r.Header[http.CanonicalHeaderKey(name)], value)
	}
}

func body(s string) func(*http.Request) {
	return func(r *http.Request) {
		r.Body, r.ContentLength = io.NopCloser(strings.NewReader(s)), int64(len(s))
	}
}

// echo starts an upstream that answers with what it saw.
func echo(t *testing.T, name string) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(&countingHandler{Handler: echoHandler(name)})
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s
}

type countingHandler struct {
	http.Handler
	n atomic.Int64
}

func (c *countingHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	c.n.Add(1)
	c.Handler.ServeHTTP(w, r)
}

func echoHandler(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		saw := seen{
			Upstream: name, Method: r.Method, URI: r.RequestURI, Host: r.Host, Proto: r.Proto, Header: r.Header, Body: string(b),
		}
		if r.TLS != nil {
			saw.SNI = r.TLS.ServerName
			if len(r.TLS.PeerCertificates) > 0 {
				saw.Peer = r.TLS.PeerCertificates[0].Subject.CommonName
			}
		}
		w.Header().Set("X-Echo", name)
		w.Header().Set("Content-Type", "application/json")
		if code, err := strconv.Atoi(r.Header.Get("X-Answer")); err == nil {
			w.WriteHeader(code)
		}
		_ = json.NewEncoder(w).Encode(saw)
	})
}

func pack(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return a
}

// fromJSON reads a message as protojson.
func fromJSON[M proto.Message](m M, text string) M {
	if err := protojson.Unmarshal([]byte(text), m); err != nil {
		panic(err)
	}
	return m
}

func ads() *corev3.ConfigSource {
	return &corev3.ConfigSource{
		ResourceApiVersion: corev3.ApiVersion_V3, ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
	}
}

// networkFilters are the filters of every chain that the compiler emits.
func networkFilters() []*listenerv3.Filter {
	return []*listenerv3.Filter{
		{Name: "set_filter_state", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(&setfilterstatev3.Config{
			OnNewConnection: []*setstatev3.FilterStateValue{{
				Key: &setstatev3.FilterStateValue_ObjectKey{ObjectKey: "muster.remote_addr"}, FactoryKey: "envoy.network.ip",
				Value: &setstatev3.FilterStateValue_FormatString{FormatString: &corev3.SubstitutionFormatString{
					Format: &corev3.SubstitutionFormatString_TextFormatSource{TextFormatSource: &corev3.DataSource{
						Specifier: &corev3.DataSource_InlineString{InlineString: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"},
					}},
				}},
			}},
		})}},
		{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(connectionManager())}},
	}
}

func connectionManager() *hcmv3.HttpConnectionManager {
	inline := func(name string, m proto.Message) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, Disabled: true, ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(m)}}
	}
	discovered := func(name string, m proto.Message) *hcmv3.HttpFilter {
		return &hcmv3.HttpFilter{Name: name, Disabled: true, ConfigType: &hcmv3.HttpFilter_ConfigDiscovery{
			ConfigDiscovery: &corev3.ExtensionConfigSource{ConfigSource: ads(), TypeUrls: []string{typeURLOf(m)}},
		}}
	}
	var filters []*hcmv3.HttpFilter
	for _, prefix := range []string{"global.", ""} {
		filters = append(filters,
			inline(prefix+"cors", &corsv3.Cors{}),
			inline(prefix+"ip-restriction", &rbacv3.RBAC{}),
			discovered(prefix+"key-auth", &apikeyv3.ApiKeyAuth{}),
			discovered(prefix+"limit-count", &localratelimitv3.LocalRateLimit{}),
			discovered(prefix+"limit-count-429", &localratelimitv3.LocalRateLimit{}),
			inline(prefix+"proxy-rewrite", &headermutationv3.HeaderMutation{}),
		)
	}
	filters = append(filters, &hcmv3.HttpFilter{Name: "envoy.filters.http.router", ConfigType: &hcmv3.HttpFilter_TypedConfig{
		TypedConfig: pack(&routerv3.Router{SuppressEnvoyHeaders: true}),
	}})
	return &hcmv3.HttpConnectionManager{
		StatPrefix: "http",
		RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{
			ConfigSource: ads(), RouteConfigName: "muster",
		}},
		StripPortMode: &hcmv3.HttpConnectionManager_StripAnyHostPort{StripAnyHostPort: true},
		NormalizePath: wrapperspb.Bool(true), MergeSlashes: true,
		PathWithEscapedSlashesAction: hcmv3.HttpConnectionManager_KEEP_UNCHANGED,
		UseRemoteAddress:             wrapperspb.Bool(true), GenerateRequestId: wrapperspb.Bool(false),
		ServerHeaderTransformation: hcmv3.HttpConnectionManager_PASS_THROUGH,
		UpgradeConfigs:             []*hcmv3.HttpConnectionManager_UpgradeConfig{{UpgradeType: "websocket", Enabled: wrapperspb.Bool(false)}},
		EarlyHeaderMutationExtensions: []*corev3.TypedExtensionConfig{{Name: "key", TypedConfig: pack(&earlyv3.HeaderMutation{
			Mutations: []*mutationv3.HeaderMutation{{Action: &mutationv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
				Header:       &corev3.HeaderValue{Key: "x-muster-route-key", Value: "%REQ(:AUTHORITY)%%PATH(NQ:PATH)%"},
				AppendAction: corev3.HeaderValueOption_OVERWRITE_IF_EXISTS_OR_ADD,
			}}}},
		})}},
		HttpFilters: filters,
	}
}

func httpListener() *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: "http", Address: address("0.0.0.0", 9080), FilterChains: []*listenerv3.FilterChain{{Filters: networkFilters()}},
	}
}

func routeConfiguration(perFilter ...string) *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{
		Name: "muster", Vhds: &routev3.Vhds{ConfigSource: ads()}, VhostHeader: "x-muster-route-key",
		TypedPerFilterConfig: filtersOf(perFilter),
	}
}

// filtersOf reads pairs of a filter's name and the JSON of an Any.
func filtersOf(pairs []string) map[string]*anypb.Any {
	if len(pairs) == 0 {
		return nil
	}
	out := map[string]*anypb.Any{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = fromJSON(&anypb.Any{}, pairs[i+1])
	}
	return out
}

// on switches a filter on as it is.
const on = `{"@type":"type.googleapis.com/envoy.config.route.v3.FilterConfig","config":{}}`

func address(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}

// vhost returns a virtual host of routes in JSON.
func vhost(name string, domains []string, routes ...string) named {
	v := &routev3.VirtualHost{Name: "muster/" + name, Domains: domains}
	for _, r := range routes {
		v.Routes = append(v.Routes, fromJSON(&routev3.Route{}, r))
	}
	return res(v.Name, v)
}

// catchAll returns the virtual host `*`.
func catchAll(routes ...string) named { return vhost("*", []string{"*"}, routes...) }

// to returns the JSON of a route of a prefix to a cluster, with further fields.
func to(prefix, cluster string, more ...string) string {
	return `{"name":"` + prefix + `","match":{"prefix":"` + prefix + `"},"requestHeadersToRemove":["x-muster-route-key"],` +
		`"route":{"cluster":"` + cluster + `","timeout":"0s"` + strings.Join(more, "") + `}}`
}

// edsCluster returns an EDS cluster and its endpoints.
func edsCluster(name string, addrs ...string) []named {
	return []named{res(name, clusterOf(name)), assignmentOf(name, addrs...)}
}

func clusterOf(name string, options ...func(*clusterv3.Cluster, *upstreamsv3.HttpProtocolOptions)) *clusterv3.Cluster {
	opts := &upstreamsv3.HttpProtocolOptions{
		CommonHttpProtocolOptions: &corev3.HttpProtocolOptions{IdleTimeout: durationpb.New(time.Minute)},
		UpstreamProtocolOptions: &upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_{ExplicitHttpConfig: &upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig{
			ProtocolConfig: &upstreamsv3.HttpProtocolOptions_ExplicitHttpConfig_HttpProtocolOptions{HttpProtocolOptions: &corev3.Http1ProtocolOptions{}},
		}},
	}
	c := &clusterv3.Cluster{
		Name: name, ConnectTimeout: durationpb.New(10 * time.Second), // machines may be busy
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_EDS},
		EdsClusterConfig:     &clusterv3.Cluster_EdsClusterConfig{EdsConfig: ads()},
	}
	for _, o := range options {
		o(c, opts)
	}
	c.TypedExtensionProtocolOptions = map[string]*anypb.Any{
		"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": pack(opts),
	}
	return c
}

func assignmentOf(name string, addrs ...string) named {
	l := &endpointv3.LocalityLbEndpoints{}
	for _, a := range addrs {
		l.LbEndpoints = append(l.LbEndpoints, lbEndpoint(a, 0))
	}
	return res(name, &endpointv3.ClusterLoadAssignment{ClusterName: name, Endpoints: []*endpointv3.LocalityLbEndpoints{l}})
}

func lbEndpoint(addr string, weight uint32) *endpointv3.LbEndpoint {
	ip, port, err := net.SplitHostPort(strings.TrimPrefix(strings.TrimPrefix(addr, "http://"), "https://"))
	if err != nil {
		panic(err)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		panic(err)
	}
	e := &endpointv3.LbEndpoint{HostIdentifier: &endpointv3.LbEndpoint_Endpoint{Endpoint: &endpointv3.Endpoint{Address: address(ip, uint32(n))}}}
	if weight > 0 {
		e.LoadBalancingWeight = wrapperspb.UInt32(weight)
	}
	return e
}

// eventually waits until a condition holds.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("never happened: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

type (
	tokenBucket = typev3.TokenBucket
	boolValue   = wrapperspb.BoolValue
)

// discardLog takes what test servers say about handshakes that are meant to fail.
var discardLog = log.New(io.Discard, "", 0)
