package gateway

import (
	"fmt"
	"net/http"
	"net/url"
	"strings"

	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
)

// apiKeyFilter admits requests that carry a known key and tells the upstream whose.
type apiKeyFilter struct {
	credentials map[string]string // client by key
	sources     []keySource
	forwarding  *keyForwarding
}

// apiKeyOverride is what a route says otherwise.
type apiKeyOverride struct {
	credentials map[string]string // nil: the filter's
	sources     []keySource       // nil: the filter's
	clients     map[string]bool   // nil: all
	forwarding  *keyForwarding    // a route's override replaces the filter's
}

type keySource struct {
	header, query, cookie string
}

type keyForwarding struct {
	header string // canonical
	hide   bool
}

func newAPIKeyFilter(m *apikeyv3.ApiKeyAuth) (*apiKeyFilter, error) {
	credentials, err := newCredentials(m.GetCredentials())
	if err != nil {
		return nil, err
	}
	return &apiKeyFilter{
		credentials: credentials, sources: newKeySources(m.GetKeySources()), forwarding: newForwarding(m.GetForwarding()),
	}, nil
}

func newAPIKeyOverride(m *apikeyv3.ApiKeyAuthPerRoute) (*apiKeyOverride, error) {
	credentials, err := newCredentials(m.GetCredentials())
	if err != nil {
		return nil, err
	}
	o := &apiKeyOverride{
		credentials: credentials, sources: newKeySources(m.GetKeySources()), forwarding: newForwarding(m.GetForwarding()),
	}
	for _, c := range m.GetAllowedClients() {
		if o.clients == nil {
			o.clients = map[string]bool{}
		}
		o.clients[c] = true
	}
	return o, nil
}

func newCredentials(list []*apikeyv3.Credential) (map[string]string, error) {
	if len(list) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(list))
	for i, c := range list {
		if _, ok := out[c.GetKey()]; ok {
			return nil, fmt.Errorf("credentials[%d]: duplicated credential key", i) // never the key itself
		}
		out[c.GetKey()] = c.GetClient()
	}
	return out, nil
}

func newKeySources(list []*apikeyv3.KeySource) []keySource {
	var out []keySource
	for _, s := range list {
		src := keySource{query: s.GetQuery(), cookie: s.GetCookie()}
		if s.GetHeader() != "" {
			src.header = headerName(s.GetHeader())
		}
		out = append(out, src)
	}
	return out
}

func newForwarding(m *apikeyv3.Forwarding) *keyForwarding {
	if m == nil {
		return nil
	}
	f := &keyForwarding{hide: m.GetHideCredentials()}
	if m.GetHeader() != "" {
		f.header = headerName(m.GetHeader())
	}
	return f
}

func (f *apiKeyFilter) begin(override any) activeFilter {
	o, _ := override.(*apiKeyOverride)
	return &apiKeyRequest{filter: f, override: o}
}

type apiKeyRequest struct {
	filter   *apiKeyFilter
	override *apiKeyOverride
}

func (a *apiKeyRequest) request(x *exchange) *reply {
	credentials, sources, forwarding := a.filter.credentials, a.filter.sources, a.filter.forwarding
	var clients map[string]bool
	if o := a.override; o != nil {
		if o.credentials != nil {
			credentials = o.credentials
		}
		if o.sources != nil {
			sources = o.sources
		}
		clients, forwarding = o.clients, o.forwarding
	}
	client, known := credentials[keyOf(x, sources)]
	switch {
	case !known:
		return &reply{status: http.StatusUnauthorized, body: "Client authentication failed."}
	case clients != nil && !clients[client]:
		return &reply{status: http.StatusForbidden, body: "Client is forbidden."}
	case forwarding == nil:
		return nil
	}
	if forwarding.header != "" {
		x.in.Header[forwarding.header] = []string{client}
	}
	if forwarding.hide {
		for _, s := range sources {
			s.hide(x)
		}
	}
	return nil
}

func (a *apiKeyRequest) response(*exchange, http.Header) {}

// keyOf returns the key in the first source that has one.
func keyOf(x *exchange, sources []keySource) string {
	for _, s := range sources {
		if key := s.key(x); key != "" {
			return key
		}
	}
	return ""
}

func (s keySource) key(x *exchange) string {
	switch {
	case s.header != "":
		// Behind `Bearer `, whatever the header, as Envoy does.
		v, _ := x.headerValue(s.header)
		return strings.TrimPrefix(v, "Bearer ")
	case s.query != "":
		return decodedQueryValue(x.query, s.query)
	}
	v, _ := x.cookie(s.cookie)
	return v
}

// hide removes the key from the request.
func (s keySource) hide(x *exchange) {
	switch {
	case s.header != "":
		delete(x.in.Header, s.header)
	case s.query != "":
		x.removeQuery(s.query)
	case s.cookie != "":
		x.removeCookie(s.cookie)
	}
}

// decodedQueryValue returns the first value of a parameter, percent-decoded.
func decodedQueryValue(query, name string) string {
	for part := range strings.SplitSeq(query, "&") {
		k, v, _ := strings.Cut(part, "=")
		if percentDecode(k) == name {
			return percentDecode(v)
		}
	}
	return ""
}

// percentDecode decodes what is validly encoded; '+' stays as it is.
func percentDecode(s string) string {
	if !strings.Contains(s, "%") {
		return s
	}
	if out, err := url.PathUnescape(s); err == nil {
		return out
	}
	return s
}

func (x *exchange) removeQuery(name string) {
	if !x.hasQuery {
		return
	}
	var kept []string
	for part := range strings.SplitSeq(x.query, "&") {
		if k, _, _ := strings.Cut(part, "="); percentDecode(k) != name {
			kept = append(kept, part)
		}
	}
	x.query = strings.Join(kept, "&")
	x.hasQuery = len(kept) > 0
}

func (x *exchange) removeCookie(name string) {
	var lines []string
	for _, line := range x.in.Header["Cookie"] {
		var kept []string
		for part := range strings.SplitSeq(line, ";") {
			part = strings.TrimLeft(part, " ")
			if k, _, _ := strings.Cut(part, "="); k != name && part != "" {
				kept = append(kept, part)
			}
		}
		if len(kept) > 0 {
			lines = append(lines, strings.Join(kept, "; "))
		}
	}
	if len(lines) == 0 {
		delete(x.in.Header, "Cookie")
		return
	}
	x.in.Header["Cookie"] = lines
}
