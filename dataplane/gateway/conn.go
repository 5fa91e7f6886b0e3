package gateway

import (
	"context"
	"net"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// upstreamConn is an HTTP/1.1 connection to an upstream. It knows whether anything of
// the present request was written to it, so that net/http's transport, which by itself
// sends a GET again whose connection ended without an answer, does so only when the
// endpoint cannot have seen it.
type upstreamConn struct {
	net.Conn
	requests atomic.Int64
	ended    atomic.Bool // reading has failed; nothing is written any more
	wrote    atomic.Bool // something of the present request
	// waiting cancels the present request as long as nothing of its answer has come.
	waiting atomic.Pointer[context.CancelCauseFunc]
}

// begin makes a request the present one.
func (c *upstreamConn) begin(cancel *context.CancelCauseFunc) {
	c.wrote.Store(false)
	c.waiting.Store(cancel)
}

// Read implements net.Conn. The transport reads on while nothing is asked.
func (c *upstreamConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n > 0 {
		if c.waiting.Load() != nil {
			c.waiting.Store(nil)
		}
		return n, err
	}
	if err != nil {
		// Each of Read and Write says what it does before it looks at the other.
		c.ended.Store(true)
		if cancel := c.waiting.Swap(nil); cancel != nil && c.wrote.Load() {
			(*cancel)(errReset)
		}
	}
	return n, err
}

// Write implements net.Conn.
func (c *upstreamConn) Write(b []byte) (int, error) {
	if !c.wrote.Load() {
		c.wrote.Store(true)
	}
	if c.ended.Load() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

// roundTrip sends a request; cancel ends it. Over HTTP/1.1 it is sent at most once,
// unless nothing of it was written, and a connection that has carried as many requests
// as it may is closed after it.
func (t *transport) roundTrip(req *http.Request, cancel context.CancelCauseFunc) (*http.Response, error) {
	if t.cfg.http2 {
		return t.rt.RoundTrip(req)
	}
	if t.cfg.maxRequests > 0 {
		req.Header = req.Header.Clone() // of its own, for what GotConn does
	}
	h := req.Header
	trace := &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		c, ok := info.Conn.(*upstreamConn)
		if !ok {
			return
		}
		c.begin(&cancel)
		if t.cfg.maxRequests > 0 && c.requests.Add(1) >= t.cfg.maxRequests {
			// Before it is written: GotConn is called by RoundTrip itself. Not req.Close,
			// for the transport works on a copy.
			h["Connection"] = []string{"close"}
		}
	}}
	return t.rt.RoundTrip(req.WithContext(httptrace.WithClientTrace(req.Context(), trace)))
}
