package dataplane

import (
	"context"
	"math/rand/v2"
	"time"
)

// lookup is a search of the second home, off the goroutine of Run.
type lookup struct {
	cancel context.CancelFunc
	now    chan struct{} // ends the wait before it
	found  chan *State   // one, nil when there is nothing to use
}

// look begins to search the second home after a while, unless a search is under
// way, was made a moment ago, or there is no second home.
func (c *Client) look(ctx context.Context, after time.Duration) {
	if c.cfg.SecondHome == nil || c.looking != nil || time.Now().Before(c.lookAgain) {
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	l := &lookup{cancel: cancel, now: make(chan struct{}, 1), found: make(chan *State, 1)}
	c.looking = l
	c.parts.Go(func() {
		defer cancel()
		t := time.NewTimer(after)
		defer t.Stop()
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		case <-l.now:
		}
		l.found <- c.search(ctx)
	})
}

// hurry begins a search at once: every server has failed.
func (c *Client) hurry(ctx context.Context) {
	if l := c.looking; l != nil {
		select {
		case l.now <- struct{}{}:
		default:
		}
		return
	}
	c.look(ctx, 0)
}

// search returns what the second home has that is newer than what is in service.
func (c *Client) search(ctx context.Context) *State {
	started := time.Now()
	have := c.State()
	s, err := c.cfg.SecondHome.newest(ctx, c.cfg.Group, c.cfg.TypeURLs, version{have.Epoch(), have.Revision()}, func(k KeptSnapshot, reason error) {
		c.log.Error("configuration in the second home refused", "object", k.Name, "reason", reason)
	})
	if ctx.Err() != nil {
		return nil // a server answered meanwhile, or the client stops
	}
	read := SecondHomeRead{Took: time.Since(started), Err: err, Found: s != nil}
	switch {
	case err != nil:
		c.log.Warn("second home not read", "error", err)
	case s != nil:
		read.Epoch, read.Revision = s.Epoch(), s.Revision()
	case !c.Status().Configured:
		c.log.Warn("the second home has nothing that can be used", "took", read.Took)
	default:
		c.log.Debug("the second home has nothing newer", "epoch", have.Epoch(), "revision", have.Revision())
	}
	c.cfg.Hooks.secondHomeRead(read)
	return s
}

// lookedUp is where the result of a search comes; nil, which never comes, when
// there is no search.
func (c *Client) lookedUp() <-chan *State {
	if c.looking == nil {
		return nil
	}
	return c.looking.found
}

// looked ends a search whose result has come.
func (c *Client) looked() {
	c.looking.cancel()
	c.looking = nil
	d := c.cfg.Timing.SecondHomeRetry
	if !c.Status().Configured {
		d = min(d, searchAgain)
	}
	c.lookAgain = time.Now().Add(d/2 + time.Duration(rand.Int64N(int64(d/2)+1)))
}

// searchAgain is the longest wait between two looks while nothing is in service.
const searchAgain = 5 * time.Second

// enough ends a search that is not needed any more: a server has answered.
func (c *Client) enough() {
	if c.looking != nil {
		c.looking.cancel()
		c.looking = nil
	}
}

// rest waits before the next server is tried. It ends early, with what the second
// home has, when that comes meanwhile.
func (c *Client) rest(ctx context.Context, wait time.Duration) (*State, bool) {
	if wait <= 0 {
		select {
		case s := <-c.lookedUp():
			c.looked()
			return s, ctx.Err() == nil
		default:
			return nil, ctx.Err() == nil
		}
	}
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return nil, false
	case <-t.C:
		return nil, true
	case s := <-c.lookedUp():
		c.looked()
		return s, true
	}
}

// moveIn puts a configuration of the second home into service.
func (c *Client) moveIn(ctx context.Context, state *State) {
	at, now := version{state.Epoch(), state.Revision()}, c.State()
	refuse := func(reason string) {
		c.log.Error("configuration in the second home refused", "reason", reason, "epoch", at.Epoch, "revision", at.Revision,
			"newest_epoch", c.floor.Epoch, "newest_revision", c.floor.Revision)
	}
	serving := c.Status().Configured
	switch {
	case serving && !(version{now.Epoch(), now.Revision()}).below(at):
		return // a server was faster
	case at.Epoch < c.floor.Epoch:
		refuse(errOlderEpoch.Error())
		return
	case c.cfg.WriteAhead && (at.below(c.floor) || c.cache != nil && c.cache.floorLost):
		refuse("it may be older than what was served last")
		return
	case at.below(c.floor):
		c.log.Warn("configuration in the second home is older than the newest that was in service",
			"revision", at.Revision, "newest", c.floor.Revision)
	}
	c.applyKept(ctx, state, "second home")
}
