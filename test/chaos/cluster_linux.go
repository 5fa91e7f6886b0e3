package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// cluster is a muster cluster under test.
type cluster struct {
	*lab
	mu    sync.Mutex
	nodes []*node // those that are meant to be members
	next  int     // the number of the next server
	conns map[string]*grpc.ClientConn
	// free are the hosts without a server.
	free []*host
}

// newCluster starts three servers on clean disks and waits until all have a vote.
func newCluster(ctx context.Context, l *lab) (*cluster, error) {
	c := &cluster{lab: l, conns: map[string]*grpc.ClientConn{}, free: slices.Clone(l.hosts)}
	if err := c.form(ctx); err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// form makes the cluster of three new servers.
func (c *cluster) form(ctx context.Context) error {
	for i := range 3 {
		if _, err := c.add(i == 0); err != nil {
			return err
		}
	}
	return c.settle(ctx, 2*healLimit)
}

// add starts a new server on a free host. It joins the cluster unless it makes one.
func (c *cluster) add(boot bool) (*node, error) {
	c.mu.Lock()
	if len(c.free) == 0 {
		c.mu.Unlock()
		return nil, errors.New("there is no free host")
	}
	h := c.free[0]
	c.free = c.free[1:]
	c.next++
	id := fmt.Sprintf("n%d", c.next)
	var join []string
	for _, n := range c.nodes {
		join = append(join, n.host.addr(raftPort))
	}
	c.mu.Unlock()
	n, err := c.newNode(id, h, boot, strings.Join(join, ","))
	if err == nil {
		err = errors.Join(c.clear(h), n.wipe(), c.start(n))
	}
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(c.nodes, n)
	return n, nil
}

// drop ends a server for good and gives its host back.
func (c *cluster) drop(n *node) error {
	_ = n.signal(contSignal)
	n.host.disk.Resume()
	n.kill()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = slices.DeleteFunc(c.nodes, func(m *node) bool { return m == n })
	c.free = append(c.free, n.host)
	return errors.Join(c.clear(n.host), n.wipe())
}

// close ends all servers.
func (c *cluster) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, n := range c.nodes {
		_ = n.signal(contSignal)
		n.host.disk.Resume()
		n.kill()
		_ = c.clear(n.host)
		_ = n.wipe()
	}
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

// members are the servers that are meant to be there.
func (c *cluster) members() []*node {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes)
}

// conn returns the connection to a server's admin port.
func (c *cluster) conn(n *node) (*grpc.ClientConn, error) {
	addr := n.host.addr(adminPort)
	c.mu.Lock()
	defer c.mu.Unlock()
	if conn := c.conns[addr]; conn != nil {
		return conn, nil
	}
	conn, err := grpc.NewClient(addr,
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: c.ca.Pool(), ServerName: n.host.ip})),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 150 * time.Millisecond},
			MinConnectTimeout: 500 * time.Millisecond,
		}),
		grpc.WithStatsHandler(sentHandler{}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20), grpc.MaxCallSendMsgSize(64<<20)),
		grpc.WithDisableServiceConfig(), grpc.WithDisableRetry(),
	)
	if err != nil {
		return nil, err
	}
	c.conns[addr] = conn
	return conn, nil
}

func (c *cluster) auth(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", c.secret)
}

// status asks a server how it is doing.
func (c *cluster) status(ctx context.Context, n *node) (*musterv1.GetClusterStatusResponse, error) {
	conn, err := c.conn(n)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(c.auth(ctx), 2*time.Second)
	defer cancel()
	return musterv1.NewClusterServiceClient(conn).GetClusterStatus(ctx, &musterv1.GetClusterStatusRequest{})
}

// statuses asks all members; a server that does not answer has nil.
func (c *cluster) statuses(ctx context.Context) map[*node]*musterv1.GetClusterStatusResponse {
	members := c.members()
	answers := make([]*musterv1.GetClusterStatusResponse, len(members))
	var wg sync.WaitGroup
	for i, n := range members {
		wg.Go(func() {
			if st, err := c.status(ctx, n); err == nil && st.GetServerId() == n.id {
				answers[i] = st
			}
		})
	}
	wg.Wait()
	out := make(map[*node]*musterv1.GetClusterStatusResponse, len(members))
	for i, n := range members {
		out[n] = answers[i]
	}
	return out
}

// leader waits for a server that leads, and is not one of those excepted.
func (c *cluster) leader(ctx context.Context, limit time.Duration, except ...*node) (*node, error) {
	deadline := time.Now().Add(limit)
	for {
		var found *node
		term := uint64(0)
		for n, st := range c.statuses(ctx) {
			if st.GetRole() == "leader" && st.GetTerm() > term && !slices.Contains(except, n) {
				found, term = n, st.GetTerm()
			}
		}
		if found != nil {
			return found, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("no leader within %s", limit)
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return nil, ctx.Err()
		}
	}
}

// followers are the members that do not lead, by number.
func (c *cluster) followers(ctx context.Context) (leader *node, followers []*node, err error) {
	leader, err = c.leader(ctx, healLimit)
	if err != nil {
		return nil, nil, err
	}
	for _, n := range c.members() {
		if n != leader {
			followers = append(followers, n)
		}
	}
	return leader, followers, nil
}

// settle waits until all members run, are ready, have a vote and agree on the
// leader. The error says what was missing last.
func (c *cluster) settle(ctx context.Context, limit time.Duration) error {
	deadline := time.Now().Add(limit)
	for {
		missing := c.unsettled(ctx)
		if missing == "" {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %s the cluster is not whole: %s", limit, missing)
		}
		if !sleep(ctx, 20*time.Millisecond) {
			return ctx.Err()
		}
	}
}

func (c *cluster) unsettled(ctx context.Context) string {
	all := c.statuses(ctx)
	leader := ""
	for n, st := range all {
		switch {
		case st == nil:
			return n.id + " does not answer"
		case !st.GetReady():
			return fmt.Sprintf("%s is not ready: %s", n.id, st.GetNotReadyReason())
		case int(st.GetVoters()) != len(all) || st.GetNonVoters() != 0:
			return fmt.Sprintf("%s counts %d voters and %d others, want %d voters", n.id, st.GetVoters(), st.GetNonVoters(), len(all))
		case st.GetLeaderId() == "":
			return n.id + " knows no leader"
		case leader != "" && leader != st.GetLeaderId():
			return fmt.Sprintf("%s and %s are both taken for the leader", leader, st.GetLeaderId())
		}
		leader = st.GetLeaderId()
	}
	return ""
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
