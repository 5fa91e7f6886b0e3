package server

import (
	"bytes"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

// sniffTimeout bounds the TLS handshake and the wait for a connection's first
// bytes.
const sniffTimeout = 5 * time.Second

// maxSniffing bounds the connections that have not said yet what they speak.
const maxSniffing = 256

// maxAdminConns bounds the connections of the admin port: who has no key can keep
// one open, but not take the file descriptors that data planes and peers need.
const maxAdminConns = 4096

// http2Preface begins every HTTP/2 connection; gRPC speaks nothing else.
var http2Preface = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")

// portMux serves gRPC and HTTP/1.1 on one port. Under TLS a client that offers
// http/1.1 gets that (browsers, curl), one that offers only h2 gets gRPC; in
// plaintext the first bytes tell. So gRPC keeps its own HTTP/2 server, with its
// flow control, keepalive enforcement and graceful stop, which it lacks behind
// net/http.
type portMux struct {
	ln    net.Listener
	tls   *tls.Config
	grpc  *muxListener
	http  *muxListener
	slots chan struct{} // one for each connection that is being sniffed
	open  chan struct{} // one for each connection

	mu       sync.Mutex
	closed   bool
	sniffing map[net.Conn]struct{}
}

// newPortMux takes over the listener. config may be nil for plaintext.
func newPortMux(ln net.Listener, config *tls.Config) *portMux {
	return &portMux{
		ln:       ln,
		tls:      withALPN(config),
		grpc:     newMuxListener(ln.Addr()),
		http:     newMuxListener(ln.Addr()),
		slots:    make(chan struct{}, maxSniffing),
		open:     make(chan struct{}, maxAdminConns),
		sniffing: map[net.Conn]struct{}{},
	}
}

// withALPN makes the server choose http/1.1 wherever the client offers it.
func withALPN(config *tls.Config) *tls.Config {
	if config == nil {
		return nil
	}
	config = config.Clone()
	base := config.GetConfigForClient
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		c := config
		if base != nil {
			var err error
			if c, err = base(hello); err != nil {
				return nil, err
			}
		}
		c = c.Clone()
		c.NextProtos = []string{"http/1.1", "h2"}
		return c, nil
	}
	return config
}

// serve accepts connections until the listener closes, and returns after every
// connection was handed on or closed.
func (m *portMux) serve() error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer m.grpc.Close()
	defer m.http.Close()
	for {
		conn, err := m.ln.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return nil
			}
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				// Out of file descriptors, for example: some will be free again.
				time.Sleep(10 * time.Millisecond)
				continue
			}
			return err
		}
		select {
		case m.open <- struct{}{}:
			conn = &countedConn{Conn: conn, open: m.open}
		default:
			_ = conn.Close()
			continue
		}
		m.slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-m.slots }()
			m.sniff(conn)
		})
	}
}

func (m *portMux) sniff(raw net.Conn) {
	if !m.track(raw) {
		_ = raw.Close()
		return
	}
	_ = raw.SetDeadline(time.Now().Add(sniffTimeout))
	to, conn, err := m.route(raw)
	m.mu.Lock()
	delete(m.sniffing, raw)
	m.mu.Unlock()
	if err != nil || raw.SetDeadline(time.Time{}) != nil || !to.deliver(conn) {
		_ = raw.Close()
	}
}

func (m *portMux) track(conn net.Conn) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.closed {
		m.sniffing[conn] = struct{}{}
	}
	return !m.closed
}

func (m *portMux) route(conn net.Conn) (*muxListener, net.Conn, error) {
	if m.tls != nil {
		secure := tls.Server(conn, m.tls)
		if err := secure.Handshake(); err != nil {
			return nil, conn, err
		}
		if secure.ConnectionState().NegotiatedProtocol == "h2" {
			return m.grpc, secure, nil
		}
		return m.http, secure, nil
	}
	// Three bytes are enough: no HTTP/1.1 method begins with PRI.
	first := make([]byte, 3)
	n, err := io.ReadFull(conn, first)
	if err != nil {
		return nil, conn, err
	}
	peeked := &peekedConn{Conn: conn, first: first[:n]}
	if bytes.HasPrefix(http2Preface, first) {
		return m.grpc, peeked, nil
	}
	return m.http, peeked, nil
}

// close ends serve: nothing more is accepted, and who has not said yet what it
// speaks is cut off.
func (m *portMux) close() error {
	m.mu.Lock()
	m.closed = true
	for conn := range m.sniffing {
		_ = conn.Close()
	}
	m.mu.Unlock()
	return m.ln.Close()
}

// countedConn gives its place up when it is closed.
type countedConn struct {
	net.Conn
	open chan struct{}
	once sync.Once
}

func (c *countedConn) Close() error {
	c.once.Do(func() { <-c.open })
	return c.Conn.Close()
}

// peekedConn gives back the bytes that were read from it.
type peekedConn struct {
	net.Conn
	first []byte
}

func (c *peekedConn) Read(b []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(b, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.Conn.Read(b)
}

// muxListener hands out the connections of one protocol.
type muxListener struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newMuxListener(addr net.Addr) *muxListener {
	return &muxListener{addr: addr, conns: make(chan net.Conn), done: make(chan struct{})}
}

// deliver hands a connection to Accept; false when nobody accepts any more.
func (l *muxListener) deliver(conn net.Conn) bool {
	select {
	case l.conns <- conn:
		return true
	case <-l.done:
		return false
	}
}

// Accept implements net.Listener.
func (l *muxListener) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *muxListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *muxListener) Addr() net.Addr { return l.addr }
