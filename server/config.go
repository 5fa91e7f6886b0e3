package server

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/raftstore/atrest"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/xds"
)

// The ports that muster is known by.
const (
	DefaultAdminAddr = "127.0.0.1:7443"
	DefaultXDSAddr   = "127.0.0.1:7943"
	DefaultRaftAddr  = "127.0.0.1:7100"
)

// Config says what a server is. The zero value of each optional field means
// the default that its comment names.
type Config struct {
	// ServerID is the server's stable name in the cluster: 1 to 64 of
	// [a-zA-Z0-9-_.]. Required.
	ServerID string
	// DataDir holds everything the server keeps. Required; made with mode 0700
	// when it does not exist.
	DataDir string
	// Version is reported by GetServerInfo. Default "devel".
	Version string

	// AdminAddr and XDSAddr are host:port to listen on; port 0 picks one, which
	// Server.AdminAddr and XDSAddr tell. Defaults DefaultAdminAddr, DefaultXDSAddr.
	AdminAddr, XDSAddr string
	// RaftAddr is where peers reach this server. Empty runs a single server
	// without a raft port.
	RaftAddr string
	// RaftAdvertise is the address that peers are told, when it is not RaftAddr.
	RaftAdvertise string
	// Join lists raft addresses of servers of the cluster that a new data
	// directory is to become part of. It does nothing on later starts.
	Join []string
	// Autopilot says when servers get a vote and when dead ones are removed.
	Autopilot raftstore.Autopilot
	// What follows is the store's, by the names of [raftstore.Config]; the zero
	// values are its defaults.
	HeartbeatTimeout, ElectionTimeout, LeaderLease time.Duration
	SnapshotThreshold, TrailingLogs                uint64
	SnapshotInterval                               time.Duration
	DiskTimeout                                    time.Duration
	MinFreeBytes                                   int64
	// OpsAddr, when set, serves /metrics, /healthz and /readyz over plain HTTP
	// without a key. The admin port serves them too, /metrics with a key.
	OpsAddr string
	// Bootstrap makes this server the first of a new cluster when DataDir holds
	// none. It does nothing on later starts.
	Bootstrap bool

	// Keys are the API keys of the admin port. Required.
	Keys *auth.Keys
	// KeysFile, when set, is the file that Keys came from: it is followed, so that
	// keys come and go without a restart.
	KeysFile string
	// AdminTLS and XDSTLS are the certificate files of the two ports. Without
	// them a port must be on loopback and Insecure set.
	AdminTLS, XDSTLS auth.TLSFiles
	// RaftTLS are the certificate files of the connections between servers.
	// Required with RaftAddr unless Insecure is set.
	RaftTLS raftstore.TLSFiles
	// XDSLimits bound what data planes can ask for, XDSTiming says how long their
	// sessions wait for what. The zero values are the defaults.
	XDSLimits xds.Limits
	XDSTiming xds.Timing
	// TrustDomain is the SPIFFE trust domain of data planes' certificates.
	TrustDomain string
	// ManifestKey, when set, signs what each revision consists of, so that relays can
	// tell that nothing on the way changed it. All servers of a cluster need the same.
	ManifestKey ed25519.PrivateKey
	// AtRest encrypts the log and the snapshots on this server's disk; nil leaves
	// them in clear. See raftstore.Config.
	AtRest *atrest.Keys
	// Insecure allows plaintext, on loopback addresses.
	Insecure bool

	// HTTP, when set, builds the handler for HTTP requests on the admin port
	// that no built-in path takes: the REST API and the console.
	HTTP func(*Server) http.Handler

	// Fatal is called when the process must end at once, because its disk hangs
	// or is corrupt. Default: the store's, which logs and exits with status 1.
	Fatal func(error)
	// ShutdownGrace is how long a stop waits for calls under way. Default 5s.
	ShutdownGrace time.Duration
	// Logger takes structured logs. Default: none.
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	if c.AdminAddr == "" {
		c.AdminAddr = DefaultAdminAddr
	}
	if c.XDSAddr == "" {
		c.XDSAddr = DefaultXDSAddr
	}
	if c.Version == "" {
		c.Version = "devel"
	}
	if c.ShutdownGrace == 0 {
		c.ShutdownGrace = 5 * time.Second
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	return c
}

// validate names every missing field at once.
func (c Config) validate() error {
	var errs []error
	if c.ServerID == "" {
		errs = append(errs, errors.New("server id is missing"))
	}
	if c.DataDir == "" {
		errs = append(errs, errors.New("data directory is missing"))
	}
	if c.Keys == nil || c.Keys.Len() == 0 {
		errs = append(errs, errors.New("no API key: nobody could call the admin port"))
	}
	if !c.AdminTLS.Enabled() && !c.Insecure {
		errs = append(errs, errors.New("the admin port has no certificate and plaintext was not asked for"))
	}
	if !c.XDSTLS.Enabled() && !c.Insecure {
		errs = append(errs, errors.New("the xDS port has no certificate and plaintext was not asked for"))
	}
	if c.XDSTLS.Enabled() && c.XDSTLS.ClientCAFile == "" {
		errs = append(errs, errors.New("the xDS port has a certificate but no client CA: every data plane would be refused"))
	}
	if c.XDSTLS.Enabled() && c.TrustDomain == "" {
		errs = append(errs, errors.New("the xDS port has a certificate but no trust domain to check data planes against"))
	}
	if len(errs) > 0 {
		return fmt.Errorf("server configuration: %w", errors.Join(errs...))
	}
	return nil
}
