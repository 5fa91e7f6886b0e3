package compile

import (
	"fmt"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile/plugin"
)

// routeRecord is what a route has in the compilation.
type routeRecord struct {
	placements []*placement
	// limits are the encoded descriptors by filter.
	limits map[string][]byte
}

func (r *routeRecord) empty() bool { return len(r.placements) == 0 && len(r.limits) == 0 }

// routeCompiler compiles one route of one service.
type routeCompiler struct {
	plugins  *plugin.Plugins
	service  *musterv1.Service // nil without one
	route    *musterv1.Route
	key      resource.Key
	problems resource.Problems
}

func (c *routeCompiler) problem(path, code, message, hint string) {
	c.problems = append(c.problems, resource.Problem{Object: c.key, Path: path, Code: code, Message: message, Hint: hint})
}

// compile returns the route's record and the resources of its own cluster. A
// route with a problem routes nothing.
func (c *routeCompiler) compile() (*routeRecord, []Resource) {
	r := &routeRecord{}
	if !enabled(c.route.Status) {
		return r, nil
	}
	conditions, problems := conditionsOf(c.route)
	for _, p := range problems {
		p.Object = c.key
		c.problems = append(c.problems, p)
	}
	effect, problems := c.plugins.Route(c.route.GetId(), plugin.Merge(c.service, c.route))
	c.problems = append(c.problems, problems...)
	up, cluster, resources := c.upstream()
	if up == nil || len(c.problems) > 0 {
		return r, nil
	}
	template := c.template(up, cluster, effect)
	if c.place(r, template, conditions, effect.Rewrite); len(c.problems) > 0 {
		return &routeRecord{}, nil
	}
	r.limits = limitsOf(effect, false)
	return r, resources
}

// upstream finds where the route goes. A route whose connect timeout differs
// from its service's has a copy of the service's cluster, for in Envoy that
// timeout belongs to the cluster.
func (c *routeCompiler) upstream() (*musterv1.Upstream, string, []Resource) {
	own := c.route.GetUpstream()
	name, path, connect := routeCluster(c.route.GetId()), "upstream", seconds(c.route.GetTimeout().GetConnect(), 0)
	up := own
	if own == nil {
		up = c.service.GetUpstream()
		if up == nil {
			c.problem("", resource.CodeRequired, "neither the route nor its service has an upstream", "give one of them an upstream with nodes")
			return nil, "", nil
		}
		if connect == 0 || connect == connectTimeout(up) {
			return up, serviceCluster(c.service.GetId()), nil
		}
	}
	if connect == 0 {
		connect = connectTimeout(up)
	}
	resources, problems := clusterOf(name, path, up, connect)
	for _, p := range problems {
		p.Object = c.key
		if own == nil {
			p.Object = resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: c.service.GetId()}
		}
		c.problems = append(c.problems, p)
	}
	return up, name, resources
}

// template is the Route of every URI, but for what depends on the URI.
func (c *routeCompiler) template(up *musterv1.Upstream, cluster string, e *plugin.Effect) *routev3.Route {
	action := &routev3.RouteAction{
		ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: cluster},
		Timeout:          durationpb.New(0),
		IdleTimeout:      durationpb.New(c.idleTimeout(up)),
		RateLimits:       e.RateLimits,
	}
	switch {
	case e.Rewrite.Host != "":
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: e.Rewrite.Host}
	case up.GetPassHost() == "rewrite":
		action.HostRewriteSpecifier = &routev3.RouteAction_HostRewriteLiteral{HostRewriteLiteral: up.GetUpstreamHost()}
	case up.GetPassHost() == "node":
		action.HostRewriteSpecifier = &routev3.RouteAction_AutoHostRewrite{AutoHostRewrite: wrapperspb.Bool(true)}
	}
	if c.route.GetEnableWebsocket() || c.route.EnableWebsocket == nil && c.service.GetEnableWebsocket() {
		action.UpgradeConfigs = []*routev3.RouteAction_UpgradeConfig{{UpgradeType: "websocket"}}
	}
	return &routev3.Route{
		Name:                   c.route.GetId(),
		Action:                 &routev3.Route_Route{Route: action},
		TypedPerFilterConfig:   e.PerFilter,
		RequestHeadersToRemove: []string{RouteKeyHeader},
	}
}

// idleTimeout is how long a request may stand still in either direction, which
// is the nearest that Envoy has to nginx's send and read timeouts.
func (c *routeCompiler) idleTimeout(up *musterv1.Upstream) time.Duration {
	t, fallback := c.route.GetTimeout(), up.GetTimeout()
	send := seconds(t.GetSend(), seconds(fallback.GetSend(), defaultTimeout))
	read := seconds(t.GetRead(), seconds(fallback.GetRead(), defaultTimeout))
	return max(send, read)
}

// place makes a placement of each host and URI.
func (c *routeCompiler) place(r *routeRecord, template *routev3.Route, conditions *conditions, rewrite plugin.Rewrite) {
	hosts := c.route.GetHosts()
	if len(hosts) == 0 {
		hosts = c.service.GetHosts()
	}
	if len(hosts) == 0 {
		hosts = []string{""}
	}
	var service resource.Key
	if c.service != nil {
		service = resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: c.service.GetId()}
	}
	seen := map[string]bool{}
	for i, uri := range c.route.GetUris() {
		p := parsePattern(trimmedPrefix(c.service) + uri)
		route := proto.CloneOf(template)
		if problem := c.match(route, p, conditions, rewrite); problem != "" {
			c.problem(fmt.Sprintf("uris[%d]", i), resource.CodeUnsupported, problem, "")
			continue
		}
		body := marshal(route)
		order := orderOf(p, c.route.GetPriority(), conditions.n, c.route.GetId())
		for _, h := range hosts {
			l := levelOf(h)
			if seen[l+"\x00"+order] {
				continue
			}
			seen[l+"\x00"+order] = true
			one := &placement{
				order: order, pattern: p, conditional: conditions.n > 0, body: body,
				level: l, route: c.key, service: service,
			}
			if isWildcard(l) {
				one.open = openBody(route, l)
			}
			r.placements = append(r.placements, one)
		}
	}
}

// openBody is the route as the catch-all has it, where it looks at the host.
func openBody(route *routev3.Route, l level) []byte {
	open := proto.CloneOf(route)
	open.Match.Headers = append(open.Match.Headers, &routev3.HeaderMatcher{
		Name: ":authority",
		HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: &matcherv3.StringMatcher{
			MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: strings.TrimPrefix(l, "*")},
			IgnoreCase:   true,
		}},
	})
	return marshal(open)
}

// match writes what depends on the URI: the match, and the new path.
func (c *routeCompiler) match(route *routev3.Route, p pattern, conditions *conditions, rewrite plugin.Rewrite) string {
	route.Match = &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p.literal}}
	if p.exact {
		route.Match.PathSpecifier = &routev3.RouteMatch_Path{Path: p.literal}
	}
	conditions.apply(route.Match)
	action := route.GetRoute()
	strip := ""
	if c.service != nil && (c.service.StripPathPrefix == nil || c.service.GetStripPathPrefix()) {
		strip = trimmedPrefix(c.service)
	}
	regexRewrite := func(regex, substitution string) {
		action.RegexRewrite = &matcherv3.RegexMatchAndSubstitute{
			Pattern: &matcherv3.RegexMatcher{Regex: regex}, Substitution: substitution,
		}
	}
	switch {
	case rewrite.Path != "" && p.exact:
		action.PrefixRewrite = rewrite.Path
	case rewrite.Path != "":
		regexRewrite("^(?s:.*)$", strings.ReplaceAll(rewrite.Path, `\`, `\\`))
	case rewrite.Pattern != "" && strip != "":
		return "a path prefix that is stripped and the plugin proxy-rewrite's regex_uri cannot both be honoured"
	case rewrite.Pattern != "":
		regexRewrite(plugin.RegexRewrite(rewrite.Pattern, rewrite.Substitution))
	case strip == "":
	default:
		action.PrefixRewrite = p.literal[len(strip):]
	}
	return ""
}

// trimmedPrefix is the service's path_prefix without a slash at its end.
func trimmedPrefix(s *musterv1.Service) string { return strings.TrimRight(s.GetPathPrefix(), "/") }
