package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/admin"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/compile/plugin"
	"github.com/musterhq/muster/server/downstream"
	"github.com/musterhq/muster/server/fleet"
	"github.com/musterhq/muster/server/xds"
)

// reloadInterval is how often the files of certificates and keys are looked at.
const reloadInterval = 10 * time.Second

// firstPublication is how long a data plane may wait for its group to be
// published for the first time.
const firstPublication = 2 * time.Second

// Server is one muster server. Make it with [New] and run it with [Server.Run].
type Server struct {
	cfg     Config
	store   *raftstore.Store
	metrics *metrics
	calls   *callMetrics
	fleet   *fleet.Registry
	pub     *publisher
	present *presence
	xds     *xds.Server
	relays  *downstream.Service
	admin   *admin.Service
	auth    *auth.Authenticator

	adminLn, xdsLn, opsLn net.Listener
	adminTLS, xdsTLS      *auth.TLS // nil for plaintext
}

// New opens the store and the listeners; nothing is served before Run. The
// caller must call Run, or Close.
func New(cfg Config) (_ *Server, err error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, metrics: newMetrics()}
	defer func() {
		if err != nil {
			_ = s.Close()
		}
	}()
	if err := s.listen(); err != nil {
		return nil, err
	}
	if err := s.openStore(); err != nil {
		return nil, err
	}
	s.fleet = fleet.New(fleet.Config{
		Server: cfg.ServerID,
		Now:    time.Now,
		Describe: func(group, typeURL, name string) ([]resource.Key, *musterv1.Revision, bool) {
			return s.pub.Describe(group, typeURL, name)
		},
		Warn: func(group string, listeners []string) []string { return s.pub.Warnings(group, listeners) },
	})
	s.present = newPresence(s.store, s.fleet, cfg.DataDir, cfg.Version, s.adminLn.Addr().String(), cfg.Logger)
	s.pub = newPublisher(s.store, s.fleet, s.metrics, cfg.Logger, time.Now)
	s.pub.sign = signer(cfg.ManifestKey)
	s.metrics.follow(s.fleet, s.store)
	s.xds = xds.NewServer(xds.Config{
		Source:    s.pub,
		Observer:  s.fleet,
		Authorize: s.authorizeDataPlane,
		Limits:    cfg.XDSLimits,
		Timing:    cfg.XDSTiming,
		Metrics:   s.metrics.registry,
		Logger:    cfg.Logger,
	})
	s.relays = downstream.New(downstream.Config{
		Authorize: s.authorizeRelay, Groups: relayedGroups{s}, Fleet: s.fleet, Logger: cfg.Logger,
	})
	s.admin = admin.New(admin.Config{
		Store:     s.store,
		Cluster:   s.store,
		Compiler:  s.pub,
		Fleet:     s.fleet,
		PeerInfo:  s.present.peerInfo,
		Refresh:   s.present.Refresh,
		AskLeader: s.askLeader,
		Plugins:   plugin.Set(),
		Now:       time.Now,
		ServerID:  cfg.ServerID,
		Version:   cfg.Version,
		Logger:    cfg.Logger,
	})
	policy := auth.DefaultPolicy()
	s.auth = auth.NewAuthenticator(cfg.Keys, policy)
	s.calls = newCallMetrics(s.metrics.registry, cfg.Logger, policy)
	return s, nil
}

func (s *Server) listen() (err error) {
	if s.adminTLS, s.adminLn, err = listen(s.cfg.AdminAddr, s.cfg.AdminTLS, s); err != nil {
		return fmt.Errorf("admin port: %w", err)
	}
	if s.xdsTLS, s.xdsLn, err = listen(s.cfg.XDSAddr, s.cfg.XDSTLS, s); err != nil {
		return fmt.Errorf("xDS port: %w", err)
	}
	if s.cfg.OpsAddr == "" {
		return nil
	}
	// No key and no TLS: what is on it is for the machine's own scraper.
	if _, s.opsLn, err = listen(s.cfg.OpsAddr, auth.TLSFiles{}, s); err != nil {
		return fmt.Errorf("ops port: %w", err)
	}
	return nil
}

func listen(addr string, files auth.TLSFiles, s *Server) (*auth.TLS, net.Listener, error) {
	var certs *auth.TLS
	var err error
	if files.Enabled() {
		if certs, err = auth.LoadTLS(files, s.cfg.Logger); err != nil {
			return nil, nil, err
		}
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, nil, err
	}
	if err := auth.CheckListen(ln.Addr(), certs != nil); err != nil {
		_ = ln.Close()
		return nil, nil, err
	}
	return certs, ln, nil
}

func (s *Server) openStore() (err error) {
	s.store, err = raftstore.Open(raftstore.Config{
		DataDir:   filepath.Join(s.cfg.DataDir, "raft"),
		ServerID:  s.cfg.ServerID,
		RaftAddr:  s.cfg.RaftAddr,
		Advertise: s.cfg.RaftAdvertise,
		Bootstrap: s.cfg.Bootstrap,
		Join:      s.cfg.Join,
		Autopilot: s.cfg.Autopilot,

		Handle: func(ctx context.Context, _ string, message []byte) ([]byte, error) {
			return peerMessages{s.present, s.admin.Write}.handle(ctx, message)
		},
		TLS:      s.cfg.RaftTLS,
		AtRest:   s.cfg.AtRest,
		Insecure: s.cfg.Insecure,
		Logger:   s.cfg.Logger,
		Fatal:    s.cfg.Fatal,

		HeartbeatTimeout:  s.cfg.HeartbeatTimeout,
		ElectionTimeout:   s.cfg.ElectionTimeout,
		LeaderLease:       s.cfg.LeaderLease,
		SnapshotThreshold: s.cfg.SnapshotThreshold,
		TrailingLogs:      s.cfg.TrailingLogs,
		SnapshotInterval:  s.cfg.SnapshotInterval,
		DiskTimeout:       s.cfg.DiskTimeout,
		MinFreeBytes:      s.cfg.MinFreeBytes,
	})
	return err
}

// Close releases what New opened, for a server that is never run.
func (s *Server) Close() error {
	var errs []error
	for _, ln := range []net.Listener{s.adminLn, s.xdsLn, s.opsLn} {
		if ln != nil {
			errs = append(errs, ln.Close())
		}
	}
	if s.store != nil {
		errs = append(errs, s.store.Close())
	}
	return errors.Join(errs...)
}

// AdminAddr is the address of the admin port.
func (s *Server) AdminAddr() net.Addr { return s.adminLn.Addr() }

// XDSAddr is the address of the xDS port.
func (s *Server) XDSAddr() net.Addr { return s.xdsLn.Addr() }

// OpsAddr is the address of the ops port, nil when there is none.
func (s *Server) OpsAddr() net.Addr {
	if s.opsLn == nil {
		return nil
	}
	return s.opsLn.Addr()
}

// State is the replicated state as this server has it.
func (s *Server) State() *state.State { return s.store.State() }

// Admin is the admin API, for callers in this process. Calls need an identity
// in their context ([auth.WithIdentity]); no policy stands before them.
func (s *Server) Admin() *admin.Service { return s.admin }

// Authenticator checks the callers of further HTTP handlers of the admin port.
func (s *Server) Authenticator() *auth.Authenticator { return s.auth }

// Ready returns nil once the server has caught up with the cluster and serves
// every group, and again an error once it stops.
func (s *Server) Ready() error {
	if err := s.store.Ready(); err != nil {
		return err
	}
	if !s.pub.ready.Load() {
		return errNotServing
	}
	return nil
}

// errNotServing says that no group is served yet, or no longer.
var errNotServing = errors.New("this server has not caught up yet")

// Status is what a server says of itself.
type Status struct {
	ServerID      string
	Version       string
	Ready         bool
	Leader        string // id; empty when there is none
	LeaderAddress string
	IsLeader      bool
	Epoch         uint64
	Groups        int
	DataPlanes    int // connected to this server
}

// Status returns the server's status.
func (s *Server) Status() Status {
	st := s.store.State()
	id, addr, self := s.store.Leader()
	status := Status{
		ServerID: s.cfg.ServerID, Version: s.cfg.Version, Ready: s.Ready() == nil,
		Leader: id, LeaderAddress: addr, IsLeader: self, Epoch: st.Epoch(),
	}
	for g := range st.Groups() {
		status.Groups++
		status.DataPlanes += s.fleet.LiveHere(g.ID())
	}
	return status
}

// authorizeDataPlane tells which group a data plane belongs to: the id of the
// one that it names and that its certificate allows.
func (s *Server) authorizeDataPlane(ctx context.Context, node *corev3.Node) (string, error) {
	planes := auth.DataPlanes{TrustDomain: s.cfg.TrustDomain, Plaintext: s.xdsTLS == nil}
	name, err := planes.Authorize(ctx, node)
	if err != nil {
		return "", err
	}
	if !s.pub.ready.Load() {
		// Before this server has caught up it cannot know which groups there are.
		return "", status.Error(codes.Unavailable, errNotServing.Error())
	}
	// A group that was just made is published within milliseconds: waiting that
	// long beats sending the data plane away into its back-off.
	wait, cancel := context.WithTimeout(ctx, firstPublication)
	defer cancel()
	g, ok := s.store.State().Group(name)
	if !ok {
		// It may have been made through another server, of which this one is yet to hear.
		if err := s.store.ReadIndex(wait); err != nil {
			return "", status.Errorf(codes.Unavailable, "group %q is not known here, and the cluster cannot be asked for it: %v", name, err)
		}
		if g, ok = s.store.State().Group(name); !ok {
			return "", status.Errorf(codes.NotFound, "there is no group %q", name)
		}
	}
	if !s.pub.await(wait, g.ID()) {
		return "", status.Errorf(codes.Unavailable, "group %q is not served yet", name)
	}
	return g.ID(), nil
}

func tlsConfig(t *auth.TLS, protos ...string) *tls.Config {
	if t == nil {
		return nil
	}
	return t.Config(protos...)
}
