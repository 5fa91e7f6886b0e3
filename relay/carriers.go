package relay

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/downstream"
	"github.com/musterhq/muster/server/fleet"
	"github.com/musterhq/muster/server/snapshot"
	"github.com/musterhq/muster/server/xds"
)

// carried is one group that the relay carries.
type carried struct {
	group  *musterv1.RelayedGroup // guarded by carriers.mu
	listed bool                   // by the upstream; guarded by carriers.mu
	client *dataplane.Client
	// served is the version that data planes are given; nil before the first.
	served atomic.Pointer[snapshot.Version]
}

// carriers are the groups that the relay carries.
type carriers struct {
	cfg      *Config
	upstream *dataplane.Upstream
	hub      *xds.Hub
	fleet    *fleet.Registry
	metrics  *metrics
	log      *slog.Logger

	// run starts a part of the relay, which ends with its context.
	run func(func(ctx context.Context) error)
	// published counts publications, so that it is seen that there is news.
	published atomic.Uint64

	mu      sync.Mutex
	groups  map[string]*carried // by id
	foreign bool
	told    bool // the upstream, or the disk, has told which groups there are
	watches map[chan struct{}]struct{}
}

var _ downstream.Groups = (*carriers)(nil)

// recall begins with the groups that the disk remembers.
func (c *carriers) recall() {
	l, ok, err := readList(c.cfg.DataDir)
	switch {
	case err != nil:
		c.log.Error("the upstream has to tell the groups again", "error", err)
	case ok:
		wanted := slices.DeleteFunc(l.messages(), func(g *musterv1.RelayedGroup) bool { return !c.wants(g) })
		c.carry(wanted, l.Foreign)
	}
}

// wants reports whether the configuration asks for a group.
func (c *carriers) wants(g *musterv1.RelayedGroup) bool {
	if names := c.cfg.Groups; len(names) > 0 && !slices.Contains(names, g.GetId()) && !slices.Contains(names, g.GetName()) {
		return false
	}
	for k, v := range c.cfg.Labels {
		if had, ok := g.GetLabels()[k]; !ok || had != v {
			return false
		}
	}
	return true
}

// list takes in which groups a muster upstream has. Those that it does not list
// any more are served on.
func (c *carriers) list(groups []*musterv1.RelayedGroup) {
	c.carry(groups, false)
	c.remember(listOf(groups))
}

// alien takes in that the upstream is not muster: the groups are those of the
// configuration.
func (c *carriers) alien() {
	var groups []*musterv1.RelayedGroup
	for _, name := range c.cfg.Groups {
		groups = append(groups, &musterv1.RelayedGroup{Id: name, Name: name})
	}
	if len(groups) == 0 {
		c.log.Error("the upstream is not muster and cannot tell which groups there are: name them")
		return
	}
	c.carry(groups, true)
	l := listOf(groups)
	l.Foreign = true
	c.remember(l)
}

func (c *carriers) remember(l groupList) {
	if err := writeList(c.cfg.DataDir, l); err != nil {
		c.log.Error("the list of groups is not kept on disk", "error", err)
	}
}

func (c *carriers) carry(groups []*musterv1.RelayedGroup, foreign bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told && c.foreign != foreign && len(c.groups) > 0 {
		c.log.Error("the upstream is of another kind than before; remove the data directory and start again to follow it", "muster", !foreign)
		return
	}
	c.told, c.foreign = true, foreign
	for _, had := range c.groups {
		had.listed = false
	}
	for _, g := range groups {
		had := c.groups[g.GetId()]
		if had == nil {
			var err error
			if had, err = c.begin(g, foreign); err != nil {
				c.log.Error("a group cannot be carried", "carries", g.GetId(), "error", err)
				continue
			}
			c.groups[g.GetId()] = had
		}
		had.group, had.listed = g, true
	}
	for id, had := range c.groups {
		if !had.listed {
			c.log.Warn("the upstream does not list a group any more; it is served on as it was last", "carries", id)
		}
	}
	for w := range c.watches {
		select {
		case w <- struct{}{}:
		default:
		}
	}
}

// begin starts to follow a group.
func (c *carriers) begin(g *musterv1.RelayedGroup, foreign bool) (*carried, error) {
	id := g.GetId()
	c.hub.Expect(id)
	out := &carried{group: g}
	log := c.log.With("carries", id)
	cfg := dataplane.Config{
		Upstream: c.upstream,
		Group:    c.word(g), NodeID: c.cfg.ID,
		UserAgentName: xds.RelayAgent, UserAgentVersion: c.cfg.Version,
		TypeURLs: []string{dataplane.RelayType}, Manifest: dataplane.ManifestRequired, ManifestKeys: c.cfg.ManifestKeys,
		CacheDir: filepath.Join(c.cfg.DataDir, "groups"), CacheKey: c.cfg.CacheKey, WriteAhead: true,
		Logger: c.log, Timing: c.cfg.Upstreaming, Hooks: c.metrics.hooks(id),
	}
	var end func()
	if foreign {
		cfg.UserAgentName = "muster-relay-type-by-type" // of no meaning upstream
		cfg.TypeURLs, cfg.Manifest, cfg.ManifestKeys = dataplane.DefaultTypes(), dataplane.ManifestOff, nil
		h := newForeignCarrier(id, c.publisher(out), len(cfg.TypeURLs), log)
		cfg.Handler, end = h, h.close
	} else {
		cfg.Handler, end = &carrier{id: id, out: c.publisher(out), log: log}, func() {}
	}
	if foreign && len(c.cfg.ManifestKeys) > 0 {
		return nil, fmt.Errorf("the upstream signs nothing, and only signed configuration is trusted")
	}
	client, err := dataplane.New(cfg)
	if err != nil {
		return nil, err
	}
	out.client = client
	c.run(func(ctx context.Context) error {
		defer end()
		if err := client.Run(ctx); err != nil {
			return fmt.Errorf("group %s: %w", id, err)
		}
		return nil
	})
	return out, nil
}

// word is how the relay names a group upstream: as it was configured, for that is
// what its certificate allows.
func (c *carriers) word(g *musterv1.RelayedGroup) string {
	if slices.Contains(c.cfg.Groups, g.GetName()) && !slices.Contains(c.cfg.Groups, g.GetId()) {
		return g.GetName()
	}
	return g.GetId()
}

// publication publishes the snapshots of one group.
type publication struct {
	all *carriers
	of  *carried
}

func (c *carriers) publisher(of *carried) publisher { return publication{c, of} }

func (p publication) publish(s *snapshot.Snapshot) {
	v := s.Version()
	// The fleet first: an acknowledgement must not come before what it is of.
	p.all.fleet.Published(s.Group(), v)
	p.all.hub.Publish(s)
	p.of.served.Store(&v)
	p.all.published.Add(1)
	p.all.metrics.served(s.Group(), v)
}

// find returns the group that a data plane names, by id or name.
func (c *carriers) find(name string) (id string, found, told bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if g := c.groups[name]; g != nil {
		return name, true, true
	}
	for id, g := range c.groups {
		if g.group.GetName() == name {
			return id, true, true
		}
	}
	return "", false, c.told
}

// await is find once the group is served, or ctx has ended. A group that is not
// carried is not waited for.
func (c *carriers) await(ctx context.Context, name string) (id string, found, told bool) {
	poll := time.NewTicker(awaitPoll)
	defer poll.Stop()
	for {
		id, found, told = c.find(name)
		if told && !found {
			return id, found, told
		}
		if found {
			c.mu.Lock()
			served := c.groups[id].served.Load() != nil
			c.mu.Unlock()
			if served {
				return id, found, told
			}
		}
		select {
		case <-ctx.Done():
			return id, found, told
		case <-poll.C:
		}
	}
}

const awaitPoll = 10 * time.Millisecond

// Groups implements downstream.Groups.
func (c *carriers) Groups() ([]*musterv1.RelayedGroup, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.told || c.foreign {
		return nil, errNotTold
	}
	out := make([]*musterv1.RelayedGroup, 0, len(c.groups))
	for _, g := range c.groups {
		out = append(out, g.group)
	}
	return out, nil
}

// Watch implements downstream.Groups.
func (c *carriers) Watch() (<-chan struct{}, func()) {
	w := make(chan struct{}, 1)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watches[w] = struct{}{}
	return w, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.watches, w)
	}
}

// all returns the carried groups by id.
func (c *carriers) all() []*carried {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]*carried, 0, len(c.groups))
	for _, g := range c.groups {
		out = append(out, g)
	}
	slices.SortFunc(out, func(a, b *carried) int { return cmp.Compare(a.group.GetId(), b.group.GetId()) })
	return out
}

// versions returns what is served of each group.
func (c *carriers) versions() []*musterv1.RelayedVersion {
	var out []*musterv1.RelayedVersion
	for _, g := range c.all() {
		if v := g.served.Load(); v != nil {
			out = append(out, &musterv1.RelayedVersion{Group: g.group.GetId(), Epoch: v.Epoch, Revision: v.Revision})
		}
	}
	return out
}

// ready returns nil when every group is served.
func (c *carriers) ready() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.told {
		return errNotTold
	}
	for id, g := range c.groups {
		if g.served.Load() == nil {
			return fmt.Errorf("group %s is not served yet", id)
		}
	}
	return nil
}

// server returns the upstream that most groups hang on; empty when none does.
func (c *carriers) server() string {
	count := map[string]int{}
	best := ""
	for _, g := range c.all() {
		if s := g.client.Status().Server; s != "" {
			if count[s]++; count[s] > count[best] || best == "" {
				best = s
			}
		}
	}
	return best
}

func newCarriers(cfg *Config, upstream *dataplane.Upstream, hub *xds.Hub, registry *fleet.Registry, m *metrics) *carriers {
	return &carriers{
		cfg: cfg, upstream: upstream, hub: hub, fleet: registry, metrics: m, log: cfg.Logger,
		groups: map[string]*carried{}, watches: map[chan struct{}]struct{}{},
	}
}
