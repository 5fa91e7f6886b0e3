package fleet

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/xds"
)

// presenceBytes bounds one answer of Presence: it travels as one message.
const presenceBytes = 1 << 20

// Presence is what this server tells another of its data planes: those that
// changed since the sequence number that the last answer ended with, 0 for all,
// in the order of their changes. When more is true the answer was cut and
// another should be asked for at once. It costs O(groups + changed).
func (r *Registry) Presence(since uint64) (planes []*musterv1.DataPlane, until uint64, more bool) {
	r.expire(r.cfg.Now())
	// Read first: what changes while the planes are gathered is told twice rather
	// than not at all.
	until = r.seq.Load()
	type change struct {
		seq uint64
		g   *group
		p   *plane
	}
	var changes []change
	for _, g := range r.all() {
		g.mu.Lock()
		for e := g.order.Back(); e != nil; e = e.Prev() {
			p := e.Value.(*plane)
			if p.seq <= since {
				break
			}
			changes = append(changes, change{p.seq, g, p})
		}
		g.mu.Unlock()
	}
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.seq, b.seq) })
	now := r.cfg.Now()
	size := 0
	for i, c := range changes {
		c.g.mu.Lock()
		// What hung on one relay may hang on another now, or on the server itself.
		p := c.g.own(c.p.id)
		if p == nil {
			p = c.p // forgotten meanwhile
		}
		m := p.message(c.g, now, true)
		c.g.mu.Unlock()
		planes = append(planes, m)
		if size += proto.Size(m); size > presenceBytes && i < len(changes)-1 {
			return planes, c.seq, true
		}
	}
	return planes, until, false
}

// Learn takes in what another server told. instance changes when that server
// was started again; what it told before is forgotten then. It reports false
// when something was left out, because this server does not know the group, or
// another one of its id (yet): then everything should be asked for again.
func (r *Registry) Learn(server, instance string, planes []*musterv1.DataPlane) (complete bool) {
	r.mu.Lock()
	was, known := r.instances[server]
	fresh := was != instance
	r.instances[server] = instance
	r.mu.Unlock()
	if fresh {
		for _, g := range r.all() {
			g.mu.Lock()
			delete(g.remote, server)
			g.mu.Unlock()
		}
	}
	complete = !known || was != "" // else Created has forgotten what was told before
	for id, told := range byGroup(planes) {
		g := r.existing(id)
		if g == nil {
			complete = false
			continue
		}
		g.mu.Lock()
		of := g.remote[server]
		if of == nil {
			of = map[string]*plane{}
			g.remote[server] = of
		}
		for _, m := range told {
			if !g.isOf(m) {
				complete = false
				continue
			}
			of[m.GetId()] = planeOf(m, m.GetState() != offline)
			if m.GetState() == offline {
				g.gone++
			}
		}
		if g.gone > r.cfg.slack() {
			g.gone = 0
			g.forget(r.cfg.Now(), r.cfg)
		}
		g.poke()
		g.mu.Unlock()
	}
	return complete
}

// isOf tells whether a data plane is of this very group, not of one before it
// that had the id.
func (g *group) isOf(m *musterv1.DataPlane) bool {
	return m.GetGroupCreatedAt() == nil || g.created.IsZero() || m.GetGroupCreatedAt().AsTime().Equal(g.created)
}

// Lost tells that another server has been out of reach for so long that its
// data planes no longer count as connected.
func (r *Registry) Lost(server string) {
	r.mu.Lock()
	delete(r.instances, server) // it tells everything when it is back
	delete(r.relays.away, server)
	r.mu.Unlock()
	for _, g := range r.all() {
		g.mu.Lock()
		for _, p := range g.remote[server] {
			p.away = false
		}
		g.forgetIn(g.remote[server], r.cfg.Now(), r.cfg)
		g.poke()
		g.mu.Unlock()
	}
}

// Waiting reports whether anybody waits for data planes at the moment.
func (r *Registry) Waiting() bool { return r.waiting.Load() > 0 || r.hurried.Load() }

// Hurry tells whether somebody waits at the upstream of a relay whose registry this is.
func (r *Registry) Hurry(is bool) { r.hurried.Store(is) }

// Remember returns this server's data planes, to be kept on disk.
func (r *Registry) Remember() *musterv1.RememberedFleet {
	now := r.cfg.Now()
	f := &musterv1.RememberedFleet{At: timestamppb.New(now)}
	for _, g := range r.all() {
		g.mu.Lock()
		for _, p := range g.planes {
			m := p.message(g, now, false)
			m.Refusals, m.Lag, m.Warnings = nil, nil, nil
			f.DataPlanes = append(f.DataPlanes, m)
		}
		g.mu.Unlock()
	}
	return f
}

// Changes counts the changes of this server's data planes: while it stays the
// same there is nothing new to remember.
func (r *Registry) Changes() uint64 { return r.seq.Load() }

// Recall takes back what an earlier process of this server remembered, as
// offline. Data planes that are back already stay as they are, and those of
// groups that were not published are left out.
func (r *Registry) Recall(f *musterv1.RememberedFleet) {
	for id, planes := range byGroup(f.GetDataPlanes()) {
		g := r.existing(id)
		if g == nil {
			continue
		}
		g.mu.Lock()
		for _, m := range planes {
			if g.planes[m.GetId()] == nil && g.isOf(m) {
				p := planeOf(m, false)
				g.planes[p.id] = p
				r.changed(g, p)
			}
		}
		g.forget(r.cfg.Now(), r.cfg)
		g.mu.Unlock()
	}
}

func byGroup(planes []*musterv1.DataPlane) map[string][]*musterv1.DataPlane {
	m := map[string][]*musterv1.DataPlane{}
	for _, p := range planes {
		m[p.GetGroup()] = append(m[p.GetGroup()], p)
	}
	return m
}

// planeOf is the inverse of plane.message.
func planeOf(m *musterv1.DataPlane, away bool) *plane {
	p := &plane{
		id:     m.GetId(),
		server: m.GetServer(),
		away:   away,

		warnings: m.GetWarnings(),
		hops:     hopsOf(m),
		info: &xds.Stream{
			Group: m.GetGroup(), Node: m.GetId(), UserAgent: m.GetUserAgent(), Protocol: m.GetProtocol(), Address: m.GetAddress(),
		},
		whole:     Version{Epoch: m.GetEpoch(), Revision: m.GetRevision()},
		connected: m.GetConnectedAt().AsTime(),
		seen:      m.GetLastSeen().AsTime(),
	}
	for _, t := range m.GetTypes() {
		p.past = append(p.past, typeState{
			url:      t.GetTypeUrl(),
			acked:    Version{Epoch: m.GetEpoch(), Revision: t.GetAckedRevision()},
			sent:     Version{Epoch: m.GetEpoch(), Revision: t.GetSentRevision()},
			names:    int(t.GetSubscriptions()),
			wildcard: t.GetWildcard(),
		})
	}
	for _, x := range m.GetRefusals() {
		p.refusals = append(p.refusals, refusal{typeURL: x.GetTypeUrl(), name: x.GetResourceName(), msg: x})
	}
	return p
}
