package dataplane

import (
	"crypto/tls"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"
)

// UpstreamConfig configures an Upstream. The fields are those of Config of the
// same name.
type UpstreamConfig struct {
	Servers     []string
	TLS         *tls.Config
	Insecure    bool
	Compress    bool
	DialOptions []grpc.DialOption
	Keepalive   time.Duration
}

// Upstream holds the connections to a set of servers, one per server in use, and
// shares them among the clients that are given it. All methods are safe for
// concurrent use.
type Upstream struct {
	servers  []string
	options  []grpc.DialOption
	compress bool

	mu    sync.Mutex
	conns map[string]*sharedConn // by server
	plain map[string]bool        // servers that cannot decompress
}

// sharedConn is a connection that is closed when its last user releases it.
type sharedConn struct {
	*grpc.ClientConn
	server string
	refs   int // guarded by Upstream.mu
}

// NewUpstream returns an Upstream. It connects when a client first uses a server.
func NewUpstream(cfg UpstreamConfig) (*Upstream, error) {
	if len(cfg.Servers) == 0 {
		return nil, ErrNoServers
	}
	creds := insecure.NewCredentials()
	switch {
	case cfg.TLS != nil:
		creds = credentials.NewTLS(cfg.TLS)
	case !cfg.Insecure:
		return nil, ErrNoSecurity
	}
	orDefault(&cfg.Keepalive, 30*time.Second)
	calls := []grpc.CallOption{grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithDefaultCallOptions(calls...),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: cfg.Keepalive, Timeout: 10 * time.Second}),
		grpc.WithDisableServiceConfig(),
	}
	return &Upstream{
		servers:  append([]string(nil), cfg.Servers...),
		options:  append(options, cfg.DialOptions...),
		compress: cfg.Compress,
		conns:    map[string]*sharedConn{}, plain: map[string]bool{},
	}, nil
}

// Conn returns the connection to a server that clients use at the moment, for
// further services of the same server; false when there is none. The connection
// is closed when no client uses it any more: calls on it then fail.
func (u *Upstream) Conn(server string) (grpc.ClientConnInterface, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c, ok := u.conns[server]
	if !ok {
		return nil, false
	}
	return c.ClientConn, true
}

// Servers returns the servers, in the order given.
func (u *Upstream) Servers() []string { return slices.Clone(u.servers) }

// Use returns the connection to a server, made when no client uses it yet, for
// further services of the same server. The caller must call release when it no
// longer does, and say whether the connection failed.
func (u *Upstream) Use(server string) (conn grpc.ClientConnInterface, release func(failed bool), err error) {
	c, err := u.acquire(server)
	if err != nil {
		return nil, nil, err
	}
	return c.ClientConn, func(failed bool) { u.release(c, failed) }, nil
}

// acquire returns the connection to a server; the caller must release it.
func (u *Upstream) acquire(server string) (*sharedConn, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if c, ok := u.conns[server]; ok {
		c.refs++
		return c, nil
	}
	options := u.options
	if u.compress && !u.plain[server] {
		options = append(slices.Clip(options), grpc.WithDefaultCallOptions(grpc.UseCompressor(gzip.Name)))
	}
	cc, err := grpc.NewClient(server, options...)
	if err != nil {
		return nil, err
	}
	c := &sharedConn{ClientConn: cc, server: server, refs: 1}
	u.conns[server] = c
	return c, nil
}

// refusedCompression reports whether a call failed because the server cannot
// decompress; its next connection is then a plain one. Every muster server can.
func (u *Upstream) refusedCompression(server string, err error) bool {
	st := status.Convert(err)
	if st.Code() != codes.Unimplemented || !strings.Contains(st.Message(), gzip.Name) {
		return false
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	if !u.compress || u.plain[server] {
		return false
	}
	u.plain[server] = true
	delete(u.conns, server) // whoever uses it still releases it
	return true
}

// release gives a connection back. A bad one is not handed out again: gRPC would
// let a new attempt wait for the back-off of the failed one.
func (u *Upstream) release(c *sharedConn, bad bool) {
	u.mu.Lock()
	c.refs--
	unused := c.refs == 0
	if (bad || unused) && u.conns[c.server] == c {
		delete(u.conns, c.server)
	}
	u.mu.Unlock()
	if unused {
		_ = c.Close() // only fails when closed already
	}
}
