package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/musterhq/muster/raftstore/atrest"
)

// Config configures a Store. The zero values of everything but DataDir stand
// for defaults.
type Config struct {
	// DataDir is where the log, the snapshots and the server's id are kept. It
	// is made with mode 0700. Only one process can use it at a time.
	DataDir string
	// ServerID names this server in the cluster, for good. Default: a UUID,
	// made once and kept in DataDir.
	ServerID string
	// RaftAddr is the host:port on which the other servers reach this one. Empty
	// makes a cluster of this server alone, which no other can join.
	RaftAddr string
	// Advertise is the host:port that the others are told. Default: the
	// address that RaftAddr came to listen on; required when that is a wildcard.
	Advertise string
	// Bootstrap makes a new data directory the first server of a new cluster.
	// A data directory that belongs to a cluster is left as it is.
	Bootstrap bool
	// Join lists raft addresses of servers of the cluster that a new data
	// directory is to become part of. Ignored once it is.
	Join []string
	// TLS names the certificate files of the servers' connections. It is
	// required with RaftAddr unless Insecure is set.
	TLS TLSFiles
	// Insecure lets servers talk in plaintext. RaftAddr must be a loopback address.
	Insecure bool

	// AtRest encrypts the log and the snapshots on this server's disk; the other
	// servers may have other keys, or none. What lies there in clear stays readable,
	// and what is encrypted stays so: a data directory cannot go back. Default: in clear.
	AtRest *atrest.Keys

	// Logger gets what raft and the store have to say. Default: slog.Default.
	Logger *slog.Logger
	// Fatal is called when the process must end at once because its disk hangs
	// or is corrupt: returning in order is not possible then. It should not
	// return. Default: log and exit with status 1.
	Fatal func(error)
	// Handle answers what other servers send with Call. It may be called
	// concurrently, and must return when ctx ends. Default: everything is refused.
	Handle Handler

	// HeartbeatTimeout is how long a follower waits for its leader before it
	// seeks election, ElectionTimeout how long an election may take, and
	// LeaderLease how long a leader goes on without a majority; LeaderLease <=
	// HeartbeatTimeout <= ElectionTimeout. Defaults: 500 ms, 500 ms, 250 ms.
	// Failover takes about twice the first two.
	HeartbeatTimeout, ElectionTimeout, LeaderLease time.Duration
	// ApplyTimeout bounds Apply and ReadIndex when their context has no
	// deadline. Default 10 s.
	ApplyTimeout time.Duration

	// SnapshotThreshold is how many log entries make a snapshot worthwhile,
	// SnapshotInterval how often that is looked at, TrailingLogs how many
	// entries stay for followers that are behind. Defaults: 8192, 60 s, 10240.
	SnapshotThreshold, TrailingLogs uint64
	SnapshotInterval                time.Duration

	// DiskTimeout is how long one write to disk may take before Fatal is called.
	// Default 8 s; negative: for ever.
	DiskTimeout time.Duration
	// MinFreeBytes is the free space below which writes are refused. Default
	// 64 MiB; negative: none.
	MinFreeBytes int64

	// Autopilot says when servers are promoted and removed.
	Autopilot Autopilot

	// dial and listen are replaced by tests that break the network.
	dial   func(addr string, timeout time.Duration) (net.Conn, error)
	listen func(addr string) (net.Listener, error)
	// disk is replaced by tests that break the disk.
	disk diskHooks
}

// Autopilot says when the leader promotes and removes servers.
type Autopilot struct {
	// Stabilize is how long a joined server must keep up before it gets a vote.
	// Default 5 s.
	Stabilize time.Duration
	// MaxTrailing is how many entries a server may be behind and still count as
	// keeping up. Default 250.
	MaxTrailing uint64
	// MinQuorum is the number of voters below which no dead server is ever
	// removed. 0 removes none; else at least 3.
	MinQuorum uint
	// DeadAfter is how long a server must have been out of reach to count as
	// dead. Default 24 h.
	DeadAfter time.Duration
	// interval is how often the servers are looked at. Default 1 s.
	interval time.Duration
}

// Defaults returns a configuration that has every default and nothing else.
func Defaults() Config { return Config{}.withDefaults() }

func (c Config) withDefaults() Config {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Fatal == nil {
		logger := c.Logger
		c.Fatal = func(err error) {
			logger.Error("the server cannot go on", "error", err)
			os.Exit(1) // vet:allow a process whose disk hangs cannot return in order
		}
	}
	def(&c.HeartbeatTimeout, 500*time.Millisecond)
	def(&c.ElectionTimeout, max(c.HeartbeatTimeout, 500*time.Millisecond))
	def(&c.LeaderLease, c.HeartbeatTimeout/2)
	def(&c.ApplyTimeout, 10*time.Second)
	def(&c.SnapshotInterval, time.Minute)
	if c.SnapshotThreshold == 0 {
		c.SnapshotThreshold = 8192
	}
	if c.TrailingLogs == 0 {
		// Fewer than the threshold would have a follower that restores a
		// snapshot find the entries after it gone already.
		c.TrailingLogs = c.SnapshotThreshold + c.SnapshotThreshold/4
	}
	def(&c.DiskTimeout, 8*time.Second)
	if c.MinFreeBytes == 0 {
		c.MinFreeBytes = 64 << 20
	}
	def(&c.Autopilot.Stabilize, 5*time.Second)
	def(&c.Autopilot.DeadAfter, 24*time.Hour)
	def(&c.Autopilot.interval, time.Second)
	if c.Autopilot.MaxTrailing == 0 {
		c.Autopilot.MaxTrailing = 250
	}
	return c
}

func (c Config) validate() error {
	switch {
	case c.DataDir == "":
		return errors.New("raftstore: DataDir is required")
	case c.LeaderLease > c.HeartbeatTimeout || c.HeartbeatTimeout > c.ElectionTimeout:
		return fmt.Errorf("raftstore: LeaderLease (%s) <= HeartbeatTimeout (%s) <= ElectionTimeout (%s) does not hold", c.LeaderLease, c.HeartbeatTimeout, c.ElectionTimeout)
	case c.Autopilot.MinQuorum == 1 || c.Autopilot.MinQuorum == 2:
		return errors.New("raftstore: Autopilot.MinQuorum must be 0 or at least 3")
	case len(c.ServerID) > 128:
		return errors.New("raftstore: ServerID is longer than 128 bytes")
	case c.RaftAddr == "":
		return nil
	}
	host, _, err := net.SplitHostPort(c.RaftAddr)
	if err != nil {
		return fmt.Errorf("raftstore: RaftAddr: %w", err)
	}
	if c.TLS.enabled() {
		return c.TLS.validate()
	}
	if !c.Insecure {
		return errors.New("raftstore: RaftAddr needs TLS files, or Insecure on a loopback address")
	}
	if ip := net.ParseIP(host); (ip == nil || !ip.IsLoopback()) && host != "localhost" {
		return fmt.Errorf("raftstore: Insecure needs a loopback address, not %q", host)
	}
	return nil
}
