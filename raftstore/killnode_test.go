package raftstore

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"
)

// nodeSpec is a server that runs in a process of its own.
type nodeSpec struct {
	Dir, ID, Addr string
	Join          []string
	Heartbeat     time.Duration // 0 is that of production
}

func (n nodeSpec) config() Config {
	return Config{
		DataDir: n.Dir, ServerID: n.ID, RaftAddr: n.Addr, Join: n.Join, Insecure: true, Logger: quiet(), MinFreeBytes: -1,
		HeartbeatTimeout: n.Heartbeat,
		Autopilot:        Autopilot{Stabilize: 100 * time.Millisecond, interval: 100 * time.Millisecond},
	}
}

// nodeMain runs a server until it is killed, or its parent is gone.
func nodeMain(spec string) int {
	var n nodeSpec
	if err := json.Unmarshal([]byte(spec), &n); err != nil {
		return 2
	}
	s, err := Open(n.config())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx, cancel := context.WithCancel(context.Background()) // vet:allow this is a process of its own
	go func() {
		_, _ = os.Stdin.Read(make([]byte, 1))
		cancel()
	}()
	if err := s.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// node is a running process.
type node struct {
	spec nodeSpec
	cmd  *exec.Cmd
}

func startNode(t *testing.T, spec nodeSpec) *node {
	t.Helper()
	data, _ := json.Marshal(spec)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "RAFTSTORE_TEST_NODE="+string(data))
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	n := &node{spec, cmd}
	t.Cleanup(n.kill)
	return n
}

func (n *node) kill() {
	_ = n.cmd.Process.Signal(syscall.SIGKILL)
	_ = n.cmd.Wait()
}

func freeAddr(t *testing.T) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// TestTheEndOfTheLeadersProcessIsNoticedWithoutHeartbeats kills leaders whose silence
// would be noticed only after three seconds. A machine that is busy may miss it once.
func TestTheEndOfTheLeadersProcessIsNoticedWithoutHeartbeats(t *testing.T) {
	const heartbeat = 3 * time.Second
	shortest := time.Hour
	self := nodeSpec{Dir: t.TempDir(), ID: "observer", Addr: freeAddr(t), Heartbeat: heartbeat}.config()
	self.Bootstrap = true
	s, _ := start(t, self)
	mustApply(t, s, groupG())
	nodes := map[string]*node{}
	for _, id := range []string{"a", "z"} { // one before and one after this one
		nodes[id] = startNode(t, nodeSpec{Dir: t.TempDir(), ID: id, Addr: freeAddr(t), Join: []string{self.RaftAddr}, Heartbeat: heartbeat})
	}
	ready := func() bool {
		peers, err := s.Peers(testCtx(t))
		n := 0
		for _, p := range peers {
			if p.Ready && p.Voter {
				n++
			}
		}
		return err == nil && n == 3
	}
	eventually(t, "three voters", ready)
	for _, target := range []string{"a", "z"} {
		eventually(t, target+" to lead", func() bool {
			_ = s.TransferLeader(testCtx(t), target)
			id, _, _ := s.Leader()
			return id == target
		})
		mustApply(t, s, putService("g", target, ""))
		again := putService("g", target, "again")
		again.RequestId = "again " + target // it may be repeated
		killed := time.Now()
		nodes[target].kill()
		mustApply(t, s, again)
		pause := time.Since(killed)
		t.Logf("%s killed: the next write took %s", target, pause)
		shortest = min(shortest, pause)
		nodes[target] = startNode(t, nodes[target].spec)
		eventually(t, "all to be ready", ready)
	}
	if shortest > heartbeat/2 {
		t.Errorf("a leader's end was noticed by its silence: the next write took %s at least", shortest)
	}
}

// TestAKilledLeaderPausesWritesBriefly kills leaders that are processes of
// their own, with the timeouts of production, and measures the pause.
func TestAKilledLeaderPausesWritesBriefly(t *testing.T) {
	self := nodeSpec{Dir: t.TempDir(), ID: "observer", Addr: freeAddr(t)}.config()
	self.Bootstrap = true
	s, _ := start(t, self)
	mustApply(t, s, groupG())
	nodes := map[string]*node{}
	for _, id := range []string{"a", "b"} {
		nodes[id] = startNode(t, nodeSpec{Dir: t.TempDir(), ID: id, Addr: freeAddr(t), Join: []string{self.RaftAddr}})
	}
	eventually(t, "three voters", func() bool { return s.voters() == 3 })
	c := &cluster{t: t, net: newTestNet(), members: []*member{{Store: s, cfg: self}}}
	l := c.load(4, c.members...)
	for round := range 4 {
		target := []string{"a", "b"}[round%2]
		eventually(t, target+" to keep up", func() bool { return s.TransferLeader(testCtx(t), target) == nil })
		eventually(t, target+" to lead", func() bool { id, _, _ := s.Leader(); return id == target })
		l.await(t, 20)
		l.resetGap()
		nodes[target].kill()
		l.await(t, 20)
		gap := l.longestGap()
		t.Logf("writes paused for %s", gap)
		if gap > 5*time.Second {
			t.Errorf("writes paused for %s", gap)
		}
		nodes[target] = startNode(t, nodes[target].spec)
	}
	l.end(c)
	// The restarted ones hold the same: they answer as members that are ready.
	eventually(t, "all to be ready", func() bool {
		peers, err := s.Peers(testCtx(t))
		for _, p := range peers {
			if !p.Ready || p.AppliedIndex < s.State().Index() {
				return false
			}
		}
		return err == nil && len(peers) == 3
	})
}
