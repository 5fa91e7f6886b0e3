package auth

import (
	"crypto/tls"
	"net"
	"time"

	"google.golang.org/grpc/credentials"
)

// CutAtExpiry makes a server's credentials close each connection when the
// client's certificate, or one that it chains to, runs out: a stream may last
// for weeks, and what was proven at its beginning must not outlive its proof.
// The client comes back with its new certificate, if it has one. Connections
// without a client certificate are left alone.
func CutAtExpiry(creds credentials.TransportCredentials) credentials.TransportCredentials {
	return expiring{creds}
}

type expiring struct {
	credentials.TransportCredentials
}

// ServerHandshake implements credentials.TransportCredentials.
func (e expiring) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := e.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return conn, info, err
	}
	if t, ok := info.(credentials.TLSInfo); ok {
		if end := provenUntil(t.State); !end.IsZero() {
			cut := &cutConn{Conn: conn}
			cut.timer = time.AfterFunc(time.Until(end), func() { _ = cut.Conn.Close() })
			conn = cut
		}
	}
	return conn, info, nil
}

// Clone implements credentials.TransportCredentials.
func (e expiring) Clone() credentials.TransportCredentials {
	return expiring{e.TransportCredentials.Clone()}
}

// provenUntil is when the first certificate of the client's chain runs out; zero
// without one.
func provenUntil(state tls.ConnectionState) (end time.Time) {
	if len(state.VerifiedChains) == 0 {
		return end
	}
	for _, cert := range state.VerifiedChains[0] {
		if end.IsZero() || cert.NotAfter.Before(end) {
			end = cert.NotAfter
		}
	}
	return end
}

// cutConn is a connection that a timer closes.
type cutConn struct {
	net.Conn
	timer *time.Timer
}

// Close closes the connection and lets go of the timer.
func (c *cutConn) Close() error {
	c.timer.Stop()
	return c.Conn.Close()
}
