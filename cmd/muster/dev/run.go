package dev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/musterhq/muster/cmd/muster/echo"
	"github.com/musterhq/muster/dataplane/gateway"
	"github.com/musterhq/muster/server"
	"github.com/musterhq/muster/server/auth"
)

// startTimeout bounds how long the server may take until it answers.
const startTimeout = 30 * time.Second

// part is something that runs: it has a context of its own, so that the parts
// can be stopped one after the other.
type part struct {
	name   string
	cancel context.CancelFunc
	done   chan struct{}
	err    error // after done
}

// process is the running parts, in the order in which they were started.
type process struct {
	parts []*part
	// fail is called by a part that ends although nobody stopped it.
	fail context.CancelFunc
}

func (p *process) start(ctx context.Context, name string, run func(context.Context) error) {
	// Not cancelled with ctx: Ctrl-C must not stop the server under a gateway.
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	pt := &part{name: name, cancel: cancel, done: make(chan struct{})}
	p.parts = append(p.parts, pt)
	go func() {
		defer close(pt.done)
		pt.err = run(ctx)
		if ctx.Err() == nil {
			if pt.err == nil {
				pt.err = errors.New("ended by itself")
			}
			p.fail()
		}
	}()
}

// stop ends the parts in the reverse order of their start, each before the next:
// gateways finish their requests while the upstream still answers, and take
// leave of a server that still listens.
func (p *process) stop() error {
	var errs []error
	for i := len(p.parts) - 1; i >= 0; i-- {
		pt := p.parts[i]
		pt.cancel()
		<-pt.done
		if pt.err != nil && !errors.Is(pt.err, context.Canceled) {
			errs = append(errs, fmt.Errorf("%s: %w", pt.name, pt.err))
		}
	}
	return errors.Join(errs...)
}

// Run runs everything until ctx ends or a part fails, and returns after all of
// it has ended: nil after ctx, else the first failure.
func Run(ctx context.Context, cfg Config) error {
	running, fail := context.WithCancel(ctx)
	defer fail()
	p := &process{fail: fail}
	err := p.run(running, cfg)
	if running.Err() != nil {
		err = nil // interrupted while starting; if a part failed, stop says why
	}
	return errors.Join(err, p.stop())
}

func (p *process) run(ctx context.Context, cfg Config) error {
	if err := os.MkdirAll(cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	info := Info{
		DataDir: cfg.DataDir, APIKey: cfg.APIKey, Group: group,
		FreeHTTPPort: cfg.FreeHTTPPort, FreeHTTPSPort: cfg.FreeHTTPSPort,
	}
	if info.APIKey == "" {
		var err error
		if info.APIKey, info.APIKeyFile, err = apiKey(cfg.DataDir); err != nil {
			return err
		}
	}
	if err := p.startEcho(ctx, cfg, &info); err != nil {
		return err
	}
	settled := make(chan struct{})
	if err := p.startControlPlane(ctx, cfg, &info, settled); err != nil {
		return err
	}
	client, err := dial(info.AdminAddrs[0], info.APIKey)
	if err != nil {
		return err
	}
	defer client.close()
	if err := prepare(ctx, client, &info); err != nil {
		return err
	}
	close(settled)
	if err := p.startRelays(ctx, cfg, &info); err != nil {
		return err
	}
	if err := p.startGateways(ctx, cfg, client, &info); err != nil {
		return err
	}
	if cfg.Ready != nil && ctx.Err() == nil {
		cfg.Ready(info)
	}
	<-ctx.Done()
	return nil
}

func (p *process) startEcho(ctx context.Context, cfg Config, info *Info) error {
	ln, err := net.Listen("tcp", cfg.EchoAddr)
	if err != nil {
		return fmt.Errorf("echo upstream: %w", err)
	}
	info.EchoAddr = ln.Addr().String()
	p.start(ctx, "echo upstream", func(ctx context.Context) error { return echo.Serve(ctx, ln, "echo") })
	return nil
}

// startControlPlane starts the server in this process, or several in their own.
func (p *process) startControlPlane(ctx context.Context, cfg Config, info *Info, settled <-chan struct{}) error {
	if len(cfg.Servers) > 0 {
		return p.startServers(ctx, cfg, info, settled)
	}
	srv, err := server.New(server.Config{
		ServerID:  "dev",
		DataDir:   filepath.Join(cfg.DataDir, "server"),
		Version:   cfg.Version,
		AdminAddr: cfg.AdminAddr,
		XDSAddr:   cfg.XDSAddr,
		Bootstrap: true,
		Keys:      auth.NewKeys(auth.NewKey("dev", auth.RoleAdmin, info.APIKey)),
		Insecure:  true,
		Logger:    cfg.Logger,
	})
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	info.AdminAddrs, info.XDSAddrs = []string{srv.AdminAddr().String()}, []string{srv.XDSAddr().String()}
	p.start(ctx, "server", srv.Run)
	return nil
}

// prepare waits for the servers and makes the group.
func prepare(ctx context.Context, client *api, info *Info) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	g, err := client.defaultGroup(ctx)
	if err == nil && g.GetRevision() == 0 {
		info.GroupIsNew = true
		err = client.seed(ctx, info.EchoAddr)
	}
	if err != nil {
		return err
	}
	// Gateways that come too early would be turned away, with a warning.
	return client.formed(ctx, len(info.AdminAddrs))
}

func (p *process) startGateways(ctx context.Context, cfg Config, client *api, info *Info) error {
	var gateways []*gateway.Gateway
	for i, addrs := range cfg.Gateways {
		id := fmt.Sprintf("gateway-%d", i+1)
		g, err := gateway.New(gateway.Config{
			HTTPAddr:   addrs.HTTP,
			HTTPSAddr:  addrs.HTTPS,
			StatusAddr: addrs.Status,
			Servers:    upstreamOf(info, i),
			Order:      orderOf(info),
			Group:      group,
			NodeID:     id,
			Insecure:   true,
			CacheDir:   filepath.Join(dataDir(cfg), id),
			Logger:     cfg.Logger,
			Version:    cfg.Version,
		})
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		gateways = append(gateways, g)
		info.Gateways = append(info.Gateways, GatewayInfo{ID: id, GatewayAddrs: addrs})
		p.start(ctx, id, g.Run)
	}
	if len(gateways) == 0 {
		return nil
	}
	info.Behind = !client.caughtUp(ctx, len(gateways))
	for i, g := range gateways {
		for listener, addr := range map[string]*string{
			"http": &info.Gateways[i].HTTP, "https": &info.Gateways[i].HTTPS, "status": &info.Gateways[i].Status,
		} {
			if bound := g.Addr(listener); bound != nil {
				*addr = bound.String()
			}
		}
	}
	return nil
}
