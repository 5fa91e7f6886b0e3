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
package gateway
