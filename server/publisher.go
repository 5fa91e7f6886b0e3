package server

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/failpoint"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/fleet"
	"github.com/musterhq/muster/server/snapshot"
	"github.com/musterhq/muster/server/xds"
)

// stateSource is the replicated store, as the publisher follows it.
type stateSource interface {
	State() *state.State
	Watch() (<-chan struct{}, func())
	Ready() error
}

// fleetSink is told what is served.
type fleetSink interface {
	Created(group string, at time.Time)
	Published(group string, v fleet.Version)
	Dropped(group string)
}

// recentPublications is how many publications of a group are remembered for
// trial compilations, which begin at the revision that their caller read.
const recentPublications = 64

// publisher follows the store and turns each group's revisions into snapshots:
// changes since the last publication -> compile -> snapshot -> wake the sessions.
// One goroutine publishes, so that the revisions of a group come in order; what
// was published is read without a lock.
type publisher struct {
	store stateSource
	fleet fleetSink
	hub   *xds.Hub
	// grpcHub serves gRPC's own xDS clients; see proxyless.go.
	grpcHub *xds.Hub
	metrics *metrics
	logger  *slog.Logger
	now     func() time.Time
	sign    func(*musterv1.Manifest) // nil: nothing is signed

	// ready is set once every group of a caught-up store was published.
	ready atomic.Bool

	mu     sync.RWMutex
	groups map[string]*publishedGroup
}

// publishedGroup is one group as it is served.
type publishedGroup struct {
	id      string
	current atomic.Pointer[publication]
	// failed is the state that could not be compiled, so that it is not tried
	// again at every wake. Only the publishing goroutine uses it.
	failed *state.Group

	mu     sync.Mutex
	recent []*publication // oldest first, the current one last

	proxyless proxylessGroup
}

// publication is one group at one revision. It is immutable.
type publication struct {
	group    *state.Group
	compiled *compile.Compiled
	snap     *snapshot.Snapshot
}

func newPublisher(store stateSource, sink fleetSink, m *metrics, logger *slog.Logger, now func() time.Time) *publisher {
	return &publisher{store: store, fleet: sink, hub: xds.NewHub(), grpcHub: xds.NewHub(), metrics: m, logger: logger, now: now, groups: map[string]*publishedGroup{}}
}

// readyPoll is how often a store that is not ready is looked at: becoming ready
// need not come with a new state.
const readyPoll = 20 * time.Millisecond

// run publishes until ctx ends.
func (p *publisher) run(ctx context.Context) error {
	wake, cancel := p.store.Watch()
	defer cancel()
	defer p.ready.Store(false)
	if !p.waitReady(ctx) {
		return nil
	}
	for {
		// The state is read after the wake was taken: what comes later wakes again.
		p.publishAll(p.store.State())
		p.ready.Store(true)
		select {
		case <-ctx.Done():
			return nil
		case <-wake:
		}
	}
}

// waitReady returns true once the store has caught up: an older state must not
// be served, or a data plane that reconnects here would move backwards.
func (p *publisher) waitReady(ctx context.Context) bool {
	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	for p.store.Ready() != nil {
		select {
		case <-ctx.Done():
			return false
		case <-poll.C:
		}
	}
	return ctx.Err() == nil
}

// waitPublished returns true once every group was published, false when ctx
// ends first.
func (p *publisher) waitPublished(ctx context.Context) bool {
	poll := time.NewTicker(readyPoll)
	defer poll.Stop()
	for !p.ready.Load() {
		select {
		case <-ctx.Done():
			return false
		case <-poll.C:
		}
	}
	return true
}

// publishAll brings every group to the state. Groups that did not change cost
// one comparison of pointers.
func (p *publisher) publishAll(st *state.State) {
	n := 0
	for g := range st.Groups() {
		n++
		pg := p.lookup(g.ID())
		if pg == nil {
			pg = p.add(g.ID())
		}
		if pub := pg.current.Load(); (pub == nil || pub.group != g) && pg.failed != g {
			p.publish(pg, pub, g)
		}
	}
	p.mu.RLock()
	known := len(p.groups)
	p.mu.RUnlock()
	if known > n {
		p.sweep(st)
	}
}

// publish makes g the group's publication.
func (p *publisher) publish(pg *publishedGroup, last *publication, g *state.Group) {
	v := snapshot.Version{Epoch: g.Epoch(), Revision: g.Revision()}
	if last != nil && last.snap.Version() == v && last.group.View() == g.View() {
		// Only what describes the group changed, its labels for example.
		pg.set(&publication{g, last.compiled, last.snap})
		return
	}
	began := p.now()
	next, err := p.compile(pg.id, last, g, v)
	if err != nil {
		pg.failed = g
		p.metrics.publishFailures.WithLabelValues(pg.id).Inc()
		p.logger.Error("a revision cannot be compiled; the group stays at its last good one",
			"group", pg.id, "revision", g.Revision(), "error", err)
		return
	}
	pg.set(next)
	// The fleet first: an acknowledgement must not come before what it is of.
	p.fleet.Created(pg.id, g.Meta().GetCreatedAt().AsTime())
	p.fleet.Published(pg.id, v)
	failpoint.Hit("push")
	p.hub.Publish(next.snap)
	p.proxyless(pg, false)
	p.metrics.publishSeconds.Observe(p.now().Sub(began).Seconds())
	p.metrics.groupRevision.WithLabelValues(pg.id).Set(float64(v.Revision))
}

// compile returns the publication of g that follows last. A panic of the
// compiler is returned as an error: one group's object must not end the serving
// of all the others.
func (p *publisher) compile(id string, last *publication, g *state.Group, v snapshot.Version) (next *publication, err error) {
	defer func() {
		if r := recover(); r != nil {
			next, err = nil, fmt.Errorf("the compiler failed: %v", r)
		}
	}()
	var (
		compiled *compile.Compiled
		delta    compile.Delta
		problems resource.Problems
		snap     *snapshot.Snapshot
	)
	if last == nil {
		compiled, delta, problems = compile.Full(g.View())
		snap = snapshot.Empty(id, v.Epoch).Signed(p.sign).Next(v, delta)
	} else {
		compiled, delta, problems = last.compiled.Next(g.View(), changesBetween(last.group, g))
		snap = last.snap.Next(v, delta)
	}
	for _, problem := range problems {
		// The object is left out; everything else is served.
		p.metrics.compileProblems.WithLabelValues(id).Inc()
		p.logger.Error("an object cannot be compiled and is left out",
			"group", id, "revision", g.Revision(), "object", problem.Object.String(), "field", problem.Path, "problem", problem.Message)
	}
	return &publication{g, compiled, snap.Published(p.now())}, nil
}

// changesBetween returns what differs between two states of a group. The
// group's own change sets tell, as long as they reach back to the very content
// that was published last; after a trim, a restore, or a group made again under
// its old id, the two views are compared.
func changesBetween(from, to *state.Group) []state.Change {
	if base, ok := to.At(from.Revision()); ok && base == from.View() {
		if changes, ok := to.Changes(from.Revision(), to.Revision()); ok {
			return changes
		}
	}
	return compareViews(from.View(), to.View())
}

func compareViews(from, to state.View) []state.Change {
	var changes []state.Change
	for e := range from.Entries() {
		if after, ok := to.Get(e.Key); !ok || after != e {
			changes = append(changes, state.Change{Key: e.Key, Before: e, After: after})
		}
	}
	for e := range to.Entries() {
		if _, ok := from.Get(e.Key); !ok {
			changes = append(changes, state.Change{Key: e.Key, After: e})
		}
	}
	return changes
}

// sweep ends the groups that the state no longer has.
func (p *publisher) sweep(st *state.State) {
	p.mu.Lock()
	var gone []*publishedGroup
	for id, pg := range p.groups {
		if g, ok := st.Group(id); !ok || g.ID() != id {
			delete(p.groups, id)
			gone = append(gone, pg)
		}
	}
	p.mu.Unlock()
	for _, pg := range gone {
		p.hub.Remove(pg.id)
		p.removeProxyless(pg)
		p.fleet.Dropped(pg.id)
		p.metrics.forget(pg.id)
		p.logger.Info("group deleted; its streams end", "group", pg.id)
	}
}

func (p *publisher) lookup(id string) *publishedGroup {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.groups[id]
}

func (p *publisher) add(id string) *publishedGroup {
	pg := &publishedGroup{id: id}
	p.mu.Lock()
	p.groups[id] = pg
	p.mu.Unlock()
	return pg
}

func (pg *publishedGroup) set(pub *publication) {
	pg.mu.Lock()
	defer pg.mu.Unlock()
	if len(pg.recent) == recentPublications {
		copy(pg.recent, pg.recent[1:])
		pg.recent = pg.recent[:recentPublications-1]
	}
	pg.recent = append(pg.recent, pub)
	pg.current.Store(pub)
}
