package fleet

import (
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/xds"
)

var _ xds.Observer = (*Registry)(nil)

// Connected implements xds.Observer.
func (r *Registry) Connected(s *xds.Stream) {
	if s.Relay {
		return // it tells by itself, see RelayJoined; its data planes are what counts
	}
	now := r.cfg.Now()
	g := r.existing(s.Group)
	if g == nil {
		return // deleted a moment ago: the stream is about to end
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.planes[s.Node]
	if p == nil {
		p = &plane{id: s.Node, server: r.cfg.Server}
		g.planes[s.Node] = p
	}
	if !p.live() {
		g.live++
		p.connected = now
	}
	if !isGRPC(s.UserAgent) && s.Sole() {
		// The newest stream takes the place of an earlier one of its sort, whose
		// end may not have been noticed yet; what still comes from that is late.
		for _, old := range slices.Clone(p.streams) {
			if old.typeURL == s.TypeURL {
				p.drop(old.id)
			}
		}
	}
	if !p.live() {
		// A refused response is not sent again, but a new stream is a new try.
		p.refusals = nil
	}
	if len(p.streams) < streamLimit {
		p.streams = append(p.streams, &stream{id: s.ID, typeURL: s.TypeURL})
	}
	p.info, p.seen, p.server = s, now, r.cfg.Server
	r.changed(g, p)
	g.poke()
}

// Disconnected implements xds.Observer. The data plane is remembered.
func (r *Registry) Disconnected(s *xds.Stream, _ error) {
	r.event(s, func(g *group, p *plane, _ *stream, now time.Time) bool {
		p.drop(s.ID)
		if p.live() {
			return p.settle()
		}
		g.live--
		if len(g.planes)-g.live > r.cfg.RememberOffline+r.cfg.slack() {
			g.forget(now, r.cfg)
		}
		return true
	})
}

// Subscribed implements xds.Observer.
func (r *Registry) Subscribed(s *xds.Stream, e xds.Subscribed) {
	r.event(s, func(_ *group, p *plane, st *stream, _ time.Time) bool {
		t := st.typeAt(e.TypeURL)
		if t == nil {
			return false
		}
		t.names, t.wildcard = e.Names, e.Wildcard
		if e.TypeURL == compile.ListenerType {
			st.listeners = e.Listeners
		}
		return p.settle()
	})
}

// Sent implements xds.Observer.
func (r *Registry) Sent(s *xds.Stream, e xds.Sent) {
	r.event(s, func(_ *group, p *plane, st *stream, _ time.Time) bool {
		if t := st.typeAt(e.TypeURL); t != nil {
			t.sent = e.To
		}
		return false
	})
}

// Acked implements xds.Observer.
func (r *Registry) Acked(s *xds.Stream, e xds.Acked) {
	r.event(s, func(_ *group, p *plane, st *stream, _ time.Time) bool {
		t := st.typeAt(e.TypeURL)
		if t == nil {
			return false
		}
		t.reach(e.Version)
		changed := p.settle()
		for _, name := range e.Cleared {
			changed = p.accept(e.TypeURL, name) || changed
		}
		return changed
	})
}

// Synced implements xds.Observer.
func (r *Registry) Synced(s *xds.Stream, v Version) {
	r.event(s, func(_ *group, p *plane, st *stream, _ time.Time) bool {
		for i := range st.types {
			st.types[i].reach(v)
		}
		return p.settle()
	})
}

// reach notes that everything of the type up to v is acknowledged.
func (t *typeState) reach(v Version) {
	if t.acked.Less(v) {
		t.acked = v
	}
	if t.sent.Less(v) {
		t.sent = v
	}
}

// Nacked implements xds.Observer.
func (r *Registry) Nacked(s *xds.Stream, e xds.Nacked) {
	// Attributed before the lock is taken: Describe looks things up.
	msgs := make([]*musterv1.Refusal, len(e.Refused))
	for i, x := range e.Refused {
		msgs[i] = r.attribute(s.Group, e, x)
	}
	r.event(s, func(_ *group, p *plane, st *stream, now time.Time) bool {
		for i, m := range msgs {
			m.At = timestamppb.New(now)
			p.refuse(refusal{typeURL: e.TypeURL, name: e.Refused[i].Name, stream: st.id, msg: m})
		}
		return len(msgs) > 0
	})
}

func (r *Registry) attribute(groupID string, e xds.Nacked, x xds.Refused) *musterv1.Refusal {
	detail := x.Detail
	if detail == "" {
		detail = e.Detail
	}
	detail = cleanDetail(detail)
	m := &musterv1.Refusal{
		TypeUrl:        e.TypeURL,
		ResourceName:   x.Name,
		Detail:         detail,
		Revision:       x.Rev,
		ServingVersion: x.Serving,
	}
	origins := x.Origins
	if r.cfg.Describe != nil {
		// The revision of the content on this server may be that of its start; the
		// objects themselves know which revision changed them last, and whose it was.
		if described, rev, ok := r.cfg.Describe(groupID, e.TypeURL, x.Name); ok {
			m.Author, m.Revision = rev.GetAuthor(), rev.GetRevision()
			if len(origins) == 0 {
				origins = described
			}
		}
	}
	for _, k := range origins[:min(len(origins), objectLimit)] {
		m.Objects = append(m.Objects, k.Proto())
	}
	if len(origins) > 0 {
		m.Field = fieldOf(origins[0], detail)
	}
	return m
}

// event runs f under the group's lock when the stream is a live one; f reports
// whether waiters should look again.
func (r *Registry) event(s *xds.Stream, f func(g *group, p *plane, st *stream, now time.Time) bool) {
	g := r.existing(s.Group)
	if g == nil {
		return
	}
	now := r.cfg.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.planes[s.Node]
	if p == nil {
		return
	}
	st := p.stream(s.ID)
	if st == nil {
		return
	}
	p.seen = now
	r.changed(g, p)
	if f(g, p, st, now) {
		g.poke()
	}
}

func isEnvoy(userAgent string) bool {
	return userAgent == "envoy" || strings.HasPrefix(userAgent, "envoy/")
}

// isGRPC recognises gRPC's own xDS clients, `gRPC Go/1.85.0` for example.
func isGRPC(userAgent string) bool { return strings.HasPrefix(userAgent, "gRPC ") }
