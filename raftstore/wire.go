package raftstore

import (
	"context"
	"errors"

	"github.com/hashicorp/raft"

	"github.com/musterhq/muster/raftstore/state"
)

// TLSFiles names the certificate files of the connections between servers.
type TLSFiles struct {
	// CertFile and KeyFile hold this server's PEM chain and key. The
	// certificate carries the URI `spiffe://<trust domain>/server/<id>` and is
	// good for server and client use.
	CertFile, KeyFile string
	// CAFile holds the PEM bundle that the other servers' certificates must chain to.
	CAFile string
}

func (f TLSFiles) enabled() bool { return f != TLSFiles{} }

func (f TLSFiles) validate() error {
	if f.CertFile == "" || f.KeyFile == "" || f.CAFile == "" {
		return errors.New("raftstore: TLS needs CertFile, KeyFile and CAFile")
	}
	return nil
}

// Handler answers a message of another server.
type Handler func(ctx context.Context, from string, message []byte) ([]byte, error)

// ErrNotMember says that a server is not part of the cluster.
var ErrNotMember = errors.New("not a member of the cluster")

type wire struct{}

func (*wire) serve(ctx context.Context, s *Store) { <-ctx.Done() }
func (*wire) apply(context.Context, string, []byte) (state.Result, error) {
	return state.Result{}, ErrNoLeader
}
func (*wire) readIndex(context.Context, string) (uint64, error) { return 0, ErrNoLeader }

func (s *Store) keepMembers(ctx context.Context) { <-ctx.Done() }

func (s *Store) addressOf(id string) string {
	for _, server := range s.servers() {
		if string(server.ID) == id {
			return string(server.Address)
		}
	}
	return ""
}

func (s *Store) openTransport() error {
	if s.cfg.RaftAddr != "" {
		return errors.New("raftstore: RaftAddr is not supported yet")
	}
	addr, trans := raft.NewInmemTransport(raft.ServerAddress(s.id))
	trans.Connect(addr, trans)
	s.trans = trans
	return nil
}

func (s *Store) closeTransport() {}
