package server

import (
	"context"
	"crypto/ed25519"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/manifest"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/downstream"
)

// relayedGroups offers the store's groups to the relays that hang on this server.
type relayedGroups struct{ srv *Server }

var _ downstream.Groups = relayedGroups{}

// Groups implements downstream.Groups.
func (r relayedGroups) Groups() ([]*musterv1.RelayedGroup, error) {
	if !r.srv.pub.ready.Load() {
		return nil, errNotServing
	}
	var out []*musterv1.RelayedGroup
	for g := range r.srv.store.State().Groups() {
		out = append(out, &musterv1.RelayedGroup{Id: g.ID(), Name: g.Meta().GetName(), Labels: g.Meta().GetLabels(), CreatedAt: g.Meta().GetCreatedAt()})
	}
	return out, nil
}

// Watch implements downstream.Groups.
func (r relayedGroups) Watch() (<-chan struct{}, func()) { return r.srv.store.Watch() }

// authorizeRelay tells what a relay may do, by its certificate.
func (s *Server) authorizeRelay(ctx context.Context, relay string) (auth.Carrier, error) {
	if !s.pub.ready.Load() {
		return auth.Carrier{}, status.Error(codes.Unavailable, errNotServing.Error())
	}
	planes := auth.DataPlanes{TrustDomain: s.cfg.TrustDomain, Plaintext: s.xdsTLS == nil}
	return planes.AuthorizeRelay(ctx, relay)
}

// signer signs Manifests with a key; nil without one.
func signer(key ed25519.PrivateKey) func(*musterv1.Manifest) {
	if key == nil {
		return nil
	}
	return func(m *musterv1.Manifest) { manifest.Sign(m, key) }
}
