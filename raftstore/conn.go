package raftstore

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// handshakeTimeout bounds everything before the first message of a connection.
const handshakeTimeout = 5 * time.Second

// dialTimeout bounds a dial; a server that does not answer by then is taken
// for gone.
const dialTimeout = 3 * time.Second

// The limits of one port: of connections at all, and of those still shaking hands.
const (
	maxConns      = 1024
	maxHandshakes = 64
)

// peerConn is a connection to or from another server.
type peerConn struct {
	net.Conn
	proto string
	// id is the server that the peer's certificate names; empty in plaintext,
	// where nobody proves anything.
	id string
	// expires is when the peer's certificate does; zero in plaintext.
	expires time.Time
	forget  func(*peerConn)
	ended   func() // called once it is closed; may be nil
	once    sync.Once
}

// Close closes the connection; only the first call counts.
func (c *peerConn) Close() error {
	var err error
	c.once.Do(func() {
		c.forget(c)
		err = c.Conn.Close()
		if c.ended != nil {
			c.ended()
		}
	})
	return err
}

// connSet is what is open, so that it can be closed from outside.
type connSet struct {
	mu     sync.Mutex
	all    map[*peerConn]struct{}
	closed bool
}

// add tracks a connection; false when the set is full or closed.
func (s *connSet) add(c *peerConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.all) >= maxConns {
		return false
	}
	if s.all == nil {
		s.all = map[*peerConn]struct{}{}
	}
	c.forget = s.remove
	s.all[c] = struct{}{}
	return true
}

func (s *connSet) remove(c *peerConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, c)
}

// closeWhere closes the connections that match.
func (s *connSet) closeWhere(match func(*peerConn) bool) {
	s.mu.Lock()
	var doomed []*peerConn
	for c := range s.all {
		if match(c) {
			doomed = append(doomed, c)
		}
	}
	s.mu.Unlock()
	for _, c := range doomed {
		_ = c.Close()
	}
}

// closeAll closes everything, and what may come later.
func (s *connSet) closeAll() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.closeWhere(func(*peerConn) bool { return true })
}

// greet takes part in the handshake of an accepted connection and returns it
// with its protocol and the peer's identity.
func (w *wire) greet(ctx context.Context, raw net.Conn) (*peerConn, error) {
	_ = raw.SetDeadline(time.Now().Add(handshakeTimeout))
	c := &peerConn{Conn: raw}
	if w.certs == nil {
		// In plaintext the client names the protocol in its first bytes.
		preface := make([]byte, len(protoRaft))
		if _, err := io.ReadFull(raw, preface); err != nil {
			return nil, err
		}
		c.proto = string(preface)
	} else {
		t := tls.Server(raw, w.certs.server())
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c.Conn = t
		c.adopt(t.ConnectionState())
	}
	if c.proto != protoRaft && c.proto != protoPeer {
		return nil, fmt.Errorf("the protocol %q is not known", c.proto)
	}
	return c, raw.SetDeadline(time.Time{})
}

func (c *peerConn) adopt(cs tls.ConnectionState) {
	leaf := cs.PeerCertificates[0]
	_, c.id, _ = serverIdentity(leaf) // verified during the handshake
	c.expires = leaf.NotAfter
	c.proto = cs.NegotiatedProtocol
}

// dial opens a connection to a server of the cluster. wantID is whom it must
// be, when that is known.
func (w *wire) dial(ctx context.Context, addr, proto, wantID string) (net.Conn, error) {
	timeout := dialTimeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	raw, err := w.dialRaw(addr, max(timeout, time.Millisecond))
	if err != nil {
		return nil, err
	}
	tuneConn(raw)
	c, err := w.introduce(ctx, raw, proto, wantID)
	if err != nil {
		_ = raw.Close()
		return nil, fmt.Errorf("connect to %s: %w", addr, err)
	}
	if !w.conns.add(c) {
		_ = raw.Close()
		return nil, errors.New("too many connections")
	}
	return c, nil
}

func (w *wire) introduce(ctx context.Context, raw net.Conn, proto, wantID string) (*peerConn, error) {
	_ = raw.SetDeadline(time.Now().Add(handshakeTimeout))
	c := &peerConn{Conn: raw, proto: proto}
	if w.certs == nil {
		if _, err := io.WriteString(raw, proto); err != nil {
			return nil, err
		}
	} else {
		t := tls.Client(raw, w.certs.client(proto))
		if err := t.HandshakeContext(ctx); err != nil {
			return nil, err
		}
		c.Conn = t
		c.adopt(t.ConnectionState())
		if wantID != "" && c.id != wantID {
			return nil, fmt.Errorf("the server there is %q, not %q", c.id, wantID)
		}
	}
	return c, raw.SetDeadline(time.Time{})
}
