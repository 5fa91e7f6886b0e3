package auth

import (
	"context"
	"crypto/tls"
	"net/url"
	"regexp"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/xds"
)

// DataPlanes decides which group a data plane belongs to. It is immutable.
type DataPlanes struct {
	// TrustDomain is the SPIFFE trust domain that certificates must be of.
	TrustDomain string
	// Plaintext accepts data planes that present no certificate. Set it only
	// for listeners that [CheckListen] admitted without TLS.
	Plaintext bool
}

// nodeID bounds what a data plane may call itself: the id travels into logs,
// metrics and paths.
var nodeID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.:@~/-]{0,255}$`)

// Authorize returns the group of a data plane: the metadata `muster.group`,
// else its cluster. Both are the client's own words, so where there is a
// certificate its identity must name the same group and node.
func (d DataPlanes) Authorize(ctx context.Context, node *corev3.Node) (string, error) {
	group := node.GetMetadata().GetFields()["muster.group"].GetStringValue()
	if group == "" {
		group = node.GetCluster()
	}
	if group == "" {
		return "", status.Error(codes.InvalidArgument, "the node names no group: set node.cluster or node.metadata muster.group")
	}
	if !nodeID.MatchString(node.GetId()) {
		return "", status.Error(codes.InvalidArgument, "node.id must be 1 to 256 of [a-zA-Z0-9_.:@~/-] and begin with a letter or digit")
	}
	if node.GetUserAgentName() == xds.RelayAgent {
		return group, d.authorizeRelay(ctx, node, group)
	}
	uris, encrypted := peerURIs(ctx)
	if !encrypted {
		if d.Plaintext {
			return group, nil
		}
		return "", status.Error(codes.Unauthenticated, "a client certificate is required")
	}
	for _, uri := range uris {
		g, n, ok := d.parse(uri)
		if ok && g == group && n == node.GetId() {
			return group, nil
		}
	}
	return "", status.Errorf(codes.PermissionDenied, "the certificate does not allow node %q in group %q", node.GetId(), group)
}

// Carrier says what a relay may do.
type Carrier struct {
	any    bool
	groups map[string]bool
	// agent is set for a relay with a data plane's certificate, which may carry that
	// data plane's group for it alone.
	agent string
}

// Carries tells whether the relay may carry a group.
func (c Carrier) Carries(group string) bool { return c.any || c.groups[group] }

// Tells tells whether the relay may report on a data plane.
func (c Carrier) Tells(node string) bool { return c.agent == "" || c.agent == node }

// AuthorizeRelay checks that the peer is the relay of the id, and returns what it
// may do. A certificate names a relay as spiffe://<trust-domain>/relay/<id>, for
// any group, or once per group as spiffe://<trust-domain>/relay/<id>/group/<group>.
// The id holds no slash. A data plane's certificate is that of an agent.
func (d DataPlanes) AuthorizeRelay(ctx context.Context, id string) (Carrier, error) {
	c := Carrier{groups: map[string]bool{}}
	if !nodeID.MatchString(id) {
		return c, status.Error(codes.InvalidArgument, "a relay's id must be 1 to 256 of [a-zA-Z0-9_.:@~/-] and begin with a letter or digit")
	}
	uris, encrypted := peerURIs(ctx)
	if !encrypted {
		if d.Plaintext {
			return Carrier{any: true}, nil
		}
		return c, status.Error(codes.Unauthenticated, "a client certificate is required")
	}
	for _, uri := range uris {
		if !d.plain(uri) || strings.Contains(id, "/") {
			continue
		}
		rest, ok := strings.CutPrefix(uri.Path, "/relay/"+id)
		switch group, of := strings.CutPrefix(rest, "/group/"); {
		case !ok:
		case rest == "":
			c.any = true
		case of && group != "" && !strings.Contains(group, "/"):
			c.groups[group] = true
		}
	}
	if c.any || len(c.groups) > 0 {
		return c, nil
	}
	for _, uri := range uris {
		if group, node, ok := d.parse(uri); ok && node == id {
			c.groups[group], c.agent = true, id
		}
	}
	if len(c.groups) == 0 {
		return c, status.Errorf(codes.PermissionDenied, "the certificate is not that of relay %q", id)
	}
	return c, nil
}

// authorizeRelay is Authorize for a relay's stream of one group.
func (d DataPlanes) authorizeRelay(ctx context.Context, node *corev3.Node, group string) error {
	c, err := d.AuthorizeRelay(ctx, node.GetId())
	if err == nil && !c.Carries(group) {
		err = status.Errorf(codes.PermissionDenied, "the certificate does not allow relay %q to carry group %q", node.GetId(), group)
	}
	return err
}

// parse reads spiffe://<trust-domain>/group/<group>/node/<id>. The id may hold
// slashes, the group may not.
func (d DataPlanes) parse(uri *url.URL) (group, node string, ok bool) {
	if !d.plain(uri) {
		return "", "", false
	}
	rest, ok := strings.CutPrefix(uri.Path, "/group/")
	if !ok {
		return "", "", false
	}
	group, node, ok = strings.Cut(rest, "/node/")
	return group, node, ok && group != "" && node != "" && !strings.Contains(group, "/")
}

// plain tells whether a URI is a SPIFFE id of the trust domain and nothing more:
// an escaped slash, for example, would make another name of the same bytes.
func (d DataPlanes) plain(uri *url.URL) bool {
	bare := url.URL{Scheme: "spiffe", Host: d.TrustDomain, Path: uri.Path}
	return uri.Host == d.TrustDomain && uri.String() == bare.String()
}

// peerURIs returns the URI SANs of the verified leaf certificate, and whether
// the connection is encrypted at all.
func peerURIs(ctx context.Context) ([]*url.URL, bool) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil, false
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return nil, false
	}
	return leafURIs(info.State), true
}

func leafURIs(state tls.ConnectionState) []*url.URL {
	if len(state.VerifiedChains) == 0 || len(state.VerifiedChains[0]) == 0 {
		return nil
	}
	return state.VerifiedChains[0][0].URIs
}
