package gateway

import (
	"context"
	"maps"
	"slices"
)

// newCluster provisions a cluster; nothing is sent before start. What is known
// about hosts that the cluster before had too lives on where it was found out the same
// way, and so do its connections where they would be made the same way.
func (g *Gateway) newCluster(cfg *clusterConfig, a *assignment, previous *cluster) *cluster {
	c := &cluster{cfg: cfg, gw: g, hosts: map[hostKey]*host{}, checkers: map[hostKey]context.CancelFunc{}, ready: make(chan struct{})}
	c.ctx, c.cancel = context.WithCancel(g.ctx)
	if previous != nil && previous.cfg.judging == cfg.judging {
		previous.mu.Lock()
		c.hosts = maps.Clone(previous.hosts)
		previous.mu.Unlock()
	}
	if previous != nil && previous.cfg.transport.same(&cfg.transport) && previous.transport.acquire() {
		c.transport = previous.transport
	} else {
		c.transport = g.newTransport(&cfg.transport)
	}
	if cfg.static != nil {
		a = cfg.static
	}
	if a == nil {
		a = &assignment{}
	}
	c.current = a
	return c
}

// start begins resolving names and checking hosts. ready is closed when both have
// their first answers.
func (c *cluster) start(previous *cluster) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.dns == nil {
		c.setResolved(c.current.endpoints)
	} else {
		if previous != nil && previous.cfg.dns != nil {
			c.reuseResolved(previous)
		}
		c.setResolved(c.resolved)
		c.waiting++
		c.tasks.Go(c.resolveNames)
	}
	if c.waiting == 0 {
		close(c.ready)
	}
}

// takeOver is called when the cluster before has ended: its checks and ejections may
// have changed what is known of hosts that this one has too.
func (c *cluster) takeOver() {
	if c.cfg.check == nil && c.cfg.outlier == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cfg.outlier != nil {
		for _, h := range c.hosts {
			if h.ejected.Load() {
				c.startSweep()
				break
			}
		}
	}
	c.rebuild()
}

// reuseResolved begins with the addresses that the cluster before had resolved.
func (c *cluster) reuseResolved(previous *cluster) {
	previous.mu.Lock()
	defer previous.mu.Unlock()
	for _, e := range c.current.endpoints {
		for _, old := range previous.resolved {
			if e.resolvable != "" && old.resolvable == e.resolvable && old.port == e.port {
				e.address = old.address
				c.resolved = append(c.resolved, e)
			}
		}
	}
}

// assign changes the endpoints of a running cluster. Requests in flight go on.
func (c *cluster) assign(a *assignment) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.current = a
	if c.cfg.dns == nil {
		c.setResolved(a.endpoints)
	}
}

// setResolved makes endpoints with addresses the hosts of the cluster; the caller
// holds mu.
func (c *cluster) setResolved(endpoints []endpoint) {
	endpoints = withoutDuplicates(endpoints)
	hosts := make(map[hostKey]*host, len(endpoints))
	for _, e := range endpoints {
		h, ok := c.hosts[e.hostKey]
		if !ok {
			h = &host{hostKey: e.hostKey}
		}
		hosts[e.hostKey] = h
	}
	c.resolved, c.hosts = endpoints, hosts
	c.checkHosts()
	c.rebuild()
}

// withoutDuplicates keeps the first of endpoints with the same address.
func withoutDuplicates(endpoints []endpoint) []endpoint {
	seen := make(map[hostKey]bool, len(endpoints))
	return slices.DeleteFunc(slices.Clone(endpoints), func(e endpoint) bool {
		twice := seen[e.hostKey]
		seen[e.hostKey] = true
		return twice
	})
}

// rebuild publishes the hosts with their health; the caller holds mu.
func (c *cluster) rebuild() {
	c.set.Store(newHostSet(c.cfg, c.resolved, c.hosts, c.current.overprovisioning))
}

// healthChanged publishes a host's new health.
func (c *cluster) healthChanged() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.rebuild()
}

// answered counts one first answer of a name or a check.
func (c *cluster) answered() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.countAnswer()
}

func (c *cluster) countAnswer() {
	c.waiting--
	if c.waiting == 0 {
		close(c.ready)
	}
}

// close ends the cluster's tasks and gives up its connections when the last
// request on them has ended. It returns when the tasks have.
func (c *cluster) close() {
	c.cancel()
	c.tasks.Wait()
	c.transport.release()
}
