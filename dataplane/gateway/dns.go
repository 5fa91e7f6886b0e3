package gateway

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
)

// dnsConfig says how the names of a STRICT_DNS cluster are resolved.
type dnsConfig struct {
	family clusterv3.Cluster_DnsLookupFamily
}

// dnsRefresh is how often names are resolved, and how long that may take: Envoy's
// default.
const dnsRefresh = 5 * time.Second

// resolver resolves names; net.DefaultResolver outside of tests.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// lookup returns the addresses of a name by the cluster's choice of families.
func (d *dnsConfig) lookup(ctx context.Context, r resolver, name string) ([]netip.Addr, error) {
	families := map[clusterv3.Cluster_DnsLookupFamily][]string{
		clusterv3.Cluster_AUTO: {"ip6", "ip4"}, clusterv3.Cluster_V4_PREFERRED: {"ip4", "ip6"},
		clusterv3.Cluster_V4_ONLY: {"ip4"}, clusterv3.Cluster_V6_ONLY: {"ip6"}, clusterv3.Cluster_ALL: {"ip"},
	}[d.family]
	var failures []error
	for _, family := range families {
		addrs, err := r.LookupNetIP(ctx, family, name)
		if err == nil && len(addrs) > 0 {
			return addrs, nil
		}
		failures = append(failures, err)
	}
	return nil, errors.Join(failures...)
}

// resolveNames keeps the addresses of the cluster's names until it is closed.
func (c *cluster) resolveNames() {
	known := map[string][]netip.Addr{} // by name; kept when a lookup fails
	first := true
	for {
		c.mu.Lock()
		endpoints := c.current.endpoints
		c.mu.Unlock()
		changed := first
		for _, e := range endpoints {
			if e.resolvable == "" {
				continue
			}
			changed = c.refreshName(e.resolvable, known) || changed
		}
		if c.ctx.Err() == nil && changed {
			c.useResolved(endpoints, known)
		}
		if first {
			c.answered()
			first = false
		}
		if !sleep(c.ctx, c.gw.dnsRefresh) {
			return
		}
	}
}

// refreshName looks a name up and reports whether its addresses changed.
func (c *cluster) refreshName(name string, known map[string][]netip.Addr) bool {
	ctx, cancel := context.WithTimeout(c.ctx, dnsRefresh)
	defer cancel()
	addrs, err := c.cfg.dns.lookup(ctx, c.gw.resolver, name)
	if err != nil {
		if c.ctx.Err() == nil {
			c.gw.log.Warn("name not resolved", "cluster", c.cfg.name, "name", name, "error", err)
		}
		return false
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	if sameAddrs(known[name], addrs) {
		return false
	}
	known[name] = addrs
	return true
}

func sameAddrs(a, b []netip.Addr) bool {
	if len(a) != len(b) {
		return false
	}
	set := make(map[netip.Addr]bool, len(a))
	for _, x := range a {
		set[x] = true
	}
	for _, x := range b {
		if !set[x] {
			return false
		}
	}
	return true
}

// useResolved replaces names by their addresses. A name that could never be
// resolved keeps the addresses that the cluster had for it.
func (c *cluster) useResolved(endpoints []endpoint, known map[string][]netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []endpoint
	for _, e := range endpoints {
		addrs, ok := known[e.resolvable]
		switch {
		case e.resolvable == "":
			out = append(out, e)
		case !ok:
			for _, old := range c.resolved {
				if old.resolvable == e.resolvable && old.port == e.port {
					out = append(out, old)
				}
			}
		default:
			for _, a := range addrs {
				at := e
				at.address = net.JoinHostPort(a.String(), strconv.FormatUint(uint64(e.port), 10))
				out = append(out, at)
			}
		}
	}
	c.setResolved(out)
}

// sleep waits and reports whether ctx is still live.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
