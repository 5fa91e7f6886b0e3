package raftstore

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// wire is a server's raft port: one listener for raft's own messages and for
// the peer service, told apart after the handshake.
type wire struct {
	// Read-only after openWire.
	ln        net.Listener
	advertise addrString
	certs     *certs // nil in plaintext
	logger    *slog.Logger
	dialRaw   func(addr string, timeout time.Duration) (net.Conn, error)
	raft      *queue // connections that speak raft, for raft's transport
	peers     *queue // connections that speak to the peer service
	trans     *raft.NetworkTransport
	clients   *clients

	conns connSet
}

type addrString string

func (addrString) Network() string  { return "tcp" }
func (a addrString) String() string { return string(a) }

// queue hands accepted connections over to a server of one protocol.
type queue struct {
	addr  net.Addr
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func newQueue(addr net.Addr) *queue {
	return &queue{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

func (q *queue) Accept() (net.Conn, error) {
	select {
	case c := <-q.conns:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

func (q *queue) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

func (q *queue) Addr() net.Addr { return q.addr }

func (q *queue) put(c net.Conn) {
	select {
	case q.conns <- c:
	case <-q.done:
		_ = c.Close()
	}
}

// streamLayer is what raft's transport dials and accepts with.
type streamLayer struct {
	*queue
	w *wire
	s *Store
}

func (l streamLayer) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, dialTimeout))
	defer cancel()
	return l.w.dial(ctx, string(addr), protoRaft, l.s.idAt(string(addr)))
}

// rpcTimeout bounds one message of raft, whatever its size. Silence is noticed
// much sooner, by tuneConn.
const rpcTimeout = 20 * time.Second

// openTransport binds the raft port, or makes a transport in memory for a
// cluster of one.
func (s *Store) openTransport() error {
	if s.cfg.RaftAddr == "" {
		addr, trans := raft.NewInmemTransport(raft.ServerAddress(s.id))
		trans.Connect(addr, trans)
		s.trans = trans
		return nil
	}
	w := &wire{logger: s.logger, dialRaw: s.cfg.dial}
	if w.dialRaw == nil {
		w.dialRaw = func(addr string, timeout time.Duration) (net.Conn, error) {
			return net.DialTimeout("tcp", addr, timeout)
		}
	}
	var err error
	if s.cfg.TLS.enabled() {
		if w.certs, err = loadCerts(s.cfg.TLS, s.id, s.logger); err != nil {
			return err
		}
	}
	listen := s.cfg.listen
	if listen == nil {
		listen = func(addr string) (net.Listener, error) { return net.Listen("tcp", addr) }
	}
	if w.ln, err = listen(s.cfg.RaftAddr); err != nil {
		return fmt.Errorf("listen for servers: %w", err)
	}
	w.advertise = addrString(s.cfg.Advertise)
	if w.advertise == "" {
		w.advertise = addrString(w.ln.Addr().String())
		if host, _, _ := net.SplitHostPort(w.ln.Addr().String()); net.ParseIP(host).IsUnspecified() {
			_ = w.ln.Close()
			return fmt.Errorf("raftstore: %s is not an address that others can reach; set Advertise", w.ln.Addr())
		}
	}
	w.raft, w.peers = newQueue(w.advertise), newQueue(w.advertise)
	w.clients = newClients(w, s)
	w.trans = raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:  streamLayer{w.raft, w, s},
		MaxPool: 4,
		Timeout: rpcTimeout,
		Logger:  newRaftLogger(s.logger, "raft-net"),
		// Two in flight can wedge replication for good when a follower refuses
		// one append while the pipeline is full.
		MaxRPCsInFlight: 1,
	})
	s.wire, s.trans = w, patientTransport{w.trans, s}
	return nil
}

// closeTransport releases what openTransport made, for a store that never ran.
func (s *Store) closeTransport() {
	if s.wire != nil {
		s.wire.close()
	}
}

// hangUp ends all exchanges with other servers. Raft waits for its own when it
// stops, and an exchange with a server that stops as well may hang.
func (w *wire) hangUp() {
	_ = w.ln.Close()
	w.conns.closeAll()
}

func (w *wire) close() {
	w.hangUp()
	w.trans.CloseStreams()
	_ = w.trans.Close()
	_ = w.peers.Close()
	w.clients.close()
}

// serve accepts connections and answers the peer service until ctx ends.
func (w *wire) serve(ctx context.Context, s *Store) {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer w.close()
	server := grpc.NewServer(
		grpc.Creds(connIdentity{}),
		grpc.MaxRecvMsgSize(MaxCommand+(64<<10)),
		grpc.MaxConcurrentStreams(1024),
		grpc.WaitForHandlers(true),
		// Connections are renewed in good order, long before their certificates
		// run out and they are cut.
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 10 * time.Minute, MaxConnectionAgeGrace: time.Minute}),
	)
	musterv1.RegisterPeerServiceServer(server, &peerServer{store: s})
	wg.Go(func() { _ = server.Serve(w.peers) })
	defer server.Stop()
	wg.Go(func() { w.accept(ctx, s, &wg) })
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-ticker.C:
			w.sweep(s, now)
		}
	}
}

// accept takes connections in; each shakes hands on its own.
func (w *wire) accept(ctx context.Context, s *Store, wg *sync.WaitGroup) {
	slots := make(chan struct{}, maxHandshakes)
	for {
		raw, err := w.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			w.logger.Warn("a connection could not be accepted", "error", err)
			if sleep(ctx, 50*time.Millisecond) != nil {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = raw.Close()
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			w.admit(ctx, s, raw)
		})
	}
}

func (w *wire) admit(ctx context.Context, s *Store, raw net.Conn) {
	tuneConn(raw)
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	c, err := w.greet(ctx, raw)
	if err == nil && c.proto == protoRaft {
		if err = s.mayRaft(c.id); err == nil && !s.admitted.Load() {
			err = errNotAdmitted
		}
	}
	if err != nil {
		level := slog.LevelWarn
		if errors.Is(err, errNotAdmitted) {
			level = slog.LevelDebug // happens whenever a server joins
		}
		w.logger.Log(ctx, level, "a connection from another server was refused", "from", raw.RemoteAddr(), "error", err)
		_ = raw.Close()
		return
	}
	if c.proto == protoRaft {
		c.ended = func() { s.lost(c.id) }
	}
	if !w.conns.add(c) {
		_ = raw.Close()
		return
	}
	if c.proto == protoRaft {
		w.raft.put(c)
	} else {
		w.peers.put(c)
	}
}

// sweep closes the connections of servers that have left the cluster, and
// those whose certificate has run out.
func (w *wire) sweep(s *Store, now time.Time) {
	w.conns.closeWhere(func(c *peerConn) bool {
		if c.id == "" {
			return false
		}
		return now.After(c.expires) || (c.proto == protoRaft && s.mayRaft(c.id) != nil)
	})
	w.clients.keepOnly(s.servers())
}

// errNotAdmitted refuses raft's messages to a server without data that has not
// been let into the cluster. It may be a member that lost its data: if it took
// part again before it was removed, a majority could forget what it had
// acknowledged.
var errNotAdmitted = errors.New("this server has not joined the cluster yet")

// mayRaft tells whether a server may speak raft: it must be part of the
// current configuration. A server that has none yet waits for its first leader
// and takes any server of the trust domain. In plaintext nobody proves an id.
func (s *Store) mayRaft(id string) error {
	if id == "" {
		return nil
	}
	servers := s.servers()
	if len(servers) == 0 {
		return nil
	}
	for _, server := range servers {
		if string(server.ID) == id {
			return nil
		}
	}
	return fmt.Errorf("server %q: %w", id, ErrNotMember)
}

// idAt is the server that the configuration has at an address, if any.
func (s *Store) idAt(addr string) string {
	if s.up() != nil {
		return ""
	}
	for _, server := range s.servers() {
		if string(server.Address) == addr {
			return string(server.ID)
		}
	}
	return ""
}

func (s *Store) addressOf(id string) string {
	for _, server := range s.servers() {
		if string(server.ID) == id {
			return string(server.Address)
		}
	}
	return ""
}
