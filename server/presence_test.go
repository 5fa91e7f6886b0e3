package server

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/fleet"
	"github.com/musterhq/muster/server/xds"
)

// peerNet is the raft ports of some servers.
type peerNet struct {
	mu    sync.Mutex
	at    map[string]*presence
	down  map[string]bool
	calls map[string]int
}

// peerOf is one server's store in a peerNet.
type peerOf struct {
	net *peerNet
	id  string
}

func (p peerOf) ServerID() string { return p.id }

func (p peerOf) Peers(context.Context) ([]raftstore.Peer, error) {
	p.net.mu.Lock()
	defer p.net.mu.Unlock()
	var peers []raftstore.Peer
	for id := range p.net.at {
		peers = append(peers, raftstore.Peer{ID: id, Self: id == p.id})
	}
	return peers, nil
}

func (p peerOf) Call(ctx context.Context, id string, message []byte) ([]byte, error) {
	p.net.mu.Lock()
	p.net.calls[id]++
	to, down := p.net.at[id], p.net.down[id]
	p.net.mu.Unlock()
	if to == nil || down {
		return nil, errors.New("out of reach")
	}
	return peerMessages{presence: to}.handle(ctx, message)
}

// turned is a clock that the test turns.
type turned struct {
	mu sync.Mutex
	at time.Time
}

func (c *turned) now() time.Time          { c.mu.Lock(); defer c.mu.Unlock(); return c.at }
func (c *turned) advance(d time.Duration) { c.mu.Lock(); defer c.mu.Unlock(); c.at = c.at.Add(d) }

func newPeers(t *testing.T, ids ...string) (*peerNet, *turned) {
	t.Helper()
	n := &peerNet{at: map[string]*presence{}, down: map[string]bool{}, calls: map[string]int{}}
	c := &turned{at: time.Unix(1000, 0)}
	for _, id := range ids {
		r := fleet.New(fleet.Config{Server: id, Now: c.now})
		r.Published("g", fleet.Version{Epoch: 1, Revision: 1})
		p := newPresence(peerOf{n, id}, r, t.TempDir(), "v-"+id, "admin-"+id, slog.New(slog.DiscardHandler))
		p.now = c.now
		n.at[id] = p
	}
	for _, p := range n.at {
		p.lookUp(t.Context())
	}
	return n, c
}

func (n *peerNet) connect(server, node string) {
	r := n.at[server].fleet
	s := &xds.Stream{ID: 1, Group: "g", Node: node, UserAgent: "muster-gateway/1"}
	r.Connected(s)
	r.Subscribed(s, xds.Subscribed{TypeURL: compile.ClusterType, Wildcard: true})
	r.Synced(s, fleet.Version{Epoch: 1, Revision: 1})
}

func TestServersLearnOfEachOthersDataPlanes(t *testing.T) {
	n, _ := newPeers(t, "a", "b", "c")
	n.connect("b", "dp-b")
	n.connect("c", "dp-c")
	n.at["a"].Refresh(t.Context())
	if got := n.at["a"].fleet.Live("g"); got != 2 {
		t.Fatalf("a knows %d data planes, want 2", got)
	}
	if v, addr := n.at["a"].peerInfo("b"); v != "v-b" || addr != "admin-b" {
		t.Fatalf("b is %q at %q", v, addr)
	}
	if v, addr := n.at["a"].peerInfo("a"); v != "v-a" || addr != "admin-a" {
		t.Fatalf("a is %q at %q", v, addr)
	}
	if v, _ := n.at["a"].peerInfo("nobody"); v != "" {
		t.Fatalf("nobody is %q", v)
	}
}

func TestNobodyWaitsForADeadServer(t *testing.T) {
	n, c := newPeers(t, "a", "b", "c")
	n.connect("b", "dp-b")
	n.connect("c", "dp-c")
	a := n.at["a"]
	a.exchange(t.Context(), true)
	n.mu.Lock()
	n.down["b"] = true
	n.mu.Unlock()
	a.Refresh(t.Context())
	calls := n.calls["b"]
	a.Refresh(t.Context())
	if n.calls["b"] != calls {
		t.Fatal("a server that did not answer was asked again by a list")
	}
	// Its data planes count for a while, and then no longer.
	if got := a.fleet.Live("g"); got != 2 {
		t.Fatalf("Live = %d right after the server was lost, want 2", got)
	}
	c.advance(lostAfter)
	a.exchange(t.Context(), true)
	if got := a.fleet.Live("g"); got != 1 {
		t.Fatalf("Live = %d, want 1", got)
	}
	n.mu.Lock()
	n.down["b"] = false
	n.mu.Unlock()
	a.exchange(t.Context(), true)
	if got := a.fleet.Live("g"); got != 2 {
		t.Fatalf("Live = %d after the server came back, want 2", got)
	}
}

func TestTheDataPlanesOfARemovedServerAreOffline(t *testing.T) {
	n, _ := newPeers(t, "a", "b")
	n.connect("b", "dp-b")
	a := n.at["a"]
	a.Refresh(t.Context())
	n.mu.Lock()
	delete(n.at, "b")
	n.mu.Unlock()
	a.lookUp(t.Context())
	if got := a.fleet.Live("g"); got != 0 {
		t.Fatalf("Live = %d, want 0", got)
	}
	if list := a.fleet.List("g", fleet.ListOptions{}); len(list) != 1 || list[0].GetState() != offline {
		t.Fatalf("data planes = %v", list)
	}
}

func TestAFleetFileThatCannotBeReadIsLeftBehind(t *testing.T) {
	n, _ := newPeers(t, "a")
	a := n.at["a"]
	if err := replaceFile(a.file, []byte("\xff\xff not a message")); err != nil {
		t.Fatal(err)
	}
	a.recall()
	n.connect("a", "dp")
	a.remember()
	again, _ := newPeers(t, "a")
	again.at["a"].file = a.file
	again.at["a"].recall()
	if list := again.at["a"].fleet.List("g", fleet.ListOptions{}); len(list) != 1 || list[0].GetId() != "dp" {
		t.Fatalf("data planes = %v", list)
	}
}

func FuzzPeerMessage(f *testing.F) {
	for _, m := range []*musterv1.PeerMessage{
		{}, {Message: &musterv1.PeerMessage_PresenceRequest{PresenceRequest: &musterv1.PresenceRequest{Instance: "x", Since: 7}}},
		{Message: &musterv1.PeerMessage_PresenceResponse{PresenceResponse: &musterv1.PresenceResponse{More: true}}},
	} {
		b, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	p := newPresence(peerOf{&peerNet{}, "a"}, fleet.New(fleet.Config{Now: time.Now}), f.TempDir(), "v", "addr", slog.New(slog.DiscardHandler))
	refused := &musterv1.WriteResponse{Outcome: &musterv1.WriteResponse_Status{}}
	messages := peerMessages{p, func(context.Context, *musterv1.WriteRequest) (*musterv1.WriteResponse, error) { return refused, nil }}
	f.Fuzz(func(t *testing.T, message []byte) {
		answer, err := messages.handle(t.Context(), message)
		if err != nil {
			return
		}
		m := &musterv1.PeerMessage{}
		if err := proto.Unmarshal(answer, m); err != nil || m.GetPresenceResponse() == nil && m.GetWriteResponse() == nil {
			t.Fatalf("answer %x: %v", answer, err)
		}
	})
}

// hangs answers only when its caller has gone away.
type hangs struct{ peerOf }

func (hangs) Call(ctx context.Context, _ string, _ []byte) ([]byte, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// Whoever lists data planes may hang up: the other servers are none the worse.
func TestACallerThatGoesAwayMakesNoServerFail(t *testing.T) {
	n, _ := newPeers(t, "a", "b")
	a := n.at["a"]
	a.store = hangs{peerOf{n, "a"}}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a.Refresh(ctx)
	if a.peers["b"].isFailing() {
		t.Fatal("b counts as out of reach")
	}
}
