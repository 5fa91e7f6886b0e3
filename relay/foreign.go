package relay

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

const (
	// settleTime is how long a foreign upstream has to be silent before a group is
	// served of which not every type was answered.
	settleTime = time.Second
	// doubtTime is how long it is not believed what an upstream that comes back says
	// is gone: one that was started again may not have filled its caches yet.
	doubtTime = 10 * time.Second
)

// foreignCarrier turns the responses of an upstream that is not muster into
// snapshots, type by type.
type foreignCarrier struct {
	id    string
	out   publisher
	log   *slog.Logger
	types int // how many are subscribed to

	mu       sync.Mutex
	snap     *snapshot.Snapshot
	answered map[string]bool // types
	fresh    map[string]bool // types that were answered on the stream
	now      string          // the type of the response under way
	served   bool
	settle   *time.Timer // publishes after the silence; nil when served
	// doubted is what the upstream said is gone when it came back, and has not
	// brought again; doubt takes it away in the end.
	doubted map[compile.Key]struct{}
	doubt   *time.Timer
	closed  bool
}

var _ dataplane.Handler = (*foreignCarrier)(nil)

// connected tells that the upstream answers on a new stream.
func (c *foreignCarrier) connected() {
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.fresh)
}

// received tells of a response, before Apply is called with what it changes.
func (c *foreignCarrier) received(typeURL string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answered[typeURL], c.now = true, typeURL
}

// Apply implements dataplane.Handler.
func (c *foreignCarrier) Apply(_ context.Context, u *dataplane.Update) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var up []snapshot.Upsert
	var remove []compile.Key
	for typeURL, t := range u.Types {
		for name, body := range t.Upsert {
			key := compile.Key{TypeURL: typeURL, Name: name}
			up = append(up, snapshot.Upsert{Key: key, Version: t.Versions[name], Body: body.GetValue()})
			delete(c.doubted, key)
		}
		for _, name := range t.Remove {
			key := compile.Key{TypeURL: typeURL, Name: name}
			if c.served && !c.fresh[typeURL] {
				c.doubted[key] = struct{}{}
				continue
			}
			remove = append(remove, key)
		}
	}
	if !u.Cached {
		c.fresh[c.now] = true
	}
	if len(c.doubted) > 0 && c.doubt == nil {
		c.log.Warn("the upstream came back and says that resources are gone; they are served for some time yet", "resources", len(c.doubted), "for", doubtTime)
		c.doubt = time.AfterFunc(doubtTime, c.believe)
	}
	changed := len(up)+len(remove) > 0
	if changed {
		c.next(up, remove)
	}
	switch {
	case c.served && changed:
		c.out.publish(c.snap)
	case c.served:
	case u.Cached || len(c.answered) == c.types:
		c.serve()
	case c.settle == nil:
		c.settle = time.AfterFunc(settleTime, c.silence)
	default:
		c.settle.Reset(settleTime)
	}
	return nil
}

// next makes the next snapshot.
func (c *foreignCarrier) next(up []snapshot.Upsert, remove []compile.Key) {
	// Numbered by the clock, so that a relay that was started again does not count
	// below what state-of-the-world clients remember.
	rev := max(c.snap.Version().Revision+1, uint64(time.Now().UnixMicro()))
	c.snap = c.snap.Apply(snapshot.Version{Revision: rev}, up, remove).Published(time.Now())
}

// believe takes away what the upstream has not brought again.
func (c *foreignCarrier) believe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doubt = nil
	if c.closed || len(c.doubted) == 0 {
		return
	}
	remove := make([]compile.Key, 0, len(c.doubted))
	for key := range c.doubted {
		remove = append(remove, key)
	}
	clear(c.doubted)
	c.next(nil, remove)
	c.out.publish(c.snap)
}

func (c *foreignCarrier) silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.served && !c.closed {
		c.log.Info("not every type was answered; serving what there is", "answered", len(c.answered), "types", c.types)
		c.serve()
	}
}

func (c *foreignCarrier) serve() {
	if c.snap.Version() == (snapshot.Version{}) {
		c.next(nil, nil) // even nothing has a revision
	}
	c.served = true
	c.out.publish(c.snap)
}

// close ends it: nothing is published any more.
func (c *foreignCarrier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, t := range []*time.Timer{c.settle, c.doubt} {
		if t != nil {
			t.Stop()
		}
	}
}

// hooked returns the hooks with the carrier's own.
func (c *foreignCarrier) hooked(h dataplane.Hooks) dataplane.Hooks {
	connected, received := h.Connected, h.Received
	h.Connected = func(server string) { c.connected(); connected(server) }
	h.Received = func(r dataplane.Received) { c.received(r.TypeURL); received(r) }
	return h
}

func newForeignCarrier(id string, out publisher, types int, log *slog.Logger) *foreignCarrier {
	return &foreignCarrier{
		id: id, out: out, log: log, types: types, snap: snapshot.Empty(id, 0).Partial(),
		answered: map[string]bool{}, fresh: map[string]bool{}, doubted: map[compile.Key]struct{}{},
	}
}
