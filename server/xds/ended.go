package xds

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ending is why a connection ended. gRPC tells nobody, so it is inferred from what
// can be seen on the connection.
type ending string

const (
	endPeer      ending = "peer"      // it closed the connection
	endAge       ending = "age"       // ConnectionAge
	endShutdown  ending = "shutdown"  // of the server
	endDead      ending = "dead_peer" // no answer to the keepalive
	endViolation ending = "violation" // too many pings, broken HTTP/2, TLS that failed
)

// limitedConn is an open connection of a limited listener.
type limitedConn struct {
	net.Conn
	l     *limited
	began time.Time
	heard atomic.Int64 // since began, when something was last read
	gone  atomic.Bool  // the peer closed it
	dead  atomic.Bool  // the kernel gave the peer up
	once  sync.Once
}

func newLimitedConn(c net.Conn, l *limited) *limitedConn {
	return &limitedConn{Conn: c, l: l, began: time.Now()}
}

// Read reads, and notes when, and whether the peer has left.
func (c *limitedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.heard.Store(int64(time.Since(c.began)))
	}
	c.saw(err)
	return n, err
}

// Write writes, and notes whether the peer has left.
func (c *limitedConn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	c.saw(err)
	return n, err
}

func (c *limitedConn) saw(err error) {
	switch {
	case err == nil, errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded): // that was us
	case errors.Is(err, syscall.ETIMEDOUT):
		c.dead.Store(true)
	default:
		c.gone.Store(true)
	}
}

// Close closes the connection, counts what ended it and makes room for another.
func (c *limitedConn) Close() error {
	c.once.Do(func() {
		age := time.Since(c.began)
		why := c.why(age)
		c.l.srv.metrics.ended.WithLabelValues(string(why)).Inc()
		c.l.srv.cfg.Logger.Debug("connection ended", "address", c.RemoteAddr().String(), "reason", string(why), "age", age)
		c.l.leave(address(c.RemoteAddr()))
	})
	return c.Conn.Close()
}

// why returns what ends the connection at an age.
func (c *limitedConn) why(age time.Duration) ending {
	limits := c.l.srv.cfg.Limits
	patience := limits.Keepalive + limits.KeepaliveTimeout
	silent := age - time.Duration(c.heard.Load())
	switch {
	case c.l.closed.Load():
		return endShutdown
	case c.dead.Load():
		return endDead
	case !c.gone.Load() && limits.Keepalive > 0 && limits.KeepaliveTimeout > 0 && silent >= patience:
		return endDead
	case limits.ConnectionAge > 0 && age >= limits.ConnectionAge/10*9:
		// gRPC asks it to leave a tenth earlier or later. A client that has nothing
		// open then closes it itself.
		return endAge
	case c.gone.Load():
		return endPeer
	}
	return endViolation
}
