package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	matcherconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// outlierConfig is a compiled OutlierDetection: hosts that fail requests in a row
// are taken out for a while.
type outlierConfig struct {
	split                              bool   // failures to reach a host are counted apart
	consecutive5xx, consecutiveGateway uint32 // 0 counts none
	consecutiveLocal                   uint32
	enforce5xx, enforceGateway         uint32 // percent
	enforceLocal                       uint32
	unejectOnCheck                     bool
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
	if m.GetSplitExternalLocalOriginErrors() && (m.GetEnforcingLocalOriginSuccessRate() == nil || m.GetEnforcingLocalOriginSuccessRate().GetValue() != 0) {
		return nil, errors.New("enforcing_local_origin_success_rate is supported as 0 only")
	}
	o := &outlierConfig{
		consecutive5xx:     orUint(m.GetConsecutive_5Xx(), 5),
		consecutiveGateway: orUint(m.GetConsecutiveGatewayFailure(), 5),
		enforce5xx:         orUint(m.GetEnforcingConsecutive_5Xx(), 100),
		enforceGateway:     orUint(m.GetEnforcingConsecutiveGatewayFailure(), 0),
		split:              m.GetSplitExternalLocalOriginErrors(),
		consecutiveLocal:   orUint(m.GetConsecutiveLocalOriginFailure(), 5),
		enforceLocal:       orUint(m.GetEnforcingConsecutiveLocalOriginFailure(), 100),
		unejectOnCheck:     m.GetSuccessfulActiveHealthCheckUnejectHost() == nil || m.GetSuccessfulActiveHealthCheckUnejectHost().GetValue(),
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

// newErrorMatch compiles an error_matcher: which statuses count as errors. Without
// one the 5xx do.
func newErrorMatch(m *matcherconfigv3.MatchPredicate) (func(int) bool, error) {
	if m == nil {
		return func(status int) bool { return status >= http.StatusInternalServerError }, nil
	}
	var matches []headerMatch
	for _, hm := range m.GetHttpResponseHeadersMatch().GetHeaders() {
		if hm.GetName() != ":status" {
			return nil, fmt.Errorf("header %q is not supported, only :status is", hm.GetName())
		}
		h, err := newHeaderMatch(hm)
		if err != nil {
			return nil, err
		}
		if h.match == nil {
			return nil, errors.New(":status is always present")
		}
		matches = append(matches, h)
	}
	if len(matches) == 0 {
		return nil, errors.New("it matches no headers")
	}
	return func(status int) bool {
		text := strconv.Itoa(status)
		for i := range matches {
			if matches[i].match(text) == matches[i].invert {
				return false
			}
		}
		return true
	}, nil
}

// observe takes the status of an answer.
func (c *cluster) observe(h *host, status int) {
	o := c.cfg.outlier
	if o == nil {
		return
	}
	h.consecutiveLocal.Store(0)
	if !c.cfg.isError(status) {
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
	c.count(h, &h.consecutive5xx, o.consecutive5xx, o.enforce5xx)
	if o.consecutiveGateway > 0 && gateway >= o.consecutiveGateway {
		h.consecutiveGateway.Store(0)
		c.eject(h, o.enforceGateway)
	}
}

// observeFailure takes note of a host that gave no answer; status is what the client
// is told.
func (c *cluster) observeFailure(h *host, status int) {
	o := c.cfg.outlier
	switch {
	case o == nil:
	case !o.split:
		c.observe(h, status)
	default:
		c.count(h, &h.consecutiveLocal, o.consecutiveLocal, o.enforceLocal)
	}
}

// count adds to a counter of failures in a row and ejects the host at its limit.
func (c *cluster) count(h *host, counter *atomic.Uint32, limit, enforce uint32) {
	if n := counter.Add(1); limit > 0 && n >= limit {
		counter.Store(0)
		c.eject(h, enforce)
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
	c.startSweep()
}

// startSweep has hosts taken back in when their time is over; the caller holds mu.
func (c *cluster) startSweep() {
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
