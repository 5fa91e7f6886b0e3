package gateway

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"

	"github.com/musterhq/muster/dataplane"
)

// Config configures a Gateway. Servers, Group, NodeID and one of TLS and Insecure
// are required.
type Config struct {
	// HTTPAddr and HTTPSAddr are where the listeners `http` and `https` are bound,
	// whatever address the listener resource says. An empty one leaves that
	// listener unbound.
	HTTPAddr, HTTPSAddr string
	// StatusAddr serves /status and /status/ready; empty serves none.
	StatusAddr string

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
	Hooks    dataplane.Hooks
	Timing   dataplane.Timing
	Logger   *slog.Logger
	// Version is the gateway's version as the operator sees it.
	Version string
}

// Gateway is a running or startable gateway.
type Gateway struct {
	cfg    Config
	client *dataplane.Client
}

// New returns a gateway. Nothing is bound before Run.
func New(cfg Config) (*Gateway, error) {
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	g := &Gateway{cfg: cfg}
	client, err := dataplane.New(dataplane.Config{
		Servers: cfg.Servers, Order: cfg.Order, Upstream: cfg.Upstream,
		Group: cfg.Group, NodeID: cfg.NodeID, Metadata: cfg.Metadata,
		UserAgentName: "muster-gateway", UserAgentVersion: cfg.Version,
		TLS: cfg.TLS, Insecure: cfg.Insecure, CacheDir: cfg.CacheDir, CacheKey: cfg.CacheKey,
		Hooks: cfg.Hooks, Timing: cfg.Timing, Logger: cfg.Logger, Handler: g,
	})
	if err != nil {
		return nil, err
	}
	g.client = client
	return g, nil
}

// Run serves until ctx ends. It returns after everything it started.
func (g *Gateway) Run(ctx context.Context) error { return g.client.Run(ctx) }

// Client returns the gateway's subscription: its state and status.
func (g *Gateway) Client() *dataplane.Client { return g.client }

// Addr returns where the listener `http` or `https`, or `status`, is bound; nil
// while it is not.
func (g *Gateway) Addr(listener string) net.Addr { return nil }

// Apply implements dataplane.Handler.
func (g *Gateway) Apply(ctx context.Context, u *dataplane.Update) error { return nil }
