package plugin

import (
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// The extensions behind the filters.
const (
	corsType           = "type.googleapis.com/envoy.extensions.filters.http.cors.v3.Cors"
	rbacType           = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
	apiKeyAuthType     = "type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth"
	matchedType        = "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher"
	headerMutationType = "type.googleapis.com/envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
	localRateLimitType = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
)

// GlobalPrefix begins the names of the filters that global rules switch on.
// They have filters of their own because a per-filter configuration of a route
// would replace one of the route configuration.
const GlobalPrefix = "global."

// Filter is one HTTP filter of the fixed chain.
type Filter struct {
	Name, TypeURL string
	// Discovered filters get their configuration by ECDS.
	Discovered bool
	// Config is the configuration of the others; nil is empty.
	Config func() proto.Message
}

// Chain lists the filters in the order in which requests pass them.
func Chain() []Filter {
	return []Filter{
		{GlobalPrefix + "cors", corsType, false, nil},
		{GlobalPrefix + "ip-restriction", rbacType, false, nil},
		{GlobalPrefix + keySourceFilter, headerMutationType, false, defaultKeySource},
		{GlobalPrefix + "key-auth", matchedType, true, nil},
		{GlobalPrefix + "limit-count", localRateLimitType, true, nil},
		{GlobalPrefix + "limit-count-429", localRateLimitType, true, nil},
		{GlobalPrefix + "proxy-rewrite", headerMutationType, false, nil},
		{"cors", corsType, false, nil},
		{"ip-restriction", rbacType, false, nil},
		{keySourceFilter, headerMutationType, false, defaultKeySource},
		{"key-auth", matchedType, true, nil},
		{"proxy-rewrite", headerMutationType, false, nil},
		{"limit-count", localRateLimitType, true, nil},
		{"limit-count-429", localRateLimitType, true, nil},
	}
}

// Effect is what plugins do with the requests of a route, or of a global rule.
type Effect struct {
	// PerFilter is typed_per_filter_config, by the filters' names.
	PerFilter map[string]*anypb.Any
	// Rewrite changes what is sent upstream. Routes only.
	Rewrite Rewrite
	// RateLimits say what is counted.
	RateLimits []*routev3.RateLimit
	// Limits say how much.
	Limits []Limit

	// scope names what counts for itself: the route's or rule's id. global tells
	// which filters are meant.
	scope  string
	global bool
}

// Rewrite changes host and path of a request. The zero value changes nothing.
type Rewrite struct {
	// Host is sent upstream instead of what the upstream's pass_host says.
	Host string
	// Path replaces the path, or Pattern is replaced in it by Substitution.
	Path                  string
	Pattern, Substitution string
}

// Limit is a descriptor of one of the rate limit filters.
type Limit struct {
	// Filter is the filter's name.
	Filter string
	// RateLimit is the action list that asks for the descriptor.
	RateLimit  *routev3.RateLimit
	Descriptor *ratelimitv3.LocalRateLimitDescriptor
}

// filter is the name of a plugin's filter in this scope.
func (e *Effect) filter(name string) string {
	if e.global {
		return GlobalPrefix + name
	}
	return name
}

// enable switches a filter on with a configuration.
func (e *Effect) enable(name string, config proto.Message) {
	if e.PerFilter == nil {
		e.PerFilter = map[string]*anypb.Any{}
	}
	e.PerFilter[e.filter(name)] = packed(config)
}

// enableDiscovered switches a filter on with the configuration that it has.
func (e *Effect) enableDiscovered(name string) {
	e.enable(name, &routev3.FilterConfig{Config: &anypb.Any{}})
}

// Configured is a plugin's configuration and the resource that it stands in.
type Configured struct {
	Name   string
	Config *structpb.Struct
	Origin resource.Key
	Where  resource.Where
}

// Merge lists the plugins of a route: those of its service, and its own, which
// replace the service's of the same name. Either may be nil.
func Merge(service *musterv1.Service, route *musterv1.Route) []Configured {
	var all []Configured
	for _, name := range sortedKeys(service.GetPlugins()) {
		if _, replaced := route.GetPlugins()[name]; replaced {
			continue
		}
		all = append(all, Configured{name, service.GetPlugins()[name], resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: service.GetId()}, resource.WhereService})
	}
	for _, name := range sortedKeys(route.GetPlugins()) {
		all = append(all, Configured{name, route.GetPlugins()[name], resource.Key{Kind: musterv1.Kind_KIND_ROUTE, ID: route.GetId()}, resource.WhereRoute})
	}
	return all
}

// Route translates the plugins of a route. Those with problems are left out.
func (s *Plugins) Route(routeID string, configs []Configured) (*Effect, resource.Problems) {
	return s.translate(&Effect{scope: routeID}, configs)
}

// GlobalRule translates plugins of global rules, with at most one of a name.
func (s *Plugins) GlobalRule(ruleID string, configs []Configured) (*Effect, resource.Problems) {
	return s.translate(&Effect{scope: ruleID, global: true}, configs)
}

func (s *Plugins) translate(e *Effect, configs []Configured) (*Effect, resource.Problems) {
	var problems resource.Problems
	for _, c := range configs {
		found := s.Check(c.Name, c.Where, c.Config)
		for _, p := range found {
			p.Object = c.Origin
			p.Path = strings.TrimSuffix("plugins."+c.Name+"."+p.Path, ".")
			problems = append(problems, p)
		}
		if len(found) > 0 || disabled(c.Config) {
			continue
		}
		rest, _ := withoutMeta(c.Config)
		s.byName[c.Name].apply(e, rest)
	}
	return e, problems
}

// packed wraps a message deterministically. Encoding could fail only for text
// that is not UTF-8, which neither protobuf nor JSON lets into a resource.
func packed(m proto.Message) *anypb.Any {
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		value = nil
	}
	return &anypb.Any{TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()), Value: value}
}
