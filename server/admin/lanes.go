package admin

import (
	"context"
	"sync"

	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/server/compile"
)

// lanes let the transactions of one group be judged one after the other, each on
// what those before it will leave, so that many of one group can be on their way
// through the log at once.
type lanes struct {
	mu     sync.Mutex
	groups map[string]*lane
}

// lane is a group's. Whoever is in it judges a transaction and hands it over;
// nobody stays in it until the answer comes.
type lane struct {
	in    *lanes
	group string
	free  chan struct{} // of one slot, which whoever is in the lane has taken

	// What follows is guarded by in.mu.
	used  int    // who is in the lane, or waits for it, or is on the way
	chain *chain // nil when nothing is on its way
}

// chain is transactions that are on their way, each judged on what those before
// it leave, the first on what was committed.
type chain struct {
	last   *flight
	flying int
	// broken is set once one of them did not do what it was judged to do: those
	// after it will be refused, and nothing more can be judged on them.
	broken bool
	ended  chan struct{} // closed when none is on its way any more
}

// flight is a transaction that was handed over.
type flight struct {
	lane  *lane
	chain *chain
	// group and compiled are what it will leave.
	group    *state.Group
	compiled *compile.Compiled

	landed chan struct{}
	ok     bool // valid once landed is closed: the group came to be as it was judged
}

// enter waits until the group's lane is free, and takes it. leave must be called,
// unless the error is set, which it is only when ctx ended.
func (l *lanes) enter(ctx context.Context, group string) (*lane, error) {
	l.mu.Lock()
	if l.groups == nil {
		l.groups = map[string]*lane{}
	}
	ln := l.groups[group]
	if ln == nil {
		ln = &lane{in: l, group: group, free: make(chan struct{}, 1)}
		ln.free <- struct{}{}
		l.groups[group] = ln
	}
	ln.used++
	l.mu.Unlock()
	select {
	case <-ln.free:
	case <-ctx.Done():
		ln.forget()
		return nil, ctx.Err()
	}
	// What follows a break is refused without having been looked at: until that is
	// over, whatever was judged on the committed state would come too late.
	if ended := ln.breaking(); ended != nil {
		select {
		case <-ended:
		case <-ctx.Done():
			ln.leave()
			return nil, ctx.Err()
		}
	}
	return ln, nil
}

// breaking returns what tells of the end of a broken chain; nil when there is none.
func (ln *lane) breaking() <-chan struct{} {
	ln.in.mu.Lock()
	defer ln.in.mu.Unlock()
	if ln.chain == nil || !ln.chain.broken {
		return nil
	}
	return ln.chain.ended
}

// leave lets the next one in.
func (ln *lane) leave() {
	ln.free <- struct{}{}
	ln.forget()
}

func (ln *lane) forget() {
	ln.in.mu.Lock()
	defer ln.in.mu.Unlock()
	ln.drop()
}

// drop is forget under the lock.
func (ln *lane) drop() {
	if ln.used--; ln.used == 0 {
		delete(ln.in.groups, ln.group)
	}
}

// tip is the last transaction on its way that another can be judged on; nil when
// there is none. It is asked by whoever is in the lane.
func (ln *lane) tip() *flight {
	ln.in.mu.Lock()
	defer ln.in.mu.Unlock()
	if ln.chain == nil || ln.chain.broken {
		return nil
	}
	return ln.chain.last
}

// depart makes what was just handed over the tip; on is the tip that it was judged
// on. It is called by whoever is in the lane, and land must follow.
func (ln *lane) depart(on *flight, group *state.Group, compiled *compile.Compiled) *flight {
	ln.in.mu.Lock()
	defer ln.in.mu.Unlock()
	f := &flight{lane: ln, group: group, compiled: compiled, landed: make(chan struct{})}
	if on != nil {
		f.chain = on.chain
	}
	if f.chain == nil || f.chain.flying == 0 {
		// Those before it may all have landed since.
		broken := f.chain != nil && f.chain.broken
		f.chain = &chain{ended: make(chan struct{}), broken: broken}
	}
	f.chain.last = f
	f.chain.flying++
	ln.chain = f.chain
	ln.used++
	return f
}

// land notes what became of a transaction.
func (f *flight) land(ok bool) {
	ln, c := f.lane, f.chain
	ln.in.mu.Lock()
	defer ln.in.mu.Unlock()
	f.ok = ok
	close(f.landed)
	c.broken = c.broken || !ok
	if c.flying--; c.flying == 0 {
		close(c.ended)
		if ln.chain == c {
			ln.chain = nil
		}
	}
	ln.drop()
}

// wait waits until a transaction that another was judged on has landed, and tells
// whether the group came to be as it was judged.
func (f *flight) wait(ctx context.Context) (bool, error) {
	select {
	case <-f.landed:
		return f.ok, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}
