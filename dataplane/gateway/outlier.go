package gateway

import (
	"errors"
	"math/rand/v2"
	"net/http"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// outlierConfig is a compiled OutlierDetection: hosts that fail requests in a row
// are taken out for a while.
type outlierConfig struct {
	consecutive5xx, consecutiveGateway uint32
	enforce5xx, enforceGateway         uint32 // percent
	interval, base, longest            time.Duration
	maxEjected                         uint32 // percent of the hosts
	alwaysOne                          bool
}

func newOutlierConfig(m *clusterv3.OutlierDetection) (*outlierConfig, error) {
	if m == nil {
		return nil, nil
	}
	// What the gateway does not count has to be switched off: on is the default.
	if m.GetEnforcingSuccessRate() == nil || m.GetEnforcingSuccessRate().GetValue() != 0 {
		return nil, errors.New("enforcing_success_rate is supported as 0 only")
	}
	if m.GetEnforcingFailurePercentage().GetValue() != 0 {
		return nil, errors.New("enforcing_failure_percentage is supported as 0 only")
	}
	if m.GetSplitExternalLocalOriginErrors() {
		return nil, errors.New("split_external_local_origin_errors is not supported")
	}
	o := &outlierConfig{
		consecutive5xx:     orUint(m.GetConsecutive_5Xx(), 5),
		consecutiveGateway: orUint(m.GetConsecutiveGatewayFailure(), 5),
		enforce5xx:         orUint(m.GetEnforcingConsecutive_5Xx(), 100),
		enforceGateway:     orUint(m.GetEnforcingConsecutiveGatewayFailure(), 0),
		interval:           10 * time.Second, base: 30 * time.Second, longest: 300 * time.Second,
		maxEjected: orUint(m.GetMaxEjectionPercent(), 10), alwaysOne: m.GetAlwaysEjectOneHost().GetValue(),
	}
	if m.GetInterval() != nil {
		o.interval = m.GetInterval().AsDuration()
	}
	if m.GetBaseEjectionTime() != nil {
		o.base = m.GetBaseEjectionTime().AsDuration()
	}
	if m.GetMaxEjectionTime() != nil {
		o.longest = m.GetMaxEjectionTime().AsDuration()
	}
	o.longest = max(o.longest, o.base)
	return o, nil
}

func orUint(v *wrapperspb.UInt32Value, def uint32) uint32 {
	if v == nil {
		return def
	}
	return v.GetValue()
}

// observe takes the status of an answer, 503 for a host that gave none.
func (c *cluster) observe(h *host, status int) {
	o := c.cfg.outlier
	if o == nil {
		return
	}
	if status < http.StatusInternalServerError {
		h.consecutive5xx.Store(0)
		h.consecutiveGateway.Store(0)
		return
	}
	gateway := uint32(0)
	if status == http.StatusBadGateway || status == http.StatusServiceUnavailable || status == http.StatusGatewayTimeout {
		gateway = h.consecutiveGateway.Add(1)
	} else {
		h.consecutiveGateway.Store(0)
	}
	if n := h.consecutive5xx.Add(1); o.consecutive5xx > 0 && n >= o.consecutive5xx {
		h.consecutive5xx.Store(0)
		c.eject(h, o.enforce5xx)
	}
	if o.consecutiveGateway > 0 && gateway >= o.consecutiveGateway {
		h.consecutiveGateway.Store(0)
		c.eject(h, o.enforceGateway)
	}
}

// eject takes a host out unless too many are.
func (c *cluster) eject(h *host, enforce uint32) {
	if uint32(rand.IntN(100)) >= enforce || h.ejected.Load() {
		return
	}
	o := c.cfg.outlier
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ctx.Err() != nil {
		return
	}
	ejected := 0
	for _, other := range c.hosts {
		if other.ejected.Load() {
			ejected++
		}
	}
	allowed := (ejected+1)*100 <= int(o.maxEjected)*len(c.hosts) || o.alwaysOne && ejected == 0
	if !allowed {
		return
	}
	d := min(o.base*time.Duration(h.ejections.Load()+1), o.longest)
	h.eject(c.gw.now().Add(d))
	c.rebuild()
	c.gw.log.Info("endpoint ejected", "cluster", c.cfg.name, "endpoint", h.address, "for", d)
	if !c.sweeping {
		c.sweeping = true
		c.tasks.Go(c.sweep)
	}
}

// sweep takes hosts back in whose time is over, at each interval as Envoy does,
// and ends when none is out.
func (c *cluster) sweep() {
	for {
		if !sleep(c.ctx, c.cfg.outlier.interval) {
			return
		}
		if c.takeBack() {
			return
		}
	}
}

// takeBack reports whether no host is out any more.
func (c *cluster) takeBack() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, out := c.gw.now().UnixNano(), 0
	for _, h := range c.hosts {
		switch {
		case !h.ejected.Load():
		case h.ejectedUntil.Load() > now:
			out++
		default:
			h.ejected.Store(false)
			c.gw.log.Info("endpoint no longer ejected", "cluster", c.cfg.name, "endpoint", h.address)
		}
	}
	c.rebuild()
	c.sweeping = out > 0
	return out == 0
}
