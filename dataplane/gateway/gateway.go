package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/dataplane"
)

// Config configures a Gateway. Servers, Group, NodeID and one of TLS and Insecure
// are required, as by dataplane.Config.
type Config struct {
	// HTTPAddr and HTTPSAddr are where the listeners `http` and `https` are bound,
	// whatever address the listener resource says. An empty one leaves that
	// listener unbound.
	HTTPAddr, HTTPSAddr string
	// StatusAddr serves /status and /status/ready; empty serves none.
	StatusAddr string
	// DrainTimeout bounds how long requests in flight may go on after Run's context
	// has ended or their listener was removed. Default: 10 s.
	DrainTimeout time.Duration

	// The fields of dataplane.Config of the same name.
	Servers  []string
	Order    dataplane.Order
	Upstream *dataplane.Upstream
	Group    string
	NodeID   string
	Metadata map[string]any
	TLS      *tls.Config
	Insecure bool
	CacheDir string
	CacheKey []byte
	// SecondHome is read when no server answers; KeepInSecondHome makes this a backup
	// gateway, which writes there.
	SecondHome       *dataplane.SecondHome
	KeepInSecondHome bool
	Hooks            dataplane.Hooks
	Timing           dataplane.Timing
	Logger           *slog.Logger
	// Version is the gateway's version as the operator sees it.
	Version string
}

// Gateway is an HTTP gateway. Its methods are safe for concurrent use.
type Gateway struct {
	// Read-only after New.
	cfg          Config
	client       *dataplane.Client
	log          *slog.Logger
	checker      *checker
	now          func() time.Time
	resolver     resolver
	dnsRefresh   time.Duration
	restTimeout  time.Duration
	localAddress string
	buffers      buffers

	ctx    context.Context // ends clusters, names and checks
	cancel context.CancelFunc
	table  atomic.Pointer[table]
	tasks  sync.WaitGroup // listeners that drain

	// Used from Apply only.
	assignments map[string]*assignment // by name; those of EDS

	mu        sync.Mutex
	listeners map[string]*listenerServer // guarded by mu
	status    net.Addr                   // guarded by mu
}

var _ dataplane.Handler = (*Gateway)(nil)

// New returns a gateway. Nothing is bound before Run.
func New(cfg Config) (*Gateway, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	if cfg.DrainTimeout <= 0 {
		cfg.DrainTimeout = 10 * time.Second
	}
	g := &Gateway{
		cfg: cfg, log: cfg.Logger, checker: newChecker(), now: time.Now, resolver: net.DefaultResolver,
		dnsRefresh: dnsRefresh, restTimeout: restTimeout, localAddress: localAddress(), assignments: map[string]*assignment{}, listeners: map[string]*listenerServer{},
	}
	g.ctx, g.cancel = context.WithCancel(context.Background())
	g.table.Store(emptyTable())
	client, err := dataplane.New(dataplane.Config{
		Servers: cfg.Servers, Order: cfg.Order, Upstream: cfg.Upstream,
		Group: cfg.Group, NodeID: cfg.NodeID, Metadata: cfg.Metadata,
		UserAgentName: "muster-gateway", UserAgentVersion: cfg.Version,
		TLS: cfg.TLS, Insecure: cfg.Insecure, CacheDir: cfg.CacheDir, CacheKey: cfg.CacheKey,
		SecondHome: cfg.SecondHome, KeepInSecondHome: cfg.KeepInSecondHome,
		Hooks: cfg.Hooks, Timing: cfg.Timing, Logger: cfg.Logger, Handler: g,
	})
	if err != nil {
		return nil, fmt.Errorf("gateway: %w", err)
	}
	g.client = client
	return g, nil
}

// Run serves until ctx ends, and then for at most the drain timeout the requests
// that are in flight. It returns after everything it started. It can be called once.
func (g *Gateway) Run(ctx context.Context) error {
	defer g.close()
	group, ctx := errgroup.WithContext(ctx)
	if g.cfg.StatusAddr != "" {
		group.Go(func() error { return g.serveStatus(ctx) })
	}
	group.Go(func() error { return g.client.Run(ctx) })
	err := group.Wait()
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// close ends listeners first, then what they use.
func (g *Gateway) close() {
	g.mu.Lock()
	for name, l := range g.listeners {
		g.drain(l)
		delete(g.listeners, name)
	}
	g.mu.Unlock()
	g.tasks.Wait()
	last := g.table.Swap(emptyTable())
	for it := last.clusters.Root().Iterator(); ; {
		_, c, ok := it.Next()
		if !ok {
			break
		}
		c.close()
	}
	g.cancel()
}

// Client returns the gateway's subscription: its state and status.
func (g *Gateway) Client() *dataplane.Client { return g.client }

// Addr returns where the listener `http` or `https`, or `status`, is bound; nil
// while it is not.
func (g *Gateway) Addr(listener string) net.Addr {
	g.mu.Lock()
	defer g.mu.Unlock()
	if listener == "status" {
		return g.status
	}
	if l, ok := g.listeners[listener]; ok {
		return l.socket.Addr()
	}
	return nil
}
