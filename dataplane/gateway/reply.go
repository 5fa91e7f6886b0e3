package gateway

import (
	"net/http"
	"strconv"
)

// reply is an answer of the gateway's own. It is shared and must not be modified.
type reply struct {
	status  int
	body    string
	header  http.Header
	closing bool // the connection is closed after it
}

// answer sends an answer of the gateway's own, with the headers that Envoy gives
// it: the route's and the filters' changes apply to it too.
func (x *exchange) answer(r *reply) {
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
		h["Content-Type"] = nil // none, rather than what net/http would guess
	}
	if r.status >= 200 && r.status != http.StatusNoContent && r.status != http.StatusNotModified {
		h["Content-Length"] = []string{strconv.Itoa(len(r.body))}
	}
	if r.closing {
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
