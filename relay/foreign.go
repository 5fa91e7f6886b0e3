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

// settleTime is how long a foreign upstream has to be silent before a group is
// served of which not every type was answered.
const settleTime = time.Second

// foreignCarrier turns the responses of an upstream that is not muster into
// snapshots, type by type.
type foreignCarrier struct {
	id    string
	out   publisher
	log   *slog.Logger
	types int // how many are subscribed to

	mu     sync.Mutex
	snap   *snapshot.Snapshot
	seen   map[string]bool // types that were answered
	served bool
	settle *time.Timer // publishes after the silence; nil when served
	closed bool
}

var _ dataplane.Handler = (*foreignCarrier)(nil)

// Apply implements dataplane.Handler.
func (c *foreignCarrier) Apply(_ context.Context, u *dataplane.Update) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var up []snapshot.Upsert
	var remove []compile.Key
	for typeURL, t := range u.Types {
		c.seen[typeURL] = true
		for name, body := range t.Upsert {
			up = append(up, snapshot.Upsert{Key: compile.Key{TypeURL: typeURL, Name: name}, Version: t.Versions[name], Body: body.GetValue()})
		}
		for _, name := range t.Remove {
			remove = append(remove, compile.Key{TypeURL: typeURL, Name: name})
		}
	}
	// Numbered by the clock, so that a relay that was started again does not count
	// below what state-of-the-world clients remember.
	rev := max(c.snap.Version().Revision+1, uint64(time.Now().UnixMicro()))
	c.snap = c.snap.Apply(snapshot.Version{Revision: rev}, up, remove).Published(time.Now())
	switch {
	case c.served:
		c.out.publish(c.snap)
	case u.Cached || len(c.seen) == c.types:
		c.serve()
	case c.settle == nil:
		c.settle = time.AfterFunc(settleTime, c.silence)
	default:
		c.settle.Reset(settleTime)
	}
	return nil
}

func (c *foreignCarrier) silence() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.served && !c.closed {
		c.log.Info("not every type was answered; serving what there is", "answered", len(c.seen), "types", c.types)
		c.serve()
	}
}

func (c *foreignCarrier) serve() {
	c.served = true
	c.out.publish(c.snap)
}

// close ends it: nothing is published any more.
func (c *foreignCarrier) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.settle != nil {
		c.settle.Stop()
	}
}

func newForeignCarrier(id string, out publisher, types int, log *slog.Logger) *foreignCarrier {
	return &foreignCarrier{id: id, out: out, log: log, types: types, snap: snapshot.Empty(id, 0).Partial(), seen: map[string]bool{}}
}
