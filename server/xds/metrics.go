package xds

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/snapshot"
)

// metrics counts what the server does. The type label is the message's name, and
// "other" for types that muster does not know, so that a client cannot make up
// labels.
type metrics struct {
	srv *Server

	streams     *prometheus.GaugeVec
	connections prometheus.Gauge
	ended       *prometheus.CounterVec
	refusals    *prometheus.CounterVec
	replacement prometheus.Counter
	propagation prometheus.Histogram
	roundTrip   prometheus.Histogram
	byType      [len(orders) + 2]typeMetrics
	vecs        []*prometheus.CounterVec

	behind, lagMax      *prometheus.Desc
	coldWaiting         *prometheus.Desc
	encoded, encodeHits *prometheus.Desc
}

type typeMetrics struct {
	responses, bytes, resources, acks, nacks, refused prometheus.Counter
}

// reason is why something was refused.
type reason string

const (
	reasonConnections  reason = "connections"
	reasonAddress      reason = "connections_per_address"
	reasonStreams      reason = "streams_per_connection"
	reasonFirstMessage reason = "first_message"
	reasonDenied       reason = "denied"
	reasonDuplicate    reason = "duplicate_node"
	reasonNotReady     reason = "not_ready"
	reasonMessageSize  reason = "message_size"
	reasonSubscription reason = "subscriptions"
	reasonTypes        reason = "types"
	reasonParked       reason = "requests_while_catching_up"
)

// limitError is the status of a stream that went over a limit.
type limitError struct {
	reason reason
	status *status.Status
}

func overLimit(why reason, format string, args ...any) error {
	return &limitError{why, status.Newf(codes.ResourceExhausted, format, args...)}
}

func (e *limitError) Error() string { return e.status.Err().Error() }

// GRPCStatus makes it the status that the data plane gets.
func (e *limitError) GRPCStatus() *status.Status { return e.status }

func newMetrics(s *Server) *metrics {
	m := &metrics{
		srv: s,
		streams: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "muster_xds_streams", Help: "Open xDS streams, by protocol.",
		}, []string{"protocol"}),
		connections: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "muster_xds_connections", Help: "Open connections on the xDS port.",
		}),
		ended: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_xds_connections_ended_total", Help: "Connections on the xDS port that ended, by what ended them.",
		}, []string{"reason"}),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "muster_xds_limit_refusals_total", Help: "Connections and streams refused, by the limit that refused them.",
		}, []string{"reason"}),
		replacement: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "muster_xds_streams_replaced_total", Help: "Streams ended because a newer one of the same node id came.",
		}),
		propagation: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_xds_propagation_seconds", Help: "From the publication of a snapshot to the acknowledgement of a push of it.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 16),
		}),
		roundTrip: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "muster_xds_ack_seconds", Help: "From sending a response to its acknowledgement.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 17),
		}),
		behind: prometheus.NewDesc("muster_xds_streams_behind",
			"Streams that have not acknowledged the newest revision of their group.", nil, nil),
		lagMax: prometheus.NewDesc("muster_xds_lag_revisions_max",
			"Revisions that the stream furthest behind has yet to acknowledge.", nil, nil),
		coldWaiting: prometheus.NewDesc("muster_xds_cold_starts_waiting",
			"First requests of returning and starting data planes that wait for their turn.", nil, nil),
		encoded: prometheus.NewDesc("muster_xds_responses_encoded_total",
			"Shared responses that were encoded.", nil, nil),
		encodeHits: prometheus.NewDesc("muster_xds_responses_shared_total",
			"Responses that were taken from the encode cache.", nil, nil),
	}
	vec := func(name, help string) *prometheus.CounterVec {
		v := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "muster_xds_" + name, Help: help}, []string{"type"})
		m.vecs = append(m.vecs, v)
		return v
	}
	responses := vec("responses_total", "Responses sent, by type.")
	bytes := vec("response_bytes_total", "Bytes of responses sent, by type, before compression and framing.")
	resources := vec("resources_total", "Resources in the responses sent, removals included, by type.")
	acks := vec("acks_total", "Responses acknowledged, by type.")
	nacks := vec("nacks_total", "Responses refused, by type. One bad resource is refused several times until it stands alone.")
	refused := vec("refused_resources_total", "Resources put in quarantine, by type.")
	for rank := range m.byType {
		label := typeLabel(rank)
		m.byType[rank] = typeMetrics{
			responses.WithLabelValues(label), bytes.WithLabelValues(label), resources.WithLabelValues(label),
			acks.WithLabelValues(label), nacks.WithLabelValues(label), refused.WithLabelValues(label),
		}
	}
	return m
}

// typeLabel returns the label of the types of a rank.
func typeLabel(rank int) string {
	switch {
	case rank < len(orders):
		return messageName(orders[rank].typeURL)
	case rank == len(orders)+1:
		return messageName(snapshot.ManifestType)
	}
	return "other"
}

// messageName returns the last part of a type URL: "Cluster".
func messageName(typeURL string) string { return typeURL[strings.LastIndexByte(typeURL, '.')+1:] }

func (m *metrics) register(r prometheus.Registerer) {
	r.MustRegister(m.streams, m.connections, m.ended, m.refusals, m.replacement, m.propagation, m.roundTrip, m)
	for _, v := range m.vecs {
		r.MustRegister(v)
	}
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.behind
	ch <- m.lagMax
	ch <- m.coldWaiting
	ch <- m.encoded
	ch <- m.encodeHits
}

// Collect implements prometheus.Collector: what is cheaper to look up than to
// keep.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	behind, most := m.srv.lag()
	hits, misses := m.srv.cfg.Encoder.Stats()
	ch <- prometheus.MustNewConstMetric(m.behind, prometheus.GaugeValue, float64(behind))
	ch <- prometheus.MustNewConstMetric(m.lagMax, prometheus.GaugeValue, float64(most))
	ch <- prometheus.MustNewConstMetric(m.coldWaiting, prometheus.GaugeValue, float64(m.srv.coldWaiting.Load()))
	ch <- prometheus.MustNewConstMetric(m.encoded, prometheus.CounterValue, float64(misses))
	ch <- prometheus.MustNewConstMetric(m.encodeHits, prometheus.CounterValue, float64(hits))
}

func (m *metrics) refused(why reason) { m.refusals.WithLabelValues(string(why)).Inc() }

func (m *metrics) replaced() { m.replacement.Inc() }

func (m *metrics) opened(protocol string, by float64) { m.streams.WithLabelValues(protocol).Add(by) }

func (m *metrics) sent(rank int, e Sent) {
	t := &m.byType[rank]
	t.responses.Inc()
	t.bytes.Add(float64(e.Bytes))
	t.resources.Add(float64(e.Resources + e.Removed))
}

func (m *metrics) acked(rank int, e *Acked) {
	m.byType[rank].acks.Inc()
	m.roundTrip.Observe(e.After.Seconds())
	if e.SincePublished > 0 {
		m.propagation.Observe(e.SincePublished.Seconds())
	}
}

func (m *metrics) nacked(rank int) { m.byType[rank].nacks.Inc() }

func (m *metrics) quarantined(rank, n int) { m.byType[rank].refused.Add(float64(n)) }

// lag returns how many streams are behind their group, and the revisions that the
// furthest is behind.
func (s *Server) lag() (behind int, most uint64) {
	s.mu.Lock()
	streams := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		streams = append(streams, st)
	}
	s.mu.Unlock()
	for _, st := range streams {
		if newest, synced := st.newest.Load(), st.synced.Load(); newest > synced {
			behind++
			most = max(most, newest-synced)
		}
	}
	return behind, most
}
