package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// The types of groups.
const (
	TypeGateway           = "api7_gateway"
	TypeIngressController = "api7_ingress_controller"
)

// Bounds of a group's fields, in bytes.
const (
	MaxGroupID     = 64
	MaxGroupName   = 128
	MaxPrefix      = 256
	MaxDescription = 4096
	MaxLabels      = 64
	MaxLabel       = 256
)

// NormalizeGroup fills in the defaults of a group to be created. It changes
// its argument.
func NormalizeGroup(g *musterv1.Group) {
	if g.GetId() == "" {
		g.Id = g.GetName()
	}
	if g.GetName() == "" {
		g.Name = g.GetId()
	}
	if g.GetType() == "" {
		g.Type = TypeGateway
	}
	if g.GetControlPlaneKeyPrefix() == "" {
		g.ControlPlaneKeyPrefix = "/gateway_groups/" + g.GetId()
	}
	if g.GetHistoryLimit() == 0 {
		g.HistoryLimit = DefaultHistoryLimit
	}
}

func (s *State) createGroup(in *musterv1.Group, at *timestamppb.Timestamp) (*State, Result) {
	meta := proto.CloneOf(in)
	NormalizeGroup(meta)
	if err := checkGroup(meta); err != nil {
		return s, Result{Err: err}
	}
	if err := s.checkFree(meta); err != nil {
		return s, Result{Err: err}
	}
	meta.CreatedAt, meta.UpdatedAt = at, at
	meta.Epoch, meta.Resources, meta.Revision = s.epoch, 0, 0
	next := *s
	if last, found := s.graves.Get([]byte(meta.GetId())); found {
		// The id was used before: data planes may hold its last revision, and
		// the new group's content must not pass for it.
		meta.Revision = last + 1
		next.graves, _, _ = s.graves.Delete([]byte(meta.GetId()))
	}
	g := &Group{meta: meta, history: history{baseRev: meta.GetRevision()}}
	next.groups, _, _ = s.groups.Insert([]byte(meta.GetId()), g)
	next.names, _, _ = s.names.Insert([]byte(meta.GetName()), meta.GetId())
	next.prefixes, _, _ = s.prefixes.Insert(prefixKey(meta), meta.GetId())
	return &next, Result{Group: meta}
}

// groupFields sets a group's field from another; these are the fields that may
// change. A field that is added here later needs an entry type of its own:
// a server that does not know it would refuse what others carry out.
var groupFields = map[string]func(dst, src *musterv1.Group){
	"name":          func(dst, src *musterv1.Group) { dst.Name = src.GetName() },
	"description":   func(dst, src *musterv1.Group) { dst.Description = src.GetDescription() },
	"labels":        func(dst, src *musterv1.Group) { dst.Labels = src.GetLabels() },
	"image_tag":     func(dst, src *musterv1.Group) { dst.ImageTag = src.GetImageTag() },
	"history_limit": func(dst, src *musterv1.Group) { dst.HistoryLimit = src.GetHistoryLimit() },
}

// GroupFields names the fields of a group that may change.
func GroupFields() []string { return slices.Sorted(maps.Keys(groupFields)) }

func (s *State) changeGroup(in *musterv1.Group, fields []string, at *timestamppb.Timestamp) (*State, Result) {
	g, found := s.groups.Get([]byte(in.GetId()))
	if !found {
		return s, Result{Err: &NotFoundError{Group: in.GetId()}}
	}
	meta := proto.CloneOf(g.meta)
	for _, name := range fields {
		set, known := groupFields[name]
		if !known {
			return s, Result{Err: &InvalidError{name, "is not a field that may change"}}
		}
		set(meta, in)
	}
	NormalizeGroup(meta)
	for _, fixed := range []struct{ field, now, asked string }{
		{"type", g.meta.GetType(), in.GetType()},
		{"control_plane_key_prefix", g.meta.GetControlPlaneKeyPrefix(), in.GetControlPlaneKeyPrefix()},
	} {
		if fixed.asked != "" && fixed.asked != fixed.now {
			return s, Result{Err: &InvalidError{fixed.field, "is fixed at creation"}}
		}
	}
	if err := checkGroup(meta); err != nil {
		return s, Result{Err: err}
	}
	next := *s
	if meta.GetName() != g.meta.GetName() {
		if err := s.checkNameFree(meta); err != nil {
			return s, Result{Err: err}
		}
		next.names, _, _ = next.names.Delete([]byte(g.meta.GetName()))
		next.names, _, _ = next.names.Insert([]byte(meta.GetName()), meta.GetId())
	}
	meta.UpdatedAt = at
	changed := *g
	changed.meta = meta
	changed.history = g.history.trimmed(meta.GetHistoryLimit())
	// The dropped revisions would live on in the array behind the slice.
	changed.history.records = slices.Clone(changed.history.records)
	next.groups, _, _ = next.groups.Insert([]byte(meta.GetId()), &changed)
	return &next, Result{Group: meta}
}

func (s *State) deleteGroup(c *musterv1.DeleteGroupCommand) (*State, Result) {
	g, found := s.groups.Get([]byte(c.GetId()))
	if !found {
		return s, Result{Err: &NotFoundError{Group: c.GetId()}}
	}
	if g.view.Len() > 0 && !c.GetForce() {
		return s, Result{Err: fmt.Errorf("group %q: %d resources: %w", g.ID(), g.view.Len(), ErrGroupNotEmpty)}
	}
	next := *s
	next.groups, _, _ = s.groups.Delete([]byte(g.ID()))
	next.names, _, _ = s.names.Delete([]byte(g.meta.GetName()))
	next.prefixes, _, _ = s.prefixes.Delete(prefixKey(g.meta))
	if g.Revision() > 0 {
		next.graves, _, _ = s.graves.Insert([]byte(g.ID()), g.Revision())
	}
	next.requests = s.requests.forget(g.ID())
	return &next, Result{Group: g.meta}
}

// prefixKey ends in a slash, so that `/a` is not taken for a prefix of `/ab`.
func prefixKey(meta *musterv1.Group) []byte {
	return []byte(meta.GetControlPlaneKeyPrefix() + "/")
}

// checkFree refuses a group whose id, name or prefix could be taken for
// another's.
func (s *State) checkFree(meta *musterv1.Group) error {
	if _, found := s.groups.Get([]byte(meta.GetId())); found {
		return &ExistsError{Group: meta.GetId(), Field: "id", Value: meta.GetId()}
	}
	if other, found := s.names.Get([]byte(meta.GetId())); found {
		return &ExistsError{Group: other, Field: "id", Value: meta.GetId()}
	}
	if err := s.checkNameFree(meta); err != nil {
		return err
	}
	key := prefixKey(meta)
	if _, other, found := s.prefixes.Root().LongestPrefix(key); found {
		return &ExistsError{Group: other, Field: "control_plane_key_prefix", Value: meta.GetControlPlaneKeyPrefix()}
	}
	var err error
	s.prefixes.Root().WalkPrefix(key, func(_ []byte, other string) bool {
		err = &ExistsError{Group: other, Field: "control_plane_key_prefix", Value: meta.GetControlPlaneKeyPrefix()}
		return true
	})
	return err
}

func (s *State) checkNameFree(meta *musterv1.Group) error {
	if other, found := s.names.Get([]byte(meta.GetName())); found && other != meta.GetId() {
		return &ExistsError{Group: other, Field: "name", Value: meta.GetName()}
	}
	if meta.GetName() != meta.GetId() {
		if _, found := s.groups.Get([]byte(meta.GetName())); found {
			return &ExistsError{Group: meta.GetName(), Field: "name", Value: meta.GetName()}
		}
	}
	return nil
}

// checkGroup refuses fields out of bounds, of a group with its defaults filled in.
func checkGroup(meta *musterv1.Group) error {
	switch {
	case !segment(meta.GetId()) || len(meta.GetId()) > MaxGroupID:
		return &InvalidError{"id", "must be 1 to 64 of a-z, A-Z, 0-9, '-', '_' and '.', and not '.' or '..'"}
	case meta.GetName() == "" || len(meta.GetName()) > MaxGroupName || strings.ContainsFunc(meta.GetName(), unicode.IsControl):
		return &InvalidError{"name", "must be 1 to 128 bytes without control characters"}
	case meta.GetType() != TypeGateway && meta.GetType() != TypeIngressController:
		return &InvalidError{"type", "must be api7_gateway or api7_ingress_controller"}
	case !validPrefix(meta.GetControlPlaneKeyPrefix()):
		return &InvalidError{"control_plane_key_prefix", "must be '/' and segments of a-z, A-Z, 0-9, '-', '_' and '.', without '.' or '..' or an end slash, 256 bytes at most"}
	case meta.GetControlPlaneKeyPrefix() == "/gateway_groups":
		return &InvalidError{"control_plane_key_prefix", "/gateway_groups is where the default prefixes lie"}
	case len(meta.GetDescription()) > MaxDescription || strings.ContainsFunc(meta.GetDescription(), resource.IsUnprintable):
		return &InvalidError{"description", "is longer than 4096 bytes, or holds a control character"}
	case len(meta.GetImageTag()) > MaxLabel || strings.ContainsFunc(meta.GetImageTag(), unicode.IsControl):
		return &InvalidError{"image_tag", "is longer than 256 bytes, or holds a control character"}
	case meta.GetHistoryLimit() > MaxHistoryLimit:
		return &InvalidError{"history_limit", "is more than 10000"}
	case len(meta.GetLabels()) > MaxLabels:
		return &InvalidError{"labels", "are more than 64"}
	}
	for k, v := range meta.GetLabels() {
		if k == "" || len(k) > MaxLabel || len(v) > MaxLabel {
			return &InvalidError{"labels", "have an empty key, or a key or value longer than 256 bytes"}
		}
		if strings.ContainsFunc(k, unicode.IsControl) || strings.ContainsFunc(v, unicode.IsControl) {
			return &InvalidError{"labels", "hold a control character"}
		}
	}
	return nil
}

func validPrefix(p string) bool {
	if len(p) > MaxPrefix || !strings.HasPrefix(p, "/") {
		return false
	}
	for part := range strings.SplitSeq(p[1:], "/") {
		if !segment(part) {
			return false
		}
	}
	return true
}

// segment reports whether s can stand between two slashes of a prefix.
func segment(s string) bool {
	if s == "" || s == "." || s == ".." {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_', r == '.':
			return false
		}
		return true
	})
}
