package dataplane

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// logged is a log that a test reads while it is written.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) has(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Contains(l.b.String(), text)
}

// backup follows a server and keeps what it has in a second home, up to a revision.
func backup(t *testing.T, ads *fakeADS, h *SecondHome, revision uint64) {
	t.Helper()
	cfg := config(&gatherer{}, ads)
	cfg.NodeID, cfg.SecondHome, cfg.KeepInSecondHome = "backup", h, true
	var kept atomic.Uint64
	cfg.Hooks.SecondHomeWritten = func(w SecondHomeWritten) {
		if w.Err == nil {
			kept.Store(w.Revision)
		}
	}
	_, stop := run(t, cfg)
	eventually(t, "it is kept", func() bool { return kept.Load() == revision })
	stop()
}

// deaf listens and never answers.
func deaf(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = ln.Close() })
	return ln.Addr().String()
}

func TestADataPlaneWithNothingOfItsOwnStartsFromTheSecondHome(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa", "b@1.1.bbbbbbbb"}})
	h := home(t, newShelf())
	backup(t, ads, h, 2)

	dir := t.TempDir()
	start := func(servers ...string) (*Client, *gatherer, func()) {
		g := &gatherer{}
		cfg := config(g)
		cfg.Servers, cfg.CacheDir, cfg.SecondHome = servers, dir, h
		c, stop := run(t, cfg)
		return c, g, stop
	}
	c, g, stop := start("127.0.0.1:1")
	eventually(t, "in service", func() bool { return c.Status().Configured })
	if st := c.Status(); !st.Cached || st.Epoch != 1 || st.Revision != 2 {
		t.Errorf("status: %+v", st)
	}
	if u := g.all()[0]; !u.Cached || !u.Whole {
		t.Errorf("update: %+v", u)
	}
	want(t, "in service", names(c.State(), ClusterType), "a@1.1.aaaaaaaa b@1.1.bbbbbbbb")
	stop()

	t.Run("and then has a file of its own", func(t *testing.T) {
		h.cfg.Store.(*shelf).set(errors.New("gone"), false)
		c, _, stop := start("127.0.0.1:1")
		eventually(t, "in service", func() bool { return c.Status().Configured })
		want(t, "in service", names(c.State(), ClusterType), "a@1.1.aaaaaaaa b@1.1.bbbbbbbb")
		stop()
	})
	t.Run("and resumes from there", func(t *testing.T) {
		ads.set(map[string][]string{ClusterType: {"b@1.1.bbbbbbbb", "c@1.3.cccccccc"}})
		c, g, _ := start(ads.addr)
		eventually(t, "confirmed", func() bool { return c.Status().Revision == 3 && !c.Status().Cached })
		updates := g.all()
		want(t, "the update from the server", changes(updates[len(updates)-1]), "Cluster+c=c@1.3.cccccccc Cluster-a")
	})
}

func TestServersThatHangDoNotKeepADataPlaneFromItsSecondHome(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	h := home(t, newShelf())
	backup(t, ads, h, 2)
	mute := newFakeADS(t)
	mute.mu.Lock()
	mute.revision, mute.epoch = 0, 0 // nothing is ever due
	mute.mu.Unlock()
	for what, servers := range map[string][]string{"that do not connect": {deaf(t), deaf(t), deaf(t)}, "that do not answer": {mute.addr}} {
		t.Run(what, func(t *testing.T) {
			cfg := config(&gatherer{})
			cfg.Servers, cfg.SecondHome = servers, h
			cfg.Timing.Connect, cfg.Timing.FirstResponse, cfg.Timing.SecondHome = time.Minute, time.Minute, 50*time.Millisecond
			c, _ := run(t, cfg)
			eventually(t, "in service", func() bool { return c.Status().Configured })
		})
	}
}

func TestTheSecondHomeIsUsedWhenTheFileOnDiskIsDamagedOrOlder(t *testing.T) {
	for what, damage := range map[string]func(*disk){
		"damaged": func(d *disk) {
			for _, path := range append(d.files("g.*.base"), d.files("g.*.journal")...) {
				d.edit(path, func(b []byte) []byte { return b[:len(b)/3] })
			}
		},
		"of an older epoch": func(d *disk) {
			if err := os.WriteFile(d.dir+"/g.floor", []byte(`{"epoch":1,"revision":3}`), 0o600); err != nil {
				d.Fatal(err)
			}
			for _, path := range d.files("g.*.base") {
				d.edit(path, func([]byte) []byte {
					var b bytes.Buffer
					if _, err := writeBase(&b, cacheHeader{Kind: "base", Group: "g", Generation: 1}, stateOf(0, 9, "old@0.9.aaaaaaaa"), nil); err != nil {
						d.Fatal(err)
					}
					return b.Bytes()
				})
			}
		},
		"older": func(*disk) {},
	} {
		t.Run(what, func(t *testing.T) {
			ads := newFakeADS(t)
			ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
			d := newDisk(t)
			cfg := config(&gatherer{}, ads)
			cfg.CacheDir = d.dir
			c, stop := run(t, cfg)
			eventually(t, "on disk", func() bool { return c.Status().Revision == 2 })
			stop()
			ads.set(map[string][]string{ClusterType: {"b@1.3.bbbbbbbb"}})
			h := home(t, newShelf())
			backup(t, ads, h, 3)
			damage(d)

			g := &gatherer{}
			cfg = config(g)
			cfg.Servers, cfg.CacheDir, cfg.SecondHome = []string{"127.0.0.1:1"}, d.dir, h
			c, _ = run(t, cfg)
			eventually(t, "in service", func() bool { return c.Status().Revision == 3 })
			want(t, "in service", names(c.State(), ClusterType), "b@1.3.bbbbbbbb")
			if first := g.all()[0].Revision; what == "older" && first != 2 {
				t.Errorf("the first update was of revision %d: what is on disk goes first", first)
			}
		})
	}
}

func TestTheSecondHomeIsNotAskedWhileAServerAnswers(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	at := newShelf()
	cfg := config(&gatherer{}, ads)
	cfg.SecondHome = home(t, at)
	c, stop := run(t, cfg)
	eventually(t, "configured", func() bool { return c.Status().Configured })
	stop()
	if n := len(at.calls); n > 0 {
		t.Errorf("it was asked: %v", at.calls)
	}
}

func TestADataPlaneThatIsCutOffFollowsTheSecondHome(t *testing.T) {
	ads, other := newFakeADS(t), newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	at := newShelf()
	h := home(t, at)
	g := &gatherer{}
	cfg := config(g, ads)
	cfg.SecondHome, cfg.Timing.SecondHomeRetry = h, 20*time.Millisecond
	c, _ := run(t, cfg)
	eventually(t, "configured", func() bool { return c.Status().Revision == 2 })
	ads.fail(errUnavailable)
	eventually(t, "it looked", func() bool { return at.did("list") > 0 })
	other.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	other.set(map[string][]string{ClusterType: {"c@1.3.cccccccc"}})
	backup(t, other, h, 3)
	eventually(t, "what others have", func() bool { return c.Status().Revision == 3 && c.Status().Cached })
	want(t, "in service", names(c.State(), ClusterType), "c@1.3.cccccccc")
	updates := g.all()
	want(t, "the update", changes(updates[len(updates)-1]), "Cluster+c=c@1.3.cccccccc Cluster-a")
	// And it does not go back with a server that has not come so far.
	ads.fail(nil)
	eventually(t, "the server is behind", func() bool { return errors.Is(c.Status().LastError, errBehind) })
	want(t, "in service", names(c.State(), ClusterType), "c@1.3.cccccccc")
}

func TestARelayDoesNotGoBackWithTheSecondHome(t *testing.T) {
	for floor, want := range map[string]bool{`{"epoch":1,"revision":7}`: true, `{"epoch":1,"revision":8}`: false, `{"epoch":2,"revision":1}`: false, `damaged`: false} {
		d := newDisk(t)
		if err := os.WriteFile(d.dir+"/g.floor", []byte(floor), 0o600); err != nil {
			t.Fatal(err)
		}
		h := home(t, newShelf())
		put(t, h, relayed(t, 1, 7, nil, "x"), RelayType)
		if err := h.writeAlias(t.Context(), "g", "id-of-g"); err != nil {
			t.Fatal(err)
		}
		log := &logged{}
		cfg := config(&gatherer{answer: func(*Update) error {
			if len(d.files("g.*.base")) == 0 {
				t.Error("it is served before it is on disk")
			}
			return nil
		}})
		cfg.Servers, cfg.CacheDir, cfg.SecondHome, cfg.WriteAhead = []string{"127.0.0.1:1"}, d.dir, h, true
		cfg.TypeURLs, cfg.Manifest = []string{RelayType}, ManifestRequired
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
		c, stop := run(t, cfg)
		eventually(t, "it decided", func() bool { return c.Status().Configured || log.has("configuration in the second home refused") })
		if got := c.Status().Configured; got != want {
			t.Errorf("floor %s: served is %v", floor, got)
		}
		stop()
	}
}

func TestADataPlaneRefusesAnOlderEpochOfTheSecondHome(t *testing.T) {
	for floor, want := range map[string]bool{`{"epoch":1,"revision":9}`: true, `{"epoch":2,"revision":1}`: false} {
		d := newDisk(t)
		if err := os.WriteFile(d.dir+"/id-of-g.floor", []byte(floor), 0o600); err != nil {
			t.Fatal(err)
		}
		h := home(t, newShelf())
		put(t, h, relayed(t, 1, 7, nil, "x"), RelayType)
		log := &logged{}
		cfg := config(&gatherer{})
		cfg.Group, cfg.Servers, cfg.CacheDir, cfg.SecondHome = "id-of-g", []string{"127.0.0.1:1"}, d.dir, h
		cfg.Logger = slog.New(slog.NewTextHandler(log, nil))
		c, stop := run(t, cfg)
		eventually(t, "it decided", func() bool { return c.Status().Configured || log.has("epoch is older") })
		if got := c.Status().Configured; got != want {
			t.Errorf("floor %s: in service is %v", floor, got)
		}
		// The best there is of the same epoch serves, and the log says that there was a newer one.
		if want && !log.has("older than the newest that was in service") {
			t.Errorf("the log says: %s", &log.b)
		}
		stop()
	}
}

func TestAStoreThatHangsHoldsUpNobody(t *testing.T) {
	at := newShelf()
	at.set(nil, true)
	ads := newFakeADS(t)
	ads.fail(errUnavailable)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	cfg := config(&gatherer{}, ads)
	cfg.SecondHome, cfg.KeepInSecondHome = home(t, at, func(c *SecondHomeConfig) { c.Timeout = time.Minute }), true
	c, stop := run(t, cfg)
	<-at.reached // a look hangs
	ads.fail(nil)
	eventually(t, "the server is followed", func() bool { return c.Status().Revision == 2 })
	<-at.left    // it is given up
	<-at.reached // a write hangs
	for revision := uint64(3); revision < 6; revision++ {
		ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
		eventually(t, "and on", func() bool { return c.Status().Revision == revision })
	}
	stop() // ends with what hangs
}

func TestOnlyWholeRevisionsAreKeptInTheSecondHome(t *testing.T) {
	ads := newFakeADS(t)
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	at := newShelf()
	g := &gatherer{answer: func(u *Update) error {
		r := &Refused{}
		if _, ok := u.Types[ClusterType].Upsert["bad"]; ok {
			r.Add(ClusterType, "bad", "cannot")
		}
		return r.Err()
	}}
	cfg := config(g, ads)
	cfg.SecondHome, cfg.KeepInSecondHome = home(t, at), true
	var last atomic.Uint64
	cfg.Hooks.SecondHomeWritten = func(w SecondHomeWritten) { last.Store(w.Revision) }
	c, _ := run(t, cfg)
	eventually(t, "kept", func() bool { return last.Load() == 2 })
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa", "bad@1.3.bbbbbbbb"}})
	eventually(t, "refused", func() bool { return c.Status().Revision == 3 })
	ads.set(map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})
	eventually(t, "kept", func() bool { return last.Load() == 4 })
	for _, name := range at.names() {
		if strings.Contains(name, ".00000000000000000003.") {
			t.Errorf("a revision that was refused in part is kept: %s", name)
		}
	}
}

func TestTenThousandResourcesAreInServiceWithinASecondOfAStartWithoutServers(t *testing.T) {
	const many = 10_000
	d := newDisk(t)
	var all []*Resource
	for i := range many {
		all = append(all, genuine(ClusterType, fmt.Sprintf("service/%d", i), strings.Repeat("x", 300)+fmt.Sprint(i), 1, 1))
	}
	key := []byte("a key that is long enough")
	c := d.open("g", key)
	if w := c.write(emptyState(), emptyState().with(ClusterType, all, nil).at(1, 1), &Update{}); w.Err != nil {
		t.Fatal(w.Err)
	}
	d.shut(c)
	least := time.Hour
	for try := 0; try < 5 && least > time.Second; try++ { // the machine may be busy
		cfg := config(&gatherer{})
		cfg.Servers, cfg.CacheDir, cfg.CacheKey = []string{"127.0.0.1:1"}, d.dir, key
		began := time.Now()
		c, stop := run(t, cfg)
		eventually(t, "in service", func() bool { return c.Status().Configured })
		least = min(least, time.Since(began))
		if n := c.State().Len(ClusterType); n != many {
			t.Errorf("%d are in service", n)
		}
		stop()
	}
	if least > time.Second {
		t.Errorf("it took %v", least)
	}
}
