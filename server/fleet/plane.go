package fleet

import (
	"cmp"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/xds"
)

// typeLimit and refusalLimit bound what one data plane can make us remember.
const (
	typeLimit    = 32
	refusalLimit = 64
	detailLimit  = 2048
)

// The states, for short.
const (
	synced  = musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED
	stale   = musterv1.DataPlaneState_DATA_PLANE_STATE_STALE
	nacked  = musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED
	offline = musterv1.DataPlaneState_DATA_PLANE_STATE_OFFLINE
)

// plane is one data plane. It is guarded by its group's mutex.
type plane struct {
	id      string
	streams []liveStream
	info    *xds.Stream // the newest one

	types     []typeState // by type URL; few, so a slice beats a map
	refusals  []refusal   // by type URL and name
	whole     Version     // least acknowledged of types
	connected time.Time
	seen      time.Time
}

// liveStream is an open stream: of ADS, or of one type.
type liveStream struct {
	id      uint64
	typeURL string // empty for ADS
}

type typeState struct {
	url      string
	stream   uint64 // the live stream that subscribes; 0 when only remembered
	acked    Version
	sent     Version
	names    int
	wildcard bool
}

type refusal struct {
	typeURL, name string
	msg           *musterv1.Refusal
}

func (p *plane) live() bool { return len(p.streams) > 0 }

// state judges the plane against the group's current version.
func (p *plane) state(current Version) musterv1.DataPlaneState {
	switch {
	case !p.live():
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
	return slices.ContainsFunc(p.types, func(t typeState) bool { return t.url == compile.ListenerType && t.stream != 0 })
}

// typeAt finds or adds a type; nil when there are too many.
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

// typeOf finds a type that a live stream subscribes to. The first that is heard
// of it on a stream makes it the stream's; nil when there are too many types.
func (p *plane) typeOf(stream uint64, url string) *typeState {
	t := p.typeAt(url)
	if t == nil || t.stream == stream {
		return t
	}
	// What an earlier stream acknowledged no longer counts: the data plane may
	// have started again with nothing.
	t.stream, t.acked, t.sent = stream, Version{}, Version{}
	// Types that only earlier streams subscribed to are forgotten, or a data
	// plane that came back without them would never be whole again.
	p.types = slices.DeleteFunc(p.types, func(t typeState) bool { return t.stream == 0 })
	return p.typeAt(url)
}

// drop forgets a stream; what it subscribed to is remembered until another
// stream subscribes.
func (p *plane) drop(id uint64) {
	p.streams = slices.DeleteFunc(p.streams, func(s liveStream) bool { return s.id == id })
	for i := range p.types {
		if t := &p.types[i]; t.stream == id {
			t.stream, t.names, t.wildcard = 0, 0, false
		}
	}
}

func (p *plane) has(id uint64) bool {
	return slices.ContainsFunc(p.streams, func(s liveStream) bool { return s.id == id })
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
		ConnectedAt:   stamp(p.connected),
		LastSeen:      stamp(p.seen),
		Server:        g.server,
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
	case !p.live():
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
