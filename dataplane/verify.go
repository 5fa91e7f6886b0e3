package dataplane

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"slices"
	"strings"

	"github.com/musterhq/muster/manifest"
)

// verify returns nil when the state is the whole revision that its Manifest says,
// of the group, and, with keys, one of them signed it. A state without a Manifest
// is what it is, and trusted by nobody who has keys.
func (s *State) verify(group string, types []string, keys []ed25519.PublicKey) error {
	m := s.Manifest()
	switch {
	case m == nil && len(keys) == 0:
		return nil
	case m == nil:
		return errNoManifest
	case group != "" && m.GetGroup() != group:
		return fmt.Errorf("%w: %q", errForeignGroup, m.GetGroup())
	case m.GetEpoch() != s.Epoch() || m.GetRevision() != s.Revision() || !s.adhering(m, types):
		return errIncomplete
	case len(keys) == 0:
		return nil
	}
	if err := manifest.Verify(m, keys); err != nil {
		return err
	}
	return s.authentic(types)
}

// authentic checks that resources are what their versions say. A digest is of
// names and versions: a signed one says nothing of bodies but through this.
func (s *State) authentic(types []string) error {
	for _, typeURL := range types {
		for r := range s.All(typeURL) {
			if !r.authentic() {
				return fmt.Errorf("%w: %s %q", errContent, shortType(typeURL), r.Name)
			}
		}
	}
	return nil
}

// authentic reports whether the content part of the version is the beginning of
// the body's SHA-256, in base64.
func (r *Resource) authentic() bool {
	content := contentOf(r.Version)
	if content == r.Version {
		return false // a version of nobody's
	}
	told, err := base64.RawURLEncoding.DecodeString(content)
	sum := sha256.Sum256(r.Body.GetValue())
	return err == nil && len(told) <= len(sum) && bytes.Equal(told, sum[:len(told)])
}

// only returns the state with the resources of some types, and its Manifest.
func (s *State) only(types []string) *State {
	next := &State{epoch: s.epoch, revision: s.revision, types: map[string]typeState{}, manifest: s.manifest}
	for typeURL, t := range s.types {
		if typeURL == ManifestType || slices.Contains(types, typeURL) {
			next.types[typeURL] = t
		}
	}
	return next
}

// Views in names of RelayType that are for data planes of this library: what every
// client sees, and what those see that speak incremental xDS.
const (
	viewAll   = "all"
	viewDelta = "delta"
)

// fromRelay returns, of a state of RelayType, what a data plane sees of it. There a
// resource is called `<view>|<type>|<name>`; one of the narrower view stands before
// the one of all views.
func (s *State) fromRelay(types []string) *State {
	found := map[string][]*Resource{}
	gather := func(want string) {
		for r := range s.All(RelayType) {
			view, rest, _ := strings.Cut(r.Name, "|")
			typeName, name, ok := strings.Cut(rest, "|")
			if !strings.Contains(typeName, "/") {
				typeName = "type.googleapis.com/" + typeName
			}
			if !ok || view != want || r.Body.GetTypeUrl() != typeName || !slices.Contains(types, typeName) {
				continue
			}
			found[r.Body.GetTypeUrl()] = append(found[r.Body.GetTypeUrl()], &Resource{Name: name, Version: r.Version, Body: r.Body})
		}
	}
	gather(viewAll)
	gather(viewDelta)
	next := emptyState().at(s.epoch, s.revision)
	for typeURL, resources := range found {
		next = next.with(typeURL, resources, nil)
	}
	return next
}
