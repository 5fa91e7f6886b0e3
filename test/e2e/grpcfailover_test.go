//go:build e2e

package e2e

import (
	"io"
	"net"
	"sync"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/control"
	"github.com/musterhq/muster/test/e2e/grpcclient"
	"github.com/musterhq/muster/test/e2e/ports"
)

// front is one address of all servers, as a load balancer or a DNS name is: it
// leads to one of them, until it is moved to another.
type front struct {
	lis  net.Listener
	done sync.WaitGroup

	mu    sync.Mutex
	to    string
	conns map[net.Conn]struct{}
}

func startFront(t *testing.T, to string) *front {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &front{lis: lis, to: to, conns: map[net.Conn]struct{}{}}
	f.done.Go(func() {
		for {
			in, err := lis.Accept()
			if err != nil {
				return
			}
			f.done.Go(func() { f.carry(in) })
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		f.move("")
		f.done.Wait()
	})
	return f
}

func (f *front) carry(in net.Conn) {
	defer in.Close()
	f.mu.Lock()
	to := f.to
	f.conns[in] = struct{}{}
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.conns, in)
		f.mu.Unlock()
	}()
	out, err := net.DialTimeout("tcp", to, time.Second)
	if err != nil {
		return
	}
	defer out.Close()
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(out, in) // either end may go
		_ = out.Close()
	})
	_, _ = io.Copy(in, out)
	_ = in.Close()
	both.Wait()
}

// move leads to another server from now on; connections to the one before end.
func (f *front) move(to string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.to = to
	for c := range f.conns {
		_ = c.Close()
	}
}

// TestGRPCClientsFailOver kills the server that the clients hang on. They go on to
// another, lose no call and follow what changes there.
func TestGRPCClientsFailOver(t *testing.T) {
	cluster, err := control.StartCluster(t.Context(), muster, t.TempDir(), 3)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, m := range cluster.Members {
			if t.Failed() {
				t.Logf("%s said:\n%s", m.ID, tailOf(m.Output(), 2000))
			}
		}
		cluster.Close()
	})
	s := &site{Dev: &control.Dev{API: cluster.API}}
	s.group(t, mesh)
	a, b := startHealth(t, "a"), startHealth(t, "b")
	commit := func(changes ...*musterv1.Change) {
		t.Helper()
		// A new leader may have to be found first.
		if err := eventually(t.Context(), followTimeout, func() error {
			_, err := s.commit(t.Context(), mesh, changes...)
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
	commit(grpcService("shop", a), routeOf("shop", "/*"))
	all := startFront(t, cluster.Members[0].XDSAddr)
	dead, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}

	var runs []*grpcclient.Run
	for _, c := range clients {
		// By one address of all servers.
		runs = append(runs, s.startClientAt(t, c, mesh, c.Name+"-front", "shop", all.lis.Addr().String(), nil))
		if c.Name == "node" {
			continue // it never looks at a second server
		}
		// By a list, of which the first is down from the beginning.
		runs = append(runs, s.startClientAt(t, c, mesh, c.Name+"-list", "shop", loopback(dead)+","+cluster.Members[1].XDSAddr, nil))
	}
	for _, run := range runs {
		answered(t, run, 0, "a")
	}
	marks := make([]int, len(runs))
	for i, run := range runs {
		marks[i] = run.Mark()
	}
	cluster.Members[0].Kill()
	all.move(cluster.Members[1].XDSAddr)
	commit(grpcService("shop", b))
	for i, run := range runs {
		answered(t, run, marks[i], "b")
		noneLost(t, run, marks[i], "failover")
	}
}
