package server

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
	"github.com/musterhq/muster/server/xds"
)

var _ xds.Source = (*publisher)(nil)

// Subscribe implements xds.Source. group is an id, as the authorisation
// resolved it.
func (p *publisher) Subscribe(group string, node *corev3.Node, wake func()) (xds.Feed, error) {
	hub := p.hub
	if xds.Proxyless(node) {
		if pg := p.lookup(group); pg != nil {
			p.proxyless(pg, true)
		}
		hub = p.grpcHub
	}
	feed, err := hub.Subscribe(group, node, wake)
	if status.Code(err) == codes.NotFound {
		// It was authorised a moment ago, so it was just deleted, and perhaps is
		// being made again. Asking again tells.
		return nil, status.Errorf(codes.Unavailable, "group %q is not served", group)
	}
	return feed, err
}

// await returns true once a group is published, false when ctx ends first.
func (p *publisher) await(ctx context.Context, group string) bool {
	poll := time.NewTicker(readyPoll / 4)
	defer poll.Stop()
	for {
		if pg := p.lookup(group); pg != nil && pg.current.Load() != nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-poll.C:
		}
	}
}

// Trial implements admin.Compiler: it compiles a transaction on top of what the
// group compiles to or, where that is not at hand, of the publication of the
// revision that it was evaluated against.
func (p *publisher) Trial(on *compile.Compiled, g *state.Group, after state.View, changes []state.Change) (next *compile.Compiled, problems resource.Problems) {
	defer func() {
		if r := recover(); r != nil {
			next, problems = nil, resource.Problems{{Code: resource.CodeUnsupported, Message: fmt.Sprintf("the compiler failed on this transaction: %v", r)}}
		}
	}()
	if on == nil {
		base := p.baseFor(g)
		if base == nil {
			next, _, problems = compile.Full(after)
			return next, touchedOnly(problems, changes)
		}
		on = base.compiled
		if base.group != g {
			on, _, _ = on.Next(g.View(), changesBetween(base.group, g))
		}
	}
	next, _, problems = on.Next(after, changes)
	return next, problems
}

// baseFor returns the newest publication that is not newer than g.
func (p *publisher) baseFor(g *state.Group) *publication {
	pg := p.lookup(g.ID())
	if pg == nil {
		return nil
	}
	pg.mu.Lock()
	defer pg.mu.Unlock()
	for _, pub := range slices.Backward(pg.recent) {
		if pub.group == g || pub.group.Epoch() == g.Epoch() && pub.group.Revision() <= g.Revision() {
			return pub
		}
	}
	return nil
}

// touchedOnly drops the problems of objects that the changes do not touch: they
// were there before and are not this transaction's fault.
func touchedOnly(problems resource.Problems, changes []state.Change) resource.Problems {
	return slices.DeleteFunc(problems, func(p resource.Problem) bool {
		return !slices.ContainsFunc(changes, func(c state.Change) bool { return c.Key == p.Object })
	})
}

// Describe tells whose change stands behind an xDS resource of a group: the
// objects it was made from, and the newest revision that changed one of them.
func (p *publisher) Describe(group, typeURL, name string) ([]resource.Key, *musterv1.Revision, bool) {
	pg := p.lookup(group)
	if pg == nil {
		return nil, nil, false
	}
	pub := pg.current.Load()
	if pub == nil {
		return nil, nil, false
	}
	r, ok := pub.resource(typeURL, name)
	if !ok {
		if r, ok = pg.proxyless.resource(typeURL, name); !ok {
			return nil, nil, false
		}
	}
	rev := &musterv1.Revision{}
	for _, key := range r.Origins {
		if e, ok := pub.group.View().Get(key); ok && e.Revision >= rev.GetRevision() {
			rev.Revision, rev.Author = e.Revision, e.Author
		}
	}
	if info, ok := pub.group.RevisionInfo(rev.GetRevision()); ok {
		rev.Epoch, rev.CommittedAt, rev.Message = info.GetEpoch(), info.GetCommittedAt(), info.GetMessage()
	}
	return r.Origins, rev, true
}

// resource finds an xDS resource in whichever view holds it.
func (pub *publication) resource(typeURL, name string) (*snapshot.Resource, bool) {
	for _, view := range []compile.View{compile.ViewDelta, compile.ViewSotW, compile.ViewGRPC} {
		if r, ok := pub.snap.Set(typeURL, snapshot.View{Client: view}).Get(name); ok {
			return r, true
		}
	}
	return nil, false
}
