package gateway

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"time"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
)

// upstreamTLS is a compiled UpstreamTlsContext.
type upstreamTLS struct {
	needs    *tlsNeeds
	sni      string
	autoHost bool // SNI is the endpoint's hostname
	autoSNI  bool // SNI is the request's host
	sniSAN   bool // the certificate has to be for the SNI
	sessions tls.ClientSessionCache
}

func newUpstreamTLS(m *tlsv3.UpstreamTlsContext) (*upstreamTLS, error) {
	needs, err := newTLSNeeds(m.GetCommonTlsContext())
	if err != nil {
		return nil, err
	}
	return &upstreamTLS{
		needs: needs, sni: m.GetSni(), autoHost: m.GetAutoHostSni(),
		sessions: tls.NewLRUClientSessionCache(64),
	}, nil
}

// dialError is a connection to an upstream that could not be made.
type dialError struct {
	err     error
	timeout bool
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// handshake makes TLS of a connection to an upstream.
func (u *upstreamTLS) handshake(ctx context.Context, conn net.Conn, t *table, serverName string, alpn []string) (net.Conn, error) {
	certificates, err := u.needs.certificatesIn(t)
	if err != nil {
		return nil, err
	}
	validation, err := u.needs.validationIn(t)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{
		ServerName: serverName, MinVersion: u.needs.minVersion, MaxVersion: u.needs.maxVersion,
		NextProtos: alpn, Certificates: certificates, ClientSessionCache: u.sessions,
		InsecureSkipVerify: true, // VerifyConnection does it, as the cluster says
		VerifyConnection: func(cs tls.ConnectionState) error {
			if err := validation.verify(cs.PeerCertificates, x509.ExtKeyUsageServerAuth); err != nil {
				return err
			}
			if u.sniSAN && serverName != "" {
				return cs.PeerCertificates[0].VerifyHostname(serverName)
			}
			return nil
		},
	}
	tc := tls.Client(conn, cfg)
	if err := tc.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("tls: %w", err)
	}
	return tc, nil
}

// dialer connects to the endpoints of a cluster.
type dialer struct {
	gw       *Gateway
	lifetime context.Context // of the transport: ends dials that nobody waits for
	timeout  time.Duration
	tls      *upstreamTLS // nil for plaintext
	alpn     []string
	watched  bool // the connections are upstreamConns
}

// dial connects, and with TLS shakes hands, within the cluster's connect timeout.
func (d *dialer) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, d.timeout)
	defer cancel()
	defer context.AfterFunc(d.lifetime, cancel)()
	conn, err := d.connect(ctx, network, addr)
	if err != nil {
		return nil, &dialError{err: err, timeout: errors.Is(ctx.Err(), context.DeadlineExceeded)}
	}
	if d.watched {
		return &upstreamConn{Conn: conn}, nil
	}
	return conn, nil
}

func (d *dialer) connect(ctx context.Context, network, addr string) (net.Conn, error) {
	target := targetOf(ctx)
	if target.address != "" {
		addr = target.address
	}
	conn, err := (&net.Dialer{KeepAlive: 30 * time.Second}).DialContext(ctx, network, addr)
	if err != nil || d.tls == nil {
		return conn, err
	}
	name := d.tls.sni
	if target.serverName != "" {
		name = target.serverName
	}
	tc, err := d.tls.handshake(ctx, conn, d.gw.table.Load(), name, d.alpn)
	if err != nil {
		_ = conn.Close() // the handshake's error is the one that matters
		return nil, err
	}
	return tc, nil
}

// target says where a connection of the transport's pool goes.
type target struct {
	address    string
	serverName string
}

type targetKey struct{}

func withTarget(ctx context.Context, t target) context.Context {
	return context.WithValue(ctx, targetKey{}, t)
}

func targetOf(ctx context.Context) target {
	t, _ := ctx.Value(targetKey{}).(target)
	return t
}
