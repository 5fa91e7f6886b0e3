package gateway

import (
	"net/http"
	"strings"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
)

// corsFilter answers preflights and marks answers, as the route's policy says.
type corsFilter struct{}

// corsPolicy is a compiled CorsPolicy.
type corsPolicy struct {
	origins                        []stringMatch
	methods, headers, expose, age  string
	credentials, forwardUnmatching bool
}

func newCORSPolicy(m *corsv3.CorsPolicy) (*corsPolicy, error) {
	p := &corsPolicy{
		methods: m.GetAllowMethods(), headers: m.GetAllowHeaders(), expose: m.GetExposeHeaders(),
		age: m.GetMaxAge(), credentials: m.GetAllowCredentials().GetValue(),
		forwardUnmatching: m.GetForwardNotMatchingPreflights() == nil || m.GetForwardNotMatchingPreflights().GetValue(),
	}
	for _, o := range m.GetAllowOriginStringMatch() {
		match, err := newStringMatch(o)
		if err != nil {
			return nil, err
		}
		p.origins = append(p.origins, match)
	}
	return p, nil
}

func (corsFilter) begin(override any) activeFilter {
	p, ok := override.(*corsPolicy)
	if !ok {
		return nil // without a policy the filter does nothing
	}
	return &corsRequest{policy: p}
}

type corsRequest struct {
	policy  *corsPolicy
	origin  string
	allowed bool
}

func (p *corsPolicy) allows(origin string) bool {
	for _, match := range p.origins {
		if match("*") || match(origin) {
			return true
		}
	}
	return false
}

func (c *corsRequest) request(x *exchange) *reply {
	c.origin = strings.Join(x.in.Header["Origin"], ",") // two are none that is allowed
	if c.origin == "" || x.route.forward == nil {
		return nil // Envoy's does nothing on direct responses either
	}
	c.allowed = c.policy.allows(c.origin)
	asked := x.in.Header.Get("Access-Control-Request-Method")
	if x.method != http.MethodOptions || asked == "" || !c.allowed && c.policy.forwardUnmatching {
		return nil
	}
	h := http.Header{}
	c.response(x, h)
	if c.policy.methods != "" {
		h.Set("Access-Control-Allow-Methods", orAsked(c.policy.methods, asked))
	}
	if c.policy.headers != "" {
		h.Set("Access-Control-Allow-Headers", orAsked(c.policy.headers, x.in.Header.Get("Access-Control-Request-Headers")))
	}
	if c.policy.age != "" {
		h.Set("Access-Control-Max-Age", c.policy.age)
	}
	return &reply{status: http.StatusOK, header: h}
}

// orAsked returns what is configured, or for `*` what the client asked for.
func orAsked(configured, asked string) string {
	if configured == "*" {
		return asked
	}
	return configured
}

func (c *corsRequest) response(_ *exchange, h http.Header) {
	if !c.allowed {
		return
	}
	h.Set("Access-Control-Allow-Origin", c.origin)
	if c.policy.credentials {
		h.Set("Access-Control-Allow-Credentials", "true")
	}
	if c.policy.expose != "" {
		h.Set("Access-Control-Expose-Headers", c.policy.expose)
	}
}
