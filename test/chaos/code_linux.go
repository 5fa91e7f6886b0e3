package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/chaos/faultfs"
)

// codeFaults end servers at chosen places of their code, and feed them what
// they must refuse.
func codeFaults() []fault {
	var out []fault
	for _, point := range []string{"store", "stored", "apply", "push"} {
		out = append(out,
			fault{row: "10", name: "panic at " + point + ", leader", weight: 3, run: atPoint(point, true)},
			fault{row: "10", name: "panic at " + point + ", follower", weight: 2, run: atPoint(point, false)})
	}
	for _, point := range []string{"persist", "persisted"} {
		out = append(out, fault{row: "10", name: "panic at " + point, weight: 3, run: atSnapshot(point)})
	}
	return append(out,
		fault{row: "10", name: "SIGKILL at a snapshot's rename", weight: 3, run: atRename},
		fault{row: "10", name: "panic at restore", weight: 3, run: atRestore},
		fault{row: "11", name: "leader killed while it sends a snapshot", weight: 5, run: installCut},
		fault{row: "11", name: "follower killed while it takes a snapshot", weight: 3, run: installKilled},
		fault{row: "18", name: "hostile requests", weight: 2, run: hostile},
	)
}

// reachLimit is how long a failpoint may take to be reached under load.
const reachLimit = 30 * time.Second

// ends waits for a server to end at its failpoint.
func (w *world) ends(ctx context.Context, n *node, point string) error {
	w.mayEnd = append(w.mayEnd, "panic: failpoint "+point)
	timer := time.NewTimer(reachLimit)
	defer timer.Stop()
	select {
	case <-n.done():
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return fmt.Errorf("%s did not reach the failpoint %s in %s", n.id, point, reachLimit)
	}
	if !strings.Contains(n.lastRun(), "panic: failpoint "+point) {
		return fmt.Errorf("%s ended otherwise than at the failpoint %s: %s", n.id, point, n.logTail(2000))
	}
	return nil
}

func atPoint(point string, leads bool) func(context.Context, *world, *mathrand.Rand) error {
	return func(ctx context.Context, w *world, random *mathrand.Rand) error {
		n, followers, err := w.followers(ctx)
		if err != nil {
			return err
		}
		if !leads {
			n = pick(random, followers)
		}
		if err := n.host.arm(point); err != nil {
			return err
		}
		return w.ends(ctx, n, point)
	}
}

func atSnapshot(point string) func(context.Context, *world, *mathrand.Rand) error {
	return func(ctx context.Context, w *world, random *mathrand.Rand) error {
		n := pick(random, w.members())
		if err := n.host.arm(point); err != nil {
			return err
		}
		w.writers.burst(ctx, random, snapshotThreshold+50)
		return w.ends(ctx, n, point)
	}
}

// inSnapshots tells whether an operation is on a snapshot that is being made.
func inSnapshots(e faultfs.Event) bool {
	return strings.HasPrefix(e.Path, filepath.Join("data", "raft", "snapshots")) && strings.Contains(e.Path, ".tmp")
}

func atRename(ctx context.Context, w *world, random *mathrand.Rand) error {
	n := pick(random, w.members())
	// While the burst goes on, the disk hangs at the rename.
	w.mayEnd = append(w.mayEnd, diskHangs)
	hit := n.host.disk.Break(func(e faultfs.Event) bool { return e.Op == faultfs.OpRename && inSnapshots(e) })
	w.writers.burst(ctx, random, snapshotThreshold+50)
	select {
	case <-hit:
	case <-time.After(reachLimit):
		return fmt.Errorf("%s makes no snapshot", n.id)
	}
	n.kill()
	if random.IntN(2) == 0 {
		_, err := n.host.disk.PowerCut(random)
		return err
	}
	return nil
}

// lag stops a follower and writes until the others have forgotten what it needs,
// so that it must be sent a snapshot.
func (w *world) lag(ctx context.Context, random *mathrand.Rand) (*node, error) {
	leader, followers, err := w.followers(ctx)
	if err != nil {
		return nil, err
	}
	n := pick(random, followers)
	st, err := w.status(ctx, n)
	if err != nil {
		return nil, err
	}
	behind := st.GetCommitIndex()
	n.kill()
	for range 12 {
		w.writers.burst(ctx, random, 2*snapshotThreshold)
		sleep(ctx, 300*time.Millisecond)
		st, err := w.status(ctx, leader)
		// A snapshot leaves threshold and a quarter of entries before it.
		if err == nil && st.GetSnapshotIndex() > behind+snapshotThreshold+snapshotThreshold/4 {
			return n, nil
		}
	}
	return nil, fmt.Errorf("%s makes no snapshot", leader.id)
}

func atRestore(ctx context.Context, w *world, random *mathrand.Rand) error {
	n, err := w.lag(ctx, random)
	if err != nil {
		return err
	}
	if err := n.host.arm("restore"); err != nil {
		return err
	}
	if err := w.start(n); err != nil {
		return err
	}
	return w.ends(ctx, n, "restore")
}

// install lets a follower that lags come back, and returns when it is about to
// write the snapshot that it is sent.
func (w *world) install(ctx context.Context, random *mathrand.Rand) (*node, error) {
	n, err := w.lag(ctx, random)
	if err != nil {
		return nil, err
	}
	w.mayEnd = append(w.mayEnd, diskHangs)
	op := pick(random, []faultfs.Op{faultfs.OpWrite, faultfs.OpWrite, faultfs.OpSync, faultfs.OpRename})
	after := 0
	if op == faultfs.OpWrite {
		after = random.IntN(8) // of about a dozen
	}
	hit := n.host.disk.Break(func(e faultfs.Event) bool {
		if e.Op != op || !inSnapshots(e) {
			return false
		}
		after--
		return after < 0
	})
	if err := w.start(n); err != nil {
		return nil, err
	}
	select {
	case <-hit:
		return n, nil
	case <-time.After(reachLimit):
		return nil, fmt.Errorf("%s was sent no snapshot", n.id)
	}
}

func installCut(ctx context.Context, w *world, random *mathrand.Rand) error {
	n, err := w.install(ctx, random)
	if err != nil {
		return err
	}
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	leader.kill()
	n.host.disk.Resume()
	sleep(ctx, between(random, 0, time.Second))
	return nil
}

func installKilled(ctx context.Context, w *world, random *mathrand.Rand) error {
	n, err := w.install(ctx, random)
	if err != nil {
		return err
	}
	if random.IntN(2) == 0 {
		return cutPower(random, n)
	}
	n.kill()
	return nil
}

// hostile sends what must be refused: no server may end by it, and writes must
// go on.
func hostile(ctx context.Context, w *world, _ *mathrand.Rand) error {
	starts := map[*node]int{}
	for _, n := range w.members() {
		starts[n] = n.started()
	}
	for _, n := range w.members() {
		if err := w.affront(ctx, n); err != nil {
			return err
		}
	}
	sleep(ctx, 200*time.Millisecond)
	for n, times := range starts {
		if !n.runs() || n.started() != times {
			return violated("row 18: %s ended by a hostile request: %s", n.id, n.logTail(3000))
		}
	}
	return nil
}

func (w *world) affront(ctx context.Context, n *node) error {
	conn, err := w.conn(n)
	if err != nil {
		return err
	}
	call, cancel := context.WithTimeout(w.auth(ctx), 10*time.Second)
	defer cancel()
	put := func(r *musterv1.Resource) *musterv1.Change {
		return &musterv1.Change{Action: &musterv1.Change_Put{Put: r}}
	}
	big := strings.Repeat("x", 20<<20)
	garbled := &musterv1.XdsResource{Id: "garbled", Resource: &anypb.Any{TypeUrl: clusterType, Value: []byte("\xff\xff\xff")}}
	for name, changes := range map[string][]*musterv1.Change{
		"oversize":       {put(&musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: "big", Name: "big", Desc: big}}})},
		"garbled":        {put(&musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: garbled}})},
		"no kind":        {put(&musterv1.Resource{})},
		"no action":      {{}},
		"no such kind":   {{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: 77, Id: "x"}}}},
		"a path as name": {put(&musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: "../../" + groups[1], Name: "x"}}})},
	} {
		_, err := musterv1.NewAdminServiceClient(conn).Commit(call, &musterv1.CommitRequest{Group: groups[0], Changes: changes})
		switch status.Code(err) {
		case codes.InvalidArgument, codes.ResourceExhausted, codes.NotFound:
		default:
			return violated("row 18: %s at %s: %v", name, n.id, err)
		}
	}
	for _, port := range []string{adminPort, xdsPort, raftPort} {
		if err := garbage(ctx, n.host.addr(port)); err != nil {
			return err
		}
	}
	return nil
}

// garbage sends noise to a port, with and without TLS.
func garbage(ctx context.Context, addr string) error {
	noise := make([]byte, 64<<10)
	_, _ = rand.Read(noise)
	d := net.Dialer{Timeout: time.Second}
	plain, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return violated("row 18: %s does not accept a connection: %v", addr, err)
	}
	defer plain.Close()
	_ = plain.SetDeadline(time.Now().Add(time.Second))
	_, _ = plain.Write(noise)
	for _, proto := range []string{"h2", "muster-raft/1", "muster-peer/1"} {
		conn, err := (&tls.Dialer{NetDialer: &d, Config: &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}}}).DialContext(ctx, "tcp", addr)
		if err != nil {
			continue // the port wants a certificate
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second))
		_, _ = conn.Write(noise)
		_ = conn.Close()
	}
	return nil
}
