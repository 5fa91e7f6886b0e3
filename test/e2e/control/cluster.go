package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/ports"
)

// Cluster is some `muster server` processes with one store, over plaintext on the
// loopback, and a client of them.
type Cluster struct {
	*API
	Members []*Member
}

// Member is one server of a cluster. Start and Kill must not run at the same time.
type Member struct {
	*Process
	ID, AdminAddr, XDSAddr string

	binary string
	args   []string
}

// StartCluster runs n servers and returns when all are ready and have a vote.
// Everything is kept below dir.
func StartCluster(ctx context.Context, binary, dir string, n int) (*Cluster, error) {
	c := &Cluster{}
	api := API{Binary: binary, Home: dir}
	keys := filepath.Join(dir, "api-keys.json")
	var raft string // of the first
	for i := range n {
		var addr [3]string
		for k := range addr {
			port, err := ports.Free()
			if err != nil {
				return nil, err
			}
			addr[k] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		}
		m := &Member{ID: fmt.Sprintf("server-%d", i), AdminAddr: addr[0], XDSAddr: addr[1], binary: binary}
		m.args = []string{
			"server", "--insecure", "--server-id", m.ID, "--data-dir", filepath.Join(dir, m.ID), "--api-keys-file", keys,
			"--admin-addr", addr[0], "--xds-addr", addr[1], "--raft-addr", addr[2],
		}
		if i == 0 {
			raft = addr[2]
			m.args = append(m.args, "--bootstrap")
		} else {
			m.args = append(m.args, "--join", raft)
		}
		c.Members = append(c.Members, m)
		api.AdminAddrs, api.XDSAddrs = append(api.AdminAddrs, addr[0]), append(api.XDSAddrs, addr[1])
	}
	for i, m := range c.Members {
		if err := m.Start(); err != nil {
			c.Close()
			return nil, err
		}
		if i > 0 {
			continue
		}
		key, err := firstKey(ctx, m.Process)
		if err == nil {
			api.Key = key
			c.API, err = dial(api)
		}
		if err != nil {
			c.Close()
			return nil, err
		}
	}
	for _, m := range c.Members {
		if err := c.Ready(ctx, m); err != nil {
			c.Close()
			return nil, err
		}
	}
	return c, nil
}

// Start runs the server, anew after it has ended.
func (m *Member) Start() (err error) {
	m.Process, err = startProcess(m.binary, []string{"MUSTER_API_KEY="}, m.args...)
	return err
}

// Ready returns when one of the servers is ready and has a vote.
func (c *Cluster) Ready(ctx context.Context, m *Member) error {
	one, err := dial(API{Key: c.Key, AdminAddrs: []string{m.AdminAddr}})
	if err != nil {
		return err
	}
	defer one.close()
	if err := poll(ctx, m.Exited(), func(ctx context.Context) error {
		peers, err := one.Peers.ListPeers(ctx, &musterv1.ListPeersRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return err
		}
		for _, p := range peers.GetPeers() {
			if p.GetId() == m.ID && p.GetVoter() && p.GetReady() {
				return nil
			}
		}
		return fmt.Errorf("it is not ready with a vote: %v", peers)
	}); err != nil {
		return fmt.Errorf("muster %s: %w\n%s", m.ID, err, m.Output())
	}
	return nil
}

// Close kills the servers that run.
func (c *Cluster) Close() {
	for _, m := range c.Members {
		if m.Process != nil {
			m.Kill()
		}
	}
	if c.API != nil {
		c.close()
	}
}

// firstKey reads the API key that a new server prints.
func firstKey(ctx context.Context, p *Process) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		if _, after, ok := strings.Cut(p.Output(), "The first API key"); ok {
			if lines := strings.SplitN(after, "\n", 3); len(lines) == 3 {
				return strings.TrimSpace(lines[1]), nil
			}
		}
		select {
		case <-p.Exited():
			return "", fmt.Errorf("muster server exited at once:\n%s", p.Output())
		case <-ctx.Done():
			return "", errors.New("muster server printed no API key")
		case <-time.After(20 * time.Millisecond):
		}
	}
}
