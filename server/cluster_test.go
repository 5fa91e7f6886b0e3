package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
)

// trio is a cluster of three servers in this process.
type trio struct {
	t     *testing.T
	cfgs  []Config
	nodes []*node
}

func startTrio(t *testing.T) *trio {
	t.Helper()
	c := &trio{t: t}
	for i := range 3 {
		cfg := testConfig(t)
		cfg.ServerID = fmt.Sprintf("srv-%d", i+1)
		cfg.RaftAddr = "127.0.0.1:0"
		cfg.Autopilot = raftstore.Autopilot{Stabilize: 200 * time.Millisecond}
		cfg.Bootstrap = i == 0
		if i > 0 {
			cfg.Join = []string{c.raftAddr(0)}
		}
		n := start(t, cfg)
		c.cfgs, c.nodes = append(c.cfgs, cfg), append(c.nodes, n)
	}
	c.votes(3)
	return c
}

func (c *trio) raftAddr(i int) string {
	st, err := c.nodes[i].srv.store.Status()
	if err != nil {
		c.t.Fatal(err)
	}
	return st.Address
}

// votes waits until so many servers have a vote.
func (c *trio) votes(n int) {
	c.t.Helper()
	eventually(c.t, fmt.Sprintf("%d servers have a vote", n), func() bool {
		st, err := c.nodes[c.leader()].ops.GetClusterStatus(c.nodes[0].ctx(), &musterv1.GetClusterStatusRequest{})
		return err == nil && int(st.GetVoters()) == n
	})
}

// leader waits for a leader that all servers that run agree on.
func (c *trio) leader() int {
	c.t.Helper()
	at := -1
	eventually(c.t, "there is a leader", func() bool {
		at = slices.IndexFunc(c.nodes, func(n *node) bool { return n != nil && n.srv.Status().IsLeader })
		return at >= 0
	})
	return at
}

func (c *trio) followers() []*node {
	leader := c.leader()
	var out []*node
	for i, n := range c.nodes {
		if i != leader && n != nil {
			out = append(out, n)
		}
	}
	return out
}

func TestAWriteToAnyServerIsReadFromAnyServer(t *testing.T) {
	c := startTrio(t)
	c.followers()[0].group("g")
	for i, n := range c.nodes {
		rev := n.commit("g", put(serviceOf(fmt.Sprintf("s%d", i), 8080))).GetRevision()
		for j, other := range c.nodes {
			got, err := other.admin.GetGroup(other.ctx(), &musterv1.GetGroupRequest{Group: "g"})
			if err != nil || got.GetGroup().GetRevision() != rev {
				t.Fatalf("written on %d, read on %d: %v, %v; want revision %d", i, j, got, err, rev)
			}
		}
	}
	// A conflict is the same from a server that only forwards.
	f := c.followers()[0]
	_, err := f.admin.Commit(f.ctx(), &musterv1.CommitRequest{Group: "g", ExpectedRevision: new(uint64), Changes: []*musterv1.Change{put(serviceOf("x", 1))}})
	if status.Code(err) != codes.Aborted {
		t.Fatalf("err = %v, want ABORTED", err)
	}
}

func TestEveryServerServesDataPlanesAndKnowsThoseOfTheOthers(t *testing.T) {
	c := startTrio(t)
	c.nodes[0].group("g")
	for i, n := range c.nodes {
		eventually(t, "the group is there", func() bool { _, ok := n.srv.State().Group("g"); return ok })
		n.dataPlane(fmt.Sprintf("dp-%d", i), "g")
	}
	rev := c.nodes[0].commit("g", put(serviceOf("pay", 8080))).GetRevision()
	for i, n := range c.nodes {
		stream, err := n.dps.Wait(n.ctx(), &musterv1.WaitRequest{Group: "g", Revision: rev, MinDataPlanes: ptr(uint32(3)), Timeout: durationpb.New(15 * time.Second)})
		if err != nil {
			t.Fatal(err)
		}
		var last *musterv1.WaitResponse
		for {
			p, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatalf("server %d: %v", i, err)
			}
			last = p
		}
		if last.GetAcked() != 3 || last.GetConnected() != 3 {
			t.Fatalf("server %d: %v", i, last)
		}
		for j := range c.nodes {
			p := n.until("g", fmt.Sprintf("dp-%d", j), synced, rev)
			if p.GetServer() != fmt.Sprintf("srv-%d", j+1) {
				t.Errorf("server %d says that %s hangs on %s", i, p.GetId(), p.GetServer())
			}
		}
	}
	// A group with data planes on another server only is in use, too.
	peers, err := c.nodes[1].ops.ListPeers(c.nodes[1].ctx(), &musterv1.ListPeersRequest{})
	if err != nil || len(peers.GetPeers()) != 3 {
		t.Fatalf("peers = %v, %v", peers, err)
	}
	for i, p := range peers.GetPeers() {
		if p.GetId() != fmt.Sprintf("srv-%d", i+1) || !p.GetReachable() || !p.GetVoter() || p.GetVersion() == "" || p.GetAdminAddress() != c.nodes[i].srv.AdminAddr().String() {
			t.Errorf("peer = %v", p)
		}
	}
}

func ptr[T any](v T) *T { return &v }

func TestAStoppedLeaderHandsOverAndNoWriteFails(t *testing.T) {
	c := startTrio(t)
	c.nodes[0].group("g")
	leader := c.leader()
	writer := c.followers()[0]
	ctx, cancel := context.WithCancel(writer.ctx())
	var wrote atomic.Int64
	var longest time.Duration
	var failed error
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			began := time.Now()
			_, err := writer.admin.Commit(writer.ctx(), &musterv1.CommitRequest{
				Group: "g", RequestId: fmt.Sprintf("w%d", i), Changes: []*musterv1.Change{put(serviceOf(fmt.Sprintf("s%d", i%7), int32(1000+i)))},
			})
			longest = max(longest, time.Since(began))
			if err != nil {
				failed = err
				return
			}
			wrote.Add(1)
		}
	})
	eventually(t, "some writes", func() bool { return wrote.Load() > 20 })
	if err := c.nodes[leader].stop(); err != nil {
		t.Fatal(err)
	}
	c.nodes[leader] = nil
	before := wrote.Load()
	eventually(t, "writes go on", func() bool { return wrote.Load() > before+20 })
	cancel()
	wg.Wait()
	if failed != nil {
		t.Fatalf("a write failed: %v", failed)
	}
	t.Logf("%d writes, the longest took %s", wrote.Load(), longest)
	g, err := writer.admin.GetGroup(writer.ctx(), &musterv1.GetGroupRequest{Group: "g"})
	if err != nil || int64(g.GetGroup().GetRevision()) != wrote.Load() {
		t.Fatalf("revision %d after %d acknowledged writes, %v", g.GetGroup().GetRevision(), wrote.Load(), err)
	}
}

func TestAServerIsRemovedAndLeadershipMoves(t *testing.T) {
	c := startTrio(t)
	leader := c.leader()
	target := (leader + 1) % 3
	resp, err := c.nodes[leader].ops.TransferLeader(c.nodes[leader].ctx(), &musterv1.TransferLeaderRequest{Id: c.cfgs[target].ServerID})
	if err != nil || resp.GetLeaderId() != c.cfgs[target].ServerID {
		t.Fatalf("transfer = %v, %v", resp, err)
	}
	third := (leader + 2) % 3
	if _, err := c.nodes[leader].ops.RemovePeer(c.nodes[leader].ctx(), &musterv1.RemovePeerRequest{Id: c.cfgs[third].ServerID}); err != nil {
		t.Fatal(err)
	}
	c.votes(2)
	_, err = c.nodes[leader].ops.RemovePeer(c.nodes[leader].ctx(), &musterv1.RemovePeerRequest{Id: "nobody"})
	if status.Code(err) != codes.NotFound {
		t.Fatalf("err = %v, want NOT_FOUND", err)
	}
}

func TestABackupIsRestoredWithAHigherEpochAndDataPlanesFollow(t *testing.T) {
	c := startTrio(t)
	n := c.followers()[0]
	n.group("g")
	rev := n.commit("g", put(serviceOf("kept", 8080))).GetRevision()
	dp := n.dataPlane("dp", "g")
	n.until("g", "dp", synced, rev)
	backup := n.saveSnapshot()
	for i := range 5 {
		rev = n.commit("g", put(serviceOf(fmt.Sprintf("lost-%d", i), 8080))).GetRevision()
	}
	n.until("g", "dp", synced, rev)

	stream, err := n.ops.RestoreSnapshot(n.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&musterv1.RestoreSnapshotRequest{Chunk: backup[:len(backup)/2]}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.CloseAndRecv(); status.Code(err) != codes.InvalidArgument {
		t.Fatalf("half a file: %v, want INVALID_ARGUMENT", err)
	}
	n.until("g", "dp", synced, rev)

	stream, err = n.ops.RestoreSnapshot(n.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&musterv1.RestoreSnapshotRequest{Chunk: backup}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.CloseAndRecv()
	if err != nil || resp.GetInfo().GetEpoch() != 2 {
		t.Fatalf("restore = %v, %v", resp, err)
	}
	p := n.until("g", "dp", synced, 1)
	if p.GetEpoch() != 2 {
		t.Errorf("epoch = %d, want 2", p.GetEpoch())
	}
	if got := dp.names("type.googleapis.com/envoy.config.cluster.v3.Cluster"); got != "service/kept" {
		t.Errorf("the data plane holds %q", got)
	}
}

func (n *node) saveSnapshot() []byte {
	n.t.Helper()
	stream, err := n.ops.SaveSnapshot(n.ctx(), &musterv1.SaveSnapshotRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	var data []byte
	var info *musterv1.SnapshotInfo
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			n.t.Fatal(err)
		}
		data = append(data, m.GetChunk()...)
		info = m.GetInfo()
	}
	if info.GetBytes() != uint64(len(data)) || info.GetGroups() != 1 {
		n.t.Fatalf("%d bytes, info %v", len(data), info)
	}
	return data
}

func TestDataPlanesAreRememberedAcrossARestart(t *testing.T) {
	cfg := testConfig(t)
	n := start(t, cfg)
	n.group("g")
	rev := n.commit("g", put(serviceOf("pay", 8080))).GetRevision()
	n.dataPlane("dp", "g")
	n.until("g", "dp", synced, rev)
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	p := n.until("g", "dp", offline, rev)
	if p.GetServer() != "srv-1" || p.GetUserAgent() != "raw-test-client/1" || time.Since(p.GetLastSeen().AsTime()) > time.Minute {
		t.Fatalf("data plane = %v", p)
	}
	// A group that is made again under the id does not inherit it.
	if _, err := n.admin.DeleteGroup(n.ctx(), &musterv1.DeleteGroupRequest{Group: "g", Force: true}); err != nil {
		t.Fatal(err)
	}
	n.group("g")
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	if list := n.list("g"); len(list) != 0 {
		t.Fatalf("data planes = %v", list)
	}
}

func TestAServerThatCannotReachItsClusterServesNoOldState(t *testing.T) {
	c := startTrio(t)
	c.nodes[0].group("g")
	rev := c.nodes[0].commit("g", put(serviceOf("pay", 8080))).GetRevision()
	eventually(t, "every server has the revision", func() bool {
		return !slices.ContainsFunc(c.nodes, func(n *node) bool {
			g, ok := n.srv.State().Group("g")
			return !ok || g.Revision() != rev
		})
	})
	for _, n := range c.nodes {
		if err := n.stop(); err != nil {
			t.Fatal(err)
		}
	}
	cfg := c.cfgs[1]
	cfg.Join = nil
	n := startUnready(t, cfg)
	eventually(t, "what it has on disk is read", func() bool {
		_, err := n.admin.GetServerInfo(n.ctx(), &musterv1.GetServerInfoRequest{})
		return err == nil
	})
	dp := n.dataPlane("dp", "g")
	eventually(t, "the stream ends", func() bool { return dp.ended() != nil })
	if status.Code(dp.ended()) != codes.Unavailable || dp.responses != 0 {
		t.Fatalf("%d responses, then %v; want UNAVAILABLE alone", dp.responses, dp.ended())
	}
	ctx, cancel := context.WithTimeout(n.ctx(), 300*time.Millisecond)
	defer cancel()
	if _, err := n.admin.GetGroup(ctx, &musterv1.GetGroupRequest{Group: "g"}); err == nil {
		t.Fatal("a linearizable read was answered without a majority")
	}
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	if resp := get(t, client, "http://"+n.srv.OpsAddr().String()+"/readyz"); resp.StatusCode != http.StatusServiceUnavailable {
		t.Fatalf("readyz = %d, want 503", resp.StatusCode)
	}
}
