package relay

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// publisher takes the snapshots of a group, in the order of their versions.
type publisher interface {
	publish(s *snapshot.Snapshot)
}

// carrier turns the updates of one group of a muster upstream into snapshots. It
// is used from the goroutine of its client.
type carrier struct {
	id  string // of the group
	out publisher
	log *slog.Logger
	// grpc: of gRPC's own xDS clients, who ask for listeners by names of their making.
	grpc bool

	snap *snapshot.Snapshot // as last published; nil before
	at   *dataplane.State   // what snap was made of
}

var _ dataplane.Handler = (*carrier)(nil)

// Apply implements dataplane.Handler. It refuses only what is no revision of a
// group: what data planes think of the content is not the upstream's business.
func (c *carrier) Apply(_ context.Context, u *dataplane.Update) error {
	if !u.Whole || u.State.Manifest() == nil {
		return fmt.Errorf("an update without a manifest: a relay passes on whole revisions only")
	}
	v := snapshot.Version{Epoch: u.Epoch, Revision: u.Revision}
	var next *snapshot.Snapshot
	if c.snap != nil && c.at == u.Previous {
		up, remove := c.changes(u)
		next = c.snap.Apply(v, up, remove)
	} else {
		from := c.snap
		if from == nil {
			from = snapshot.Empty(c.id, v.Epoch)
			if c.grpc {
				from = from.WithTemplate(compile.ListenerType, compile.ServerListener)
			}
		}
		next = from.Replace(v, c.everything(u.State))
	}
	next = next.WithManifest(u.State.Manifest()).Published(time.Now())
	c.snap, c.at = next, u.State
	c.out.publish(next)
	return nil
}

// changes returns what an update changes. A removal takes a name out of every
// view: what is left of it in others comes again.
func (c *carrier) changes(u *dataplane.Update) (up []snapshot.Upsert, remove []compile.Key) {
	t := u.Types[dataplane.RelayType]
	for _, name := range t.Remove {
		_, key, ok := snapshot.ParseRelayName(name)
		if !ok {
			continue
		}
		remove = append(remove, key)
		for _, other := range snapshot.RelayNames(key) {
			if r, ok := u.State.Get(dataplane.RelayType, other); ok {
				up = c.add(up, r.Name, r.Version, r.Body)
			}
		}
	}
	for name, body := range t.Upsert {
		up = c.add(up, name, t.Versions[name], body)
	}
	return up, remove
}

func (c *carrier) everything(s *dataplane.State) []snapshot.Upsert {
	up := make([]snapshot.Upsert, 0, s.Len(dataplane.RelayType))
	for r := range s.All(dataplane.RelayType) {
		up = c.add(up, r.Name, r.Version, r.Body)
	}
	return up
}

func (c *carrier) add(up []snapshot.Upsert, name, version string, body *anypb.Any) []snapshot.Upsert {
	view, key, ok := snapshot.ParseRelayName(name)
	if !ok {
		// Of a view that this release does not know: its data planes are none of ours.
		c.log.Warn("a resource of an unknown view is not served; is this relay older than its upstream?", "name", name)
		return up
	}
	return append(up, snapshot.Upsert{Key: key, Version: version, Body: body.GetValue(), View: view})
}
