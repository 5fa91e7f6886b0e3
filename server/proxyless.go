package server

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// proxylessGroup is a group as gRPC's own xDS clients see it. It is compiled
// from the first of them on: most groups have none, and need pay nothing.
type proxylessGroup struct {
	mu      sync.Mutex
	wanted  bool
	removed bool
	// current is nil before the first publication. It is read without the lock.
	current atomic.Pointer[proxylessPublication]
	failed  *state.Group
}

// proxylessPublication is one group at one revision. It is immutable.
type proxylessPublication struct {
	group    *state.Group
	compiled *compile.Proxyless
	snap     *snapshot.Snapshot
}

// proxyless brings what gRPC clients see to the group's current publication. With
// want it is wanted from now on; else nothing is done where it is not.
func (p *publisher) proxyless(pg *publishedGroup, want bool) {
	g := &pg.proxyless
	g.mu.Lock()
	defer g.mu.Unlock()
	g.wanted = g.wanted || want
	pub := pg.current.Load()
	last := g.current.Load()
	if !g.wanted || g.removed || pub == nil || g.failed == pub.group || last != nil && last.group == pub.group {
		return
	}
	next, err := last.next(pg.id, pub, p.sign)
	if err != nil {
		g.failed = pub.group
		p.metrics.publishFailures.WithLabelValues(pg.id).Inc()
		p.logger.Error("a revision cannot be compiled for gRPC clients; they stay at its last good one",
			"group", pg.id, "revision", pub.group.Revision(), "error", err)
		return
	}
	g.current.Store(next)
	if last == nil || last.snap != next.snap {
		p.grpcHub.Publish(next.snap)
	}
}

// next compiles the publication that follows last, which may be nil. A panic of
// the compiler is returned as an error.
func (last *proxylessPublication) next(id string, pub *publication, sign func(*musterv1.Manifest)) (next *proxylessPublication, err error) {
	defer func() {
		if r := recover(); r != nil {
			next, err = nil, fmt.Errorf("the compiler failed: %v", r)
		}
	}()
	v := pub.snap.Version()
	if last != nil && last.snap.Version() == v && last.group.View() == pub.group.View() {
		return &proxylessPublication{pub.group, last.compiled, last.snap}, nil // only what describes the group changed
	}
	var (
		compiled *compile.Proxyless
		delta    compile.Delta
		snap     *snapshot.Snapshot
	)
	if last == nil {
		compiled, delta = compile.FullProxyless(pub.group.View())
		snap = snapshot.Empty(id, v.Epoch).Signed(sign).WithTemplate(compile.ListenerType, compile.ServerListener)
	} else {
		compiled, delta = last.compiled.Next(pub.group.View(), changesBetween(last.group, pub.group))
		snap = last.snap
	}
	return &proxylessPublication{pub.group, compiled, snap.Next(v, delta).Published(pub.snap.PublishedAt())}, nil
}

// removeProxyless ends the streams of a deleted group.
func (p *publisher) removeProxyless(pg *publishedGroup) {
	pg.proxyless.mu.Lock()
	defer pg.proxyless.mu.Unlock()
	pg.proxyless.removed = true
	p.grpcHub.Remove(pg.id)
}

// resource finds what gRPC clients get.
func (g *proxylessGroup) resource(typeURL, name string) (*snapshot.Resource, bool) {
	current := g.current.Load()
	if current == nil {
		return nil, false
	}
	return current.snap.Set(typeURL, snapshot.View{Client: compile.ViewGRPC}).Get(name)
}

// Warnings says what of the services behind listeners, as gRPC clients of a group
// name them, they cannot honour, each once. It does not block.
func (p *publisher) Warnings(group string, listeners []string) []string {
	pg := p.lookup(group)
	if pg == nil {
		return nil
	}
	current := pg.proxyless.current.Load()
	if current == nil {
		return nil
	}
	var all []string
	seen := map[string]bool{}
	add := func(warning string) {
		if !seen[warning] {
			seen[warning] = true
			all = append(all, warning)
		}
	}
	for _, name := range listeners {
		if strings.HasPrefix(name, compile.ServerListenerPrefix) {
			continue
		}
		warnings, known := current.compiled.Warnings(name)
		if !known {
			add(fmt.Sprintf("xds:///%s: the group has no service of this id or name", name))
		}
		for _, w := range warnings {
			add(w.String())
		}
	}
	return all
}
