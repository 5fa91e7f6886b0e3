package gateway

import (
	"fmt"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// table is the configuration that requests are served by: one revision, swapped
// whole. It is immutable, and a changed one shares structure with the one before.
type table struct {
	listeners    map[string]*listenerConfig
	routeConfigs map[string]*routeConfig
	vhosts       *iradix.Tree[*virtualHost] // those of VHDS, by resource name
	domains      map[string]*domains        // by name of the route configuration
	clusters     *iradix.Tree[*cluster]
	extensions   *iradix.Tree[*extensionConfig]
	secrets      *iradix.Tree[*secret]
}

func emptyTable() *table {
	return &table{
		listeners: map[string]*listenerConfig{}, routeConfigs: map[string]*routeConfig{},
		vhosts: iradix.New[*virtualHost](), domains: map[string]*domains{},
		clusters: iradix.New[*cluster](), extensions: iradix.New[*extensionConfig](), secrets: iradix.New[*secret](),
	}
}

// routeConfig is a compiled RouteConfiguration, without the virtual hosts that
// VHDS delivers.
type routeConfig struct {
	name                  string
	vhostHeader           string // canonical; empty selects by :authority
	perFilter             map[string]perFilter
	onRequest, onResponse mutations
	inline                []*virtualHost
}

func (g *Gateway) decodeRouteConfig(body *anypb.Any) (*routeConfig, error) {
	m := &routev3.RouteConfiguration{}
	if err := g.checker.decode(body, m); err != nil {
		return nil, err
	}
	return g.newRouteConfig(m)
}

func (g *Gateway) newRouteConfig(m *routev3.RouteConfiguration) (*routeConfig, error) {
	rc := &routeConfig{name: m.GetName()}
	if m.GetVhostHeader() != "" {
		rc.vhostHeader = headerName(m.GetVhostHeader())
	}
	if v := m.GetVhds(); v != nil && v.GetConfigSource().GetAds() == nil {
		return nil, fmt.Errorf("vhds: only ads is supported as config_source")
	}
	var err error
	if rc.perFilter, err = g.newPerFilters(m.GetTypedPerFilterConfig()); err != nil {
		return nil, err
	}
	if rc.onRequest, err = newHeaderOptions(m.GetRequestHeadersToRemove(), m.GetRequestHeadersToAdd()); err != nil {
		return nil, fmt.Errorf("request headers: %w", err)
	}
	if rc.onResponse, err = newHeaderOptions(m.GetResponseHeadersToRemove(), m.GetResponseHeadersToAdd()); err != nil {
		return nil, fmt.Errorf("response headers: %w", err)
	}
	for i, vm := range m.GetVirtualHosts() {
		v, err := g.newVirtualHost(vm)
		if err != nil {
			return nil, fmt.Errorf("virtual_hosts[%d] %q: %w", i, vm.GetName(), err)
		}
		rc.inline = append(rc.inline, v)
	}
	return rc, nil
}
