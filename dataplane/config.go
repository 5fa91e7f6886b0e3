package dataplane

import (
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/structpb"
)

// ManifestMode says what the client does about the Manifest of a revision.
type ManifestMode int

const (
	// ManifestAuto applies whole revisions when the upstream sends a Manifest,
	// and type by type when it does not. An upstream whose resource versions are
	// muster's, and one that has sent a Manifest before, is always waited for.
	ManifestAuto ManifestMode = iota
	// ManifestRequired applies nothing without a Manifest.
	ManifestRequired
	// ManifestOff asks for no Manifest and applies type by type.
	ManifestOff
)

// Order says in which order the servers are tried.
type Order int

const (
	// OrderSpread starts at a place in the list that depends on NodeID, so that
	// many data planes spread over the servers.
	OrderSpread Order = iota
	// OrderPreferred starts at the first server of the list, and after a failure
	// tries the others in the order of the list.
	OrderPreferred
)

// Config configures a Client. Group, NodeID, Handler and at least one server are
// required; so is one of TLS and Insecure, unless Upstream is given.
type Config struct {
	// Servers are gRPC targets, usually host:port.
	Servers []string
	// Order says which server is tried first. The default is OrderSpread.
	Order Order
	// Upstream, when set, is used instead of connections of the client's own, so
	// that several clients share one connection per server. Servers, TLS,
	// Insecure and DialOptions are then those of the Upstream.
	Upstream *Upstream

	// Group is the gateway group: name or id. It is sent as node.cluster and as
	// the metadata entry "muster.group".
	Group string
	// NodeID identifies the data plane; it should be the same after a restart and
	// differ between data planes.
	NodeID string
	// Metadata is sent in node.metadata. Values are those that
	// structpb.NewValue accepts.
	Metadata map[string]any
	// UserAgentName and UserAgentVersion are shown to the operator, for example
	// "muster-gateway" and "0.1.0".
	UserAgentName, UserAgentVersion string

	// TLS configures the connection to the servers.
	TLS *tls.Config
	// Insecure allows plaintext connections when TLS is nil.
	Insecure bool
	// Compress asks the servers to compress what they send (gzip).
	Compress bool
	// DialOptions are added to those of the client, for tests and tracing.
	DialOptions []grpc.DialOption

	// Handler receives the updates.
	Handler Handler
	// TypeURLs are the types to subscribe to; DefaultTypes when empty.
	TypeURLs []string
	// Manifest says whether revisions are applied whole.
	Manifest ManifestMode
	// ManifestKeys, when set, are the keys of which one must have signed each
	// Manifest. Without a valid signature nothing of the upstream is applied, nor,
	// with WriteAhead, what is on disk. SecondHomeConfig has keys of its own.
	ManifestKeys []ed25519.PublicKey

	// CacheDir is where the last known good configuration is kept; empty keeps
	// none. Several groups may share a directory.
	CacheDir string
	// CacheKey, when set, encrypts the files in CacheDir. It is key material of at
	// least 16 bytes.
	CacheKey []byte

	// WriteAhead makes each update durable before the handler sees it, for a handler
	// that never refuses, and gives the handler nothing from disk that is older than
	// the newest it was ever given: a relay must not go back.
	WriteAhead bool

	// SecondHome, when set, is where a configuration is looked for when no server
	// answers: one that is newer than what is in service, if there is any in service.
	SecondHome *SecondHome
	// KeepInSecondHome makes the client write what is in service there, for relays and
	// backup gateways; the others only read. Whole revisions are written.
	KeepInSecondHome bool
	// GroupAlias is a name besides Group and the group's id by which others may look
	// for the group there.
	GroupAlias string

	// Logger receives the log; slog.Default() when nil.
	Logger *slog.Logger
	// Hooks are called on events, for metrics.
	Hooks Hooks

	// Timing holds waiting times; zero values mean the defaults.
	Timing Timing
}

// Timing holds the client's waiting times.
type Timing struct {
	// BackoffMin and BackoffMax bound the jittered exponential wait between rounds
	// of connection attempts. Defaults: 200 ms and 30 s.
	BackoffMin, BackoffMax time.Duration
	// Connect bounds the establishing of a connection. Default: 5 s.
	Connect time.Duration
	// FirstResponse bounds the wait for the first response on a new stream, after
	// which another server is tried. Default: 15 s.
	FirstResponse time.Duration
	// Manifest bounds the wait for a Manifest of an upstream that does not look
	// like muster, counted from its last response. Default: 500 ms.
	Manifest time.Duration
	// Incomplete bounds the time without any message during which the received
	// resources do not add up to the Manifest; then the stream is begun anew and
	// everything fetched again. Default: 10 s.
	Incomplete time.Duration
	// Keepalive is the interval of HTTP/2 pings. Default: 30 s; the least is 10 s.
	Keepalive time.Duration
	// SecondHome is how long a client with nothing in service waits for a server
	// before it looks into the second home; when every server has failed it looks at
	// once. Default: 2 s.
	SecondHome time.Duration
	// SecondHomeRetry is the wait between two looks, half of it random. Default: 30 s.
	SecondHomeRetry time.Duration
}

// Errors of New.
var (
	ErrNoServers  = errors.New("dataplane: no server given")
	ErrNoGroup    = errors.New("dataplane: no group given")
	ErrNoNodeID   = errors.New("dataplane: no node id given")
	ErrNoHandler  = errors.New("dataplane: no handler given")
	ErrNoSecurity = errors.New("dataplane: neither TLS nor Insecure given")
	ErrNoHome     = errors.New("dataplane: to keep in a second home, but none given")
	ErrCacheKey   = errors.New("dataplane: the cache key is shorter than 16 bytes")
)

const minCacheKey = 16

// withDefaults checks the configuration and fills in the defaults.
func (c Config) withDefaults() (Config, error) {
	if c.Upstream == nil {
		if len(c.Servers) == 0 {
			return c, ErrNoServers
		}
		if c.TLS == nil && !c.Insecure {
			return c, ErrNoSecurity
		}
	}
	switch {
	case c.Group == "":
		return c, ErrNoGroup
	case c.NodeID == "":
		return c, ErrNoNodeID
	case c.Handler == nil:
		return c, ErrNoHandler
	case len(c.CacheKey) > 0 && len(c.CacheKey) < minCacheKey:
		return c, ErrCacheKey
	case c.KeepInSecondHome && c.SecondHome == nil:
		return c, ErrNoHome
	}
	if _, err := structpb.NewStruct(c.Metadata); err != nil {
		return c, fmt.Errorf("dataplane: metadata: %w", err)
	}
	if len(c.TypeURLs) == 0 {
		c.TypeURLs = DefaultTypes()
	}
	c.TypeURLs = slices.DeleteFunc(slices.Clone(c.TypeURLs), func(t string) bool { return t == ManifestType })
	if c.UserAgentName == "" {
		c.UserAgentName = "muster-dataplane"
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Logger = c.Logger.With("group", c.Group)
	c.Timing = c.Timing.withDefaults()
	return c, nil
}

func (t Timing) withDefaults() Timing {
	orDefault(&t.BackoffMin, 200*time.Millisecond)
	orDefault(&t.BackoffMax, 30*time.Second)
	orDefault(&t.Connect, 5*time.Second)
	orDefault(&t.FirstResponse, 15*time.Second)
	orDefault(&t.Manifest, 500*time.Millisecond)
	orDefault(&t.Incomplete, 10*time.Second)
	orDefault(&t.Keepalive, 30*time.Second)
	orDefault(&t.SecondHome, 2*time.Second)
	orDefault(&t.SecondHomeRetry, 30*time.Second)
	t.BackoffMax = max(t.BackoffMax, t.BackoffMin)
	return t
}

func orDefault(d *time.Duration, def time.Duration) {
	if *d <= 0 {
		*d = def
	}
}
