package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/musterhq/muster/raftstore/atrest"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/test/chaos/faultfs"
	"github.com/musterhq/muster/test/chaos/netlab"
)

const (
	trustDomain = "chaos.test"
	adminPort   = "7443"
	xdsPort     = "7943"
	raftPort    = "7100"
	// diskTimeout is the servers' watchdog limit.
	diskTimeout = 3 * time.Second
	// snapshotThreshold is small, so that snapshots are part of every schedule.
	snapshotThreshold = 256
)

// host is a place for a server: a namespace and a disk. It outlives the servers
// that run on it, one after another.
type host struct {
	name, ip string
	backing  string // what faultfs serves
	mount    string // the disk as the server sees it
	arms     string // armed failpoints
	disk     *faultfs.FS
}

func (h *host) addr(port string) string { return h.ip + ":" + port }

// node is a server with its data on a host.
type node struct {
	id   string
	host *host
	dir  string // of certificates and keys
	log  string // file
	boot bool
	join string // raft addresses

	mu     sync.Mutex
	proc   *exec.Cmd
	exited chan struct{}
	ended  bool // by us, or on its way to it
	starts int
	// deaths are the ends of processes that nobody here ended.
	deaths []string
}

// newNode prepares a server's certificates and keys.
func (l *lab) newNode(id string, h *host, boot bool, join string) (*node, error) {
	n := &node{id: id, host: h, dir: filepath.Join(l.dir, "conf-"+id), log: filepath.Join(l.dir, id+".log"), boot: boot, join: join}
	if err := os.MkdirAll(n.dir, 0o700); err != nil {
		return nil, err
	}
	leaf, err := l.ca.Identity(h.ip, &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/server/" + id})
	if err != nil {
		return nil, err
	}
	atRest, err := atrest.Generate()
	if err != nil {
		return nil, err
	}
	for name, data := range map[string]string{"cert.pem": leaf.CertPEM, "key.pem": leaf.KeyPEM, "ca.pem": l.ca.CertPEM, "at-rest.key": string(atRest)} {
		if err := os.WriteFile(filepath.Join(n.dir, name), []byte(data), 0o600); err != nil {
			return nil, err
		}
	}
	return n, auth.WriteKeys(filepath.Join(n.dir, "keys.json"), []auth.Key{auth.NewKey("chaos", auth.RoleAdmin, l.secret)})
}

// dataDir is where the server keeps its data, as the server sees it.
func (n *node) dataDir() string { return filepath.Join(n.host.mount, "data") }

// backingDir is dataDir below the fault-injecting mount.
func (n *node) backingDir() string { return filepath.Join(n.host.backing, "data") }

// start starts the server's process.
func (l *lab) start(n *node) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc != nil {
		return fmt.Errorf("%s runs already", n.id)
	}
	file := func(name string) string { return filepath.Join(n.dir, name) }
	args := []string{
		"server", "--server-id", n.id, "--data-dir", n.dataDir(),
		"--admin-addr", n.host.addr(adminPort), "--xds-addr", n.host.addr(xdsPort), "--raft-addr", n.host.addr(raftPort),
		"--ops-addr", "127.0.0.1:9100",
		"--api-keys-file", file("keys.json"), "--trust-domain", trustDomain, "--at-rest-key-file", file("at-rest.key"),
		"--admin-tls-cert-file", file("cert.pem"), "--admin-tls-key-file", file("key.pem"),
		"--xds-tls-cert-file", file("cert.pem"), "--xds-tls-key-file", file("key.pem"), "--xds-tls-client-ca-file", file("ca.pem"),
		"--raft-tls-cert-file", file("cert.pem"), "--raft-tls-key-file", file("key.pem"), "--raft-tls-ca-file", file("ca.pem"),
		"--promote-after", "300ms", "--disk-timeout", diskTimeout.String(),
		"--snapshot-threshold", fmt.Sprint(snapshotThreshold), "--snapshot-interval", "500ms",
		"--shutdown-grace", "2s", "--log-format", "json",
	}
	if n.boot {
		args = append(args, "--bootstrap")
	}
	if n.join != "" {
		args = append(args, "--join", n.join)
	}
	log, err := os.OpenFile(n.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	fmt.Fprintf(log, "--- start %d at %s\n", n.starts, time.Now().Format("15:04:05.000"))
	cmd := exec.Command(l.binary, args...)
	cmd.Env = append(os.Environ(), "MUSTER_FAILPOINTS="+n.host.arms, "GOTRACEBACK=single")
	cmd.Stdout, cmd.Stderr = log, log
	if err := l.net.Start(n.host.name, cmd); err != nil {
		return fmt.Errorf("start %s: %w", n.id, err)
	}
	exited := make(chan struct{})
	n.proc, n.exited, n.ended = cmd, exited, false
	n.starts++
	l.wg.Go(func() {
		err := cmd.Wait()
		n.mu.Lock()
		defer n.mu.Unlock()
		if !n.ended {
			n.deaths = append(n.deaths, fmt.Sprintf("%s ended by itself (%v): %s", n.id, err, excerpt(n.lastRun())))
		}
		n.proc = nil
		close(exited)
	})
	return nil
}

// runs tells whether the server's process is there.
func (n *node) runs() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.proc != nil
}

func (n *node) signal(s syscall.Signal) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		return errors.New("it does not run")
	}
	if s == syscall.SIGKILL || s == syscall.SIGTERM {
		n.ended = true
	}
	return n.proc.Process.Signal(s)
}

// done is closed when the process has ended; at once when there is none.
func (n *node) done() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.proc == nil {
		c := make(chan struct{})
		close(c)
		return c
	}
	return n.exited
}

// kill ends the process as a crash does.
func (n *node) kill() {
	done := n.done()
	_ = n.signal(syscall.SIGKILL) // it may have ended by itself
	<-done
}

// stop ends the process as an operator does.
func (n *node) stop(ctx context.Context) error {
	done := n.done()
	_ = n.signal(syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s did not stop within a minute of SIGTERM", n.id)
	}
}

// wipe removes the server's data.
func (n *node) wipe() error { return os.RemoveAll(n.backingDir()) }

// logTail returns the end of the server's log.
func (n *node) logTail(bytes int) string {
	data, err := os.ReadFile(n.log)
	if err != nil {
		return err.Error()
	}
	return string(data[max(0, len(data)-bytes):])
}

// lastRun returns what the server's process logged since it was started last.
func (n *node) lastRun() string {
	log := n.logTail(256 << 10)
	return log[max(0, strings.LastIndex(log, "--- start ")):]
}

// excerpt is the part of a log that tells why a process ended.
func excerpt(log string) string {
	for _, mark := range []string{"panic: ", "fatal error: ", "DATA RACE", "cannot go on", "is corrupt"} {
		if i := strings.Index(log, mark); i >= 0 {
			return log[i:min(len(log), i+1500)]
		}
	}
	return log[max(0, len(log)-800):]
}

// takeDeaths returns the ends of processes that nobody here ended.
func (n *node) takeDeaths() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := n.deaths
	n.deaths = nil
	return taken
}

// newHost makes a namespace and a disk.
func (l *lab) newHost(i int) (*host, error) {
	h := &host{name: fmt.Sprintf("h%d", i), ip: fmt.Sprintf("10.77.0.%d", i)}
	h.backing, h.mount, h.arms = filepath.Join(l.dir, "disk", h.name), filepath.Join(l.dir, "mnt", h.name), filepath.Join(l.dir, "arms", h.name)
	for _, dir := range []string{h.backing, h.mount, h.arms} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, err
		}
	}
	if err := l.net.Add(h.name, h.ip); err != nil {
		return nil, err
	}
	var err error
	h.disk, err = faultfs.Mount(h.backing, h.mount)
	return h, err
}

// clear undoes whatever was done to a host.
func (l *lab) clear(h *host) error {
	h.disk.Resume()
	h.disk.Free()
	h.disk.FailWrites(0, 0)
	armed, err := filepath.Glob(filepath.Join(h.arms, "*"))
	if err != nil {
		return err
	}
	for _, path := range armed {
		_ = os.Remove(path)
	}
	return errors.Join(l.net.Set(h.name, netlab.Rules{}), l.net.Lose(h.name, 0))
}

// arm makes the server on a host panic at a failpoint.
func (h *host) arm(failpoint string) error {
	return os.WriteFile(filepath.Join(h.arms, failpoint), nil, 0o600)
}

// started is how often the server's process was started.
func (n *node) started() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.starts
}
