package gateway

import (
	"errors"
	"fmt"
	"net/http"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// httpFilter is a filter with its filter-level configuration. It is shared by all
// requests.
type httpFilter interface {
	// begin returns the filter for one request. override is the route's
	// configuration of it, nil when the route only switches it on.
	begin(override any) activeFilter
}

// activeFilter is a filter at work on one request.
type activeFilter interface {
	// request sees the request; a reply answers it here and now.
	request(x *exchange) *reply
	// response sees the headers of the answer, the gateway's own included.
	response(x *exchange, h http.Header)
}

// chainFilter is one place in the chain of a connection manager.
type chainFilter struct {
	name     string
	disabled bool       // unless a route, virtual host or route configuration says otherwise
	filter   httpFilter // nil when it is delivered by ECDS
}

// perFilter is an entry of typed_per_filter_config.
type perFilter struct {
	disabled bool
	override any // nil switches the filter on as it is
}

// router is the last filter; it has no begin because it answers.
type router struct {
	suppressEnvoyHeaders bool
}

var errNotAFilter = errors.New("is no HTTP filter that the gateway has")

// newFilter compiles the filter-level configuration of a filter. previous is the
// filter of the same name before the change; its rate-limit buckets live on.
func (g *Gateway) newFilter(config *anypb.Any, previous httpFilter) (httpFilter, error) {
	m, err := config.UnmarshalNew()
	if err != nil {
		return nil, err
	}
	if err := g.checker.check(m); err != nil {
		return nil, err
	}
	switch m := m.(type) {
	case *corsv3.Cors:
		return corsFilter{}, nil
	case *rbacv3.RBAC:
		return newRBACFilter(m)
	case *apikeyv3.ApiKeyAuth:
		return newAPIKeyFilter(m)
	case *matchingv3.ExtensionWithMatcher:
		return g.newMatchedFilter(m)
	case *localratelimitv3.LocalRateLimit:
		old, _ := previous.(*rateLimitFilter)
		return newRateLimitFilter(m, old, g.now)
	case *headermutationv3.HeaderMutation:
		return newHeaderMutationFilter(m)
	}
	return nil, fmt.Errorf("%s %w", config.MessageName(), errNotAFilter)
}

// newHTTPFilters compiles the HTTP filters of a connection manager.
func (g *Gateway) newHTTPFilters(list []*hcmv3.HttpFilter, previous *filterChain) ([]chainFilter, *router, error) {
	var out []chainFilter
	for i, hf := range list {
		if hf.GetConfigDiscovery() != nil {
			out = append(out, chainFilter{name: hf.GetName(), disabled: hf.GetDisabled()})
			continue
		}
		if hf.GetTypedConfig().MessageIs((*routerv3.Router)(nil)) {
			if i != len(list)-1 {
				return nil, nil, fmt.Errorf("filter %q: the router has to be the last filter", hf.GetName())
			}
			r := &routerv3.Router{}
			if err := hf.GetTypedConfig().UnmarshalTo(r); err != nil {
				return nil, nil, fmt.Errorf("filter %q: %w", hf.GetName(), err)
			}
			return out, &router{suppressEnvoyHeaders: r.GetSuppressEnvoyHeaders()}, nil
		}
		f, err := g.newFilter(hf.GetTypedConfig(), previous.filterNamed(hf.GetName()))
		if err != nil {
			return nil, nil, fmt.Errorf("filter %q: %w", hf.GetName(), err)
		}
		out = append(out, chainFilter{name: hf.GetName(), disabled: hf.GetDisabled(), filter: f})
	}
	return nil, nil, errors.New("the chain of filters has no router")
}

// newPerFilters compiles a typed_per_filter_config.
func (g *Gateway) newPerFilters(configs map[string]*anypb.Any) (map[string]perFilter, error) {
	if len(configs) == 0 {
		return nil, nil
	}
	out := make(map[string]perFilter, len(configs))
	for name, config := range configs {
		p, err := g.newPerFilter(config)
		if err != nil {
			return nil, fmt.Errorf("typed_per_filter_config[%q]: %w", name, err)
		}
		out[name] = p
	}
	return out, nil
}

func (g *Gateway) newPerFilter(config *anypb.Any) (perFilter, error) {
	m, err := config.UnmarshalNew()
	if err != nil {
		return perFilter{}, err
	}
	if fc, ok := m.(*routev3.FilterConfig); ok {
		switch inner := fc.GetConfig(); {
		case fc.GetDisabled():
			return perFilter{disabled: true}, nil
		case inner == nil || inner.GetTypeUrl() == "":
			return perFilter{}, nil
		default:
			return g.newPerFilter(inner)
		}
	}
	p := perFilter{}
	switch m := m.(type) {
	case *corsv3.CorsPolicy:
		p.override, err = newCORSPolicy(m)
	case *rbacv3.RBACPerRoute:
		p.override, err = newRBACRules(m.GetRbac().GetRules())
	case *apikeyv3.ApiKeyAuthPerRoute:
		p.override, err = newAPIKeyOverride(m)
	case *headermutationv3.HeaderMutationPerRoute:
		p.override, err = newHeaderMutations(m.GetMutations())
	default:
		err = fmt.Errorf("%s is not supported", config.MessageName())
	}
	return p, err
}

// extensionConfig is a filter delivered by ECDS.
type extensionConfig struct {
	name   string
	filter httpFilter
}

func (g *Gateway) newExtensionConfig(body *anypb.Any, previous *extensionConfig) (*extensionConfig, error) {
	m := &corev3.TypedExtensionConfig{}
	if err := g.checker.decode(body, m); err != nil {
		return nil, err
	}
	var old httpFilter
	if previous != nil {
		old = previous.filter
	}
	f, err := g.newFilter(m.GetTypedConfig(), old)
	if err != nil {
		return nil, err
	}
	return &extensionConfig{name: m.GetName(), filter: f}, nil
}

// selectFilters finds the filters that are on for a request. The most specific of
// route, virtual host and route configuration decides. It returns false when one
// of them is to be delivered by ECDS and is not there.
func (x *exchange) selectFilters() bool {
	for i := range x.chain.filters {
		cf := &x.chain.filters[i]
		per, configured := x.perFilter(cf.name)
		if per.disabled || !configured && cf.disabled {
			continue
		}
		f := cf.filter
		if f == nil {
			ext, ok := x.table.extensions.Get([]byte(cf.name))
			if !ok {
				return false
			}
			f = ext.filter
		}
		if a := f.begin(per.override); a != nil {
			x.active = append(x.active, a)
		}
	}
	return true
}

func (x *exchange) perFilter(name string) (perFilter, bool) {
	if x.route != nil {
		if p, ok := x.route.perFilter[name]; ok {
			return p, true
		}
	}
	if x.vhost != nil {
		if p, ok := x.vhost.perFilter[name]; ok {
			return p, true
		}
	}
	p, ok := x.routeConfig.perFilter[name]
	return p, ok
}
