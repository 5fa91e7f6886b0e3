package relay

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/dataplane"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// settle makes the client of a group use the second home.
func (c *carriers) settle(cfg *dataplane.Config, g *musterv1.RelayedGroup, label string, grpc bool) {
	if c.cfg.SecondHome == nil {
		return
	}
	cfg.SecondHome, cfg.KeepInSecondHome, cfg.GroupAlias = c.cfg.SecondHome, c.cfg.KeepInSecondHome, g.GetName()
	if grpc {
		cfg.SecondHome = cfg.SecondHome.Variant("grpc")
	}
	c.metrics.home.watch(label, &cfg.Hooks)
}

// rescueAfter is how long a relay that knows no group, neither of its upstream nor
// of its disk, waits before it looks for those of its configuration in the second
// home; rescueMax is the longest wait between two looks.
const (
	rescueAfter = time.Second
	rescueMax   = 30 * time.Second
)

// rescue carries the groups that the configuration names and the second home has,
// when nobody else tells which there are.
func (c *carriers) rescue(ctx context.Context) error {
	if c.cfg.SecondHome == nil || len(c.cfg.Groups) == 0 {
		return nil
	}
	timer := time.NewTimer(rescueAfter)
	defer timer.Stop()
	for wait := rescueAfter; ; timer.Reset(wait) {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		wait = min(2*wait, rescueMax)
		if c.isTold() {
			return nil
		}
		if found := c.housed(ctx); len(found) > 0 {
			c.log.Warn("no upstream and no disk tells which groups there are; going by the second home", "groups", len(found))
			if c.carryUntold(found) {
				c.remember()
			}
			return nil
		}
	}
}

func (c *carriers) isTold() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.told
}

// carryUntold carries groups unless it was told meanwhile which there are.
func (c *carriers) carryUntold(groups []*musterv1.RelayedGroup) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.told {
		return false
	}
	c.take(groups, false)
	return true
}

// housed are the groups of the configuration that the second home has.
func (c *carriers) housed(ctx context.Context) (found []*musterv1.RelayedGroup) {
	ctx, cancel := context.WithTimeout(ctx, rescueMax)
	defer cancel()
	for _, word := range c.cfg.Groups {
		kept, err := c.cfg.SecondHome.Snapshots(ctx, word)
		switch {
		case err != nil:
			c.log.Warn("second home not read", "carries", word, "error", err)
		case len(kept) == 0:
			c.log.Warn("the second home has nothing of a group", "carries", word)
		default:
			found = append(found, &musterv1.RelayedGroup{Id: kept[0].Group, Name: word})
		}
	}
	return found
}

// homeMetrics tell of the second home.
type homeMetrics struct {
	writes   *prometheus.CounterVec
	reads    *prometheus.CounterVec
	revision *prometheus.GaugeVec
}

func newHomeMetrics(r prometheus.Registerer) *homeMetrics {
	m := &homeMetrics{
		writes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_relay_second_home_writes_total", Help: "Writes of a group to the second home, by result: written, there already, or failed.",
		}, []string{"group", "result"}),
		reads: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_relay_second_home_reads_total", Help: "Looks into the second home while no upstream answers, by result: found, nothing newer, or failed.",
		}, []string{"group", "result"}),
		revision: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_relay_second_home_revision", Help: "The newest revision of a group that is known to be in the second home.",
		}, []string{"group"}),
	}
	r.MustRegister(m.writes, m.reads, m.revision)
	return m
}

// watch adds to the hooks of a group's client.
func (m *homeMetrics) watch(group string, hooks *dataplane.Hooks) {
	hooks.SecondHomeWritten = func(w dataplane.SecondHomeWritten) {
		result := "written"
		switch {
		case w.Err != nil:
			result = "failed"
		case w.There:
			result = "there"
		}
		m.writes.WithLabelValues(group, result).Inc()
		if w.Err == nil {
			m.revision.WithLabelValues(group).Set(float64(w.Revision))
		}
	}
	hooks.SecondHomeRead = func(r dataplane.SecondHomeRead) {
		result := "nothing"
		switch {
		case r.Err != nil:
			result = "failed"
		case r.Found:
			result = "found"
		}
		m.reads.WithLabelValues(group, result).Inc()
	}
}
