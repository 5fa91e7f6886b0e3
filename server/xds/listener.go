package xds

import (
	"net"
	"sync"
	"sync/atomic"
)

// Listener returns the listener with the limits of connections: one too many is
// closed at once and counted. Each that ends is counted by what ended it.
func (s *Server) Listener(l net.Listener) net.Listener {
	return &limited{Listener: l, srv: s, open: map[string]int{}}
}

type limited struct {
	net.Listener
	srv *Server
	// closed tells that the gRPC server is stopping: it closes its listeners before
	// it asks anybody to leave.
	closed atomic.Bool

	mu    sync.Mutex
	total int
	open  map[string]int // by address
}

// Accept returns the next connection that is within the limits.
func (l *limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		from := address(c.RemoteAddr())
		reason := l.enter(from)
		if reason == "" {
			l.srv.metrics.connections.Inc()
			return newLimitedConn(c, l), nil
		}
		l.srv.metrics.refused(reason)
		l.srv.cfg.Logger.Warn("connection refused", "address", from, "reason", string(reason))
		_ = c.Close() // nothing was said on it
	}
}

// Close closes the listener: from now on connections end because of that.
func (l *limited) Close() error {
	l.closed.Store(true)
	return l.Listener.Close()
}

func (l *limited) enter(from string) reason {
	l.mu.Lock()
	defer l.mu.Unlock()
	limits := l.srv.cfg.Limits
	switch {
	case limits.Connections > 0 && l.total >= limits.Connections:
		return reasonConnections
	case limits.ConnectionsPerAddress > 0 && l.open[from] >= limits.ConnectionsPerAddress:
		return reasonAddress
	}
	l.total++
	l.open[from]++
	return ""
}

func (l *limited) leave(from string) {
	l.srv.metrics.connections.Dec()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.total--
	if l.open[from]--; l.open[from] == 0 {
		delete(l.open, from)
	}
}
