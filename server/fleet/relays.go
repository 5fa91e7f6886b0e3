package fleet

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

const (
	// relayLostAfter is how long a relay may be out of reach before its data planes
	// no longer count as connected.
	relayLostAfter = 10 * time.Second
	// relayPlaneLimit bounds the data planes of one group that a relay tells of, and
	// relayLimit the relays below one.
	relayPlaneLimit = 50_000
	relayLimit      = 1000
	// servedLimit bounds the relays of which a group knows what they serve.
	servedLimit = 10 * relayLimit
	// hopLimit bounds the relays on the way to a data plane.
	hopLimit = 16
)

// relayed is a relay below this server, at any depth.
type relayed struct {
	state *musterv1.RelayState
	from  string    // the relay whose stream tells of it; its own id where it has one
	left  time.Time // when that stream ended; zero while it lasts
	lost  bool      // its data planes no longer count as connected
}

// relays is what a Registry knows of relays. It is guarded by Registry.mu.
type relays struct {
	attached map[string]uint64   // the number of each relay's stream
	number   uint64              // of the last stream
	here     map[string]*relayed // below this server, by id
	away     map[string][]*musterv1.RelayState
}

// RelayJoined tells that a relay hangs on this server from now on. What it told
// on an earlier stream is void. The number names the stream.
func (r *Registry) RelayJoined(id, version, address string) (number uint64) {
	now := timestamppb.New(r.cfg.Now())
	r.mu.Lock()
	r.relays.number++
	number = r.relays.number
	r.relays.attached[id] = number
	maps.DeleteFunc(r.relays.here, func(_ string, x *relayed) bool { return x.from == id })
	r.relays.here[id] = &relayed{from: id, state: &musterv1.RelayState{
		Id: id, Connected: true, Version: version, Address: address, ConnectedAt: now, LastSeen: now,
	}}
	r.mu.Unlock()
	for _, g := range r.all() {
		g.mu.Lock()
		for _, p := range g.below[id] {
			g.order.Remove(p.place)
		}
		delete(g.below, id)
		g.poke()
		g.mu.Unlock()
	}
	return number
}

// RelayLeft tells that the stream of a relay has ended. What hangs on the relay
// counts as connected for a while: the relay goes on without this server.
func (r *Registry) RelayLeft(id string, number uint64) {
	now := r.cfg.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.relays.attached[id] != number {
		return
	}
	delete(r.relays.attached, id)
	for _, x := range r.relays.here {
		if x.from == id {
			x.left = now
		}
	}
}

// RelayReported takes in what a relay tells on a stream. allowed says of which
// data planes it may; asked without one, whether it may tell of the group at all.
func (r *Registry) RelayReported(id string, number uint64, report *musterv1.RelayReport, allowed func(group, node string) bool) {
	now := r.cfg.Now()
	versions, ok := r.takeRelays(id, number, report.GetRelays(), now)
	if !ok {
		return
	}
	for _, v := range versions {
		if g := r.existing(v.group); g != nil && allowed(v.group, "") {
			g.mu.Lock()
			g.serves(v.relay, v.version)
			g.mu.Unlock()
		}
	}
	for groupID, told := range byGroup(report.GetDataPlanes()) {
		g := r.existing(groupID)
		if g == nil || !allowed(groupID, "") {
			continue
		}
		for _, m := range told {
			r.attributeTold(groupID, m)
		}
		g.mu.Lock()
		of := g.below[id]
		if of == nil {
			of = map[string]*plane{}
			g.below[id] = of
		}
		for _, m := range told {
			before := of[m.GetId()]
			if before == nil && len(of) >= relayPlaneLimit || !nodeIDLike(m.GetId()) || !g.isOf(m) || !allowed(groupID, m.GetId()) {
				continue
			}
			p := planeOf(m, m.GetState() != offline)
			p.server = r.cfg.Server
			p.hops = append([]hop{{relay: id}}, p.hops...)
			if before != nil {
				p.place, p.seq = before.place, before.seq
				p.place.Value = p
			}
			of[m.GetId()] = p
			r.changed(g, p)
			if !p.live() {
				g.gone++
			}
		}
		if g.gone > r.cfg.slack() {
			g.gone = 0
			g.forget(now, r.cfg)
		}
		g.poke()
		g.mu.Unlock()
	}
}

// nodeIDLike bounds what a relay may call a data plane.
func nodeIDLike(id string) bool { return id != "" && len(id) <= 256 }

// serves takes in what a relay serves of the group. Relays may call those below
// them anything: when there are too many names, all are forgotten, and those that
// exist are told again.
func (g *group) serves(relay string, v Version) {
	if _, known := g.served[relay]; !known && len(g.served) >= servedLimit {
		clear(g.served)
	}
	g.served[relay] = v
}

type servedVersion struct {
	relay, group string
	version      Version
}

// takeRelays takes in the relays of a report; false when the stream is not the
// relay's newest.
func (r *Registry) takeRelays(id string, number uint64, told []*musterv1.RelayState, now time.Time) (versions []servedVersion, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	self := r.relays.here[id]
	if r.relays.attached[id] != number || self == nil {
		return nil, false
	}
	self.state.LastSeen = timestamppb.New(now)
	seen := map[string]bool{id: true}
	for _, s := range told[:min(len(told), relayLimit)] {
		for _, g := range s.GetGroups() {
			versions = append(versions, servedVersion{s.GetId(), g.GetGroup(), Version{Epoch: g.GetEpoch(), Revision: g.GetRevision()}})
		}
		if s.GetId() == id {
			self.state.Groups = s.GetGroups()
			continue
		}
		if s.GetId() == "" || r.relays.attached[s.GetId()] != 0 {
			continue // it has a stream of its own here: that one tells
		}
		seen[s.GetId()] = true
		r.relays.here[s.GetId()] = &relayed{state: s, from: id}
	}
	maps.DeleteFunc(r.relays.here, func(other string, x *relayed) bool { return x.from == id && !seen[other] })
	return versions, true
}

// attributeTold makes what a relay tells of refusals as if the data plane hung here.
func (r *Registry) attributeTold(groupID string, m *musterv1.DataPlane) {
	m.Refusals = m.GetRefusals()[:min(len(m.GetRefusals()), refusalLimit)]
	m.Types = m.GetTypes()[:min(len(m.GetTypes()), typeLimit)]
	m.Hops = m.GetHops()[:min(len(m.GetHops()), hopLimit)]
	for _, x := range m.GetRefusals() {
		x.Detail = cleanDetail(x.GetDetail())
		if len(x.GetObjects()) > 0 || r.cfg.Describe == nil {
			continue
		}
		origins, rev, ok := r.cfg.Describe(groupID, x.GetTypeUrl(), x.GetResourceName())
		if !ok {
			continue
		}
		x.Author, x.Revision = rev.GetAuthor(), rev.GetRevision()
		for _, k := range origins {
			x.Objects = append(x.Objects, k.Proto())
		}
		if len(origins) > 0 {
			x.Field = fieldOf(origins[0], x.GetDetail())
		}
	}
}

// RelayStates returns the relays below this server, to be told upstream or to the
// other servers.
func (r *Registry) RelayStates() []*musterv1.RelayState {
	r.expire(r.cfg.Now())
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]*musterv1.RelayState, 0, len(r.relays.here))
	for _, x := range r.relays.here {
		out = append(out, &musterv1.RelayState{
			Id: x.state.GetId(), Relay: x.state.GetRelay(), Connected: x.state.GetConnected() && x.left.IsZero(),
			Version: x.state.GetVersion(), Address: x.state.GetAddress(),
			ConnectedAt: x.state.GetConnectedAt(), LastSeen: x.state.GetLastSeen(), Groups: x.state.GetGroups(),
		})
	}
	slices.SortFunc(out, func(a, b *musterv1.RelayState) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return out
}

// LearnRelays takes in the relays below another server.
func (r *Registry) LearnRelays(server string, states []*musterv1.RelayState) {
	r.mu.Lock()
	r.relays.away[server] = states
	r.mu.Unlock()
	for _, s := range states {
		for _, v := range s.GetGroups() {
			if g := r.existing(v.GetGroup()); g != nil {
				g.mu.Lock()
				g.serves(s.GetId(), Version{Epoch: v.GetEpoch(), Revision: v.GetRevision()})
				g.mu.Unlock()
			}
		}
	}
}

// Relays returns the relays that carry a group, of all servers, by id.
func (r *Registry) Relays(groupID string) []*musterv1.Relay {
	g := r.existing(groupID)
	if g == nil {
		return nil
	}
	byID := map[string]*musterv1.Relay{}
	add := func(server string, s *musterv1.RelayState) {
		i := slices.IndexFunc(s.GetGroups(), func(v *musterv1.RelayedVersion) bool { return v.GetGroup() == groupID })
		if i < 0 {
			return
		}
		v := s.GetGroups()[i]
		if had := byID[s.GetId()]; had != nil && (had.GetConnected() && !s.GetConnected() ||
			had.GetConnected() == s.GetConnected() && !had.GetLastSeen().AsTime().Before(s.GetLastSeen().AsTime())) {
			return
		}
		byID[s.GetId()] = &musterv1.Relay{
			Id: s.GetId(), Server: server, Relay: s.GetRelay(), Connected: s.GetConnected(), Version: s.GetVersion(),
			Address: s.GetAddress(), ConnectedAt: s.GetConnectedAt(), LastSeen: s.GetLastSeen(),
			ServedEpoch: v.GetEpoch(), ServedRevision: v.GetRevision(),
		}
	}
	for _, s := range r.RelayStates() {
		add(r.cfg.Server, s)
	}
	r.mu.RLock()
	for server, states := range r.relays.away {
		for _, s := range states {
			add(server, s)
		}
	}
	r.mu.RUnlock()

	now := r.cfg.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range g.merged() {
		if p.live() && len(p.hops) > 0 {
			if x := byID[p.hops[len(p.hops)-1].relay]; x != nil {
				x.DataPlanes++
			}
		}
	}
	out := slices.Collect(maps.Values(byID))
	for _, x := range out {
		x.Lag = g.lag(Version{Epoch: x.GetServedEpoch(), Revision: x.GetServedRevision()}, now)
	}
	slices.SortFunc(out, func(a, b *musterv1.Relay) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return out
}

// lag is how long the oldest version above v has been waiting; nil when there is none.
func (g *group) lag(v Version, now time.Time) *durationpb.Duration {
	at, ok := g.timeline.since(v)
	if !ok {
		return nil
	}
	return durationpb.New(max(0, now.Sub(at)))
}

// expire takes the data planes of relays that have been out of reach for long as
// disconnected.
func (r *Registry) expire(now time.Time) {
	r.mu.Lock()
	var lost []string
	for id, x := range r.relays.here {
		if !x.left.IsZero() && !x.lost && now.Sub(x.left) >= relayLostAfter {
			x.lost = true
			if x.from == id {
				lost = append(lost, id)
			}
		}
		if x.lost && now.Sub(x.left) > r.cfg.ForgetAfter {
			delete(r.relays.here, id)
		}
	}
	r.mu.Unlock()
	for _, id := range lost {
		for _, g := range r.all() {
			g.mu.Lock()
			for _, p := range g.below[id] {
				if p.away {
					p.away = false
					r.changed(g, p)
				}
			}
			g.poke()
			g.mu.Unlock()
		}
	}
}

// hop is a relay on the way to a data plane.
type hop struct {
	relay   string
	version Version // as last told, where the group does not know better
}

func (p *plane) hopMessages(g *group, now time.Time) []*musterv1.RelayHop {
	var out []*musterv1.RelayHop
	for _, h := range p.hops {
		v, ok := g.served[h.relay]
		if !ok {
			v = h.version
		}
		out = append(out, &musterv1.RelayHop{Relay: h.relay, Epoch: v.Epoch, Revision: v.Revision, Lag: g.lag(v, now)})
	}
	return out
}

func hopsOf(m *musterv1.DataPlane) []hop {
	var out []hop
	for _, h := range m.GetHops() {
		out = append(out, hop{h.GetRelay(), Version{Epoch: h.GetEpoch(), Revision: h.GetRevision()}})
	}
	return out
}
