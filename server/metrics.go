package server

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/server/fleet"
)

// metrics are the server's own. The registry is the server's too: several
// servers in one process do not mix.
type metrics struct {
	registry *prometheus.Registry

	publishSeconds  prometheus.Histogram
	publishFailures *prometheus.CounterVec
	compileProblems *prometheus.CounterVec
	groupRevision   *prometheus.GaugeVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		publishSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "muster_publish_seconds",
			Help:    "Time to compile a group's revision, make its snapshot and wake its sessions.",
			Buckets: []float64{0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.25, 1, 5},
		}),
		publishFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_publish_failures_total",
			Help: "Revisions that could not be compiled at all; the group stayed at its last good one.",
		}, []string{"group"}),
		compileProblems: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_compile_problems_total",
			Help: "Objects that could not be compiled and were left out.",
		}, []string{"group"}),
		groupRevision: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_group_revision",
			Help: "The revision of the group that this server serves.",
		}, []string{"group"}),
	}
	m.registry.MustRegister(
		m.publishSeconds, m.publishFailures, m.compileProblems, m.groupRevision,
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	)
	return m
}

// follow adds what the fleet and the store know, computed when it is asked for.
func (m *metrics) follow(r *fleet.Registry, store *raftstore.Store) {
	m.registry.MustRegister(&fleetCollector{r}, &storeCollector{store})
}

// fleetCollector counts the data planes of each group by state.
type fleetCollector struct{ fleet *fleet.Registry }

var dataPlanes = prometheus.NewDesc("muster_data_planes",
	"Data planes by group and state; those that are offline are remembered for a while.", []string{"group", "state"}, nil)

// Describe implements prometheus.Collector.
func (c *fleetCollector) Describe(ch chan<- *prometheus.Desc) { ch <- dataPlanes }

// Collect implements prometheus.Collector.
func (c *fleetCollector) Collect(ch chan<- prometheus.Metric) {
	for group, n := range c.fleet.Counts() {
		for state, v := range map[string]int{"synced": n.Synced, "stale": n.Stale, "nacked": n.Nacked, "offline": n.Offline} {
			ch <- prometheus.MustNewConstMetric(dataPlanes, prometheus.GaugeValue, float64(v), group, state)
		}
	}
}

// forget drops the series of a deleted group.
func (m *metrics) forget(group string) {
	m.publishFailures.DeleteLabelValues(group)
	m.compileProblems.DeleteLabelValues(group)
	m.groupRevision.DeleteLabelValues(group)
}
