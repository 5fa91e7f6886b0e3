package admin

import (
	"context"
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"slices"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/auth"
)

const maxPageSize = 10000

// viewAt returns the group's view at a revision; 0 is the current one.
func viewAt(g *state.Group, revision uint64) (state.View, uint64, error) {
	if revision == 0 || revision == g.Revision() {
		return g.View(), g.Revision(), nil
	}
	if revision > g.Revision() {
		return state.View{}, 0, &state.InvalidError{Field: "revision", Reason: fmt.Sprintf("%d is not there yet; the group is at %d", revision, g.Revision())}
	}
	v, ok := g.At(revision)
	if !ok {
		return state.View{}, 0, &state.TrimmedError{Group: g.ID(), Revision: revision, Oldest: g.Oldest()}
	}
	return v, revision, nil
}

// mayReveal checks that the caller may see what it asks to have revealed.
func mayReveal(ctx context.Context, reveal bool) error {
	if !reveal {
		return nil
	}
	if id, ok := auth.FromContext(ctx); ok && id.Role.Allows(auth.PermissionWrite) {
		return nil
	}
	return errSecrets
}

func stored(e *state.Entry, reveal bool) *musterv1.StoredResource {
	r := e.Resource
	if !reveal {
		r = redact(r)
	}
	return &musterv1.StoredResource{Resource: r, Revision: e.Revision, Author: e.Author, CreatedRevision: e.Created}
}

// GetResource implements AdminService.
func (s *Service) GetResource(ctx context.Context, req *musterv1.GetResourceRequest) (*musterv1.GetResourceResponse, error) {
	resp, err := s.getResource(ctx, req)
	return resp, toStatus(err)
}

func (s *Service) getResource(ctx context.Context, req *musterv1.GetResourceRequest) (*musterv1.GetResourceResponse, error) {
	if err := mayReveal(ctx, req.GetRevealSecrets()); err != nil {
		return nil, err
	}
	key := resource.KeyFromProto(req.GetKey())
	if resource.KindName(key.Kind) == "unknown" || key.ID == "" {
		return nil, requiredField("key")
	}
	g, err := s.readGroup(ctx, req.GetGroup(), req.GetStale())
	if err != nil {
		return nil, err
	}
	view, revision, err := viewAt(g, req.GetRevision())
	if err != nil {
		return nil, err
	}
	e, ok := view.Get(key)
	if !ok {
		return nil, &state.NotFoundError{Group: g.ID(), Key: key}
	}
	return &musterv1.GetResourceResponse{Resource: stored(e, req.GetRevealSecrets()), Revision: revision}, nil
}

// ListResources implements AdminService.
func (s *Service) ListResources(ctx context.Context, req *musterv1.ListResourcesRequest) (*musterv1.ListResourcesResponse, error) {
	resp, err := s.listResources(ctx, req)
	return resp, toStatus(err)
}

func (s *Service) listResources(ctx context.Context, req *musterv1.ListResourcesRequest) (*musterv1.ListResourcesResponse, error) {
	if err := mayReveal(ctx, req.GetRevealSecrets()); err != nil {
		return nil, err
	}
	kinds, err := kindsOf(req.GetKinds())
	if err != nil {
		return nil, err
	}
	if req.GetPageSize() > maxPageSize {
		return nil, &state.InvalidError{Field: "page_size", Reason: fmt.Sprintf("is above %d", maxPageSize)}
	}
	page, err := parsePageToken(req.GetPageToken())
	if err != nil {
		return nil, err
	}
	g, err := s.readGroup(ctx, req.GetGroup(), req.GetStale())
	if err != nil {
		return nil, err
	}
	// Pages after the first read the revision of the first, so that together
	// they are one consistent list.
	at := req.GetRevision()
	if page.revision != 0 {
		at = page.revision
	}
	view, revision, err := viewAt(g, at)
	if err != nil {
		return nil, err
	}
	resp := &musterv1.ListResourcesResponse{Revision: revision}
	var last resource.Key
	for _, kind := range kinds {
		if kind < page.after.Kind {
			continue
		}
		for e := range view.All(kind) {
			if kind == page.after.Kind && e.Key.ID <= page.after.ID {
				continue
			}
			if n := req.GetPageSize(); n > 0 && len(resp.Resources) == int(n) {
				resp.NextPageToken = pageToken{revision: revision, after: last}.String()
				return resp, nil
			}
			resp.Resources = append(resp.Resources, stored(e, req.GetRevealSecrets()))
			last = e.Key
		}
	}
	return resp, nil
}

// kindsOf returns the kinds asked for, in the enum's order, which is the order
// of pages.
func kindsOf(asked []musterv1.Kind) ([]musterv1.Kind, error) {
	all := resource.Kinds()
	slices.Sort(all)
	if len(asked) == 0 {
		return all, nil
	}
	for i, k := range asked {
		if !slices.Contains(all, k) {
			return nil, &state.InvalidError{Field: fmt.Sprintf("kinds[%d]", i), Reason: "is not a known kind"}
		}
	}
	asked = slices.Clone(asked)
	slices.Sort(asked)
	return slices.Compact(asked), nil
}

// pageToken says where the next page begins.
type pageToken struct {
	revision uint64
	after    resource.Key
}

func (t pageToken) String() string {
	b := binary.AppendUvarint(nil, t.revision)
	b = binary.AppendUvarint(b, uint64(t.after.Kind))
	return base64.RawURLEncoding.EncodeToString(append(b, t.after.ID...))
}

func parsePageToken(s string) (t pageToken, err error) {
	if s == "" {
		return t, nil
	}
	bad := &state.InvalidError{Field: "page_token", Reason: "is not one that a page returned"}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return t, bad
	}
	rev, n := binary.Uvarint(b)
	if n <= 0 {
		return t, bad
	}
	kind, m := binary.Uvarint(b[n:])
	if m <= 0 || kind > uint64(musterv1.Kind_KIND_XDS_RESOURCE) {
		return t, bad
	}
	return pageToken{revision: rev, after: resource.Key{Kind: musterv1.Kind(kind), ID: string(b[n+m:])}}, nil
}
