package relay

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/snapshot"
)

// metrics are a relay's own; those of its sessions are the xDS server's.
type metrics struct {
	registry  *prometheus.Registry
	attending prometheus.Gauge
	connected *prometheus.GaugeVec
	revision  *prometheus.GaugeVec
	epoch     *prometheus.GaugeVec
	updates   *prometheus.CounterVec
	bytes     *prometheus.CounterVec
	disk      prometheus.Histogram
	diskFails prometheus.Counter
	home      *homeMetrics
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		attending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_relay_upstream_attended", Help: "1 while an upstream tells of groups and is told of data planes.",
		}),
		connected: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_relay_upstream_connected", Help: "1 while the stream of a group is open.",
		}, []string{"group"}),
		revision: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_relay_served_revision", Help: "The revision of a group that is served.",
		}, []string{"group"}),
		epoch: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_relay_served_epoch", Help: "The epoch of the revision that is served.",
		}, []string{"group"}),
		updates: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_relay_updates_total", Help: "Updates of a group, by result: applied, or refused because they were no whole revision.",
		}, []string{"group", "result"}),
		bytes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_relay_upstream_received_bytes_total", Help: "Bytes of responses from upstream, before compression.",
		}, []string{"group"}),
		disk: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_relay_disk_write_seconds", Help: "How long it took to make an update durable.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
		}),
		diskFails: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_relay_disk_write_failures_total", Help: "Updates that could not be made durable; they are served all the same.",
		}),
	}
	m.registry.MustRegister(m.attending, m.connected, m.revision, m.epoch, m.updates, m.bytes, m.disk, m.diskFails,
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m.home = newHomeMetrics(m.registry)
	return m
}

func (m *metrics) attended(is bool) { m.attending.Set(number(is)) }

func (m *metrics) served(group string, v snapshot.Version) {
	m.revision.WithLabelValues(group).Set(float64(v.Revision))
	m.epoch.WithLabelValues(group).Set(float64(v.Epoch))
}

// hooks returns what a group's client tells.
func (m *metrics) hooks(group string) dataplane.Hooks {
	return dataplane.Hooks{
		Connected:    func(string) { m.connected.WithLabelValues(group).Set(1) },
		Disconnected: func(string, error) { m.connected.WithLabelValues(group).Set(0) },
		Received:     func(r dataplane.Received) { m.bytes.WithLabelValues(group).Add(float64(r.Bytes)) },
		Applied: func(a dataplane.Applied) {
			result := "applied"
			if a.Err != nil {
				result = "refused"
			}
			m.updates.WithLabelValues(group, result).Inc()
		},
		CacheWritten: func(w dataplane.CacheWritten) {
			m.disk.Observe(w.Took.Seconds())
			if w.Err != nil {
				m.diskFails.Inc()
			}
		},
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
