// Package gateway is muster's embedded HTTP gateway: a data plane that needs no
// Envoy. It subscribes to a gateway group with package dataplane, honours exactly
// what muster's compiler emits (server/compile/DESIGN.md), answers as Envoy does,
// and refuses everything else by name.
//
//	g, err := gateway.New(gateway.Config{
//		HTTPAddr: "127.0.0.1:9080", HTTPSAddr: "127.0.0.1:9443", StatusAddr: "127.0.0.1:7085",
//		Servers: []string{"127.0.0.1:7943"}, Insecure: true,
//		Group: "default", NodeID: "gateway-1",
//	})
//	...
//	err = g.Run(ctx)
//
// Where net/http decides before the gateway does, answers differ from Envoy's, never to
// the unsafe side: a request with both Transfer-Encoding and Content-Length goes on as
// chunked, and one with equal Content-Lengths goes on with one (Envoy: 400); one with two
// Hosts, or a percent sign in its path that encodes nothing, is answered 400 (Envoy joins
// the Hosts and lets the percent sign pass). Query parameters that stay when a key is
// hidden keep their order, where Envoy sorts them. Over HTTP/2 a request without a body
// that an endpoint refuses is tried there again for up to a minute.
package gateway
