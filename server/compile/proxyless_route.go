package compile

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile/plugin"
)

// grpcCompiler compiles one service for gRPC clients. What they cannot honour
// becomes a warning: a route of which they cannot honour a condition is left
// out, for without it the route would take calls that are not its own.
type grpcCompiler struct {
	plugins  *plugin.Plugins
	view     state.View
	service  *state.Entry
	warnings resource.Problems
	// clusters are those of the service and of each of its routes, by owner.
	clusters map[resource.Key][]Resource
	// actions are the upstreams that were compiled, by the name of their cluster;
	// nil for one that cannot be.
	actions map[string]*routev3.RouteAction
}

// grpcRoute is a route on its way, with what it is sorted by.
type grpcRoute struct {
	order string
	index int // of several that stand for one
	route *routev3.Route
}

func (c *grpcCompiler) warn(object resource.Key, path, message, hint string) {
	c.warnings = append(c.warnings, resource.Problem{Object: object, Path: path, Code: resource.CodeUnsupported, Message: message, Hint: hint})
}

// compile returns the service's Listener and RouteConfiguration.
func (c *grpcCompiler) compile() []Resource {
	s := c.service.Resource.GetService()
	name := grpcPrefix + serviceCluster(s.GetId())
	c.actions, c.clusters = map[string]*routev3.RouteAction{}, map[resource.Key][]Resource{}
	c.refusePlugins(s.GetPlugins(), c.service.Key)
	origins := []resource.Key{c.service.Key}
	var routes []grpcRoute
	for e := range c.view.RoutesOf(s.GetId()) {
		c.clusters[e.Key] = nil
		if enabled(e.Resource.GetRoute().Status) {
			origins = append(origins, e.Key)
			routes = append(routes, c.route(e)...)
		}
	}
	host := &routev3.VirtualHost{Name: s.GetId(), Domains: []string{"*"}}
	slices.SortFunc(routes, func(a, b grpcRoute) int {
		return cmp.Or(strings.Compare(a.order, b.order), cmp.Compare(a.index, b.index))
	})
	for _, r := range routes {
		host.Routes = append(host.Routes, r.route)
	}
	if len(host.Routes) == 0 {
		c.warn(c.service.Key, "", "no route can take a call: each fails with UNAVAILABLE", "add a route, for example for /*")
		host.Routes = []*routev3.Route{{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{}},
			Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: grpcNone}}},
		}}
	}
	return []Resource{
		{Key: Key{ListenerType, s.GetId()}, Origins: origins[:1], Body: marshal(grpcListener(s.GetId(), name, c.service.Created))},
		{Key: Key{RouteConfigurationType, name}, Origins: origins, Body: marshal(&routev3.RouteConfiguration{Name: name, VirtualHosts: []*routev3.VirtualHost{host}})},
	}
}

// route compiles one route; nothing for one that gateways do not have either.
func (c *grpcCompiler) route(e *state.Entry) []grpcRoute {
	r, s := e.Resource.GetRoute(), c.service.Resource.GetService()
	all, problems := conditionsOf(r)
	_, wrong := c.plugins.Route(r.GetId(), plugin.Merge(s, r))
	if problems = append(problems, wrong...); len(problems) > 0 {
		return nil
	}
	c.refusePlugins(r.GetPlugins(), e.Key)
	if len(r.GetHosts()) > 0 {
		c.warn(e.Key, "hosts", "a proxyless gRPC client does not look at hosts: it names the service itself", "")
	}
	alternatives, ok := c.conditions(e.Key, r)
	if !ok {
		return nil
	}
	action := c.action(e)
	if action == nil {
		return nil
	}
	c.timeouts(e.Key, action, r)
	var out []grpcRoute
	seen := map[string]bool{}
	for _, uri := range r.GetUris() {
		// A client calls what the node serves: the path after the rewrite.
		if s.StripPathPrefix != nil && !s.GetStripPathPrefix() {
			uri = trimmedPrefix(s) + uri
		}
		p := parsePattern(uri)
		order := orderOf(p, r.GetPriority(), all.n, r.GetId())
		if seen[order] {
			continue
		}
		seen[order] = true
		for i, headers := range alternatives {
			m := &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: p.literal}, Headers: headers}
			if p.exact {
				m.PathSpecifier = &routev3.RouteMatch_Path{Path: p.literal}
			}
			out = append(out, grpcRoute{order, i, &routev3.Route{Name: r.GetId(), Match: m, Action: &routev3.Route_Route{Route: action}}})
		}
	}
	return out
}

// refusePlugins warns of plugins: they run in gateways only.
func (c *grpcCompiler) refusePlugins(plugins map[string]*structpb.Struct, object resource.Key) {
	for _, name := range plugin.Enabled(plugins) {
		c.warn(object, "plugins."+name, "a proxyless gRPC client passes no gateway, so the plugin does nothing for its calls", "")
	}
}

// globalRules warns of the plugins of all global rules.
func (t *grpcTxn) globalRules() resource.Problems {
	c := &grpcCompiler{}
	for e := range t.view.All(musterv1.Kind_KIND_GLOBAL_RULE) {
		c.refusePlugins(e.Resource.GetGlobalRule().GetPlugins(), e.Key)
	}
	return tidied(c.warnings)
}

// action compiles the route's upstream, or the service's once for all its routes.
func (c *grpcCompiler) action(e *state.Entry) *routev3.RouteAction {
	u := &grpcUpstream{name: grpcPrefix + routeCluster(e.Key.ID), owner: e, origins: []resource.Key{e.Key, c.service.Key}}
	if u.Upstream = e.Resource.GetRoute().GetUpstream(); u.Upstream == nil {
		u = &grpcUpstream{name: grpcPrefix + serviceCluster(c.service.Key.ID), owner: c.service, origins: []resource.Key{c.service.Key}}
		if u.Upstream = c.service.Resource.GetService().GetUpstream(); u.Upstream == nil {
			return nil
		}
	}
	action, done := c.actions[u.name]
	if !done {
		// What gateways do not get is not given to gRPC either.
		if _, problems := clusterOf(u.name, "upstream", u.Upstream, connectTimeout(u.Upstream)); len(problems) == 0 {
			c.clusters[u.owner.Key] = append(c.clusters[u.owner.Key], u.compile()...)
			c.warnings = append(c.warnings, u.warnings...)
			action = u.action
		}
		c.actions[u.name] = action
	}
	if action == nil {
		return nil
	}
	return &routev3.RouteAction{ClusterSpecifier: action.ClusterSpecifier, HashPolicy: action.HashPolicy, RetryPolicy: action.RetryPolicy, MaxStreamDuration: action.MaxStreamDuration}
}

// timeouts sets the route's own.
func (c *grpcCompiler) timeouts(key resource.Key, action *routev3.RouteAction, r *musterv1.Route) {
	u := &grpcUpstream{owner: &state.Entry{Key: key}}
	u.timeout("timeout", r.GetTimeout())
	c.warnings = append(c.warnings, u.warnings...)
	if u.limit != nil {
		action.MaxStreamDuration = u.limit
	}
}

// timeout turns a timeout that was set into the limit of the whole call, which is
// the only one that gRPC has.
func (u *grpcUpstream) timeout(path string, t *musterv1.Timeout) {
	if t.GetConnect() > 0 {
		u.warn(path+".connect", "gRPC has a connect timeout of its own", "")
	}
	if t.GetSend() > 0 {
		u.warn(path+".send", "gRPC has no timeout for sending", "")
	}
	if t.GetRead() > 0 {
		u.warn(path+".read", "in gRPC it bounds the whole call, streams too", "")
		u.limit = &routev3.RouteAction_MaxStreamDuration{MaxStreamDuration: durationpb.New(seconds(t.GetRead(), defaultTimeout))}
	}
}

// retries sets how often another try is made. By itself gRPC tries again, on
// another connection, what surely did not reach a server, which is what gateways
// do by default. More is asked for explicitly.
func (u *grpcUpstream) retries() *routev3.RetryPolicy {
	const most = 4 // of gRPC, whatever the policy says
	n := u.Upstream.GetRetries()
	if n <= 0 {
		return nil // a policy of 0 retries is refused by some clients, and fails calls in grpc-java
	}
	if n > most {
		u.warn("upstream.retries", fmt.Sprintf("gRPC makes %d retries at most", most), "")
	}
	return &routev3.RetryPolicy{RetryOn: "unavailable", NumRetries: wrapperspb.UInt32(min(uint32(n), most))}
}

// serverRoutes let a gRPC server take every call.
func serverRoutes() *routev3.RouteConfiguration {
	return &routev3.RouteConfiguration{Name: ServerRoutes, VirtualHosts: []*routev3.VirtualHost{{
		Name: ServerRoutes, Domains: []string{"*"},
		Routes: []*routev3.Route{{
			Match:  &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{}},
			Action: &routev3.Route_NonForwardingAction{NonForwardingAction: &routev3.NonForwardingAction{}},
		}},
	}}}
}

// serverAddress reads the address in the name of a server's Listener. The
// Listener must hold it as the server knows it.
func serverAddress(name string) (*corev3.Address, bool) {
	text, ok := strings.CutPrefix(name, ServerListenerPrefix)
	if !ok {
		return nil, false
	}
	a, err := netip.ParseAddrPort(text)
	if err != nil || a.Port() == 0 || len(text) > maxAddress {
		return nil, false
	}
	return socketAddress(a.Addr().String(), uint32(a.Port())), true
}

// maxAddress bounds what a client may make us keep: an IPv6 address, with a zone,
// and a port.
const maxAddress = 80

func utoa(n uint64) string { return strconv.FormatUint(n, 10) }
