package compile

import (
	"fmt"
	"iter"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Field numbers of envoy.config.route.v3.RouteConfiguration.
const (
	routeConfigVirtualHosts protowire.Number = 2
	routeConfigVhds         protowire.Number = 9
)

// SotWRouteConfiguration returns the route configuration with the virtual hosts
// inline instead of delivered by VHDS, for clients of the state-of-the-world
// protocol. vhosts yields encoded VirtualHosts in the order wanted.
func SotWRouteConfiguration(rds []byte, vhosts iter.Seq[[]byte]) ([]byte, error) {
	out := make([]byte, 0, 2*len(rds))
	for rest := rds; len(rest) > 0; {
		num, _, n := protowire.ConsumeField(rest)
		if n < 0 {
			return nil, fmt.Errorf("compile: route configuration: %w", protowire.ParseError(n))
		}
		if num != routeConfigVhds {
			out = append(out, rest[:n]...)
		}
		rest = rest[n:]
	}
	for vhost := range vhosts {
		out = protowire.AppendTag(out, routeConfigVirtualHosts, protowire.BytesType)
		out = protowire.AppendBytes(out, vhost)
	}
	return out, nil
}

// ListenOptions says where one data plane listens. Zero fields change nothing.
type ListenOptions struct {
	// Address is an IP address.
	Address string
	// HTTPPort and HTTPSPort replace the ports of the listeners `http` and `https`.
	HTTPPort, HTTPSPort uint32
}

// ListenerFor returns the listener as one data plane needs it.
func ListenerFor(base []byte, opts ListenOptions) ([]byte, error) {
	if opts == (ListenOptions{}) {
		return base, nil
	}
	l := &listenerv3.Listener{}
	if err := proto.Unmarshal(base, l); err != nil {
		return nil, fmt.Errorf("compile: listener: %w", err)
	}
	socket := l.GetAddress().GetSocketAddress()
	if socket == nil {
		return base, nil
	}
	if opts.Address != "" {
		socket.Address = opts.Address
	}
	port := map[string]uint32{ListenerHTTP: opts.HTTPPort, ListenerHTTPS: opts.HTTPSPort}[l.GetName()]
	if port != 0 {
		socket.PortSpecifier = &corev3.SocketAddress_PortValue{PortValue: port}
	}
	return marshal(l), nil
}
