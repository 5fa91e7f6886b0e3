package gateway

import (
	"context"
	"net/http"
	"net/netip"
	"net/textproto"
	"strings"
	"sync/atomic"
	"time"
)

// exchange is one request and its answer on the way through the gateway. It
// belongs to the goroutine that serves the request.
type exchange struct {
	w       http.ResponseWriter
	in      *http.Request // Header is the request's own and is modified in place
	on      *listenerServer
	gw      *Gateway
	table   *table // the configuration this request is served by
	chain   *filterChain
	started time.Time

	routeConfig *routeConfig
	vhost       *virtualHost
	route       *route
	cluster     clusterUse // of a route that forwards

	method, scheme, host string
	path, query          string // path without the query; query without the '?'
	hasQuery             bool
	originalPath         string         // with the query, before any rewrite
	peer                 netip.AddrPort // of the connection
	local                netip.AddrPort
	client               netip.Addr // whom the request is from
	identified           bool       // the headers about it are in place
	upgrade              string     // the protocol that the client asks for
	upgraded             bool       // the connection is no longer net/http's
	expects              bool       // the client waits for `100 Continue` before it sends the body

	active []activeFilter // the filters that are on, in order
	status int            // of the answer, once it is known
	pseudo [1]string      // backs headerValues of pseudo headers

	// While forwarding.
	ctx       context.Context // ends with the client or a timeout
	body      *replay         // nil without a body
	cut       atomic.Bool     // the client's body is no longer read
	idle      time.Duration
	idleTimer *time.Timer
	overall   *time.Timer
}

// headerName returns the form in which a header is looked up: pseudo headers in
// lower case, others canonical.
func headerName(name string) string {
	if strings.HasPrefix(name, ":") {
		return strings.ToLower(name) // a format may say :AUTHORITY
	}
	if strings.EqualFold(name, "host") {
		return ":authority"
	}
	return textproto.CanonicalMIMEHeaderKey(name)
}

// headerValues returns the values of a request header or pseudo header. The slice
// is valid until the next call.
func (x *exchange) headerValues(name string) []string {
	switch name {
	case ":method":
		x.pseudo[0] = x.method
	case ":path":
		x.pseudo[0] = x.fullPath()
	case ":authority":
		x.pseudo[0] = x.host
	case ":scheme":
		x.pseudo[0] = x.scheme
	default:
		return x.in.Header[name]
	}
	return x.pseudo[:]
}

// headerValue returns the value of a request header. Of a repeated one it is the
// first line, as Envoy takes it for formats and rate limits.
func (x *exchange) headerValue(name string) (string, bool) {
	if values := x.headerValues(name); len(values) > 0 {
		return values[0], true
	}
	return "", false
}

// fullPath returns the path with the query.
func (x *exchange) fullPath() string {
	if !x.hasQuery {
		return x.path
	}
	return x.path + "?" + x.query
}

// cookie returns the first cookie of a name, without the quotes around its value.
func (x *exchange) cookie(name string) (string, bool) {
	for _, line := range x.in.Header["Cookie"] {
		for part := range strings.SplitSeq(line, ";") {
			k, v, ok := strings.Cut(strings.TrimLeft(part, " "), "=")
			if ok && k == name {
				if len(v) >= 2 && v[0] == '"' && v[len(v)-1] == '"' {
					v = v[1 : len(v)-1]
				}
				return v, true
			}
		}
	}
	return "", false
}

// filterState returns what set_filter_state wrote under a key: the address of the
// connection's peer.
func (x *exchange) filterState(key string) (netip.Addr, bool) {
	for _, k := range x.chain.stateKeys {
		if k == key {
			return x.peer.Addr(), true
		}
	}
	return netip.Addr{}, false
}
