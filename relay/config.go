package relay

import (
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/xds"
)

// DefaultAddr is where a relay listens for data planes: the servers' xDS port.
const DefaultAddr = "127.0.0.1:7943"

// Config says what a relay is.
type Config struct {
	// ID is the relay's stable name: its node id upstream, and what data planes'
	// status names. Required.
	ID string
	// Upstream are host:port of servers' or relays' xDS ports. Required.
	Upstream []string
	// UpstreamTLS is the client configuration of the connection upstream. Without it
	// UpstreamInsecure must be set.
	UpstreamTLS      *tls.Config
	UpstreamInsecure bool
	// NoCompression asks the upstream for plain messages instead of gzip.
	NoCompression bool
	// DialOptions are added to those of the connection upstream, for tests.
	DialOptions []grpc.DialOption

	// Groups are the groups to carry, by id or name. Without any, those that have
	// all the Labels are; without labels either, all that the relay may carry.
	Groups []string
	Labels map[string]string
	// ManifestKeys, when set, are the keys of which one must have signed each
	// revision.
	ManifestKeys []ed25519.PublicKey

	// DataDir holds the last configuration of each group. Required; made with mode
	// 0700 when it does not exist.
	DataDir string
	// CacheKey, when set, encrypts the files in DataDir: at least 16 bytes.
	CacheKey []byte

	// SecondHome, when set, is where configuration is looked for that neither an
	// upstream nor the disk has; with KeepInSecondHome what is served is written there.
	SecondHome       *dataplane.SecondHome
	KeepInSecondHome bool

	// Addr is host:port to serve data planes and relays on; port 0 picks one, which
	// Relay.Addr tells. Default DefaultAddr.
	Addr string
	// TLS are the certificate files of that port. Without them it must be on
	// loopback, and Insecure set.
	TLS      auth.TLSFiles
	Insecure bool
	// TrustDomain is the SPIFFE trust domain of data planes' certificates.
	TrustDomain string
	// OpsAddr, when set, serves /metrics, /healthz and /readyz over plain HTTP.
	OpsAddr string

	// Limits and Timing are those of the sessions with data planes; Upstreaming
	// those of the client upstream.
	Limits      xds.Limits
	Timing      xds.Timing
	Upstreaming dataplane.Timing

	// Version is told upstream. Default "devel".
	Version string
	// ShutdownGrace is how long a stop waits for data planes to leave. Default 5s.
	ShutdownGrace time.Duration
	// Logger takes structured logs. Default: none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.Addr == "" {
		c.Addr = DefaultAddr
	}
	if c.Version == "" {
		c.Version = "devel"
	}
	if c.ShutdownGrace == 0 {
		c.ShutdownGrace = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}

// validate names every missing field at once.
func (c Config) validate() error {
	var errs []error
	if c.ID == "" {
		errs = append(errs, errors.New("the relay has no id"))
	}
	if len(c.Upstream) == 0 {
		errs = append(errs, errors.New("no upstream to follow"))
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New("data directory is missing"))
	}
	if c.UpstreamTLS == nil && !c.UpstreamInsecure {
		errs = append(errs, errors.New("no certificate for the connection upstream, and plaintext was not asked for"))
	}
	if !c.TLS.Enabled() && !c.Insecure {
		errs = append(errs, errors.New("the xDS port has no certificate, and plaintext was not asked for"))
	}
	if c.TLS.Enabled() && c.TrustDomain == "" {
		errs = append(errs, errors.New("the xDS port has a certificate but no trust domain to check data planes against"))
	}
	if len(c.CacheKey) > 0 && len(c.CacheKey) < 16 {
		errs = append(errs, errors.New("the key for the files on disk is shorter than 16 bytes"))
	}
	if len(errs) > 0 {
		return fmt.Errorf("relay configuration: %w", errors.Join(errs...))
	}
	return nil
}
