package fleet

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// typeLimit and refusalLimit bound what one data plane can make us remember.
const (
	typeLimit    = 32
	refusalLimit = 64
	detailLimit  = 2048
)

const (
	synced  = musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED
	stale   = musterv1.DataPlaneState_DATA_PLANE_STATE_STALE
	nacked  = musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED
	offline = musterv1.DataPlaneState_DATA_PLANE_STATE_OFFLINE
)

// plane is one data plane. It is guarded by its group's mutex.
type plane struct {
	id      string
	session uint64 // the live session, 0 when offline
	info    Session

	types     []typeState // by type URL; few, so a slice beats a map
	refusals  []refusal   // by type URL and name
	whole     Version     // least acknowledged of types
	connected time.Time
	seen      time.Time
}

type typeState struct {
	url       string
	acked     Version
	sent      Version
	names     int
	wildcard  bool
	confirmed bool // acked is of this session, not remembered from an earlier one
}

type refusal struct {
	typeURL, name string
	msg           *musterv1.Refusal
}

// state judges the plane against the group's current version.
func (p *plane) state(current Version) musterv1.DataPlaneState {
	switch {
	case p.session == 0:
		return offline
	case len(p.refusals) > 0:
		return nacked
	case p.settled() && !p.whole.Less(current):
		return synced
	default:
		return stale
	}
}

// settled reports whether the session has got far enough for its revision to
// mean the whole configuration. A starting Envoy acknowledges its clusters
// before it asks for a listener; gRPC and the gateway begin with what they need.
func (p *plane) settled() bool {
	if len(p.types) == 0 {
		return false
	}
	if !isEnvoy(p.info.UserAgent) {
		return true
	}
	return slices.ContainsFunc(p.types, func(t typeState) bool { return t.url == listenerType && t.confirmed })
}

func (p *plane) typeAt(url string) *typeState {
	i, ok := slices.BinarySearchFunc(p.types, url, func(t typeState, url string) int { return cmp.Compare(t.url, url) })
	if !ok {
		if len(p.types) >= typeLimit {
			return nil
		}
		p.types = slices.Insert(p.types, i, typeState{url: url})
	}
	return &p.types[i]
}

// settle recomputes whole after an event; it reports whether whole changed.
func (p *plane) settle() bool {
	before := p.whole
	first := true
	for _, t := range p.types {
		if first || t.acked.Less(p.whole) {
			p.whole, first = t.acked, false
		}
	}
	return before != p.whole
}

func (p *plane) refuse(r refusal) {
	i, ok := p.findRefusal(r.typeURL, r.name)
	switch {
	case ok:
		p.refusals[i] = r
	case len(p.refusals) < refusalLimit:
		p.refusals = slices.Insert(p.refusals, i, r)
	}
}

// accept forgets a refusal and reports whether there was one.
func (p *plane) accept(typeURL, name string) bool {
	i, ok := p.findRefusal(typeURL, name)
	if ok {
		p.refusals = slices.Delete(p.refusals, i, i+1)
	}
	return ok
}

func (p *plane) findRefusal(typeURL, name string) (int, bool) {
	return slices.BinarySearchFunc(p.refusals, refusal{typeURL: typeURL, name: name}, func(a, b refusal) int {
		return cmp.Or(cmp.Compare(a.typeURL, b.typeURL), cmp.Compare(a.name, b.name))
	})
}

// reached reports whether the plane acknowledged target whole, its content
// included: a plane that refused something that target itself brought has not.
// What earlier revisions of others brought and the plane keeps refusing is no
// reason to hold target's author up.
func (p *plane) reached(target Version) bool {
	if !p.settled() || p.whole.Less(target) {
		return false
	}
	return !slices.ContainsFunc(p.refusals, func(r refusal) bool { return r.msg.GetRevision() == target.Revision })
}

func (p *plane) message(g *group, now time.Time, types bool) *musterv1.DataPlane {
	m := &musterv1.DataPlane{
		Id:            p.id,
		Group:         g.id,
		State:         p.state(g.current),
		Revision:      p.whole.Revision,
		Epoch:         p.whole.Epoch,
		GroupRevision: g.current.Revision,
		UserAgent:     p.info.UserAgent,
		Protocol:      p.info.Protocol,
		Address:       p.info.Address,
		Server:        p.info.Server,
		Relay:         p.info.Relay,
		ConnectedAt:   stamp(p.connected),
		LastSeen:      stamp(p.seen),
		Warnings:      slices.Clone(p.info.Warnings),
	}
	if at, ok := g.timeline.since(p.whole); ok {
		m.Lag = durationpb.New(max(0, now.Sub(at)))
	}
	for _, r := range p.refusals {
		m.Refusals = append(m.Refusals, r.msg)
	}
	if !types {
		return m
	}
	for _, t := range p.types {
		m.Types = append(m.Types, &musterv1.TypeStatus{
			TypeUrl:       t.url,
			State:         p.typeState(t, g.current),
			AckedRevision: t.acked.Revision,
			SentRevision:  t.sent.Revision,
			Subscriptions: uint32(t.names),
			Wildcard:      t.wildcard,
		})
	}
	return m
}

func (p *plane) typeState(t typeState, current Version) musterv1.DataPlaneState {
	i, refused := p.findRefusal(t.url, "")
	refused = refused || i < len(p.refusals) && p.refusals[i].typeURL == t.url
	switch {
	case p.session == 0:
		return offline
	case refused:
		return nacked
	case t.acked.Less(current):
		return stale
	default:
		return synced
	}
}

func stamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}
