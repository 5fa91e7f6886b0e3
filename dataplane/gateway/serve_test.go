package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	"google.golang.org/protobuf/proto"
)

// tag is a route that answers with a header saying which it is.
func tag(name, match string, more ...string) string {
	return `{"name":"` + name + `","match":` + match + `,"directResponse":{"status":200},` +
		`"responseHeadersToAdd":[{"header":{"key":"x-route","value":"` + name + `"}}]` + strings.Join(more, "") + `}`
}

func TestVirtualHostsAreChosenByHostAndPath(t *testing.T) {
	any := `{"prefix":"/"}`
	l := newLab(t,
		vhost("a|orders", []string{"a.example/orders", "a.example/orders/", "a.example/orders/*"}, tag("orders", any)),
		vhost("a|orders|items", []string{"a.example/orders/items", "a.example/orders/items/", "a.example/orders/items/*"}, tag("items", any)),
		vhost("a|", []string{"a.example/", "a.example/*"}, tag("root", any)),
		catchAll(tag("star", any)),
	)
	for _, test := range []struct{ host, path, want string }{
		{"a.example", "/orders", "orders"},
		{"a.example", "/orders/", "orders"},
		{"a.example", "/orders/1", "orders"},
		{"a.example", "/orders?x=/orders/items/1", "orders"},
		{"a.example", "/orders/items", "items"},
		{"a.example", "/orders/items/1/2", "items"},
		{"a.example", "/ordersx", "root"},
		{"a.example", "/Orders/1", "orders"},
		{"a.example", "/", "root"},
		{"a.example", "//orders//1", "orders"},
		{"a.example", "/x/../orders/1", "orders"},
		{"a.example", "/%6frders/1", "orders"},
		{"a.example", "/orders%2F1", "root"},
		{"a.example:8080", "/orders/1", "orders"},
		{"A.Example", "/orders/1", "orders"},
		{"b.example", "/orders/1", "star"},
		{"a.example", "/" + strings.Repeat("x", 3000), "root"},
	} {
		a := l.raw("GET " + test.path + " HTTP/1.1\r\nHost: " + test.host + "\r\nX-Muster-Route-Key: b.example/\r\nConnection: close\r\n\r\n")
		if got := a.header.Get("X-Route"); got != test.want {
			t.Errorf("%s%s: %q, want %q (%d)", test.host, test.path, got, test.want, a.status)
		}
	}
}

func TestRoutesMatchWhatTheyNameAlone(t *testing.T) {
	for _, test := range []struct {
		name, match string
		yes, no     []string // a request line's target, then headers
	}{
		{"a prefix", `{"prefix":"/a/"}`, []string{"/a/", "/a/b"}, []string{"/a", "/b/a/", "/A/"}},
		{"a path", `{"path":"/a"}`, []string{"/a", "/a?x"}, []string{"/a/", "/ab", "/A"}},
		{"a path in any case", `{"path":"/A","caseSensitive":false}`, []string{"/a", "/A"}, []string{"/b"}},
		{"a regex, whole", `{"safeRegex":{"regex":"/a[0-9]+"}}`, []string{"/a1", "/a12?x"}, []string{"/a", "/a1b", "/x/a1"}},
		{"a separated prefix", `{"pathSeparatedPrefix":"/a"}`, []string{"/a", "/a/b"}, []string{"/ab"}},
		{"a method", `{"prefix":"/","headers":[{"name":":method","stringMatch":{"exact":"GET"}}]}`, []string{"/"}, nil},
		{"another method", `{"prefix":"/","headers":[{"name":":method","stringMatch":{"safeRegex":{"regex":"PUT|POST"}}}]}`, nil, []string{"/"}},
		{"a header", `{"prefix":"/","headers":[{"name":"x-a","stringMatch":{"exact":"1"}}]}`,
			[]string{"/ x-a:1", "/ x-a:2 x-a:1"}, []string{"/", "/ x-a:12", "/ x-a:1,2"}},
		{"a header's presence", `{"prefix":"/","headers":[{"name":"x-a","presentMatch":true}]}`, []string{"/ x-a:"}, []string{"/"}},
		{"a header's absence", `{"prefix":"/","headers":[{"name":"x-a","presentMatch":false}]}`, []string{"/"}, []string{"/ x-a:1"}},
		{"a header's prefix", `{"prefix":"/","headers":[{"name":"x-a","stringMatch":{"prefix":"ab","ignoreCase":true}}]}`, []string{"/ x-a:ABc"}, []string{"/ x-a:b"}},
		{"a header's suffix", `{"prefix":"/","headers":[{"name":"x-a","stringMatch":{"suffix":"bc"}}]}`, []string{"/ x-a:abc"}, []string{"/ x-a:ab"}},
		{"a part of a header", `{"prefix":"/","headers":[{"name":"x-a","stringMatch":{"contains":"b"}}]}`, []string{"/ x-a:abc"}, []string{"/ x-a:ac"}},
		{"anything but a value; a missing header is none", `{"prefix":"/","headers":[{"name":"x-a","stringMatch":{"exact":"1"},"invertMatch":true}]}`,
			[]string{"/ x-a:2"}, []string{"/", "/ x-a:1", "/ x-a:2 x-a:1"}},
		{"anything but a value; a missing header is empty",
			`{"prefix":"/","headers":[{"name":"x-a","stringMatch":{"exact":"1"},"invertMatch":true,"treatMissingHeaderAsEmpty":true}]}`,
			[]string{"/", "/ x-a:2"}, []string{"/ x-a:1"}},
		{"the host", `{"prefix":"/","headers":[{"name":":authority","stringMatch":{"suffix":".example","ignoreCase":true}}]}`, []string{"/ host:A.Example"}, []string{"/ host:example"}},
		{"the path with its query", `{"prefix":"/","headers":[{"name":":path","stringMatch":{"safeRegex":{"regex":"[^?]*\\?(.*&)?a=1(&.*)?"}}}]}`, []string{"/?a=1", "/?b&a=1"}, []string{"/", "/?a=12"}},
		{"a query parameter, raw and first", `{"prefix":"/","queryParameters":[{"name":"a","stringMatch":{"exact":"1"}}]}`,
			[]string{"/?a=1", "/?b=2&a=1", "/?a=1&a=2"}, []string{"/", "/?a=2&a=1", "/?a=%31", "/?a"}},
		{"a query parameter's presence", `{"prefix":"/","queryParameters":[{"name":"a","presentMatch":true}]}`, []string{"/?a", "/?a="}, []string{"/", "/?", "/?b=a"}},
		{"a query parameter's absence", `{"prefix":"/","queryParameters":[{"name":"a","presentMatch":false}]}`, []string{"/", "/?b"}, []string{"/?a"}},
		{"a cookie, the first", `{"prefix":"/","cookies":[{"name":"a","stringMatch":{"exact":"1"}}]}`,
			[]string{"/ cookie:a=1", "/ cookie:b=2;\u00a0a=1", `/ cookie:a="1"`}, []string{"/", "/ cookie:a=2;\u00a0a=1", "/ cookie:aa=1"}},
		{"anything but a cookie; a missing one too", `{"prefix":"/","cookies":[{"name":"a","stringMatch":{"exact":"1"},"invertMatch":true}]}`,
			[]string{"/", "/ cookie:a=2"}, []string{"/ cookie:a=1"}},
		{"the client's address", `{"prefix":"/","filterState":[{"key":"muster.remote_addr","addressMatch":{"ranges":[{"addressPrefix":"127.0.0.0","prefixLen":8}]}}]}`,
			[]string{"/", "/ x-forwarded-for:9.9.9.9"}, nil},
		{"another address", `{"prefix":"/","filterState":[{"key":"muster.remote_addr","addressMatch":{"ranges":[{"addressPrefix":"10.0.0.0","prefixLen":8}]}}]}`,
			nil, []string{"/", "/ x-forwarded-for:10.0.0.1"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := newLab(t, catchAll(tag("it", test.match), tag("rest", `{"prefix":"/"}`)))
			for wanted, requests := range map[string][]string{"it": test.yes, "rest": test.no} {
				for _, r := range requests {
					target, headers, _ := strings.Cut(r, " ")
					a := l.do("GET", target, func(r *http.Request) {
						for h := range strings.FieldsFuncSeq(headers, func(c rune) bool { return c == ' ' }) {
							name, value, _ := strings.Cut(h, ":")
							if name == "host" {
								r.Host = value
								continue
							}
							header(name, strings.ReplaceAll(value, "\u00a0", " "))(r)
						}
					})
					if got := a.header.Get("X-Route"); got != wanted {
						t.Errorf("%q: %q, want %q", r, got, wanted)
					}
				}
			}
		})
	}
}

func TestPathsAreNormalisedAsEnvoyDoes(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	// As Envoy 1.40.0 was seen to send them on.
	for path, want := range map[string]string{
		"/a/../b": "/b", "/a/./b": "/a/b", "/a//b": "/a/b", "//a": "/a", "/a/%2e%2e/b": "/b", "/a%2Fb": "/a%2Fb", "/a%5Cb": "/a%5Cb",
		`/a\b`: "/a/b", "/%41bc": "/Abc", "/%7e": "/~", "/a%20b": "/a%20b", "/a%2f..%2fb": "/a%2f..%2fb", "/a/%2E/b": "/a/b", "/../x": "/x",
		"/a/..": "/", "/a/.": "/a/", "/a?x=/../y//z": "/a?x=/../y//z", "/a;p=1": "/a;p=1", "/a/%c3%bc": "/a/%c3%bc", "/A/../B//C": "/B/C",
		"/a/b/../../..": "/", "/a///b//": "/a/b/", "/%2e%2e/x": "/x", "/a|b": "/a%7Cb", `/a"b`: "/a%22b", "/a<b>": "/a%3Cb%3E",
		"/a^b`{}": "/a%5Eb%60%7B%7D", "/a[1]": "/a[1]", "/%2Fx": "/%2Fx", "/a/%252e%252e/b": "/a/%252e%252e/b", "/a?": "/a?", "/a/...": "/a/...",
		"/a/..;x/b": "/b", "/a/.;x/b": "/a/b", "/a..;b/c": "/a..;b/c", "/a/..;": "/",
		"http://h.example/abs?x=1": "/abs?x=1", "/a%zz": "400", "/a%": "400", "/a%00b": "400", "/a#frag": "400", "*": "400", "/ü": "400",
	} {
		a := l.raw("GET " + path + " HTTP/1.1\r\nHost: h.example\r\nConnection: close\r\n\r\n")
		got := fmt.Sprint(a.status)
		if a.seen != nil {
			got = a.seen.URI
		}
		if got != want {
			t.Errorf("%s: %s, want %s", path, got, want)
		}
	}
}

func TestRequestsAreRefusedAsEnvoyDoes(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	for name, test := range map[string]struct {
		request string
		status  int
		body    string
	}{
		"HTTP/1.0":                 {"GET / HTTP/1.0\r\nHost: a\r\n\r\n", 426, "Upgrade Required"},
		"a method that is none":    {"FOO / HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Bad Request"},
		"CONNECT":                  {"CONNECT a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n", 404, ""},
		"an upgrade":               {"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: foo\r\n\r\n", 403, ""},
		"HTTP/1.2":                 {"GET / HTTP/1.2\r\nHost: a\r\n\r\n", 426, "Upgrade Required"},
		"OPTIONS *":                {"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 404, ""},
		"https in plaintext":       {"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 403, "Forbidden"},
		"another scheme":           {"GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n", 400, "Bad Request"},
		"a hidden origin":          {"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 1.2.3.4\r\nConnection: close, X-Forwarded-For\r\n\r\n", 400, "Bad Request"},
		"a hidden host":            {"GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n", 400, "Bad Request"},
		"much in Connection":       {"GET / HTTP/1.1\r\nHost: a\r\nConnection: a,b,c,d,e\r\nConnection: f,g,h,i,j\r\n\r\n", 400, "Bad Request"},
		"a websocket not switched": {"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", 403, ""},
	} {
		a := l.raw(test.request)
		if a.status != test.status || a.body != test.body {
			t.Errorf("%s: %d %q, want %d %q", name, a.status, a.body, test.status, test.body)
		}
	}
	a := l.raw("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n")
	if a.status != 200 || a.seen.Header.Get("Upgrade") != "" || a.seen.Header.Get("Http2-Settings") != "" {
		t.Errorf("an offer of h2c: %d %+v", a.status, a.seen)
	}
}

func TestWhatTheUpstreamSees(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	a := l.raw("POST /a%20b?c=d&c=e HTTP/1.1\r\nHost: h.example:8080\r\nContent-Length: 2\r\nX-Many: 1\r\nX-Many: 2\r\nX-Forwarded-For: 1.2.3.4\r\n" +
		"X-Forwarded-Proto: https\r\nX-Envoy-Retry-On: 5xx\r\nX-Envoy-Foo: 1\r\nX-Request-Id: abc\r\nTe: trailers, x\r\nConnection: close, x-hop, te\r\nX-Hop: 1\r\n" +
		"Keep-Alive: 3\r\nX-Muster-Route-Key: forged\r\n\r\nhi")
	s := a.seen
	if s == nil {
		t.Fatalf("%+v", a)
	}
	if s.Method != "POST" || s.URI != "/a%20b?c=d&c=e" || s.Host != "h.example" || s.Body != "hi" || s.Proto != "HTTP/1.1" {
		t.Errorf("%+v", s)
	}
	want := http.Header{
		"Content-Length": {"2"}, "X-Many": {"1", "2"}, "X-Forwarded-For": {"1.2.3.4," + l.gw.localAddress}, "X-Forwarded-Proto": {"http"},
		"X-Envoy-External-Address": {"127.0.0.1"}, "X-Envoy-Foo": {"1"}, "X-Request-Id": {"abc"}, "Te": {"trailers"},
	}
	if got, wanted := fmt.Sprint(s.Header), fmt.Sprint(want); got != wanted {
		t.Errorf("headers: %s\nwant:    %s", got, wanted)
	}
}

func TestRewrites(t *testing.T) {
	up := echo(t, "a")
	rewrite := func(match, action string) string {
		return `{"match":` + match + `,"route":{"cluster":"c","timeout":"0s",` + action + `}}`
	}
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(
		rewrite(`{"prefix":"/strip/"}`, `"prefixRewrite":"/"`),
		rewrite(`{"path":"/exact"}`, `"prefixRewrite":"/new"`),
		rewrite(`{"prefix":"/regex/"}`, `"regexRewrite":{"pattern":{"regex":"^/regex/([^/]*)/(.*)$"},"substitution":"/\\2/$/\\1"}`),
		rewrite(`{"prefix":"/all"}`, `"regexRewrite":{"pattern":{"regex":"^(?s:.*)$"},"substitution":"/fixed"}`),
		rewrite(`{"prefix":"/host"}`, `"hostRewriteLiteral":"up.example"`),
		to("/", "c"),
	))...)
	for target, want := range map[string]string{
		"/strip/a/b?q=1": "h.example /a/b?q=1", "/strip/": "h.example /", "/exact?q=1": "h.example /new?q=1",
		"/regex/a/b/c?q": "h.example /b/c/$/a?q", "/all/of/it?x": "h.example /fixed?x", "/host/a": "up.example /host/a", "/other": "h.example /other",
	} {
		a := l.do("GET", target, hostIs("h.example"))
		if got := a.seen.Host + " " + a.seen.URI; got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
	if why := l.refuses(catchAll(rewrite(`{"prefix":"/"}`, `"regexRewrite":{"pattern":{"regex":"a"},"substitution":"\\1"}`))); !strings.Contains(why, "group") {
		t.Errorf("a substitution without its group: %s", why)
	}
}

func TestAnswersOfTheGatewaysOwn(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, append(append(edsCluster("c", up.URL), edsCluster("empty")...),
		res("refused", clusterOf("refused")), assignmentOf("refused", "127.0.0.1:1"),
		vhost("norule", []string{"norule.example/*", "norule.example/"}, to("/only", "c")),
		catchAll(
			`{"match":{"prefix":"/direct"},"directResponse":{"status":404,"body":{"inlineString":"{}"}},"responseHeadersToAdd":[{"header":{"key":"content-type","value":"application/json"}}]}`,
			`{"match":{"prefix":"/nobody"},"directResponse":{"status":204}}`,
			`{"match":{"prefix":"/redirect"},"redirect":{"pathRedirect":"/x","responseCode":"FOUND"}}`,
			`{"match":{"prefix":"/https"},"redirect":{"httpsRedirect":true,"portRedirect":8443,"stripQuery":true}}`,
			to("/unknown", "nosuch"), to("/empty", "empty"), to("/refused", "refused"),
			to("/retried", "refused", `,"retryPolicy":{"retryOn":"connect-failure","numRetries":1,"retryBackOff":{"baseInterval":"0.001s"}}`),
		))...)
	for _, test := range []struct {
		method, target string
		status         int
		body           string
		header         string // name: value
	}{
		{"GET", "/direct", 404, "{}", "Content-Type: application/json"},
		{"HEAD", "/direct", 404, "", "Content-Length: 2"},
		{"POST", "/direct", 404, "{}", "Content-Type: application/json"},
		{"GET", "/nobody", 204, "", "Content-Length: "},
		{"GET", "/redirect?a=1", 302, "", "Location: http://h.example/x?a=1"},
		{"GET", "/https/y?a=1", 301, "", "Location: https://h.example:8443/https/y"},
		{"GET", "/unknown", 503, "", "Content-Length: 0"},
		{"GET", "/empty", 503, "no healthy upstream", "Content-Type: text/plain"},
		{"GET", "/refused", 503, "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure", "Content-Type: text/plain"},
		{"GET", "/retried", 503, "upstream connect error or disconnect/reset before headers. retried and the latest reset reason: remote connection failure", ""},
		{"GET", "/matched-by-nothing", 404, "", "Content-Type: "},
	} {
		a := l.do(test.method, test.target, hostIs("h.example"))
		if a.status != test.status || a.body != test.body {
			t.Errorf("%s %s: %d %q, want %d %q", test.method, test.target, a.status, a.body, test.status, test.body)
		}
		if name, want, ok := strings.Cut(test.header, ": "); ok && a.header.Get(name) != want {
			t.Errorf("%s %s: %s is %q, want %q", test.method, test.target, name, a.header.Get(name), want)
		}
	}
	if a := l.do("GET", "/x", hostIs("norule.example")); a.status != 404 || a.body != "" {
		t.Errorf("a virtual host without a matching route: %d %q", a.status, a.body)
	}
}

func TestGRPCClientsAreAnsweredInGRPC(t *testing.T) {
	l := newLab(t, catchAll(to("/", "nosuch")))
	a := l.do("POST", "/svc/Method", header("Content-Type", "application/grpc"))
	if a.status != 200 || a.header.Get("Grpc-Status") != "14" || a.header.Get("Content-Type") != "application/grpc" || a.body != "" {
		t.Errorf("%d %v %q", a.status, a.header, a.body)
	}
}

func TestHeaderChangesOfRoutes(t *testing.T) {
	up := echo(t, "a")
	rc := routeConfiguration()
	rc.ResponseHeadersToAdd = []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-level", Value: "config"}}}
	v := catchAll(`{"match":{"prefix":"/"},"route":{"cluster":"c","timeout":"0s"},"requestHeadersToRemove":["x-gone"],
		"requestHeadersToAdd":[{"header":{"key":"x-add","value":"2"}},{"header":{"key":"x-set","value":"%REQ(:METHOD)%-%REQ(x-none?x-in):2%-%PROTOCOL%-%%"},"appendAction":"OVERWRITE_IF_EXISTS_OR_ADD"},
		  {"header":{"key":"x-empty","value":"%REQ(x-none)%"}},{"header":{"key":"x-absent","value":"n"},"appendAction":"ADD_IF_ABSENT"},
		  {"header":{"key":"x-exists","value":"n"},"appendAction":"OVERWRITE_IF_EXISTS"},
		  {"header":{"key":"x-addr","value":"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%"}}],
		"responseHeadersToAdd":[{"header":{"key":"x-level","value":"route"}}],"responseHeadersToRemove":["x-echo"]}`)
	v.msg.(*routev3.VirtualHost).ResponseHeadersToAdd = []*corev3.HeaderValueOption{{Header: &corev3.HeaderValue{Key: "x-level", Value: "host"}}}
	l := newLab(t, append(edsCluster("c", up.URL), res("muster", rc), v)...)
	a := l.do("GET", "/", header("x-gone", "1"), header("x-add", "1"), header("x-set", "1"), header("x-in", "abc"), header("x-absent", "o"))
	if a.header.Get("X-Echo") != "" {
		t.Error("x-echo was not removed")
	}
	if got := fmt.Sprint(a.header["X-Level"]); got != "[route host config]" {
		t.Errorf("x-level: %s", got)
	}
	a.seen = &seen{}
	if err := jsonInto(a.body, a.seen); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"X-Gone": "[]", "X-Add": "[1 2]", "X-Set": "[GET-ab-HTTP/1.1-%]", "X-Empty": "[]", "X-Absent": "[o]", "X-Exists": "[]", "X-Addr": "[127.0.0.1]",
	} {
		if got := fmt.Sprint(a.seen.Header[name]); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
}

func TestWeightedClusters(t *testing.T) {
	a, b := echo(t, "a"), echo(t, "b")
	l := newLab(t, append(append(edsCluster("a", a.URL), edsCluster("b", b.URL)...), catchAll(
		`{"match":{"prefix":"/"},"route":{"timeout":"0s","weightedClusters":{"clusters":[{"name":"a","weight":3},{"name":"b","weight":1,"requestHeadersToAdd":[{"header":{"key":"x-w","value":"b"}}]}]}}}`,
	))...)
	seen := map[string]int{}
	for range 200 {
		s := l.do("GET", "/").seen
		seen[s.Upstream]++
		if (s.Header.Get("X-W") == "b") != (s.Upstream == "b") {
			t.Fatalf("%+v", s)
		}
	}
	if seen["a"] < 110 || seen["b"] < 20 {
		t.Errorf("shares: %v", seen)
	}
}

// plugins are the ECDS resources that the compiler always emits.
func plugins() []named {
	limit := func(name string, status int) named {
		return res(name, &corev3.TypedExtensionConfig{Name: name, TypedConfig: pack(fromJSON(&localratelimitv3.LocalRateLimit{}, fmt.Sprintf(`{
			"statPrefix":"l","status":{"code":%d},"tokenBucket":{"maxTokens":4294967295,"tokensPerFill":4294967295,"fillInterval":"1s"},
			"filterEnabled":{"defaultValue":{"numerator":100}},"filterEnforced":{"defaultValue":{"numerator":100}},
			"enableXRatelimitHeaders":"DRAFT_VERSION_03","alwaysConsumeDefaultTokenBucket":false,"maxDynamicDescriptors":65536}`, status)))})
	}
	return []named{keyAuth(`{"key":"k1","client":"alice"}`, `{"key":"k2","client":"bob"}`), limit("limit-count", 503), limit("limit-count-429", 429)}
}

func keyAuth(credentials ...string) named {
	m := fromJSON(&apikeyv3.ApiKeyAuth{}, `{"credentials":[`+strings.Join(credentials, ",")+`],"keySources":[{"header":"apikey"},{"query":"apikey"}],"forwarding":{"header":"x-consumer-username"}}`)
	return res("key-auth", &corev3.TypedExtensionConfig{Name: "key-auth", TypedConfig: pack(m)})
}

// limits returns the ECDS resource limit-count with descriptors.
func limits(descriptors ...string) named {
	r := plugins()[1]
	config := proto.CloneOf(r.msg.(*corev3.TypedExtensionConfig))
	m := &localratelimitv3.LocalRateLimit{}
	if err := config.GetTypedConfig().UnmarshalTo(m); err != nil {
		panic(err)
	}
	extra := fromJSON(&localratelimitv3.LocalRateLimit{}, `{"descriptors":[`+strings.Join(descriptors, ",")+`]}`)
	m.Descriptors = extra.Descriptors
	config.TypedConfig = pack(m)
	return res("limit-count", config)
}

func jsonInto(text string, v any) error { return json.Unmarshal([]byte(text), v) }
