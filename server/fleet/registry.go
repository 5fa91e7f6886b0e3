package fleet

import (
	"cmp"
	"container/list"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/snapshot"
)

// Version is a revision of a group.
type Version = snapshot.Version

// Describe tells whose change stands behind an xDS resource: the objects,
// nearest first, and the revision that brought its content.
type Describe func(group, typeURL, name string) (origins []resource.Key, rev *musterv1.Revision, ok bool)

// Config configures a Registry.
type Config struct {
	// Server is this server's id, reported as the place that data planes hang on.
	Server string
	// Now is the clock. Required.
	Now func() time.Time
	// Describe attributes refusals. It is called with no lock held and must not
	// block. Nil attributes nothing.
	Describe Describe
	// Warn says what of the listeners that a proxyless gRPC client of a group asks
	// for it cannot honour. It is called with locks held and must not block. Nil
	// warns of nothing.
	Warn func(group string, listeners []string) []string
	// RememberOffline bounds the data planes remembered per group after they
	// disconnected; the longest gone are forgotten first. Default 1000.
	RememberOffline int
	// ForgetAfter is how long a disconnected data plane is remembered. Default
	// seven days.
	ForgetAfter time.Duration
}

// Registry knows the data planes of every group. All methods may be called
// concurrently.
type Registry struct {
	cfg Config
	seq atomic.Uint64 // numbers the changes of data planes
	// waiting counts the waits under way.
	waiting atomic.Int64
	// hurried: somebody waits at the upstream.
	hurried atomic.Bool

	mu     sync.RWMutex
	groups map[string]*group
	// instances are the instances of the other servers, as they last told.
	instances map[string]string
	relays    relays
}

// group holds what is known of one group's data planes.
type group struct {
	id   string
	warn func(group string, listeners []string) []string

	mu       sync.Mutex
	created  time.Time // zero where that is not known
	current  Version
	timeline timeline
	planes   map[string]*plane // of this server
	live     int               // those of them with a stream
	order    *list.List        // of *plane of this server, the last changed last
	// below are the data planes of relays that hang on this server, by relay and id.
	below map[string]map[string]*plane
	// served is what each relay serves, of this and the other servers.
	served map[string]Version
	// remote are the data planes of the other servers, by server and id.
	remote map[string]map[string]*plane
	// gone counts the data planes that others told to be offline since forget.
	gone    int
	waiters map[chan struct{}]struct{}
	dropped bool
}

// New returns an empty Registry.
func New(cfg Config) *Registry {
	if cfg.RememberOffline == 0 {
		cfg.RememberOffline = 1000
	}
	if cfg.ForgetAfter == 0 {
		cfg.ForgetAfter = 7 * 24 * time.Hour
	}
	return &Registry{
		cfg: cfg, groups: map[string]*group{}, instances: map[string]string{},
		relays: relays{attached: map[string]uint64{}, here: map[string]*relayed{}, away: map[string][]*musterv1.RelayState{}},
	}
}

// slack is how far the number of remembered data planes may rise above its
// bound, so that a storm of disconnects does not sort them for each.
func (c Config) slack() int { return c.RememberOffline / 8 }

// Created tells when the group that has an id was created, before its first
// snapshot is. A group that was deleted and made again is another group, whose
// data planes so far are forgotten but for those that are connected here, which are
// told anew.
func (r *Registry) Created(groupID string, at time.Time) {
	g := r.group(groupID)
	g.mu.Lock()
	again := !g.created.IsZero() && !g.created.Equal(at)
	g.created = at
	if again {
		for id, p := range g.planes {
			if !p.live() {
				delete(g.planes, id)
				g.order.Remove(p.place)
				continue
			}
			r.changed(g, p)
		}
		for _, of := range g.below {
			for _, p := range of {
				g.order.Remove(p.place)
			}
		}
		clear(g.below)
		clear(g.remote)
	}
	g.mu.Unlock()
	if !again {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for server := range r.instances {
		r.instances[server] = "" // they are to tell everything again
	}
}

// Published tells that a group's snapshot of a version is served from now on.
func (r *Registry) Published(groupID string, v Version) {
	g := r.group(groupID)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.current.Less(v) {
		g.current = v
		g.timeline.add(v, r.cfg.Now())
		g.poke()
	}
}

// Dropped tells that a group was deleted; its data planes are forgotten.
func (r *Registry) Dropped(groupID string) {
	r.mu.Lock()
	g := r.groups[groupID]
	delete(r.groups, groupID)
	r.mu.Unlock()
	if g != nil {
		g.mu.Lock()
		g.dropped = true
		g.poke()
		g.mu.Unlock()
	}
}

// LiveHere returns the number of a group's data planes that are connected to
// this server.
func (r *Registry) LiveHere(groupID string) int {
	g := r.existing(groupID)
	if g == nil {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.live
}

// Live returns the number of a group's data planes that are connected to any
// server, as far as the others told.
func (r *Registry) Live(groupID string) int {
	g := r.existing(groupID)
	if g == nil {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	n := 0
	for _, p := range g.merged() {
		if p.live() {
			n++
		}
	}
	return n
}

// ListOptions narrow a list.
type ListOptions struct {
	// IDs are the data planes wanted; none means all.
	IDs []string
	// Types includes the state of each xDS type.
	Types bool
}

// List returns a group's data planes by id.
func (r *Registry) List(groupID string, opts ListOptions) []*musterv1.DataPlane {
	g := r.existing(groupID)
	if g == nil {
		return nil
	}
	now := r.cfg.Now()
	r.expire(now)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.forget(now, r.cfg)
	planes := g.merged()
	if len(opts.IDs) > 0 {
		planes = make(map[string]*plane, len(opts.IDs))
		for _, id := range opts.IDs {
			if p := g.find(id); p != nil {
				planes[id] = p
			}
		}
	}
	out := make([]*musterv1.DataPlane, 0, len(planes))
	for _, p := range planes {
		out = append(out, p.message(g, now, opts.Types))
	}
	slices.SortFunc(out, func(a, b *musterv1.DataPlane) int { return cmp.Compare(a.GetId(), b.GetId()) })
	return out
}

// merged returns the group's data planes of all servers, each as the server
// knows it that it is or was last connected to. Do not modify the map.
func (g *group) merged() map[string]*plane {
	if len(g.remote)+len(g.below) == 0 {
		return g.planes
	}
	all := maps.Clone(g.planes)
	for _, from := range []map[string]map[string]*plane{g.below, g.remote} {
		for _, planes := range from {
			for id, p := range planes {
				if mine, ok := all[id]; !ok || p.better(mine) {
					all[id] = p
				}
			}
		}
	}
	return all
}

// own is a data plane of this server, or of a relay below it.
func (g *group) own(id string) *plane { return best(g.planes[id], g.below, id) }

func best(p *plane, others map[string]map[string]*plane, id string) *plane {
	for _, planes := range others {
		if o := planes[id]; o != nil && (p == nil || o.better(p)) {
			p = o
		}
	}
	return p
}

// find is merged for one data plane.
func (g *group) find(id string) *plane {
	return best(g.own(id), g.remote, id)
}

// Counts is a group's data planes by state.
type Counts struct{ Synced, Stale, Nacked, Offline int }

// Counts returns the number of this server's data planes in each state, by group.
func (r *Registry) Counts() map[string]Counts {
	all := map[string]Counts{}
	for _, g := range r.all() {
		g.mu.Lock()
		var c Counts
		for _, p := range g.planes {
			switch p.state(g.current) {
			case synced:
				c.Synced++
			case nacked:
				c.Nacked++
			case offline:
				c.Offline++
			default:
				c.Stale++
			}
		}
		g.mu.Unlock()
		all[g.id] = c
	}
	return all
}

func (r *Registry) all() []*group {
	r.mu.RLock()
	defer r.mu.RUnlock()
	gs := make([]*group, 0, len(r.groups))
	for _, g := range r.groups {
		gs = append(gs, g)
	}
	return gs
}

func (r *Registry) existing(id string) *group {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.groups[id]
}

func (r *Registry) group(id string) *group {
	if g := r.existing(id); g != nil {
		return g
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	g := r.groups[id]
	if g == nil {
		g = &group{
			id: id, warn: r.cfg.Warn, planes: map[string]*plane{}, order: list.New(),
			below: map[string]map[string]*plane{}, served: map[string]Version{},
			remote: map[string]map[string]*plane{}, waiters: map[chan struct{}]struct{}{},
		}
		r.groups[id] = g
	}
	return g
}

// poke wakes every waiter. Waiters have one slot: those that did not look yet
// will see this change with the earlier one.
func (g *group) poke() {
	for ch := range g.waiters {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// forget drops offline planes that are gone for too long or too many.
func (g *group) forget(now time.Time, cfg Config) {
	g.forgetIn(g.planes, now, cfg)
	for _, planes := range g.below {
		g.forgetIn(planes, now, cfg)
	}
	for _, planes := range g.remote {
		g.forgetIn(planes, now, cfg)
	}
}

func (g *group) forgetIn(planes map[string]*plane, now time.Time, cfg Config) {
	var gone []*plane
	for _, p := range planes {
		if !p.live() {
			gone = append(gone, p)
		}
	}
	slices.SortFunc(gone, func(a, b *plane) int { return a.seen.Compare(b.seen) })
	for i, p := range gone {
		if now.Sub(p.seen) > cfg.ForgetAfter || len(gone)-i > cfg.RememberOffline {
			delete(planes, p.id)
			if p.place != nil {
				g.order.Remove(p.place)
			}
		}
	}
}

// changed numbers a change of one of this server's planes.
func (r *Registry) changed(g *group, p *plane) {
	p.seq = r.seq.Add(1)
	if p.place == nil {
		p.place = g.order.PushBack(p)
	} else {
		g.order.MoveToBack(p.place)
	}
}
