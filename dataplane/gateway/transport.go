package gateway

import (
	"context"
	"net/http"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/proto"
)

// transportConfig says how connections to a cluster are made. It is immutable.
type transportConfig struct {
	http2          bool
	tls            *upstreamTLS // nil for plaintext
	autoSNI        bool
	idleTimeout    time.Duration
	connectTimeout time.Duration
	maxRequests    int64  // per HTTP/1.1 connection; 0 is no limit
	fingerprint    string // equal for configurations that connect the same way
}

func (t *transportConfig) same(o *transportConfig) bool {
	return t.fingerprint != "" && t.fingerprint == o.fingerprint
}

// fingerprintOf returns the deterministic encoding of a message, empty when it has
// none.
func fingerprintOf(m proto.Message) string {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return ""
	}
	return string(b)
}

// transport is the connections to a cluster. It is shared by the versions of a
// cluster that connect the same way, and closed when the last of them and the last
// request are done.
type transport struct {
	cfg    *transportConfig
	rt     *http.Transport
	checks *http.Transport // of active checks: they must not wait for each other's connections
	refs   atomic.Int64
	cancel context.CancelFunc
}

// maxIdlePerHost bounds the idle HTTP/1.1 connections that are kept per endpoint.
const maxIdlePerHost = 512

func (g *Gateway) newTransport(cfg *transportConfig) *transport {
	ctx, cancel := context.WithCancel(g.ctx)
	t := &transport{cfg: cfg, cancel: cancel}
	t.refs.Store(1)
	t.rt = g.newRoundTripper(ctx, cfg)
	t.checks = g.newRoundTripper(ctx, cfg)
	return t
}

func (g *Gateway) newRoundTripper(ctx context.Context, cfg *transportConfig) *http.Transport {
	var protocols http.Protocols
	alpn := []string(nil)
	switch {
	case cfg.http2 && cfg.tls != nil:
		protocols.SetHTTP2(true)
		alpn = []string{"h2"}
	case cfg.http2:
		protocols.SetUnencryptedHTTP2(true)
	default:
		protocols.SetHTTP1(true)
	}
	if cfg.tls != nil && len(cfg.tls.needs.alpn) > 0 {
		alpn = cfg.tls.needs.alpn
	}
	d := dialer{gw: g, lifetime: ctx, timeout: cfg.connectTimeout, tls: cfg.tls, alpn: alpn, watched: !cfg.http2}
	return &http.Transport{
		DialContext:         d.dial,
		DialTLSContext:      d.dial,
		Protocols:           &protocols,
		MaxIdleConnsPerHost: maxIdlePerHost,
		IdleConnTimeout:     cfg.idleTimeout,
		DisableCompression:  true,
		WriteBufferSize:     16 << 10,
		ReadBufferSize:      16 << 10,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 30 * time.Second},
	}
}

// acquire takes the transport for one more user; false when it was given up.
func (t *transport) acquire() bool {
	for {
		n := t.refs.Load()
		if n == 0 {
			return false
		}
		if t.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// release gives the transport up; the last one closes what is idle.
func (t *transport) release() {
	if t.refs.Add(-1) > 0 {
		return
	}
	t.cancel()
	t.rt.CloseIdleConnections()
	t.checks.CloseIdleConnections()
}
