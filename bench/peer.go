package main

import (
	"context"
	"strconv"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/envoyproxy/go-control-plane/pkg/cache/types"
	cachev3 "github.com/envoyproxy/go-control-plane/pkg/cache/v3"
	serverv3 "github.com/envoyproxy/go-control-plane/pkg/server/v3"
	"google.golang.org/grpc"
)

// linear is go-control-plane's LinearCache, the better of its caches for one
// large collection.
type linear struct {
	cache *cachev3.LinearCache
}

func newLinear() *linear { return &linear{cache: cachev3.NewLinearCache(typeURL)} }

func (l *linear) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(16 << 20)}
}

func (l *linear) register(s *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, serverv3.NewServer(context.Background(), l.cache, nil))
}

func (l *linear) load(n int) { l.cache.SetResources(peerResources(n)) }

func (l *linear) change(stamp time.Time, indices ...int) {
	update := make(map[string]types.Resource, len(indices))
	for _, i := range indices {
		update[resourceName(i)] = virtualHost(i, stamp)
	}
	if err := l.cache.UpdateResources(update, nil); err != nil {
		panic(err) // virtual hosts always marshal
	}
}

func peerResources(n int) map[string]types.Resource {
	m := make(map[string]types.Resource, n)
	for i := range n {
		m[resourceName(i)] = virtualHost(i, time.Time{})
	}
	return m
}

// oneGroup makes all nodes share one snapshot, as a gateway group does.
type oneGroup struct{}

func (oneGroup) ID(*corev3.Node) string { return "group" }

// snapshotCache is go-control-plane's SnapshotCache.
type snapshotCache struct {
	cache     cachev3.SnapshotCache
	resources map[string]types.Resource
	version   int
}

func newSnapshotCache() *snapshotCache {
	return &snapshotCache{cache: cachev3.NewSnapshotCache(false, oneGroup{}, nil)}
}

func (c *snapshotCache) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.MaxRecvMsgSize(16 << 20)}
}

func (c *snapshotCache) register(s *grpc.Server) {
	discoveryv3.RegisterAggregatedDiscoveryServiceServer(s, serverv3.NewServer(context.Background(), c.cache, nil))
}

func (c *snapshotCache) load(n int) {
	c.resources = peerResources(n)
	c.publish()
}

func (c *snapshotCache) change(stamp time.Time, indices ...int) {
	for _, i := range indices {
		c.resources[resourceName(i)] = virtualHost(i, stamp)
	}
	c.publish()
}

func (c *snapshotCache) publish() {
	c.version++
	list := make([]types.Resource, 0, len(c.resources))
	for _, r := range c.resources {
		list = append(list, r)
	}
	snap, err := cachev3.NewSnapshot(strconv.Itoa(c.version), map[string][]types.Resource{typeURL: list})
	if err != nil {
		panic(err) // the type is known and the names are unique
	}
	if err := c.cache.SetSnapshot(context.Background(), "group", snap); err != nil {
		panic(err)
	}
}
