package raftstore

import (
	"context"
	"slices"
	"sync"
	"sync/atomic"
)

// watchers wakes those who wait for a new state. Publishing takes no lock that
// a watcher could hold.
type watchers struct {
	mu    sync.Mutex // serialises changes of chans
	chans atomic.Pointer[[]chan struct{}]
}

// add returns a channel of one slot that holds a token whenever something was
// published since the last receive, and a function that ends it.
func (w *watchers) add() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	w.change(func(all []chan struct{}) []chan struct{} { return append(slices.Clone(all), ch) })
	var once sync.Once
	return ch, func() {
		once.Do(func() {
			w.change(func(all []chan struct{}) []chan struct{} {
				return slices.DeleteFunc(slices.Clone(all), func(c chan struct{}) bool { return c == ch })
			})
		})
	}
}

func (w *watchers) change(f func([]chan struct{}) []chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var all []chan struct{}
	if p := w.chans.Load(); p != nil {
		all = *p
	}
	all = f(all)
	w.chans.Store(&all)
}

func (w *watchers) wake() {
	p := w.chans.Load()
	if p == nil {
		return
	}
	for _, ch := range *p {
		select {
		case ch <- struct{}{}:
		default:
		}
	}
}

// waitIndex returns once the state reflects the log up to an index.
func (s *Store) waitIndex(ctx context.Context, index uint64) error {
	if s.State().Index() >= index {
		return nil
	}
	ch, cancel := s.watch.add()
	defer cancel()
	for s.State().Index() < index {
		select {
		case <-ch:
		case <-s.stopped:
			return ErrStopped
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
