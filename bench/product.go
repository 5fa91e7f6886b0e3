package main

import (
	"context"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
	"github.com/musterhq/muster/server/xds"
)

// product is muster's push engine: the snapshot index and the xDS server, as a
// muster server wires them, fed with the same virtual hosts as the other arms.
type product struct {
	hub      *xds.Hub
	server   *xds.Server
	current  *snapshot.Snapshot
	revision uint64
}

func newProduct() (arm, error) {
	hub := xds.NewHub()
	return &product{
		hub: hub,
		server: xds.NewServer(xds.Config{
			Source:    hub,
			Authorize: func(context.Context, *corev3.Node) (string, error) { return "group", nil },
			// All clients of a benchmark share one address.
			Limits: xds.Limits{Connections: -1, ConnectionsPerAddress: -1},
		}),
		current: snapshot.Empty("group", 1),
	}, nil
}

func (p *product) options() []grpc.ServerOption { return p.server.ServerOptions() }
func (p *product) register(s *grpc.Server)      { p.server.Register(s) }

func (p *product) load(n int) {
	indices := make([]int, n)
	for i := range indices {
		indices[i] = i
	}
	p.change(time.Time{}, indices...)
}

func (p *product) change(stamp time.Time, indices ...int) {
	p.revision++
	var d compile.Delta
	for _, i := range indices {
		d.Upsert = append(d.Upsert, compile.Resource{
			Key:  compile.Key{TypeURL: typeURL, Name: resourceName(i)},
			Body: virtualHostBytes(i, stamp),
		})
	}
	p.current = p.current.Next(snapshot.Version{Epoch: 1, Revision: p.revision}, d)
	p.hub.Publish(p.current.Published(time.Now()))
}
