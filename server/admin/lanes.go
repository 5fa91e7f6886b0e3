package admin

import (
	"context"
	"sync"
)

// lanes let the transactions of one group pass one after the other on this
// server. Each is judged against a revision and holds only at that one: at once,
// all but one of them would be judged in vain.
type lanes struct {
	mu     sync.Mutex
	groups map[string]*lane
}

type lane struct {
	free chan struct{} // of one slot, which whoever is in the lane has taken
	used int           // who is in the lane or waits for it
}

// enter waits until the group's lane is free and takes it. leave must be called,
// unless the error is set, which it is only when ctx ended.
func (l *lanes) enter(ctx context.Context, group string) (leave func(), err error) {
	l.mu.Lock()
	if l.groups == nil {
		l.groups = map[string]*lane{}
	}
	ln := l.groups[group]
	if ln == nil {
		ln = &lane{free: make(chan struct{}, 1)}
		ln.free <- struct{}{}
		l.groups[group] = ln
	}
	ln.used++
	l.mu.Unlock()
	forget := func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if ln.used--; ln.used == 0 {
			delete(l.groups, group)
		}
	}
	select {
	case <-ln.free:
		return func() {
			ln.free <- struct{}{}
			forget()
		}, nil
	case <-ctx.Done():
		forget()
		return nil, ctx.Err()
	}
}
