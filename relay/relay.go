package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/downstream"
	"github.com/musterhq/muster/server/fleet"
	"github.com/musterhq/muster/server/xds"
)

// reloadInterval is how often the files of certificates are looked at.
const reloadInterval = 10 * time.Second

// Relay is one relay. Make it with [New] and run it with [Relay.Run].
type Relay struct {
	cfg      Config
	metrics  *metrics
	fleet    *fleet.Registry
	carriers *carriers
	attend   *attendant
	xds      *xds.Server
	relays   *downstream.Service
	certs    *auth.TLS // nil for plaintext
	ln       net.Listener
	opsLn    net.Listener // nil without an ops port
}

// New opens the listeners; nothing is followed or served before Run. The caller
// must call Run, or Close.
func New(cfg Config) (_ *Relay, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	upstream, err := dataplane.NewUpstream(dataplane.UpstreamConfig{
		Servers: cfg.Upstream, TLS: cfg.UpstreamTLS, Insecure: cfg.UpstreamInsecure,
		Compress: !cfg.NoCompression, DialOptions: cfg.DialOptions, Keepalive: cfg.Upstreaming.Keepalive,
	})
	if err != nil {
		return nil, err
	}
	r := &Relay{cfg: cfg, metrics: newMetrics(), fleet: fleet.New(fleet.Config{Server: cfg.ID, Now: time.Now})}
	defer func() {
		if err != nil {
			_ = r.Close()
		}
	}()
	if err := r.listen(); err != nil {
		return nil, err
	}
	hub := xds.NewHub()
	r.carriers = newCarriers(&r.cfg, upstream, hub, r.fleet, r.metrics)
	r.attend = &attendant{
		cfg: &r.cfg, upstream: upstream, carriers: r.carriers, metrics: r.metrics, log: cfg.Logger,
		reports: reporter{id: cfg.ID, version: cfg.Version, fleet: r.fleet, carriers: r.carriers},
	}
	r.xds = xds.NewServer(xds.Config{
		Source: source{r.carriers}, Observer: r.fleet, Authorize: r.authorize,
		Limits: cfg.Limits, Timing: cfg.Timing, Metrics: r.metrics.registry, Logger: cfg.Logger,
	})
	r.relays = downstream.New(downstream.Config{Authorize: r.planes().AuthorizeRelay, Groups: r.carriers, Fleet: r.fleet, Logger: cfg.Logger})
	return r, nil
}

func (r *Relay) listen() (err error) {
	if r.cfg.TLS.Enabled() {
		if r.certs, err = auth.LoadTLS(r.cfg.TLS, r.cfg.Logger); err != nil {
			return fmt.Errorf("xDS port: %w", err)
		}
	}
	if r.ln, err = net.Listen("tcp", r.cfg.Addr); err != nil {
		return fmt.Errorf("xDS port: %w", err)
	}
	if err := auth.CheckListen(r.ln.Addr(), r.certs != nil); err != nil {
		return fmt.Errorf("xDS port: %w", err)
	}
	if r.cfg.OpsAddr == "" {
		return nil
	}
	if r.opsLn, err = net.Listen("tcp", r.cfg.OpsAddr); err != nil {
		return fmt.Errorf("ops port: %w", err)
	}
	// No TLS: what is on it is for the machine's own scraper.
	if err := auth.CheckListen(r.opsLn.Addr(), false); err != nil {
		return fmt.Errorf("ops port: %w", err)
	}
	return nil
}

// Close releases what New opened, for a relay that is never run.
func (r *Relay) Close() error {
	var errs []error
	for _, ln := range []net.Listener{r.ln, r.opsLn} {
		if ln != nil {
			errs = append(errs, ln.Close())
		}
	}
	return errors.Join(errs...)
}

// Addr is the address of the xDS port.
func (r *Relay) Addr() net.Addr { return r.ln.Addr() }

// OpsAddr is the address of the ops port, nil when there is none.
func (r *Relay) OpsAddr() net.Addr {
	if r.opsLn == nil {
		return nil
	}
	return r.opsLn.Addr()
}

// Ready returns nil when every group that the relay carries is served.
func (r *Relay) Ready() error { return r.carriers.ready() }

// Run follows the upstream and serves until ctx ends or a part fails, and returns
// after everything it started has ended: nil after ctx, else the first failure.
func (r *Relay) Run(ctx context.Context) error {
	// Not cancelled with ctx: data planes are sent elsewhere before what they are
	// served from ends.
	parts, inside := errgroup.WithContext(context.WithoutCancel(ctx))
	following, stop := context.WithCancel(inside)
	defer stop()
	r.carriers.run = func(part func(context.Context) error) {
		parts.Go(func() error { return part(following) })
	}
	r.carriers.recall()
	parts.Go(func() error { return r.attend.run(following) })
	parts.Go(func() error { return r.carriers.rescue(following) })
	if r.certs != nil {
		parts.Go(func() error { return r.certs.Run(following, reloadInterval) })
	}
	p := r.openPorts(parts)
	r.cfg.Logger.Info("relay runs", "relay", r.cfg.ID, "xds", r.ln.Addr().String(), "upstream", r.cfg.Upstream)
	select {
	case <-ctx.Done():
	case <-inside.Done():
	}
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), r.cfg.ShutdownGrace)
	defer cancel()
	r.closePorts(grace, p)
	stop()
	return parts.Wait()
}
