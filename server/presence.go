package server

import (
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/server/fleet"
)

const (
	// presenceInterval is how often the other servers are asked for their data
	// planes; presenceUrgent while somebody waits for acknowledgements.
	presenceInterval = 2 * time.Second
	presenceUrgent   = 100 * time.Millisecond
	// membersInterval is how often the servers of the cluster are looked up.
	membersInterval = 5 * time.Second
	// presenceTimeout bounds one question to one server.
	presenceTimeout = 500 * time.Millisecond
	// lostAfter is how long a server may be out of reach before its data planes
	// no longer count as connected.
	lostAfter = 10 * time.Second
	// rememberInterval is how often the data planes are kept on disk.
	rememberInterval = 30 * time.Second
	// fleetFile keeps this server's data planes, in the data directory.
	fleetFile = "fleet.pb"
)

// peerStore is the replicated store, as the exchange of presence needs it.
type peerStore interface {
	ServerID() string
	Peers(ctx context.Context) ([]raftstore.Peer, error)
	Call(ctx context.Context, id string, message []byte) ([]byte, error)
}

// presence makes the data planes of every server known on this one, and this
// server's known to its next process.
type presence struct {
	store    peerStore
	fleet    *fleet.Registry
	instance string
	version  string
	admin    string // the address of this server's admin port
	file     string
	logger   *slog.Logger
	now      func() time.Time

	mu    sync.Mutex
	peers map[string]*presentPeer // the other servers of the cluster
}

// presentPeer is another server.
type presentPeer struct {
	id string

	ask sync.Mutex // held while it is asked; guards instance and since
	// instance and since are as it last answered.
	instance string
	since    uint64

	mu             sync.Mutex
	version, admin string
	heard          time.Time // when it last answered, or was first known
	failing        bool
	lost           bool
}

func newPresence(store peerStore, registry *fleet.Registry, dataDir, version, adminAddr string, logger *slog.Logger) *presence {
	return &presence{
		store: store, fleet: registry, instance: rand.Text(), version: version, admin: adminAddr,
		file: filepath.Join(dataDir, fleetFile), logger: logger, now: time.Now, peers: map[string]*presentPeer{},
	}
}

// answer tells another server of this one's data planes.
func (p *presence) answer(req *musterv1.PresenceRequest) *musterv1.PresenceResponse {
	since := req.GetSince()
	if req.GetInstance() != p.instance {
		since = 0
	}
	planes, until, more := p.fleet.Presence(since)
	return &musterv1.PresenceResponse{
		Instance: p.instance, Until: until, More: more, DataPlanes: planes, Version: p.version, AdminAddress: p.admin,
		Relays: p.fleet.RelayStates(),
	}
}

// run exchanges presence until ctx ends. It begins with what an earlier process
// of this server remembered, so it should start once the groups are published.
func (p *presence) run(ctx context.Context) error {
	p.recall()
	p.lookUp(ctx)
	tick := time.NewTicker(presenceUrgent)
	defer tick.Stop()
	var members, exchanged, remembered time.Time
	var kept uint64
	for {
		now := p.now()
		if now.Sub(members) >= membersInterval {
			members = now
			p.lookUp(ctx)
		}
		if now.Sub(exchanged) >= presenceInterval || p.fleet.Waiting() {
			exchanged = now
			p.exchange(ctx, true)
		}
		if now.Sub(remembered) >= rememberInterval && p.fleet.Changes() != kept {
			remembered, kept = now, p.fleet.Changes()
			p.remember()
		}
		select {
		case <-ctx.Done():
			// As the data planes' streams end with this process, they are kept as
			// offline, last seen now.
			p.remember()
			return nil
		case <-tick.C:
		}
	}
}

// lookUp follows the membership of the cluster.
func (p *presence) lookUp(ctx context.Context) {
	members, err := p.store.Peers(ctx)
	if err != nil {
		return // the store starts or stops
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	there := map[string]bool{}
	for _, m := range members {
		if m.Self {
			continue
		}
		there[m.ID] = true
		if p.peers[m.ID] == nil {
			p.peers[m.ID] = &presentPeer{id: m.ID, heard: p.now()}
		}
	}
	for id := range p.peers {
		if !there[id] {
			delete(p.peers, id)
			p.fleet.Lost(id)
		}
	}
}

// Refresh asks every server that answered lately for what changed.
func (p *presence) Refresh(ctx context.Context) { p.exchange(ctx, false) }

// exchange asks all servers at once. Those that did not answer lately are asked
// only when everyone is to be: nobody should have to wait for a dead server.
func (p *presence) exchange(ctx context.Context, everyone bool) {
	p.mu.Lock()
	peers := make([]*presentPeer, 0, len(p.peers))
	for _, peer := range p.peers {
		if everyone || !peer.isFailing() {
			peers = append(peers, peer)
		}
	}
	p.mu.Unlock()
	var wg sync.WaitGroup
	for _, peer := range peers {
		wg.Go(func() { p.exchangeWith(ctx, peer) })
	}
	wg.Wait()
}

func (p *presence) exchangeWith(caller context.Context, peer *presentPeer) {
	peer.ask.Lock()
	defer peer.ask.Unlock()
	// Whoever held the lock has had its own time.
	ctx, cancel := context.WithTimeout(caller, presenceTimeout)
	defer cancel()
	for {
		resp, err := p.question(ctx, peer)
		if err != nil && caller.Err() != nil {
			return // nobody waits for the answer any more: that is not the server's fault
		}
		if err != nil {
			if peer.failed(p.now()) {
				p.logger.Warn("a server is out of reach; its data planes count as offline", "peer", peer.id, "error", err)
				p.fleet.Lost(peer.id)
				peer.instance, peer.since = "", 0
			}
			return
		}
		peer.answered(resp, p.now())
		p.fleet.LearnRelays(peer.id, resp.GetRelays())
		if !p.fleet.Learn(peer.id, resp.GetInstance(), resp.GetDataPlanes()) {
			peer.instance, peer.since = "", 0
			return
		}
		peer.instance, peer.since = resp.GetInstance(), resp.GetUntil()
		if !resp.GetMore() {
			return
		}
	}
}

func (p *presence) question(ctx context.Context, peer *presentPeer) (*musterv1.PresenceResponse, error) {
	message, err := proto.Marshal(&musterv1.PeerMessage{Message: &musterv1.PeerMessage_PresenceRequest{
		PresenceRequest: &musterv1.PresenceRequest{Instance: peer.instance, Since: peer.since},
	}})
	if err != nil {
		return nil, err
	}
	answer, err := p.store.Call(ctx, peer.id, message)
	if err != nil {
		return nil, err
	}
	m := &musterv1.PeerMessage{}
	if err := proto.Unmarshal(answer, m); err != nil {
		return nil, err
	}
	if m.GetPresenceResponse() == nil {
		return nil, errors.New("an answer of another kind")
	}
	return m.GetPresenceResponse(), nil
}

func (peer *presentPeer) isFailing() bool {
	peer.mu.Lock()
	defer peer.mu.Unlock()
	return peer.failing
}

func (peer *presentPeer) answered(resp *musterv1.PresenceResponse, now time.Time) {
	peer.mu.Lock()
	defer peer.mu.Unlock()
	peer.heard, peer.failing, peer.lost = now, false, false
	peer.version, peer.admin = resp.GetVersion(), resp.GetAdminAddress()
}

// failed notes that the server did not answer, and reports whether it has just
// become lost.
func (peer *presentPeer) failed(now time.Time) bool {
	peer.mu.Lock()
	defer peer.mu.Unlock()
	peer.failing = true
	if peer.lost || now.Sub(peer.heard) < lostAfter {
		return false
	}
	peer.lost = true
	return true
}

// peerInfo implements admin.PeerInfo.
func (p *presence) peerInfo(id string) (version, adminAddress string) {
	if id == p.store.ServerID() {
		return p.version, p.admin
	}
	p.mu.Lock()
	peer := p.peers[id]
	p.mu.Unlock()
	if peer == nil {
		return "", ""
	}
	peer.mu.Lock()
	defer peer.mu.Unlock()
	return peer.version, peer.admin
}

// recall takes back what an earlier process remembered. The file is no more
// than a memory: one that cannot be read is left behind.
func (p *presence) recall() {
	data, err := os.ReadFile(p.file)
	kept := &musterv1.RememberedFleet{}
	if err == nil {
		err = proto.Unmarshal(data, kept)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		p.logger.Warn("the remembered data planes cannot be read", "file", p.file, "error", err)
	default:
		p.fleet.Recall(kept)
	}
}

func (p *presence) remember() {
	data, err := proto.Marshal(p.fleet.Remember())
	if err == nil {
		err = replaceFile(p.file, data)
	}
	if err != nil {
		p.logger.Warn("the data planes cannot be remembered", "file", p.file, "error", err)
	}
}

// replaceFile writes a file of mode 0600 and puts it in place of the old one.
// It is not synced: after a crash the older one will do.
func replaceFile(path string, data []byte) error {
	tmp, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return err
	}
	return os.Rename(tmp.Name(), path)
}
