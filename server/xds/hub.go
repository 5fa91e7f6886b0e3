package xds

import (
	"sync"
	"sync/atomic"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/snapshot"
)

// Hub is a Source that is told the snapshots. All methods are safe for concurrent
// use; the zero Hub is not, make one with NewHub.
type Hub struct {
	mu     sync.Mutex
	groups map[string]*hubGroup
}

type hubGroup struct {
	current atomic.Pointer[snapshot.Snapshot]
	exists  bool // guarded by Hub.mu

	mu    sync.Mutex
	feeds []*hubFeed
}

// NewHub returns a Hub without groups.
func NewHub() *Hub { return &Hub{groups: map[string]*hubGroup{}} }

// Expect tells that a group exists of which there is no snapshot yet: its data
// planes are told to come back, not that the group is unknown.
func (h *Hub) Expect(group string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.group(group).exists = true
}

// Publish makes a snapshot the newest of its group and wakes the group's streams.
// The calls for one group must come in the order of the versions.
func (h *Hub) Publish(s *snapshot.Snapshot) {
	h.mu.Lock()
	g := h.group(s.Group())
	g.exists = true
	g.current.Store(s)
	h.mu.Unlock()
	g.wake()
}

// Remove tells that a group no longer exists. Its streams end.
func (h *Hub) Remove(group string) {
	h.mu.Lock()
	g := h.groups[group]
	delete(h.groups, group)
	if g != nil {
		g.exists = false
		g.current.Store(nil)
	}
	h.mu.Unlock()
	if g != nil {
		g.wake()
	}
}

func (h *Hub) group(name string) *hubGroup {
	g := h.groups[name]
	if g == nil {
		g = &hubGroup{}
		h.groups[name] = g
	}
	return g
}

// Subscribe implements Source. Of a group that nobody published it fails with
// NOT_FOUND, and of one that is only expected with UNAVAILABLE.
func (h *Hub) Subscribe(group string, _ *corev3.Node, wake func()) (Feed, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	g := h.groups[group]
	if g == nil || !g.exists {
		return nil, status.Errorf(codes.NotFound, "no group %q", group)
	}
	f := &hubFeed{group: g, wake: wake}
	g.mu.Lock()
	f.at = len(g.feeds)
	g.feeds = append(g.feeds, f)
	g.mu.Unlock()
	return f, nil
}

func (g *hubGroup) wake() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, f := range g.feeds {
		f.wake()
	}
}

type hubFeed struct {
	group *hubGroup
	wake  func()
	at    int // in group.feeds, -1 when closed; guarded by group.mu
}

func (f *hubFeed) Current() *snapshot.Snapshot { return f.group.current.Load() }

func (f *hubFeed) Close() {
	g := f.group
	g.mu.Lock()
	defer g.mu.Unlock()
	if f.at < 0 {
		return
	}
	last := len(g.feeds) - 1
	g.feeds[f.at] = g.feeds[last]
	g.feeds[f.at].at = f.at
	g.feeds[last] = nil
	g.feeds = g.feeds[:last]
	f.at = -1
}
