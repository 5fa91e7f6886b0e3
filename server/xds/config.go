package xds

import (
	"context"
	"io"
	"log/slog"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/musterhq/muster/server/snapshot"
)

// Config configures a Server.
type Config struct {
	// Source offers the snapshots. Required.
	Source Source
	// Authorize returns the group of a data plane, from the peer in ctx and the
	// node's own words, or the gRPC status with which it is refused. Required.
	Authorize func(ctx context.Context, node *corev3.Node) (group string, err error)
	// Observer is told what happens. Default: nobody.
	Observer Observer
	// Limits bound what data planes can ask for.
	Limits Limits
	// Timing says how long the sessions wait for what.
	Timing Timing
	// Encoder is shared with other servers of the process; nil makes one.
	Encoder *snapshot.Encoder
	// ResourceErrors tells clients that ask for a resource that does not exist so
	// in the response's resource_errors. Default off: what is published of clients
	// does not read them, and one that does may fail what it would wait for.
	ResourceErrors bool
	// Metrics is where the metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
	// Logger takes structured logs. Default: none.
	Logger *slog.Logger
}

// Timing says how long sessions wait. Zero fields mean the defaults.
type Timing struct {
	// Gate bounds how long routes wait for the acknowledgement of the clusters
	// that they may need. Envoy waits for endpoints 15 s at most. Default 5s.
	Gate time.Duration
	// Linger is how long a gRPC client is left the clusters that it still asks
	// for after it acknowledged the routes that no longer use them. Default 1s.
	Linger time.Duration
	// WarmUp is how long grpc-go is left, before its routes switch to a cluster that
	// is new to it, to ask for the cluster and its endpoints; a tenth of it when it
	// has acknowledged both. Default 500ms.
	WarmUp time.Duration
	// Settle is how long a stream is left to say what the client holds before
	// anything is removed from it, and before a returning client that has not
	// asked for clusters yet gets routes. Envoy asks for everything within a few
	// milliseconds, in no fixed order. Default 2s.
	Settle time.Duration
	// CatchUp bounds how long a data plane waits that is ahead of this server.
	// Default 10s.
	CatchUp time.Duration
	// TTL is how long clients keep resources without hearing of them, where they
	// support that. Default 0: for ever, since data planes outlive the control plane.
	TTL time.Duration
	// Ack bounds how long a response may go unanswered before the stream is
	// closed. Default 5m.
	Ack time.Duration
}

// DefaultTiming returns the defaults.
func DefaultTiming() Timing { return Timing{}.withDefaults() }

func (t Timing) withDefaults() Timing {
	orDefault(&t.Gate, 5*time.Second)
	orDefault(&t.Linger, time.Second)
	orDefault(&t.WarmUp, 500*time.Millisecond)
	orDefault(&t.Settle, 2*time.Second)
	orDefault(&t.CatchUp, 10*time.Second)
	orDefault(&t.Ack, 5*time.Minute)
	return t
}

// Limits bound what data planes can ask for. Zero fields mean the defaults;
// negative ones no limit.
type Limits struct {
	// Connections bounds the open connections, in total and per peer IP address;
	// see Server.Listener. Defaults 20000 and 2000.
	Connections, ConnectionsPerAddress int
	// StreamsPerConnection bounds the open streams of a connection. Default 1000:
	// a relay has one per group, an Envoy without ADS one per type and resource.
	StreamsPerConnection int
	// FirstMessage is how long a stream may wait before it sends its first
	// request. Default 10s.
	FirstMessage time.Duration
	// MessageSize bounds a request, in bytes: a reconnecting client sends the
	// version of everything it holds. Default 64 MiB.
	MessageSize int
	// Subscriptions bounds the names that a stream subscribes to, of all types.
	// Default 100000.
	Subscriptions int
	// Types bounds the types that a stream subscribes to. Default 32.
	Types int
	// ColdStarts bounds how many first requests are worked on at a time. Default 64.
	ColdStarts int
	// Replacements bounds how often a minute a node's stream may be replaced by a
	// newer one of the same node id: two data planes with one id would take turns
	// for ever. Default 6.
	Replacements int
	// ConnectionAge is how long a connection lives before its data plane is asked
	// to come back, which spreads data planes over servers; with a jitter of a
	// tenth. Streams end within ConnectionAgeGrace. Default no limit, and 1m.
	ConnectionAge, ConnectionAgeGrace time.Duration
	// Keepalive is how often an idle connection is pinged, and KeepaliveTimeout how
	// long the answer may take. Defaults 30s and 20s.
	Keepalive, KeepaliveTimeout time.Duration
	// MinPing is how often a client may ping; more often closes its connection.
	// Default 5s.
	MinPing time.Duration
}

// DefaultLimits returns the defaults.
func DefaultLimits() Limits { return Limits{}.withDefaults() }

func (l Limits) withDefaults() Limits {
	orDefault(&l.Connections, 20000)
	orDefault(&l.ConnectionsPerAddress, 2000)
	orDefault(&l.StreamsPerConnection, 1000)
	orDefault(&l.FirstMessage, 10*time.Second)
	orDefault(&l.MessageSize, 64<<20)
	orDefault(&l.Subscriptions, 100000)
	orDefault(&l.Types, 32)
	orDefault(&l.ColdStarts, 64)
	orDefault(&l.Replacements, 6)
	orDefault(&l.ConnectionAgeGrace, time.Minute)
	orDefault(&l.Keepalive, 30*time.Second)
	orDefault(&l.KeepaliveTimeout, 20*time.Second)
	orDefault(&l.MinPing, 5*time.Second)
	return l
}

func orDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

func (c Config) withDefaults() Config {
	if c.Observer == nil {
		c.Observer = NopObserver{}
	}
	c.Limits = c.Limits.withDefaults()
	c.Timing = c.Timing.withDefaults()
	if c.Encoder == nil {
		c.Encoder = snapshot.NewEncoder(snapshot.EncoderConfig{})
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return c
}
