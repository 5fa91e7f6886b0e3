package gateway

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
)

// reply is an answer of the gateway's own. It is shared and must not be modified.
type reply struct {
	status  int
	body    string
	header  http.Header
	closing bool // the connection is closed after it
}

// badRequest is the answer to what is not HTTP.
var badRequest = &reply{status: http.StatusBadRequest, body: "Bad Request", closing: true}

// answer sends an answer of the gateway's own, with the headers that Envoy gives
// it: the route's and the filters' changes apply to it too.
func (x *exchange) answer(r *reply) {
	if isGRPC(x.in.Header.Get("Content-Type")) {
		r = r.forGRPC()
	}
	h := x.w.Header()
	for name, values := range r.header {
		h[name] = values
	}
	x.status = r.status
	x.routeResponse(h)
	if r.body != "" {
		if _, ok := h["Content-Type"]; !ok {
			h["Content-Type"] = []string{"text/plain"}
		}
	} else {
		if _, ok := h["Content-Type"]; !ok {
			h["Content-Type"] = nil // none, rather than what net/http would guess
		}
	}
	if r.status >= 200 && r.status != http.StatusNoContent && r.status != http.StatusNotModified {
		h["Content-Length"] = []string{strconv.Itoa(len(r.body))}
	}
	if (r.closing || x.cut.Load()) && x.in.ProtoMajor == 1 { // other requests share an HTTP/2 connection
		h["Connection"] = []string{"close"}
	}
	x.filterResponse(h)
	x.w.WriteHeader(r.status)
	if x.method != http.MethodHead && r.body != "" {
		_, _ = x.w.Write([]byte(r.body)) // the client may be gone
	}
}

// routeResponse applies the header changes of route, virtual host and route
// configuration to an answer.
func (x *exchange) routeResponse(h http.Header) {
	if x.route == nil {
		return
	}
	if w := x.cluster.weighted; w != nil {
		w.onResponse.apply(x, h, h)
	}
	x.route.onResponse.apply(x, h, h)
	x.vhost.onResponse.apply(x, h, h)
	x.routeConfig.onResponse.apply(x, h, h)
}

// filterResponse lets the filters see the headers of an answer, the last first.
func (x *exchange) filterResponse(h http.Header) {
	for i := len(x.active) - 1; i >= 0; i-- {
		x.active[i].response(x, h)
	}
}

func isGRPC(contentType string) bool {
	const grpc = "application/grpc"
	return strings.HasPrefix(contentType, grpc) && (len(contentType) == len(grpc) || contentType[len(grpc)] == '+')
}

// forGRPC returns the answer as gRPC tells it: a status in the headers of an answer
// without a body.
func (r *reply) forGRPC() *reply {
	h := r.header.Clone()
	if h == nil {
		h = http.Header{}
	}
	h["Content-Type"] = []string{"application/grpc"}
	h["Grpc-Status"] = []string{strconv.Itoa(grpcStatus(r.status))}
	if r.body != "" {
		h["Grpc-Message"] = []string{grpcMessage(r.body)}
	}
	return &reply{status: http.StatusOK, header: h, closing: r.closing}
}

// grpcStatus is the mapping of HTTP to gRPC statuses that gRPC itself has.
func grpcStatus(status int) int {
	switch status {
	case http.StatusBadRequest:
		return 13 // INTERNAL
	case http.StatusUnauthorized:
		return 16 // UNAUTHENTICATED
	case http.StatusForbidden:
		return 7 // PERMISSION_DENIED
	case http.StatusNotFound:
		return 12 // UNIMPLEMENTED
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return 14 // UNAVAILABLE
	}
	return 2 // UNKNOWN
}

// grpcMessage encodes what may not stand in a grpc-message.
func grpcMessage(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
		} else {
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
