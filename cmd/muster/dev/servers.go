package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/auth"
)

const (
	// restartPause is how long a server that died stays away: long enough to see
	// the others go on without it.
	restartPause = 2 * time.Second
	// stopTimeout is how long a server may take to stop before it is killed.
	stopTimeout = 15 * time.Second
	// promoteAfter is how long a server must keep up before it gets a vote; on one
	// machine a moment is enough.
	promoteAfter = 500 * time.Millisecond
)

// ServerAddrs says where one of several servers listens.
type ServerAddrs struct{ Admin, XDS, Raft string }

// child is one server in a process of its own.
type child struct {
	name    string
	program string
	args    []string
	console *console
	// settled is closed once dev runs: a server that dies from then on is started
	// again, one that dies before ends dev.
	settled <-chan struct{}
}

// run keeps the server running until ctx ends, and returns once its process and
// whatever that started have ended.
func (c *child) run(ctx context.Context) error {
	for {
		how, err := c.once(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		select {
		case <-c.settled:
		default:
			return fmt.Errorf("its process ended at once: %s", how)
		}
		c.console.say(c.name, "died (%s); it starts again in %s", how, restartPause)
		if sleep(ctx, restartPause) != nil {
			return nil
		}
	}
}

// once runs the process to its end and tells how it ended.
func (c *child) once(ctx context.Context) (how string, err error) {
	// Linux ends a child with the thread that started it (see ownGroup), so this
	// one has to stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.Command(c.program, c.args...) // vet:allow the context must not kill it: it is to stop in order
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "MUSTER_") })
	ownGroup(cmd)
	r, w, err := os.Pipe()
	if err != nil {
		return "", fmt.Errorf("start: %w", err)
	}
	defer r.Close()
	cmd.Stdout, cmd.Stderr = w, w
	err = cmd.Start()
	_ = w.Close()
	if err != nil {
		return "", fmt.Errorf("start: %w", err)
	}
	c.console.say(c.name, "runs as process %d", cmd.Process.Pid)
	copied := make(chan struct{})
	go func() {
		defer close(copied)
		c.console.copy(c.name, r)
	}()
	ended := make(chan struct{})
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		c.stopWith(ctx, cmd, ended)
	}()
	// An exit status that is not zero is not an error here.
	if err := cmd.Wait(); err != nil && cmd.ProcessState == nil {
		how = err.Error()
	} else {
		how = cmd.ProcessState.String()
	}
	close(ended)
	<-stopped
	// Nothing that it started may stay behind, and hold the pipe open.
	killGroup(cmd)
	<-copied
	return how, nil
}

// stopWith asks the process to stop when ctx ends, and kills it when it does not.
func (c *child) stopWith(ctx context.Context, cmd *exec.Cmd, ended <-chan struct{}) {
	select {
	case <-ended:
		return
	case <-ctx.Done():
	}
	interruptGroup(cmd)
	timer := time.NewTimer(stopTimeout)
	defer timer.Stop()
	select {
	case <-ended:
	case <-timer.C:
		c.console.say(c.name, "did not stop within %s; it is killed", stopTimeout)
		killGroup(cmd)
	}
}

// startServers starts the servers of a cluster and waits until each has a vote
// and serves. The first makes the cluster, the others join it; on later starts
// each goes on with what it has.
func (p *process) startServers(ctx context.Context, cfg Config, info *Info, settled <-chan struct{}) error {
	program := cfg.Program
	if program == "" {
		var err error
		if program, err = os.Executable(); err != nil {
			return fmt.Errorf("find this program: %w", err)
		}
	}
	// The servers' own words for it would be too late, and among others.
	for _, s := range cfg.Servers {
		for _, addr := range []string{s.Admin, s.XDS, s.Raft} {
			ln, err := net.Listen("tcp", addr)
			if err != nil {
				return fmt.Errorf("server: %w", err)
			}
			_ = ln.Close()
		}
	}
	keys := filepath.Join(cfg.DataDir, "api-keys.json")
	if err := auth.WriteKeys(keys, []auth.Key{auth.NewKey("dev", auth.RoleAdmin, info.APIKey)}); err != nil {
		return err
	}
	out := &console{out: cfg.Console}
	if out.out == nil {
		out.out = io.Discard
	}
	for i, addrs := range cfg.Servers {
		name := "server-" + strconv.Itoa(i+1)
		args := []string{
			"server", "--server-id", name, "--data-dir", filepath.Join(clusterDir(cfg.DataDir), name),
			"--admin-addr", addrs.Admin, "--xds-addr", addrs.XDS, "--raft-addr", addrs.Raft,
			"--api-keys-file", keys, "--insecure", "--promote-after", promoteAfter.String(), "--log-level", cfg.ServerLogLevel,
		}
		if i == 0 {
			args = append(args, "--bootstrap")
		} else {
			args = append(args, "--join", cfg.Servers[0].Raft)
		}
		info.AdminAddrs, info.XDSAddrs = append(info.AdminAddrs, addrs.Admin), append(info.XDSAddrs, addrs.XDS)
		p.start(ctx, name, (&child{name: name, program: program, args: args, console: out, settled: settled}).run)
	}
	return nil
}

// clusterDir is where several servers and their gateways keep what they have.
// It is another than a single server's: a gateway must not come from one cluster
// into the other.
func clusterDir(dataDir string) string { return filepath.Join(dataDir, "cluster") }

// formed waits until so many servers have a vote and serve data planes.
func (a *api) formed(ctx context.Context, servers int) error {
	for {
		resp, err := a.cluster.ListPeers(a.as(ctx), &musterv1.ListPeersRequest{})
		ready := 0
		for _, p := range resp.GetPeers() {
			if p.GetVoter() && p.GetReady() {
				ready++
			}
		}
		if err == nil && ready >= servers {
			return nil
		}
		if stop := sleep(ctx, 20*time.Millisecond); stop != nil {
			return fmt.Errorf("wait for the servers: %d of %d are ready: %w", ready, servers, errors.Join(stop, err))
		}
	}
}
