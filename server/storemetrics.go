package server

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/raftstore"
)

// storeCollector tells how the replicated store is doing, when it is asked.
type storeCollector struct{ store *raftstore.Store }

func storeDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("muster_store_"+name, help, nil, nil)
}

// storeGauges are the numbers of the store's status.
var storeGauges = []struct {
	desc  *prometheus.Desc
	value func(raftstore.Status) float64
}{
	{storeDesc("leader", "1 on the server that leads the cluster."), func(s raftstore.Status) float64 { return truth(s.Role == "leader") }},
	{storeDesc("ready", "1 once the server has caught up with the cluster after its start."), func(s raftstore.Status) float64 { return truth(s.Ready) }},
	{storeDesc("term", "The Raft term."), func(s raftstore.Status) float64 { return float64(s.Term) }},
	{storeDesc("epoch", "The epoch: it rises on restore and recovery."), func(s raftstore.Status) float64 { return float64(s.Epoch) }},
	{storeDesc("commit_index", "The newest log entry that is known to be committed."), func(s raftstore.Status) float64 { return float64(s.CommitIndex) }},
	{storeDesc("applied_index", "The newest log entry that the state reflects. A server whose number stays behind the others' while it hears from the leader is wedged."), func(s raftstore.Status) float64 { return float64(s.AppliedIndex) }},
	{storeDesc("snapshot_index", "The log entry that the newest snapshot reflects."), func(s raftstore.Status) float64 { return float64(s.SnapshotIndex) }},
	{storeDesc("last_contact_seconds", "How long ago the leader was heard of; -1 when it never was, 0 on the leader."), func(s raftstore.Status) float64 {
		if s.LastContact < 0 {
			return -1
		}
		return s.LastContact.Seconds()
	}},
	{storeDesc("voters", "Servers with a vote."), func(s raftstore.Status) float64 { return float64(s.Voters) }},
	{storeDesc("non_voters", "Servers without a vote."), func(s raftstore.Status) float64 { return float64(s.NonVoters) }},
	{storeDesc("log_bytes", "Size of the log file."), func(s raftstore.Status) float64 { return float64(s.LogBytes) }},
	{storeDesc("free_bytes", "Free space on the disk of the data directory."), func(s raftstore.Status) float64 { return float64(s.FreeBytes) }},
	{storeDesc("disk_full", "1 while writes are refused because too little space is free."), func(s raftstore.Status) float64 { return truth(s.DiskFull) }},
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// Describe implements prometheus.Collector.
func (c *storeCollector) Describe(ch chan<- *prometheus.Desc) {
	for _, g := range storeGauges {
		ch <- g.desc
	}
}

// Collect implements prometheus.Collector.
func (c *storeCollector) Collect(ch chan<- prometheus.Metric) {
	st, err := c.store.Status()
	if err != nil {
		return // not started, or stopping
	}
	for _, g := range storeGauges {
		ch <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, g.value(st))
	}
}
