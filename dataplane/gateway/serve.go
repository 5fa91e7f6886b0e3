package gateway

import (
	"crypto/rand"
	"encoding/hex"
	"net"
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"
)

// ServeHTTP serves a request that came in on a listener.
func (s *listenerServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !s.requests.begin() {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	defer s.requests.end()
	x := &exchange{w: w, in: r, on: s, gw: s.gw, started: s.gw.now()}
	if r.ProtoMajor == 1 && r.ContentLength != 0 {
		// An answer does not wait for the body, which may never come.
		_ = http.NewResponseController(w).EnableFullDuplex()
	}
	s.handle(x)
	x.settle()
}

// handle answers a request.
func (s *listenerServer) handle(x *exchange) {
	r := x.in
	if r.ProtoMajor == 1 && r.ProtoMinor != 1 {
		x.answer(&reply{status: http.StatusUpgradeRequired, body: "Upgrade Required", closing: true})
		return
	}
	x.method, x.host, x.scheme = r.Method, r.Host, "http"
	if r.TLS != nil {
		x.scheme = "https"
	}
	x.peer = addrPortOf(r.RemoteAddr)
	if l, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		x.local = addrPortOf(l.String())
	}
	if x.method == http.MethodConnect {
		x.answer(&reply{status: http.StatusNotFound, closing: true}) // no route matches a CONNECT
		return
	}
	if bad := x.refusal(); bad != nil {
		x.answer(bad)
		return
	}
	x.prepareHeaders()
	if bad := s.route(x); bad != nil {
		x.answer(bad)
		return
	}
	defer x.cluster.release()
	x.serve()
}

// refusal returns the answer to a request that is not to be routed at all.
func (x *exchange) refusal() *reply {
	if n := 1 + headerLines(x.in.Header); n > maxHeaders {
		return &reply{status: http.StatusRequestHeaderFieldsTooLarge, body: "Request Header Fields Too Large", closing: true}
	}
	if x.in.ProtoMajor == 1 && (!knownMethods[x.method] || !mayNominate(x.in.Header["Connection"])) {
		return badRequest
	}
	// Over HTTP/2 net/http takes any authority. With a slash in it one could name
	// another virtual host than the path does.
	if x.in.ProtoMajor > 1 && !validAuthority(x.host) {
		return badRequest
	}
	return x.parseTarget()
}

// maxHeaders bounds the lines of headers, as Envoy does.
const maxHeaders = 100

func headerLines(h http.Header) int {
	n := 0
	for _, values := range h {
		n += len(values)
	}
	return n
}

// maxNominated bounds the names in Connection.
const maxNominated = 10

// mayNominate reports whether a client's Connection names only what it may: who names
// a header that tells where a request comes from wants to hide it.
func mayNominate(lines []string) bool {
	n := 0
	for _, line := range lines {
		for name := range strings.SplitSeq(line, ",") {
			n++
			switch name = strings.ToLower(strings.TrimSpace(name)); {
			case name == "host", name == "x-forwarded-for", name == "x-forwarded-host", name == "x-forwarded-proto", strings.HasPrefix(name, ":"):
				return false
			}
		}
	}
	return n < maxNominated
}

// validAuthority reports whether a text may stand for a host and port: only what may
// stand in the host of a URL, encoded bytes included.
func validAuthority(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isUnreserved(c) && strings.IndexByte("!$&'()*+,;=:[]%", c) < 0 {
			return false
		}
	}
	return s != ""
}

// knownMethods are those that Envoy takes over HTTP/1.1.
var knownMethods = map[string]bool{
	"ACL": true, "BIND": true, "CHECKOUT": true, "CONNECT": true, "COPY": true, "DELETE": true, "GET": true,
	"HEAD": true, "LINK": true, "LOCK": true, "MERGE": true, "MKACTIVITY": true, "MKCALENDAR": true, "MKCOL": true,
	"MOVE": true, "MSEARCH": true, "NOTIFY": true, "OPTIONS": true, "PATCH": true, "POST": true, "PROPFIND": true,
	"PROPPATCH": true, "PURGE": true, "PUT": true, "REBIND": true, "REPORT": true, "SEARCH": true, "SOURCE": true,
	"SUBSCRIBE": true, "TRACE": true, "UNBIND": true, "UNLINK": true, "UNLOCK": true, "UNSUBSCRIBE": true,
}

// prepareHeaders removes what concerns the client's connection only.
func (x *exchange) prepareHeaders() {
	h := x.in.Header
	if u := h.Get("Upgrade"); u != "" && x.in.ProtoMajor == 1 && hasToken(h["Connection"], "upgrade") && !strings.EqualFold(u, "h2c") {
		x.upgrade = u
	}
	removeHopHeaders(h)
	delete(h, "Http2-Settings")
	x.expects = h.Get("Expect") != ""
	delete(h, "Expect") // net/http answers it
	if te := h["Te"]; te != nil {
		delete(h, "Te")
		if hasToken(te, "trailers") {
			h["Te"] = []string{"trailers"}
		}
	}
}

func hasToken(lines []string, token string) bool {
	for _, line := range lines {
		for t := range strings.SplitSeq(line, ",") {
			if strings.EqualFold(strings.TrimSpace(t), token) {
				return true
			}
		}
	}
	return false
}

// upgradeAllowed reports whether the request's upgrade is one that the route, or
// else the listener, allows.
func (x *exchange) upgradeAllowed() bool {
	if x.upgrade == "" {
		return true
	}
	kind := strings.ToLower(x.upgrade)
	if f := x.route.forward; f != nil {
		if on, ok := f.upgrades[kind]; ok {
			return on
		}
	}
	return x.chain.upgrades[kind]
}

// parseTarget takes the path as the client sent it, not as net/url decoded it. It
// returns a reply to a target that no route can match.
func (x *exchange) parseTarget() *reply {
	target := x.in.RequestURI
	if target == "*" && x.method == http.MethodOptions {
		return &reply{status: http.StatusNotFound}
	}
	if !strings.HasPrefix(target, "/") {
		scheme, rest, ok := strings.Cut(target, "://")
		scheme = strings.ToLower(scheme)
		if !ok || x.in.ProtoMajor != 1 || scheme != "http" && scheme != "https" {
			return badRequest // `*`, or the authority of a CONNECT
		}
		if scheme == "https" && x.scheme == "http" {
			return &reply{status: http.StatusForbidden, body: "Forbidden", closing: true}
		}
		if slash := strings.IndexAny(rest, "/?"); slash < 0 {
			target = "/"
		} else if target = rest[slash:]; target[0] == '?' {
			target = "/" + target
		}
	}
	for i := range len(target) {
		if c := target[i]; c <= ' ' || c >= 0x7f {
			return badRequest
		}
	}
	x.path, x.query, x.hasQuery = cutQuery(target)
	return nil
}

// route finds the filter chain, route and cluster of a request, all in one table,
// and takes hold of the cluster. A reply is returned when there is none.
func (s *listenerServer) route(x *exchange) *reply {
	path, host := x.path, x.host
	for {
		x.table = s.gw.table.Load()
		x.path, x.host = path, host
		if bad := s.routeIn(x); bad != nil {
			return bad
		}
		if x.cluster.acquire() {
			return nil
		}
		// The cluster was replaced between the two loads: route again.
	}
}

func (s *listenerServer) routeIn(x *exchange) *reply {
	l, ok := x.table.listeners[s.name]
	if !ok {
		return &reply{status: http.StatusServiceUnavailable, closing: true}
	}
	sni := ""
	if x.in.TLS != nil {
		sni = x.in.TLS.ServerName
	}
	if x.chain = l.find(sni); x.chain == nil {
		return &reply{status: http.StatusMisdirectedRequest, closing: true}
	}
	if !x.normalize() {
		return &reply{status: http.StatusBadRequest, closing: true}
	}
	x.originalPath = x.fullPath()
	x.identify()
	x.chain.early.apply(x, x.in.Header, nil)

	x.vhost, x.route, x.cluster = nil, nil, clusterUse{}
	x.routeConfig = x.table.routeConfigs[x.chain.routeConfigName]
	found := x.table.domains[x.chain.routeConfigName]
	if x.routeConfig == nil || found == nil {
		return &reply{status: http.StatusNotFound}
	}
	if x.vhost = found.find(x.vhostKey()); x.vhost == nil {
		return &reply{status: http.StatusNotFound}
	}
	if x.route = x.vhost.match(x); x.route == nil {
		return &reply{status: http.StatusNotFound}
	}
	if x.route.forward != nil {
		x.cluster.name, x.cluster.weighted = x.route.forward.choose()
		x.cluster.cluster, _ = x.table.clusters.Get([]byte(x.cluster.name))
	}
	return nil
}

// vhostKey returns what selects the virtual host, in lower case.
func (x *exchange) vhostKey() string {
	if x.routeConfig.vhostHeader == "" {
		return strings.ToLower(x.host)
	}
	v, _ := x.headerValue(x.routeConfig.vhostHeader)
	return strings.ToLower(v)
}

// normalize brings host and path into the form that routes are matched on.
func (x *exchange) normalize() bool {
	if x.chain.stripPort {
		x.host = stripPort(x.host)
	}
	if strings.Contains(x.path, "#") || strings.Contains(x.query, "#") {
		return false
	}
	if x.chain.normalizePath {
		path, ok := canonicalPath(x.path)
		if !ok {
			return false
		}
		x.path = path
	}
	if x.chain.mergeSlashes {
		x.path = mergeSlashes(x.path)
	}
	return true
}

// identify settles whom the request is from and removes what a client must not say.
// It may be called again for the same request.
func (x *exchange) identify() {
	h := x.in.Header
	x.client = x.peer.Addr()
	if !x.chain.useRemoteAddress || x.identified {
		return
	}
	x.identified = true
	for _, name := range internalHeaders {
		delete(h, name)
	}
	forwarded := x.client.String()
	if x.client.IsLoopback() {
		forwarded = x.gw.localAddress
	}
	if before := strings.Join(h["X-Forwarded-For"], ","); before != "" {
		forwarded = before + "," + forwarded
	}
	h["X-Forwarded-For"] = []string{forwarded}
	h["X-Forwarded-Proto"] = []string{x.scheme}
	h["X-Envoy-External-Address"] = []string{x.client.String()}
	if x.chain.generateRequestID {
		h["X-Request-Id"] = []string{newRequestID()}
	}
}

// internalHeaders are those that Envoy takes from nobody outside.
var internalHeaders = canonicalNames(
	"x-envoy-attempt-count", "x-envoy-decorator-operation", "x-envoy-downstream-service-cluster",
	"x-envoy-downstream-service-node", "x-envoy-expected-rq-timeout-ms", "x-envoy-external-address",
	"x-envoy-force-trace", "x-envoy-hedge-on-per-try-timeout", "x-envoy-internal", "x-envoy-ip-tags",
	"x-envoy-is-timeout-retry", "x-envoy-max-retries", "x-envoy-original-host", "x-envoy-original-path",
	"x-envoy-retriable-header-names", "x-envoy-retriable-status-codes", "x-envoy-retry-grpc-on", "x-envoy-retry-on",
	"x-envoy-upstream-alt-stat-name", "x-envoy-upstream-rq-per-try-timeout-ms", "x-envoy-upstream-rq-timeout-alt-response",
	"x-envoy-upstream-rq-timeout-ms", "x-envoy-upstream-stream-duration-ms",
)

func canonicalNames(names ...string) []string {
	for i, n := range names {
		names[i] = textproto.CanonicalMIMEHeaderKey(n)
	}
	return names
}

// newRequestID returns a random UUID.
func newRequestID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	s := hex.EncodeToString(b[:])
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:]
}

// serve runs the filters and answers.
func (x *exchange) serve() {
	if !x.upgradeAllowed() {
		x.answer(&reply{status: http.StatusForbidden, closing: true})
		return
	}
	if !x.selectFilters() {
		x.answer(&reply{status: http.StatusInternalServerError})
		return
	}
	for _, f := range x.active {
		if r := f.request(x); r != nil {
			x.answer(r)
			return
		}
	}
	switch {
	case x.route.direct != nil:
		x.answer(x.route.direct)
	case x.route.redirect != nil:
		x.answer(x.route.redirect.reply(x))
	default:
		x.forward()
	}
}

func addrPortOf(s string) netip.AddrPort {
	ap, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}
	}
	// A zone says which link an address is on; no range holds an address with one.
	return netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
}
