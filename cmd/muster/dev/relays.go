package dev

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/relay"
)

// startRelays runs the relays, each below all servers.
func (p *process) startRelays(ctx context.Context, cfg Config, info *Info) error {
	for i, addr := range cfg.Relays {
		id := fmt.Sprintf("relay-%d", i+1)
		r, err := relay.New(relay.Config{
			ID: id, Upstream: info.XDSAddrs, UpstreamInsecure: true, Insecure: true, Groups: []string{group},
			DataDir: filepath.Join(dataDir(cfg), id), Addr: addr, Version: cfg.Version, Logger: cfg.Logger,
		})
		if err != nil {
			return fmt.Errorf("%s: %w", id, err)
		}
		info.Relays = append(info.Relays, r.Addr().String())
		p.start(ctx, id, r.Run)
		// The gateways wait for the relay, and the banner for the gateways, in vain if
		// it must be; but a relay that is just starting need not be heard of.
		for range 200 {
			if r.Ready() == nil || sleep(ctx, 10*time.Millisecond) != nil {
				break
			}
		}
	}
	return nil
}

// dataDir is where what belongs to the run's control plane is kept: that of a
// cluster is another than that of the one server.
func dataDir(cfg Config) string {
	if len(cfg.Servers) > 0 {
		return clusterDir(cfg.DataDir)
	}
	return cfg.DataDir
}

// upstreamOf is what a gateway hangs on: a server, or with relays one of those
// each, and the others if that one fails.
func upstreamOf(info *Info, gateway int) []string {
	if len(info.Relays) == 0 {
		return info.XDSAddrs
	}
	first := gateway % len(info.Relays)
	return append(append([]string{}, info.Relays[first:]...), info.Relays[:first]...)
}

// orderOf makes each gateway begin at the relay that upstreamOf names first.
func orderOf(info *Info) dataplane.Order {
	if len(info.Relays) == 0 {
		return dataplane.OrderSpread
	}
	return dataplane.OrderPreferred
}
