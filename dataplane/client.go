package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// Client subscribes to a group and applies it through a Handler.
type Client struct {
	// Read-only after New.
	cfg      Config
	node     *corev3.Node
	upstream *Upstream
	log      *slog.Logger

	// Used from the goroutine of Run.
	picker *picker
	cache  *cache  // nil without CacheDir
	floor  version // the highest that was ever in service
	// leftOut are types that an upstream without Manifests ends streams over, with the
	// time until when they are not asked for.
	leftOut map[string]time.Time

	looking   *lookup // nil while the second home is not searched
	lookAgain time.Time
	keeper    *keeper // nil when nothing is kept in the second home
	parts     sync.WaitGroup

	started atomic.Bool
	state   atomic.Pointer[State] // in service

	mu     sync.Mutex
	status Status // guarded by mu
}

// Status is a client's condition at one moment.
type Status struct {
	// Server is the server whose stream is open; empty while there is none.
	Server string
	// Since is when the stream was opened or lost.
	Since time.Time
	// LastError is why the last stream ended.
	LastError error
	// Epoch and Revision are the version in service.
	Epoch, Revision uint64
	// Configured tells that a configuration is in service; Cached, that it comes
	// from disk or from the second home and no server has confirmed it.
	Configured, Cached bool
	// Refused are the resources that the handler refused and that still stand at an
	// older version or are absent.
	Refused []Refusal
}

// Subscribe follows a group until ctx ends: New and Run in one, for who needs neither
// State nor Status. Its errors are theirs.
func Subscribe(ctx context.Context, cfg Config) error {
	c, err := New(cfg)
	if err != nil {
		return err
	}
	return c.Run(ctx)
}

// New returns a client. Nothing happens before Run.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, upstream: cfg.Upstream, log: cfg.Logger}
	if c.upstream == nil {
		c.upstream, err = NewUpstream(UpstreamConfig{
			Servers: cfg.Servers, TLS: cfg.TLS, Insecure: cfg.Insecure, Compress: cfg.Compress,
			DialOptions: cfg.DialOptions, Keepalive: cfg.Timing.Keepalive,
		})
		if err != nil {
			return nil, err
		}
	}
	if c.node, err = nodeOf(&cfg); err != nil {
		return nil, err
	}
	c.picker = newPicker(c.upstream.servers, cfg.Order, cfg.NodeID, cfg.Timing)
	c.state.Store(emptyState())
	return c, nil
}

func nodeOf(cfg *Config) (*corev3.Node, error) {
	metadata, err := structpb.NewStruct(cfg.Metadata)
	if err != nil {
		return nil, fmt.Errorf("dataplane: metadata: %w", err)
	}
	metadata.Fields["muster.group"] = structpb.NewStringValue(cfg.Group)
	return &corev3.Node{
		Id:                   cfg.NodeID,
		Cluster:              cfg.Group,
		Metadata:             metadata,
		UserAgentName:        cfg.UserAgentName,
		UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: cfg.UserAgentVersion},
	}, nil
}

// State returns the configuration in service. It is safe for concurrent use.
func (c *Client) State() *State { return c.state.Load() }

// Status returns the client's condition. It is safe for concurrent use.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.status
}

// ErrStarted is returned by a second Run.
var ErrStarted = errors.New("dataplane: the client was run before")

// Run applies the configuration on disk, if there is one, and then subscribes
// until ctx ends; while no server answers it looks into the second home. It returns nil when ctx has ended, and an error only when the
// cache directory cannot be used. It returns after everything it started.
func (c *Client) Run(ctx context.Context) error {
	if c.started.Swap(true) {
		return ErrStarted
	}
	ctx, cancel := context.WithCancel(ctx)
	defer c.parts.Wait()
	defer cancel()
	if c.cfg.KeepInSecondHome {
		c.keeper = newKeeper(&c.cfg)
		c.parts.Go(func() { c.keeper.run(ctx) })
	}
	if c.cfg.CacheDir != "" {
		cache, err := openCache(c.cfg.CacheDir, c.cfg.Group, c.cfg.CacheKey, c.log)
		if err != nil {
			return err
		}
		c.cache = cache
		defer c.closeCache()
		if c.cfg.WriteAhead {
			cache.strict, cache.check = true, c.checkCached
		}
		c.applyCached(ctx)
	}
	if !c.Status().Configured {
		c.look(ctx, c.cfg.Timing.SecondHome)
	}
	fresh, byName := false, false
	for ctx.Err() == nil {
		server, wait := c.picker.next(time.Now())
		if wait > 0 { // every server has failed
			c.hurry(ctx)
		}
		kept, ok := c.rest(ctx, wait)
		if !ok {
			return nil
		}
		var result streamResult
		if kept == nil {
			result = c.stream(ctx, server, fresh, byName)
			kept = result.kept
		}
		if ctx.Err() != nil {
			return nil
		}
		if kept != nil {
			c.moveIn(ctx, kept)
			continue
		}
		if c.upstream.refusedCompression(server, result.err) {
			c.log.Warn("the upstream cannot decompress; it is asked without compression", "server", server)
			continue
		}
		if c.leaveOut(result, time.Now()) {
			continue
		}
		fresh = errors.Is(result.err, errIncomplete)
		byName = status.Code(result.err) == codes.FailedPrecondition
		c.ended(ctx, server, result)
	}
	return nil
}

// leftOutFor is how long a type is not asked for over which a stream ended.
const leftOutFor = 10 * time.Minute

// leaveOut reports whether the stream ended because the upstream does not have a
// type: some, go-control-plane's MuxCache among them, then end the stream of all
// types. The next one goes without it.
func (c *Client) leaveOut(r streamResult, now time.Time) bool {
	st, ok := status.FromError(r.err)
	if !ok || st.Code() != codes.Unknown && st.Code() != codes.InvalidArgument {
		return false // not what a server says of a request
	}
	if c.cfg.Manifest != ManifestOff || r.unanswered == "" {
		return false
	}
	if len(c.wanted(now)) < 2 {
		c.leftOut = nil // it is not for the types
		return false
	}
	if c.leftOut == nil {
		c.leftOut = map[string]time.Time{}
	}
	c.leftOut[r.unanswered] = now.Add(leftOutFor)
	c.log.Warn("the upstream ends streams that ask for a type; it is left out for now", "type", r.unanswered, "for", leftOutFor, "error", r.err)
	return true
}

// wanted returns the types to ask for.
func (c *Client) wanted(now time.Time) []string {
	return slices.DeleteFunc(slices.Clone(c.cfg.TypeURLs), func(t string) bool { return now.Before(c.leftOut[t]) })
}

// settled is how long a stream has to work before its server's failures are forgotten.
const settled = 5 * time.Second

// ended takes note of the end of a stream.
func (c *Client) ended(ctx context.Context, server string, r streamResult) {
	c.mu.Lock()
	c.status.Server, c.status.Since, c.status.LastError = "", time.Now(), r.err
	c.mu.Unlock()
	c.cfg.Hooks.disconnected(server, r.err)
	c.log.Warn("control plane stream ended", "server", server, "error", r.err, "after", r.lasted)
	if errors.Is(r.err, errBehind) && c.cache != nil {
		c.log.Warn("a control plane that began anew is followed only after the cache is removed", "dir", c.cfg.CacheDir)
	}
	if r.lasted >= settled {
		c.picker.worked(server)
	}
	c.picker.failed(server, time.Now())
	if r.lasted > 0 {
		sleep(ctx, c.picker.spread())
	}
}

// applyCached puts the last known good configuration into service.
func (c *Client) applyCached(ctx context.Context) {
	state, ok := c.cache.load()
	c.floor = c.cache.floor
	if !ok {
		return
	}
	if at := (version{state.Epoch(), state.Revision()}); c.cfg.WriteAhead && (at.below(c.floor) || c.cache.floorLost) {
		c.log.Error("cached configuration is not served before a server has brought a newer one: it may be older than what was served last",
			"epoch", at.Epoch, "revision", at.Revision, "newest_epoch", c.floor.Epoch, "newest_revision", c.floor.Revision)
		c.state.Store(state)
		return
	}
	c.applyKept(ctx, state, "disk")
}

// applyKept puts a whole configuration into service that no server has sent.
func (c *Client) applyKept(ctx context.Context, state *State, from string) {
	started := time.Now()
	s := newSession(&c.cfg, c.State(), c.floor, false)
	s.received = state
	s.touched = touchedBy(state)
	s.touchAll() // what is in service and not in it goes
	u := s.update(c.cfg.Group)
	u.Epoch, u.Revision, u.Cached = state.Epoch(), state.Revision(), true
	u.Whole = u.Revision > 0
	u.State = state
	if c.cfg.WriteAhead && from != "disk" {
		c.persist(u.Previous, u.State, u)
	}
	err := c.apply(ctx, u)
	s.done(u, err)
	c.serve(s.applied, u, err)
	if !c.cfg.WriteAhead && from != "disk" && s.applied != u.Previous {
		c.persist(u.Previous, s.applied, u)
	}
	c.log.Info("last known good configuration in service", "from", from, "epoch", u.Epoch, "revision", u.Revision,
		"took", time.Since(started), "error", err)
}

// checkCached is what a configuration on disk must satisfy to be served on.
func (c *Client) checkCached(s *State) error {
	return s.verify("", c.cfg.TypeURLs, c.cfg.ManifestKeys)
}

func touchedBy(state *State) map[string]map[string]struct{} {
	touched := map[string]map[string]struct{}{}
	for _, t := range state.Types() {
		if t == ManifestType {
			continue
		}
		names := make(map[string]struct{}, state.Len(t))
		for r := range state.All(t) {
			names[r.Name] = struct{}{}
		}
		touched[t] = names
	}
	return touched
}

// apply calls the handler and tells the hooks.
func (c *Client) apply(ctx context.Context, u *Update) error {
	started := time.Now()
	err := c.callHandler(ctx, u)
	a := Applied{
		Epoch: u.Epoch, Revision: u.Revision, Whole: u.Whole, Cached: u.Cached,
		Took: time.Since(started), Err: err,
	}
	for _, t := range u.Types {
		a.Upserted += len(t.Upsert)
		a.Removed += len(t.Remove)
	}
	c.cfg.Hooks.applied(a)
	return err
}

// callHandler turns a panic into a refusal: an update that the data plane cannot
// survive must not take down what serves.
func (c *Client) callHandler(ctx context.Context, u *Update) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.log.Error("handler panicked", "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("the data plane failed to apply the update: %v", p)
		}
	}()
	return c.cfg.Handler.Apply(ctx, u)
}

// serve publishes the state that an update has led to.
func (c *Client) serve(state *State, u *Update, err error) {
	c.state.Store(state)
	c.floor = c.floor.max(version{state.Epoch(), state.Revision()})
	c.mu.Lock()
	defer c.mu.Unlock()
	var refused *Refused
	if err != nil && !errors.As(err, &refused) {
		return
	}
	c.status.Epoch, c.status.Revision = state.Epoch(), state.Revision()
	c.status.Configured, c.status.Cached = true, u.Cached
	c.status.Refused = stillRefused(c.status.Refused, refused, u)
	if err == nil && u.Whole {
		c.keeper.offer(state)
	}
}

// stillRefused returns the refusals that stand after an update.
func stillRefused(before []Refusal, now *Refused, u *Update) []Refusal {
	var out []Refusal
	if now != nil {
		out = append(out, now.Resources...)
	}
	for _, r := range before {
		t := u.Types[r.TypeURL]
		_, sent := t.Upsert[r.Name]
		_, exists := u.State.Get(r.TypeURL, r.Name)
		if !sent && exists {
			out = append(out, r)
		}
	}
	return out
}

// sleep waits and reports whether ctx is still live.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
