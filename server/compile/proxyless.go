package compile

import (
	"regexp"
	"slices"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routerv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/router/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	iradix "github.com/hashicorp/go-immutable-radix/v2"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

// Proxyless is a group's compilation for gRPC's own xDS clients, beside that for
// gateways, and made only for groups that have such clients: a Listener for each
// service, its routes, clusters and endpoints. It is immutable; all methods are
// safe for concurrent use.
type Proxyless struct {
	// base holds what was compiled, and the raw xDS resources.
	base *Compiled
	// services is what each service came to, by id.
	services *iradix.Tree[*grpcService]
	// serviceOf is the service of each route, by the route's id.
	serviceOf *iradix.Tree[string]
	// named are the ids of services by name and id, for clients that ask by name.
	named *iradix.Tree[string]
	// rules are the warnings about the global rules.
	rules resource.Problems
}

// grpcService is what is known of a compiled service.
type grpcService struct {
	name     string
	warnings resource.Problems
}

// EmptyProxyless is the compilation of a group that has never been compiled.
func EmptyProxyless() *Proxyless {
	return &Proxyless{base: Empty(), services: iradix.New[*grpcService](), serviceOf: iradix.New[string](), named: iradix.New[string]()}
}

// FullProxyless compiles a whole view; the Delta holds everything.
func FullProxyless(v state.View) (*Proxyless, Delta) {
	changes := make([]state.Change, 0, v.Len())
	for e := range v.Entries() {
		changes = append(changes, state.Change{Key: e.Key, After: e})
	}
	return EmptyProxyless().Next(v, changes)
}

// Next compiles the view that differs from the one p was compiled from by the
// changes. It costs O(the services touched, with their routes).
func (p *Proxyless) Next(v state.View, changes []state.Change) (*Proxyless, Delta) {
	t := &grpcTxn{
		txn: p.base.txn(v), services: p.services.Txn(), serviceOf: p.serviceOf.Txn(), named: p.named.Txn(),
		dirty: map[string]struct{}{}, names: map[string]struct{}{},
	}
	t.after = p.base.tree
	next := &Proxyless{rules: p.rules}
	if !p.base.started {
		t.fixed()
	}
	rules := false
	for _, c := range changes {
		rules = rules || c.Key.Kind == musterv1.Kind_KIND_GLOBAL_RULE
		t.object(c.Key)
	}
	for id := range t.dirty {
		t.service(id)
	}
	for name := range t.names {
		t.alias(name)
	}
	if rules {
		next.rules = t.globalRules()
	}
	base, delta, _ := t.commit()
	next.base, next.services = base, t.services.CommitOnly()
	next.serviceOf, next.named = t.serviceOf.CommitOnly(), t.named.CommitOnly()
	return next, delta
}

// Warnings tells what of the service behind a listener's name, and of the
// group's global rules, gRPC clients cannot honour. known is false when the name
// is that of no service; the group may have a raw listener of the name.
func (p *Proxyless) Warnings(listener string) (warnings resource.Problems, known bool) {
	if _, raw := p.base.out.Get(outKey(Key{ListenerType, listener})); !raw && p.base.effective(Key{ListenerType, listener}) != nil {
		return nil, true
	}
	id := listener
	if _, found := p.services.Get([]byte(id)); !found {
		id, found = firstNamed(p.named.Root(), listener)
		if !found {
			return nil, false
		}
	}
	s, _ := p.services.Get([]byte(id))
	return append(slices.Clone(s.warnings), p.rules...), true
}

// The names of what gRPC clients get. They share none with gateways, so that a
// refusal or a status cannot be taken for a gateway's.
const grpcPrefix = "grpc/"

// ServerRoutes is the name of the routes of gRPC servers.
const ServerRoutes = grpcPrefix + "server"

// grpcNone is the cluster that no call can be sent by. A route configuration
// without a route would be refused by some clients, and hang calls in others.
const grpcNone = grpcPrefix + "none"

// grpcTxn makes the next Proxyless.
type grpcTxn struct {
	*txn
	services         *iradix.Txn[*grpcService]
	serviceOf, named *iradix.Txn[string]
	// dirty are the services to compile, by id, and names the listener names that
	// may stand for another service.
	dirty, names map[string]struct{}
}

// fixed makes what every group has.
func (t *grpcTxn) fixed() {
	none := &grpcUpstream{name: grpcNone, Upstream: &musterv1.Upstream{}}
	for _, r := range none.compile() {
		t.put(r)
	}
	t.put(Resource{Key: Key{RouteConfigurationType, ServerRoutes}, Body: marshal(serverRoutes())})
}

// object takes in that an object may have changed.
func (t *grpcTxn) object(key resource.Key) {
	switch key.Kind {
	case musterv1.Kind_KIND_SERVICE:
		t.dirty[key.ID] = struct{}{}
	case musterv1.Kind_KIND_ROUTE:
		if id, found := t.serviceOf.Delete([]byte(key.ID)); found {
			t.dirty[id] = struct{}{}
		}
		if e, found := t.view.Get(key); found && e.Resource.GetRoute().GetServiceId() != "" {
			id := e.Resource.GetRoute().GetServiceId()
			t.serviceOf.Insert([]byte(key.ID), id)
			t.dirty[id] = struct{}{}
		} else {
			t.hold(key, nil)
		}
	case musterv1.Kind_KIND_XDS_RESOURCE:
		var x *musterv1.XdsResource
		if e, found := t.view.Get(key); found {
			x = e.Resource.GetXdsResource()
		}
		t.rawResource(key, x)
	}
}

// service compiles a service with its routes.
func (t *grpcTxn) service(id string) {
	key := resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: id}
	old, had := t.services.Get([]byte(id))
	if had {
		t.named.Delete(namedKey(old.name, id))
		t.names[old.name] = struct{}{}
	}
	e, found := t.view.Get(key)
	if had != found {
		// The id is or was a name that another service is asked for by, perhaps.
		t.names[id] = struct{}{}
	}
	if !found || e.Resource.GetService().GetType() == "stream" {
		t.services.Delete([]byte(id))
		t.hold(key, nil)
		for route := range t.view.RoutesOf(id) {
			t.hold(route.Key, nil)
		}
		return
	}
	c := &grpcCompiler{plugins: t.plugins, view: t.view, service: e}
	resources := c.compile()
	name := e.Resource.GetService().GetName()
	t.services.Insert([]byte(id), &grpcService{name, tidied(c.warnings)})
	t.named.Insert(namedKey(name, id), id)
	t.names[name] = struct{}{}
	t.hold(key, append(resources, c.clusters[key]...))
	for owner, clusters := range c.clusters {
		if owner != key {
			t.hold(owner, clusters)
		}
	}
}

// alias makes the Listener of a service's name, for a service has an id that
// often nobody chose. Ids go first; of services of one name the first by id has it.
func (t *grpcTxn) alias(name string) {
	if !askable.MatchString(name) {
		return
	}
	if _, isID := t.services.Get([]byte(name)); isID {
		return
	}
	key := Key{ListenerType, name}
	id, found := firstNamed(t.named.Root(), name)
	if !found {
		t.drop(key)
		return
	}
	service := resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: id}
	e, _ := t.view.Get(service)
	t.put(Resource{Key: key, Origins: []resource.Key{service}, Body: marshal(grpcListener(name, grpcPrefix+serviceCluster(id), e.Revision))})
}

// askable are the names of services that may be asked for: what ids may be.
var askable = regexp.MustCompile(`^[a-zA-Z0-9_.-]{1,256}$`)

func namedKey(name, id string) []byte { return []byte(name + "\x00" + id) }

func firstNamed(root *iradix.Node[string], name string) (id string, found bool) {
	root.WalkPrefix(namedKey(name, ""), func(_ []byte, v string) bool {
		id, found = v, true
		return true
	})
	return id, found
}

// grpcListener is the Listener of a target `xds:///<name>`.
//
// The marker, a revision, makes a Listener that was deleted and made again
// another one: grpc-js acknowledges one that comes back as it was, and then
// never uses it, for it takes it for unchanged. Of what it compares, stat_prefix
// means nothing to it.
func grpcListener(name, routes string, marker uint64) *listenerv3.Listener {
	return &listenerv3.Listener{
		Name: name,
		ApiListener: &listenerv3.ApiListener{ApiListener: packed(&hcmv3.HttpConnectionManager{
			StatPrefix:     utoa(marker),
			RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: routes}},
			HttpFilters:    []*hcmv3.HttpFilter{grpcRouter()},
		})},
	}
}

// grpcRouter is the filter that every chain must end with.
func grpcRouter() *hcmv3.HttpFilter {
	return &hcmv3.HttpFilter{
		Name:       "envoy.filters.http.router",
		ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: packed(&routerv3.Router{})},
	}
}

// ServerListenerPrefix begins the name of the Listener that a gRPC server asks
// for; the address that it listens on follows. `muster bootstrap grpc` says so to
// the servers.
const ServerListenerPrefix = "grpc/server?xds.resource.listening_address="

// ServerListener is the Listener of a gRPC server of the group that listens on
// an address, IP:port; false for what is none. A server may listen anywhere: the
// group's part is the routes.
func ServerListener(name string) ([]byte, bool) {
	address, ok := serverAddress(name)
	if !ok {
		return nil, false
	}
	return marshal(&listenerv3.Listener{
		Name:    name,
		Address: address,
		FilterChains: []*listenerv3.FilterChain{{Filters: []*listenerv3.Filter{{
			Name: "envoy.filters.network.http_connection_manager",
			ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: packed(&hcmv3.HttpConnectionManager{
				StatPrefix:     "grpc",
				RouteSpecifier: &hcmv3.HttpConnectionManager_Rds{Rds: &hcmv3.Rds{ConfigSource: ads(), RouteConfigName: ServerRoutes}},
				HttpFilters:    []*hcmv3.HttpFilter{grpcRouter()},
			})},
		}}}},
	}), true
}

// socketAddress is an IP address and a port.
func socketAddress(ip string, port uint32) *corev3.Address {
	return &corev3.Address{Address: &corev3.Address_SocketAddress{SocketAddress: &corev3.SocketAddress{
		Address: ip, PortSpecifier: &corev3.SocketAddress_PortValue{PortValue: port},
	}}}
}
