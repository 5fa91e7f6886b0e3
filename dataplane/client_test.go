package dataplane

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestAClientFollowsRevisions(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}, ListenerType: {"l@1.1.bbbbbbbb"}})
	g := &gatherer{}
	c, _ := run(t, config(g, ads))
	eventually(t, "the first revision", func() bool { return c.Status().Revision == 2 })
	ads.set(map[string][]string{ClusterType: {"a@1.3.cccccccc"}})
	eventually(t, "the second revision", func() bool { return c.Status().Revision == 3 })

	updates := g.all()
	want(t, "the first update", changes(updates[0]), "Cluster+a=a@1.1.aaaaaaaa Listener+l=l@1.1.bbbbbbbb")
	want(t, "the second update", changes(updates[1]), "Cluster+a=a@1.3.cccccccc")
	want(t, "in service", names(c.State(), ClusterType), "a@1.3.cccccccc")
	st := c.Status()
	if st.Server != ads.addr || !st.Configured || st.Cached || st.LastError != nil {
		t.Errorf("status: %+v", st)
	}
}

func TestANodeSaysWhoItIsOnce(t *testing.T) {
	ads := newFakeADS(t)
	cfg := config(&gatherer{}, ads)
	cfg.Metadata = map[string]any{"muster.listen": map[string]any{"http_port": 1}}
	c, _ := run(t, cfg)
	eventually(t, "configured", func() bool { return c.Status().Configured })
	for i, r := range ads.seen() {
		if (i == 0) != (r.GetNode() != nil) {
			t.Fatalf("request %d: node %v", i, r.GetNode())
		}
	}
	n := ads.seen()[0].GetNode()
	if n.GetId() != "n" || n.GetCluster() != "g" || n.GetUserAgentName() != "test" || n.GetUserAgentVersion() != "1" {
		t.Errorf("node: %v", n)
	}
	fields := n.GetMetadata().GetFields()
	if fields["muster.group"].GetStringValue() != "g" || fields["muster.listen"].GetStructValue() == nil {
		t.Errorf("metadata: %v", fields)
	}
}

func TestALostUpstreamRemovesNothingAndOnlyChangesAreFetchedAfterwards(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa", "b@1.1.bbbbbbbb"}})
	g := &gatherer{}
	c, _ := run(t, config(g, ads))
	eventually(t, "configured", func() bool { return c.Status().Revision == 2 })
	ads.fail(errUnavailable)
	eventually(t, "disconnected", func() bool { return c.Status().Server == "" && c.Status().LastError != nil })
	want(t, "in service while the upstream is away", names(c.State(), ClusterType), "a@1.1.aaaaaaaa b@1.1.bbbbbbbb")
	ads.set(map[string][]string{ClusterType: {"b@1.1.bbbbbbbb", "c@1.3.cccccccc"}})
	ads.fail(nil)
	eventually(t, "the next revision", func() bool { return c.Status().Revision == 3 })
	updates := g.all()
	want(t, "the update after the way back", changes(updates[len(updates)-1]), "Cluster+c=c@1.3.cccccccc Cluster-a")
}

func TestFailoverToTheNextServer(t *testing.T) {
	first, second := newFakeADS(t), newFakeADS(t)
	content := map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}}
	first.set(content)
	second.set(content)
	first.fail(errUnavailable)
	c, _ := run(t, config(&gatherer{}, first, second))
	eventually(t, "served by the second", func() bool { return c.Status().Server == second.addr })
	first.fail(nil)
	second.fail(errUnavailable)
	eventually(t, "served by the first", func() bool { return c.Status().Server == first.addr })
}

func TestAServerThatIsGoneIsPassedOver(t *testing.T) {
	alive := newFakeADS(t)
	cfg := config(&gatherer{}, alive)
	cfg.Servers = []string{"127.0.0.1:1", alive.addr}
	c, _ := run(t, cfg)
	eventually(t, "configured", func() bool { return c.Status().Configured })
}

func TestAServerThatIsBehindIsLeftForAnother(t *testing.T) {
	ahead, behind := newFakeADS(t), newFakeADS(t)
	ahead.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	ahead.set(map[string][]string{ClusterType: {"a@1.3.bbbbbbbb"}})
	behind.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	g := &gatherer{}
	c, _ := run(t, config(g, ahead, behind))
	eventually(t, "configured", func() bool { return c.Status().Revision == 3 })
	ahead.fail(errUnavailable)
	eventually(t, "the one behind was tried", func() bool { _, ever := behind.openStreams(); return ever > 1 })
	for _, u := range g.all() {
		if u.Revision < 3 {
			t.Errorf("moved back to revision %d", u.Revision)
		}
	}
	want(t, "in service", names(c.State(), ClusterType), "a@1.3.bbbbbbbb")
	behind.set(map[string][]string{ClusterType: {"a@1.3.bbbbbbbb"}})
	eventually(t, "served once it has caught up", func() bool { return c.Status().Server == behind.addr })
}

func TestARefusalReachesTheServerAndTheStatus(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"bad@1.1.aaaaaaaa", "good@1.1.bbbbbbbb"}})
	g := &gatherer{answer: func(u *Update) error {
		r := &Refused{}
		for name := range u.Types[ClusterType].Upsert {
			if strings.HasPrefix(name, "bad") {
				r.Add(ClusterType, name, "cannot")
			}
		}
		return r.Err()
	}}
	c, _ := run(t, config(g, ads))
	eventually(t, "refused", func() bool { return len(c.Status().Refused) == 1 })
	want(t, "in service", names(c.State(), ClusterType), "good@1.1.bbbbbbbb")
	nacks := 0
	eventually(t, "the NACK", func() bool {
		nacks = 0
		for _, r := range ads.seen() {
			if r.GetErrorDetail() != nil {
				nacks++
				want(t, "the type refused", r.GetTypeUrl(), ClusterType)
				want(t, "the text", r.GetErrorDetail().GetMessage(), `Cluster "bad": cannot`)
			}
		}
		return nacks > 0
	})
	ads.set(map[string][]string{ClusterType: {"good@1.1.bbbbbbbb"}})
	eventually(t, "no refusal stands", func() bool { return len(c.Status().Refused) == 0 })
}

func TestAPanickingHandlerRefusesAndServesOn(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	g := &gatherer{answer: func(u *Update) error {
		if u.Revision == 3 {
			panic("boom")
		}
		return nil
	}}
	c, _ := run(t, config(g, ads))
	eventually(t, "configured", func() bool { return c.Status().Revision == 2 })
	ads.set(map[string][]string{ClusterType: {"a@1.3.cccccccc"}})
	eventually(t, "the panic was survived", func() bool { return len(g.all()) >= 2 })
	want(t, "in service", names(c.State(), ClusterType), "a@1.1.aaaaaaaa")
	ads.set(map[string][]string{ClusterType: {"a@1.4.dddddddd"}})
	eventually(t, "the next revision", func() bool { return c.Status().Revision == 4 })
}

func TestAnUpstreamThatIsNotMusterIsFollowedTypeByType(t *testing.T) {
	ads := newFakeADS(t)
	ads.plain = true
	ads.set(map[string][]string{ClusterType: {"a@1"}, EndpointType: {"a@1"}})
	g := &gatherer{}
	c, _ := run(t, config(g, ads))
	eventually(t, "clusters", func() bool { return c.State().Len(ClusterType) == 1 && c.State().Len(EndpointType) == 1 })
	ads.set(map[string][]string{ClusterType: {}})
	eventually(t, "an explicit removal", func() bool { return c.State().Len(ClusterType) == 0 })
	for _, u := range g.all() {
		if u.Whole {
			t.Error("an update says it is a whole revision")
		}
	}
}

func TestStartingWithoutAControlPlane(t *testing.T) {
	for _, key := range []string{"", "sixteen bytes or more"} {
		t.Run(fmt.Sprintf("key %q", key), func(t *testing.T) {
			dir := t.TempDir()
			ads := newFakeADS(t)
			ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
			cfg := config(&gatherer{}, ads)
			cfg.CacheDir, cfg.CacheKey = dir, []byte(key)
			c, stop := run(t, cfg)
			eventually(t, "configured", func() bool { return c.Status().Revision == 2 })
			ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa", "b@1.3.bbbbbbbb"}})
			eventually(t, "the change", func() bool { return c.Status().Revision == 3 })
			stop()

			g := &gatherer{}
			cfg = config(g)
			cfg.Servers, cfg.CacheDir, cfg.CacheKey = []string{"127.0.0.1:1"}, dir, []byte(key)
			began := time.Now()
			c, stop = run(t, cfg)
			eventually(t, "served from disk", func() bool { return c.Status().Configured })
			if d := time.Since(began); d > time.Second {
				t.Errorf("it took %v", d)
			}
			want(t, "in service", names(c.State(), ClusterType), "a@1.1.aaaaaaaa b@1.3.bbbbbbbb")
			if st := c.Status(); !st.Cached || st.Revision != 3 || st.Epoch != 1 {
				t.Errorf("status: %+v", st)
			}
			if u := g.all()[0]; !u.Cached || !u.Whole || u.Revision != 3 {
				t.Errorf("update: %+v", u)
			}
			stop()

			t.Run("and resuming from there", func(t *testing.T) {
				g := &gatherer{}
				cfg := config(g, ads)
				cfg.CacheDir, cfg.CacheKey = dir, []byte(key)
				ads.set(map[string][]string{ClusterType: {"b@1.3.bbbbbbbb"}})
				c, _ := run(t, cfg)
				eventually(t, "confirmed", func() bool { return c.Status().Revision == 4 && !c.Status().Cached })
				updates := g.all()
				want(t, "the update from the server", changes(updates[len(updates)-1]), "Cluster-a")
			})
		})
	}
}

func TestAChangeIsOnDiskBeforeItIsAcknowledged(t *testing.T) {
	dir := t.TempDir()
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	cfg := config(&gatherer{}, ads)
	cfg.CacheDir = dir
	var written, acked atomic.Int64
	cfg.Hooks.CacheWritten = func(w CacheWritten) {
		if w.Err == nil {
			written.Add(1)
		}
	}
	cfg.Hooks.Acknowledged = func(a Acknowledged) {
		if a.TypeURL == ManifestType {
			if n := acked.Add(1); written.Load() < n {
				t.Errorf("acknowledged %d revisions with %d on disk", n, written.Load())
			}
		}
	}
	c, _ := run(t, cfg)
	for revision := uint64(2); revision < 10; revision++ {
		eventually(t, "the revision", func() bool { return c.Status().Revision == revision })
		ads.set(map[string][]string{ClusterType: {fmt.Sprintf("a@1.%d.aaaaaaaa", revision+1)}})
	}
}

func TestTheCacheOfAnotherProcessIsNotTouched(t *testing.T) {
	dir := t.TempDir()
	ads := newFakeADS(t)
	cfg := config(&gatherer{}, ads)
	cfg.CacheDir = dir
	c, _ := run(t, cfg)
	eventually(t, "configured", func() bool { return c.Status().Configured })
	second, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); !errors.Is(err, ErrCacheInUse) {
		t.Errorf("run: %v", err)
	}
}

func TestAServerThatSaysNothingIsLeft(t *testing.T) {
	mute, good := newFakeADS(t), newFakeADS(t)
	mute.mu.Lock()
	mute.revision, mute.epoch = 0, 0 // nothing is ever due
	mute.mu.Unlock()
	cfg := config(&gatherer{}, mute, good)
	cfg.Timing.FirstResponse = 100 * time.Millisecond
	c, _ := run(t, cfg)
	eventually(t, "served by the other", func() bool { return c.Status().Server == good.addr })
}

func TestClientsShareAConnection(t *testing.T) {
	ads := newFakeADS(t)
	up, err := NewUpstream(UpstreamConfig{Servers: []string{ads.addr}, Insecure: true, Compress: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, group := range []string{"one", "two", "three"} {
		cfg := config(&gatherer{})
		cfg.Servers, cfg.Upstream, cfg.Group = nil, up, group
		c, _ := run(t, cfg)
		eventually(t, "configured", func() bool { return c.Status().Configured })
	}
	up.mu.Lock()
	conn := up.conns[ads.addr]
	refs := conn.refs
	up.mu.Unlock()
	if refs != 3 {
		t.Errorf("%d clients are on the connection, want 3", refs)
	}
	if _, ok := up.Conn(ads.addr); !ok {
		t.Error("the connection cannot be had for other services")
	}
}

func TestHooksTellWhatHappens(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	cfg := config(&gatherer{}, ads)
	var connected, received, applied, disconnected atomic.Int64
	cfg.Hooks = Hooks{
		Connected:    func(string) { connected.Add(1) },
		Received:     func(r Received) { received.Add(int64(r.Resources)) },
		Applied:      func(a Applied) { applied.Add(int64(a.Upserted)) },
		Disconnected: func(string, error) { disconnected.Add(1) },
	}
	c, _ := run(t, cfg)
	eventually(t, "configured", func() bool { return c.Status().Revision == 2 })
	ads.fail(errUnavailable)
	eventually(t, "disconnected", func() bool { return disconnected.Load() > 0 })
	if connected.Load() != 1 || received.Load() != 2 || applied.Load() != 1 {
		t.Errorf("connected %d, received %d resources, applied %d", connected.Load(), received.Load(), applied.Load())
	}
}

func TestWhatIsMissingInAConfigIsNamed(t *testing.T) {
	full := Config{Servers: []string{"x"}, Insecure: true, Group: "g", NodeID: "n", Handler: &gatherer{}}
	for name, test := range map[string]struct {
		edit func(*Config)
		want error
	}{
		"servers": {func(c *Config) { c.Servers = nil }, ErrNoServers},
		"TLS":     {func(c *Config) { c.Insecure = false }, ErrNoSecurity},
		"group":   {func(c *Config) { c.Group = "" }, ErrNoGroup},
		"node":    {func(c *Config) { c.NodeID = "" }, ErrNoNodeID},
		"handler": {func(c *Config) { c.Handler = nil }, ErrNoHandler},
		"key":     {func(c *Config) { c.CacheKey = []byte("short") }, ErrCacheKey},
	} {
		cfg := full
		test.edit(&cfg)
		if _, err := New(cfg); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	full.Metadata = map[string]any{"x": make(chan int)}
	if _, err := New(full); err == nil {
		t.Error("metadata that cannot be sent is accepted")
	}
}

func TestAClientRunsOnce(t *testing.T) {
	c, err := New(config(&gatherer{}, newFakeADS(t)))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Run(ctx); err != nil {
		t.Errorf("run: %v", err)
	}
	if err := c.Run(ctx); !errors.Is(err, ErrStarted) {
		t.Errorf("second run: %v", err)
	}
}

func TestACacheDirectoryThatCannotBeMadeIsAnError(t *testing.T) {
	file := t.TempDir() + "/file"
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config(&gatherer{}, newFakeADS(t))
	cfg.CacheDir = file + "/below"
	c, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Run(t.Context()); err == nil {
		t.Error("run succeeded")
	}
}

func TestAServersReasonIsKept(t *testing.T) {
	ads := newFakeADS(t)
	ads.fail(status.Error(codes.PermissionDenied, "not your group"))
	c, _ := run(t, config(&gatherer{}, ads))
	eventually(t, "the reason", func() bool { return status.Code(c.Status().LastError) == codes.PermissionDenied })
}
