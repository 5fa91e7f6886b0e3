package raftstore

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// testNet is the network between the servers of a test: it knows which of
// them can reach which.
type testNet struct {
	mu    sync.Mutex
	cut   map[[2]string]bool // from, to
	conns map[*testConn]struct{}
	names map[string]string // address -> server
}

type testConn struct {
	net.Conn
	from, to string
	n        *testNet
}

func (c *testConn) Close() error {
	c.n.mu.Lock()
	delete(c.n.conns, c)
	c.n.mu.Unlock()
	return c.Conn.Close()
}

func newTestNet() *testNet {
	return &testNet{cut: map[[2]string]bool{}, conns: map[*testConn]struct{}{}, names: map[string]string{}}
}

func (n *testNet) dialer(from string) func(string, time.Duration) (net.Conn, error) {
	return func(addr string, timeout time.Duration) (net.Conn, error) {
		n.mu.Lock()
		to := n.names[addr]
		refused := n.cut[[2]string{from, to}]
		n.mu.Unlock()
		if refused {
			return nil, errors.New("no route")
		}
		raw, err := net.DialTimeout("tcp", addr, timeout)
		if err != nil {
			return nil, err
		}
		c := &testConn{Conn: raw, from: from, to: to, n: n}
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.cut[[2]string{from, to}] {
			raw.Close()
			return nil, errors.New("no route")
		}
		n.conns[c] = struct{}{}
		return c, nil
	}
}

// isolate cuts a server off from all others; heal undoes every cut.
func (n *testNet) isolate(id string) {
	n.mu.Lock()
	for _, other := range n.names {
		if other != id {
			n.cut[[2]string{id, other}], n.cut[[2]string{other, id}] = true, true
		}
	}
	var doomed []*testConn
	for c := range n.conns {
		if n.cut[[2]string{c.from, c.to}] {
			doomed = append(doomed, c)
		}
	}
	n.mu.Unlock()
	for _, c := range doomed {
		c.Close()
	}
}

func (n *testNet) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
}

// member is one server of a test's cluster.
type member struct {
	*Store
	cfg  Config
	stop func()
}

type cluster struct {
	t       testing.TB
	net     *testNet
	members []*member
	made    int
}

// quick are timeouts that suit a test on a busy machine.
func quick(cfg Config) Config {
	cfg.HeartbeatTimeout, cfg.ElectionTimeout, cfg.LeaderLease = 400*time.Millisecond, 400*time.Millisecond, 300*time.Millisecond
	cfg.Autopilot.interval = 50 * time.Millisecond
	cfg.Autopilot.Stabilize = 50 * time.Millisecond
	cfg.ApplyTimeout = 10 * time.Second
	cfg.MinFreeBytes = -1
	return cfg
}

// newCluster forms a cluster of n servers, the first by bootstrap, the others
// by joining it.
func newCluster(t testing.TB, n int, change func(i int, cfg *Config)) *cluster {
	t.Helper()
	var c *cluster
	return newClusterLater(t, n, change, &c)
}

// newClusterLater is newCluster for a change that needs the cluster itself.
func newClusterLater(t testing.TB, n int, change func(i int, cfg *Config), into **cluster) *cluster {
	t.Helper()
	c := &cluster{t: t, net: newTestNet()}
	*into = c
	for i := range n {
		c.add(i == 0, func(cfg *Config) {
			if change != nil {
				change(i, cfg)
			}
		})
	}
	c.waitVoters(n)
	return c
}

func (c *cluster) add(bootstrap bool, change func(*Config)) *member {
	c.t.Helper()
	id := fmt.Sprint("s", c.made)
	c.made++
	cfg := quick(Config{DataDir: c.t.TempDir(), ServerID: id, RaftAddr: "127.0.0.1:0", Insecure: true, Bootstrap: bootstrap})
	cfg.dial = c.net.dialer(id)
	cfg.listen = func(addr string) (net.Listener, error) {
		ln, err := net.Listen("tcp", addr)
		if err == nil {
			c.net.mu.Lock()
			c.net.names[ln.Addr().String()] = id
			c.net.mu.Unlock()
		}
		return ln, err
	}
	if !bootstrap && len(c.members) > 0 {
		cfg.Join = []string{string(c.members[0].trans.LocalAddr())}
	}
	if change != nil {
		change(&cfg)
	}
	m := &member{cfg: cfg}
	m.Store, m.stop = start(c.t, cfg)
	m.cfg.RaftAddr = string(m.trans.LocalAddr())
	c.members = append(c.members, m)
	return m
}

// restart stops a member in order, if it still runs, and starts it again.
func (c *cluster) restart(m *member) {
	c.t.Helper()
	m.stop()
	m.Store, m.stop = start(c.t, m.cfg)
}

func (c *cluster) waitVoters(n int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%d voters", n), func() bool {
		for _, m := range c.members {
			if m.up() == nil && m.addressOf(m.id) != "" && m.voters() != n {
				return false
			}
		}
		return c.leaderNow() != nil && c.leaderNow().voters() == n
	})
}

func (c *cluster) leaderNow() *member {
	for _, m := range c.members {
		if m.up() == nil && m.leads() {
			return m
		}
	}
	return nil
}

// leader waits for a leader among the members, apart from some.
func (c *cluster) leader(except ...*member) *member {
	c.t.Helper()
	var found *member
	eventually(c.t, "a leader", func() bool {
	next:
		for _, m := range c.members {
			for _, x := range except {
				if m == x {
					continue next
				}
			}
			if m.up() == nil && m.leads() {
				found = m
				return true
			}
		}
		return false
	})
	return found
}

func (c *cluster) followers() []*member {
	leader := c.leader()
	var out []*member
	for _, m := range c.members {
		if m != leader && m.up() == nil {
			out = append(out, m)
		}
	}
	return out
}

// converge waits until all running members hold the same content. Writes whose
// caller has given up may still be on their way.
func (c *cluster) converge() {
	c.t.Helper()
	eventually(c.t, "all servers to hold the same content", func() bool {
		sums := map[[32]byte]bool{}
		for _, m := range c.members {
			if m.up() != nil {
				continue
			}
			if err := m.ReadIndex(testCtx(c.t)); err != nil {
				c.t.Fatalf("%s: %v", m.id, err)
			}
			sum, err := m.State().Checksum()
			if err != nil {
				c.t.Fatal(err)
			}
			sums[sum] = true
		}
		return len(sums) == 1
	})
}

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// load writes on some members until it is ended, and remembers what was
// acknowledged and how long it took between two acknowledgements.
type load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu    sync.Mutex
	acked []string
	last  time.Time
	gap   time.Duration
}

func (c *cluster) load(writers int, on ...*member) *load {
	ctx, cancel := context.WithCancel(c.t.Context())
	l := &load{cancel: cancel, last: time.Now()}
	for w := range writers {
		m := on[w%len(on)]
		l.wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				id := fmt.Sprintf("%s-w%d-%d", m.id, w, i)
				cmd := putService("g", id, "")
				cmd.RequestId = id
				result, err := m.Apply(ctx, cmd)
				if err != nil || result.Err != nil {
					if ctx.Err() == nil {
						c.t.Errorf("write: %v %v", err, result.Err)
					}
					return
				}
				now := time.Now()
				l.mu.Lock()
				l.acked = append(l.acked, id)
				l.gap = max(l.gap, now.Sub(l.last))
				l.last = now
				l.mu.Unlock()
			}
		})
	}
	return l
}

// await waits until some more writes have been acknowledged.
func (l *load) await(t testing.TB, more int) {
	t.Helper()
	l.mu.Lock()
	want := len(l.acked) + more
	l.mu.Unlock()
	eventually(t, "writes to go on", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.acked) >= want
	})
}

// resetGap forgets the longest pause so far.
func (l *load) resetGap() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.gap, l.last = 0, time.Now()
}

func (l *load) longestGap() time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.gap
}

// end stops the writers and checks that every running member holds every
// acknowledged write, each exactly once.
func (l *load) end(c *cluster) {
	c.t.Helper()
	l.cancel()
	l.wg.Wait()
	c.converge()
	for _, m := range c.members {
		if m.up() != nil {
			continue
		}
		g, _ := m.State().Group("g")
		for _, id := range l.acked {
			if e, found := g.View().Get(serviceKey(id)); !found {
				c.t.Errorf("%s lost the acknowledged %s", m.id, id)
			} else if info, kept := g.RevisionInfo(e.Revision); kept && len(info.GetChanges()) != 1 {
				c.t.Errorf("revision %d has %d changes", e.Revision, len(info.GetChanges()))
			}
		}
		if int(g.Revision()) != g.View().Len() {
			c.t.Errorf("%s: %d revisions for %d writes: one was carried out twice", m.id, g.Revision(), g.View().Len())
		}
	}
}

func groupG() *musterv1.Command { return createGroup("g") }
