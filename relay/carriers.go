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

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

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
	// grpc is what gRPC's own xDS clients see of the group, which is another set of
	// resources; nil before the first of them. Guarded by carriers.mu.
	grpc *carried
}

// carriers are the groups that the relay carries.
type carriers struct {
	cfg      *Config
	upstream *dataplane.Upstream
	hub      *xds.Hub
	grpcHub  *xds.Hub // of gRPC's own xDS clients
	fleet    *fleet.Registry
	metrics  *metrics
	log      *slog.Logger

	// run starts a part of the relay, which ends with its context.
	run func(func(ctx context.Context) error)
	// published counts publications, so that it is seen that there is news.
	published atomic.Uint64

	// disk is held while the list of groups is written, and taken before mu: whoever
	// reads the groups must not wait for a disk.
	disk sync.Mutex

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
		for _, g := range l.Groups {
			if g.GRPC && !l.Foreign {
				c.wantGRPC(g.ID)
			}
		}
	}
}

// wantGRPC makes the relay follow what gRPC's own xDS clients see of a group: most
// groups have none, and need not pay for it. Once there was one, it stays so.
func (c *carriers) wantGRPC(id string) {
	if c.beginGRPC(id) {
		c.remember()
	}
}

// beginGRPC reports whether the relay follows, from now on, what gRPC's own xDS
// clients see of a group.
func (c *carriers) beginGRPC(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.groups[id]
	if g == nil || g.grpc != nil || c.foreign {
		return false
	}
	var err error
	if g.grpc, err = c.begin(g.group, false, true); err != nil {
		c.log.Error("a group cannot be carried for gRPC clients", "carries", id, "error", err)
		return false
	}
	return true
}

// source offers the snapshots to the sessions.
type source struct{ *carriers }

var _ xds.Source = source{}

// Subscribe implements xds.Source.
func (s source) Subscribe(group string, node *corev3.Node, wake func()) (xds.Feed, error) {
	if s.apart(node) {
		return s.grpcHub.Subscribe(group, node, wake)
	}
	return s.hub.Subscribe(group, node, wake)
}

// apart reports whether a node sees other resources than the rest.
func (c *carriers) apart(node *corev3.Node) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return xds.Proxyless(node) && !c.foreign
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
	c.remember()
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
	c.remember()
}

// remember keeps the list of groups on disk.
func (c *carriers) remember() {
	c.disk.Lock()
	defer c.disk.Unlock()
	if err := writeList(c.cfg.DataDir, c.current()); err != nil {
		c.log.Error("the list of groups is not kept on disk", "error", err)
	}
}

// current is the list of groups as it is to be remembered.
func (c *carriers) current() groupList {
	c.mu.Lock()
	defer c.mu.Unlock()
	var listed []*musterv1.RelayedGroup
	for _, g := range c.groups {
		if g.listed {
			listed = append(listed, g.group)
		}
	}
	slices.SortFunc(listed, func(a, b *musterv1.RelayedGroup) int { return cmp.Compare(a.GetId(), b.GetId()) })
	l := listOf(listed)
	l.Foreign = c.foreign
	for i := range l.Groups {
		l.Groups[i].GRPC = c.groups[l.Groups[i].ID].grpc != nil
	}
	return l
}

func (c *carriers) carry(groups []*musterv1.RelayedGroup, foreign bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.take(groups, foreign)
}

// take is carry with the lock held.
func (c *carriers) take(groups []*musterv1.RelayedGroup, foreign bool) {
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
			if had, err = c.begin(g, foreign, false); err != nil {
				c.log.Error("a group cannot be carried", "carries", g.GetId(), "error", err)
				continue
			}
			c.groups[g.GetId()] = had
		}
		had.group, had.listed = g, true
		if at := g.GetCreatedAt(); at != nil {
			c.fleet.Created(g.GetId(), at.AsTime())
		}
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

// begin starts to follow a group, as gRPC's own xDS clients or as all others see it.
func (c *carriers) begin(g *musterv1.RelayedGroup, foreign, grpc bool) (*carried, error) {
	id := g.GetId()
	hub, dir, label, metadata := c.hub, "groups", id, map[string]any(nil)
	if grpc {
		hub, dir, label, metadata = c.grpcHub, "grpc", id+"/grpc", map[string]any{xds.RelayedClients: xds.RelayedGRPC}
	}
	hub.Expect(id)
	out := &carried{group: g}
	log := c.log.With("carries", label)
	cfg := dataplane.Config{
		Upstream: c.upstream,
		Group:    c.word(g), NodeID: c.cfg.ID,
		UserAgentName: xds.RelayAgent, UserAgentVersion: c.cfg.Version,
		TypeURLs: []string{dataplane.RelayType}, Manifest: dataplane.ManifestRequired, ManifestKeys: c.cfg.ManifestKeys,
		Metadata: metadata,
		CacheDir: filepath.Join(c.cfg.DataDir, dir), CacheKey: c.cfg.CacheKey, WriteAhead: true,
		Logger: c.log, Timing: c.cfg.Upstreaming, Hooks: c.metrics.hooks(label),
	}
	var end func()
	if foreign {
		cfg.UserAgentName = "muster-relay-type-by-type" // of no meaning upstream
		cfg.TypeURLs, cfg.Manifest, cfg.ManifestKeys = dataplane.DefaultTypes(), dataplane.ManifestOff, nil
		h := newForeignCarrier(id, c.publisher(out, grpc), len(cfg.TypeURLs), log)
		cfg.Handler, cfg.Hooks, end = h, h.hooked(cfg.Hooks), h.close
	} else {
		c.settle(&cfg, g, label, grpc)
		cfg.Handler, end = &carrier{id: id, out: c.publisher(out, grpc), log: log, grpc: grpc}, func() {}
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
			return fmt.Errorf("group %s: %w", label, err)
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
	all  *carriers
	of   *carried
	grpc bool
}

func (c *carriers) publisher(of *carried, grpc bool) publisher { return publication{c, of, grpc} }

func (p publication) publish(s *snapshot.Snapshot) {
	v := s.Version()
	if p.grpc {
		p.all.grpcHub.Publish(s)
		p.of.served.Store(&v)
		return
	}
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
func (c *carriers) await(ctx context.Context, name string, apart bool) (id string, found, told bool) {
	poll := time.NewTicker(awaitPoll)
	defer poll.Stop()
	for {
		id, found, told = c.find(name)
		if told && !found {
			return id, found, told
		}
		if found && apart {
			c.wantGRPC(id)
		}
		if found && c.serves(id, apart) {
			return id, found, told
		}
		select {
		case <-ctx.Done():
			return id, found, told
		case <-poll.C:
		}
	}
}

// serves reports whether a group that is carried is served.
func (c *carriers) serves(id string, apart bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	g := c.groups[id]
	if apart {
		g = g.grpc
	}
	return g != nil && g.served.Load() != nil
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
		cfg: cfg, upstream: upstream, hub: hub, grpcHub: xds.NewHub(), fleet: registry, metrics: m, log: cfg.Logger,
		groups: map[string]*carried{}, watches: map[chan struct{}]struct{}{},
	}
}
