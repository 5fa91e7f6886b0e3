package fleet

import (
	"cmp"
	"container/list"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/xds"
)

// What one data plane can make us remember is bounded.
const (
	streamLimit  = 256
	typeLimit    = 32
	refusalLimit = 64
	// objectLimit bounds the objects named behind a refused resource: a filter that
	// holds every credential is made from thousands.
	objectLimit = 64
)

// The states, for short.
const (
	synced  = musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED
	stale   = musterv1.DataPlaneState_DATA_PLANE_STATE_STALE
	nacked  = musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED
	offline = musterv1.DataPlaneState_DATA_PLANE_STATE_OFFLINE
)

// plane is one data plane, of this server or as another tells of it. It is
// guarded by its group's mutex.
type plane struct {
	id      string
	server  string      // what it hangs on, or hung on last
	streams []*stream   // the live ones, oldest first
	info    *xds.Stream // the newest one
	// away is set while the data plane is connected to another server, or to a relay.
	away bool
	// warnings are those that another server tells, which knows what they are about.
	warnings []string
	hops     []hop // the relays between this server, or the other one, and the data plane
	// seq is the number of the plane's last change, at its place in group.order.
	seq   uint64
	place *list.Element

	past      []typeState // as the last stream to end left them, or the other server tells
	refusals  []refusal   // by type URL and name
	whole     Version     // least acknowledged of all types of all streams
	connected time.Time
	seen      time.Time
}

// stream is a live stream: of ADS, or of one type. Most data planes have one of
// ADS; gRPC has one per target, Envoy without ADS one per type.
type stream struct {
	id      uint64
	typeURL string      // empty for ADS
	types   []typeState // by type URL; few, so a slice beats a map
	// listeners are those of a proxyless gRPC client or server, by name.
	listeners []string
}

type typeState struct {
	url      string
	acked    Version
	sent     Version
	names    int
	wildcard bool
}

type refusal struct {
	typeURL, name string
	stream        uint64
	msg           *musterv1.Refusal
}

func (p *plane) live() bool { return len(p.streams) > 0 || p.away }

// better reports whether p tells more of a data plane than o, of another
// server, does: where it is connected, else where it was last. The streams of an
// Envoy without ADS may be on several servers: that of its listeners counts.
func (p *plane) better(o *plane) bool {
	if p.live() != o.live() {
		return p.live()
	}
	if p.live() && p.settled() != o.settled() {
		return p.settled()
	}
	return p.seen.After(o.seen)
}

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

// settled reports whether the data plane has got far enough for its revision to
// mean the whole configuration. A starting Envoy acknowledges its clusters
// before it asks for a listener; gRPC and the gateway begin with what they need.
func (p *plane) settled() bool {
	envoy := isEnvoy(p.info.UserAgent)
	enough := func(t typeState) bool { return !envoy || t.url == compile.ListenerType }
	if p.away {
		return slices.ContainsFunc(p.past, enough)
	}
	return slices.ContainsFunc(p.streams, func(s *stream) bool { return slices.ContainsFunc(s.types, enough) })
}

func (p *plane) stream(id uint64) *stream {
	for _, s := range p.streams {
		if s.id == id {
			return s
		}
	}
	return nil
}

// drop forgets a stream and what was refused on it.
func (p *plane) drop(id uint64) {
	if len(p.streams) == 1 {
		p.past = p.types()
	}
	p.streams = slices.DeleteFunc(p.streams, func(s *stream) bool { return s.id == id })
	if p.live() {
		p.refusals = slices.DeleteFunc(p.refusals, func(r refusal) bool { return r.stream == id })
	}
}

// typeAt finds or adds a type; nil when there are too many.
func (s *stream) typeAt(url string) *typeState {
	i, ok := slices.BinarySearchFunc(s.types, url, func(t typeState, url string) int { return cmp.Compare(t.url, url) })
	if !ok {
		if len(s.types) >= typeLimit {
			return nil
		}
		s.types = slices.Insert(s.types, i, typeState{url: url})
	}
	return &s.types[i]
}

// types merges the types of all streams: the least that was acknowledged and
// sent, and all that is subscribed to. Of an offline plane it is what it left.
func (p *plane) types() []typeState {
	switch len(p.streams) {
	case 0:
		return p.past
	case 1:
		return slices.Clone(p.streams[0].types)
	}
	var all []typeState
	for _, s := range p.streams {
		for _, t := range s.types {
			i, ok := slices.BinarySearchFunc(all, t.url, func(t typeState, url string) int { return cmp.Compare(t.url, url) })
			if !ok {
				all = slices.Insert(all, i, t)
				continue
			}
			m := &all[i]
			m.acked, m.sent = least(m.acked, t.acked), least(m.sent, t.sent)
			m.names += t.names
			m.wildcard = m.wildcard || t.wildcard
		}
	}
	return all
}

func least(a, b Version) Version {
	if b.Less(a) {
		return b
	}
	return a
}

// settle recomputes whole after an event; it reports whether whole changed.
func (p *plane) settle() bool {
	before, first := p.whole, true
	for _, s := range p.streams {
		for _, t := range s.types {
			if first || t.acked.Less(p.whole) {
				p.whole, first = t.acked, false
			}
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
		// Another group of the id may be there by the time that this is read.
		GroupCreatedAt: stamp(g.created),
		UserAgent:      p.info.UserAgent,
		Protocol:       p.info.Protocol,
		Address:        p.info.Address,
		ConnectedAt:    stamp(p.connected),
		LastSeen:       stamp(p.seen),
		Server:         p.server,
		Lag:            g.lag(p.whole, now),
		Hops:           p.hopMessages(g, now),
	}
	if n := len(m.Hops); n > 0 {
		m.Relay = m.Hops[n-1].Relay
	}
	for _, r := range p.refusals {
		m.Refusals = append(m.Refusals, r.msg)
	}
	m.Warnings = p.warn(g)
	if !types {
		return m
	}
	for _, t := range p.types() {
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

// warningLimit bounds the warnings of one data plane.
const warningLimit = 50

// warn says what the data plane asked for and cannot honour.
func (p *plane) warn(g *group) []string {
	if len(p.streams) == 0 || g.warn == nil {
		return p.warnings
	}
	var names []string
	for _, s := range p.streams { // gRPC has one for each target
		names = append(names, s.listeners...)
	}
	if len(names) == 0 {
		return nil
	}
	slices.Sort(names)
	all := g.warn(g.id, slices.Compact(names))
	if n := len(all) - warningLimit; n > 0 {
		all = append(all[:warningLimit:warningLimit], fmt.Sprintf("and %d more", n))
	}
	return all
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
