package server

import (
	"context"
	"fmt"
	"runtime/debug"
	"sync"
)

// children runs the parts of a server, so that they can be stopped one by one,
// in order. The first part that fails, or ends without having been told to, is
// reported on failed.
type children struct {
	parent context.Context
	failed chan error
	wg     sync.WaitGroup
}

// newChildren returns an empty set. The parts outlive ctx: stopping in order is
// the owner's business. Its values are theirs too.
func newChildren(ctx context.Context) *children {
	return &children{parent: context.WithoutCancel(ctx), failed: make(chan error, 1)}
}

// child is one running part.
type child struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (c *children) start(name string, run func(context.Context) error) *child {
	ctx, cancel := context.WithCancel(c.parent)
	ch := &child{cancel: cancel, done: make(chan struct{})}
	c.wg.Go(func() {
		defer close(ch.done)
		err := runPart(ctx, run)
		switch {
		case err != nil:
			c.fail(fmt.Errorf("%s: %w", name, err))
		case ctx.Err() == nil:
			c.fail(fmt.Errorf("%s ended by itself", name))
		}
	})
	return ch
}

// runPart turns a panic into an error: the other parts are stopped in order and
// what is on its way to disk or to a data plane gets there.
func runPart(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
		}
	}()
	return run(ctx)
}

func (c *children) fail(err error) {
	select {
	case c.failed <- err:
	default:
	}
}

// stop ends a part and waits for it.
func (ch *child) stop() {
	if ch == nil {
		return
	}
	ch.cancel()
	<-ch.done
}

// outcome is what Run returns: the failure that stopped it, else one that came
// while it stopped.
func (c *children) outcome(failure error) error {
	if failure != nil {
		return failure
	}
	select {
	case err := <-c.failed:
		return err
	default:
		return nil
	}
}
