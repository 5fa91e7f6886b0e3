package fleet

import (
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

const listenerType = "type.googleapis.com/envoy.config.listener.v3.Listener"

// Connect tells that a data plane's stream began. The newest stream of a data
// plane is the one that counts; events of earlier ones are ignored from now on.
func (r *Registry) Connect(s Session) {
	s.Server = r.cfg.Server
	now := r.cfg.Now()
	g := r.group(s.Group)
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.planes[s.Node]
	if p == nil {
		p = &plane{id: s.Node}
		g.planes[s.Node] = p
	}
	if p.session == 0 {
		g.live++
	}
	p.session, p.info = s.ID, s
	p.connected, p.seen = now, now
	// What an earlier session acknowledged counts until this one says more: the
	// data plane still holds it. Its subscriptions and refusals are gone.
	for i := range p.types {
		p.types[i].confirmed = false
		p.types[i].names, p.types[i].wildcard = 0, false
	}
	p.refusals = nil
	g.poke()
}

// Disconnect tells that a stream ended. The data plane is remembered, unless a
// newer stream of it lives.
func (r *Registry) Disconnect(groupID, node string, session uint64) {
	r.event(groupID, node, session, func(g *group, p *plane, now time.Time) bool {
		p.session = 0
		g.live--
		if len(g.planes)-g.live > r.cfg.RememberOffline+r.cfg.RememberOffline/8 {
			// Some slack above the bound, so that a storm of disconnects does not
			// sort the list for each of them.
			g.forget(now, r.cfg)
		}
		return true
	})
}

// Subscribe tells what a data plane subscribes to of a type.
func (r *Registry) Subscribe(groupID, node string, session uint64, typeURL string, names int, wildcard bool) {
	r.event(groupID, node, session, func(_ *group, p *plane, _ time.Time) bool {
		t := p.typeAt(typeURL)
		if t == nil {
			return false
		}
		t.names, t.wildcard = names, wildcard
		if !t.confirmed {
			// The first word of this session on the type: what it holds is what it
			// acknowledges from here on.
			t.acked = Version{}
			t.confirmed = true
			p.dropUnconfirmed()
		}
		return p.settle()
	})
}

// dropUnconfirmed forgets types that only an earlier session subscribed to: a
// data plane that came back without them would never be whole again.
func (p *plane) dropUnconfirmed() {
	kept := p.types[:0]
	for _, t := range p.types {
		if t.confirmed {
			kept = append(kept, t)
		}
	}
	p.types = kept
}

// Sent tells that a response with content up to v is on its way.
func (r *Registry) Sent(groupID, node string, session uint64, typeURL string, v Version) {
	r.event(groupID, node, session, func(_ *group, p *plane, _ time.Time) bool {
		if t := p.typeAt(typeURL); t != nil {
			t.sent = v
		}
		return false
	})
}

// Acked tells that a data plane holds everything of a type up to v, because it
// said so or because nothing of it changed for that data plane. cleared names
// resources that were refused before and no longer are.
func (r *Registry) Acked(groupID, node string, session uint64, typeURL string, v Version, cleared []string) {
	r.event(groupID, node, session, func(_ *group, p *plane, _ time.Time) bool {
		t := p.typeAt(typeURL)
		if t == nil {
			return false
		}
		t.acked, t.confirmed = v, true
		if t.sent.Less(v) {
			t.sent = v
		}
		changed := p.settle()
		for _, name := range cleared {
			changed = p.accept(typeURL, name) || changed
		}
		return changed
	})
}

// Refused is a resource that a data plane refused.
type Refused struct {
	// Name is the xDS resource's.
	Name string
	// Serving is the version of the resource that the data plane keeps; may be empty.
	Serving string
	// Origins and Revision stand behind the refused content, when the session
	// knows them; else Describe is asked.
	Origins  []resource.Key
	Revision uint64
}

// Nacked tells that a data plane refused resources of a type, and why.
func (r *Registry) Nacked(groupID, node string, session uint64, typeURL, detail string, refused []Refused) {
	if len(detail) > detailLimit {
		detail = strings.ToValidUTF8(detail[:detailLimit], "") + " …"
	}
	msgs := make([]*musterv1.Refusal, len(refused))
	for i, x := range refused {
		msgs[i] = r.attribute(groupID, typeURL, detail, x)
	}
	r.event(groupID, node, session, func(_ *group, p *plane, now time.Time) bool {
		for i, m := range msgs {
			m.At = timestamppb.New(now)
			p.refuse(refusal{typeURL: typeURL, name: refused[i].Name, msg: m})
		}
		return len(msgs) > 0
	})
}

func (r *Registry) attribute(groupID, typeURL, detail string, x Refused) *musterv1.Refusal {
	m := &musterv1.Refusal{
		TypeUrl:        typeURL,
		ResourceName:   x.Name,
		Detail:         detail,
		Revision:       x.Revision,
		ServingVersion: x.Serving,
	}
	origins := x.Origins
	if r.cfg.Describe != nil {
		described, rev, ok := r.cfg.Describe(groupID, typeURL, x.Name)
		if ok && len(origins) == 0 {
			origins = described
		}
		if ok && (m.Revision == 0 || m.Revision == rev.GetRevision()) {
			m.Author, m.Revision = rev.GetAuthor(), rev.GetRevision()
		}
	}
	for _, k := range origins {
		m.Objects = append(m.Objects, k.Proto())
	}
	if len(origins) > 0 {
		m.Field = fieldOf(typeURL, origins[0], detail)
	}
	return m
}

// event runs f under the group's lock when the session is the data plane's
// live one; f reports whether waiters should look again.
func (r *Registry) event(groupID, node string, session uint64, f func(g *group, p *plane, now time.Time) bool) {
	g := r.existing(groupID)
	if g == nil {
		return
	}
	now := r.cfg.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	p := g.planes[node]
	if p == nil || p.session == 0 || p.session != session {
		return
	}
	p.seen = now
	if f(g, p, now) {
		g.poke()
	}
}

func isEnvoy(userAgent string) bool {
	return userAgent == "envoy" || strings.HasPrefix(userAgent, "envoy/")
}
