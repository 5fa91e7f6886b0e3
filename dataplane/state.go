package dataplane

import (
	"bytes"
	"iter"
	"maps"
	"slices"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/types/known/anypb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Resource is one xDS resource as the upstream sent it. It is shared and must
// not be modified.
type Resource struct {
	Name    string
	Version string
	Body    *anypb.Any
}

// State is the configuration of a group at one version. It is immutable: all
// methods are safe for concurrent use, and a changed state shares structure with
// the one it was made from.
type State struct {
	epoch, revision uint64
	types           map[string]typeState
	manifest        *musterv1.Manifest // as the resource of its type has it
}

type typeState struct {
	tree   *iradix.Tree[*Resource]
	digest digest
}

func emptyState() *State { return &State{} }

// Epoch returns the epoch of the state's revision.
func (s *State) Epoch() uint64 { return s.epoch }

// Revision returns the group's revision, 0 when no Manifest has told it.
func (s *State) Revision() uint64 { return s.revision }

// Types returns the type URLs of which the state holds resources, sorted; the
// Manifest's is one of them.
func (s *State) Types() []string { return slices.Sorted(maps.Keys(s.types)) }

// Manifest returns the Manifest that the state was checked against, with its
// signature; nil when the upstream has sent none. It must not be modified.
func (s *State) Manifest() *musterv1.Manifest { return s.manifest }

// Get returns a resource.
func (s *State) Get(typeURL, name string) (*Resource, bool) {
	t, ok := s.types[typeURL]
	if !ok {
		return nil, false
	}
	return t.tree.Get([]byte(name))
}

// Len returns the number of resources of a type.
func (s *State) Len(typeURL string) int {
	t, ok := s.types[typeURL]
	if !ok {
		return 0
	}
	return t.tree.Len()
}

// All returns the resources of a type in the order of their names.
func (s *State) All(typeURL string) iter.Seq[*Resource] {
	return func(yield func(*Resource) bool) {
		t, ok := s.types[typeURL]
		if !ok {
			return
		}
		it := t.tree.Root().Iterator()
		for _, r, ok := it.Next(); ok; _, r, ok = it.Next() {
			if !yield(r) {
				return
			}
		}
	}
}

// with returns the state with resources of a type added, replaced and removed.
func (s *State) with(typeURL string, upsert []*Resource, remove []string) *State {
	if len(upsert) == 0 && len(remove) == 0 {
		return s
	}
	t, ok := s.types[typeURL]
	if !ok {
		t.tree = iradix.New[*Resource]()
	}
	txn := t.tree.Txn()
	for _, name := range remove {
		if old, ok := txn.Delete([]byte(name)); ok {
			t.digest.sub(resourceDigest(old.Name, old.Version))
		}
	}
	for _, r := range upsert {
		if old, ok := txn.Insert([]byte(r.Name), r); ok {
			t.digest.sub(resourceDigest(old.Name, old.Version))
		}
		t.digest.add(resourceDigest(r.Name, r.Version))
	}
	t.tree = txn.Commit()
	next := &State{epoch: s.epoch, revision: s.revision, types: maps.Clone(s.types), manifest: s.manifest}
	if next.types == nil {
		next.types = map[string]typeState{}
	}
	if t.tree.Len() == 0 {
		delete(next.types, typeURL)
	} else {
		next.types[typeURL] = t
	}
	return next
}

// at returns the state with another version.
func (s *State) at(epoch, revision uint64) *State {
	return &State{epoch: epoch, revision: revision, types: s.types, manifest: s.manifest}
}

// manifestResource is the name under which a state holds its Manifest.
const manifestResource = "manifest"

// withManifest returns the state with another Manifest.
func (s *State) withManifest(r *Resource, m *musterv1.Manifest) *State {
	next := s.with(ManifestType, []*Resource{{Name: manifestResource, Version: r.Version, Body: r.Body}}, nil)
	next.manifest = m
	return next
}

// decodeManifest reads the Manifest of a state that came from disk.
func (s *State) decodeManifest() (*State, error) {
	r, ok := s.Get(ManifestType, manifestResource)
	if !ok {
		return s, nil
	}
	m := &musterv1.Manifest{}
	if err := r.Body.UnmarshalTo(m); err != nil {
		return nil, err
	}
	next := s.at(s.epoch, s.revision)
	next.manifest = m
	return next, nil
}

// adhering reports whether the state's resources of the types are what the
// Manifest says.
func (s *State) adhering(m *musterv1.Manifest, types []string) bool {
	listed := map[string]bool{}
	for _, t := range m.GetTypes() {
		if !slices.Contains(types, t.GetTypeUrl()) {
			continue
		}
		listed[t.GetTypeUrl()] = true
		have := s.types[t.GetTypeUrl()]
		if uint64(s.Len(t.GetTypeUrl())) != t.GetCount() || string(have.digest.bytes()) != string(t.GetDigest()) {
			if t.GetCount() == 0 && s.Len(t.GetTypeUrl()) == 0 {
				continue // an absent digest of nothing
			}
			return false
		}
	}
	for _, t := range types {
		if !listed[t] && s.Len(t) > 0 {
			return false
		}
	}
	return true
}

// sameResource reports whether two resources have the same version and content.
func sameResource(a, b *Resource) bool {
	return a == b || a.Version == b.Version && a.Body.GetTypeUrl() == b.Body.GetTypeUrl() &&
		bytes.Equal(a.Body.GetValue(), b.Body.GetValue())
}

// version orders the configurations of a group.
type version struct {
	Epoch    uint64 `json:"epoch"`
	Revision uint64 `json:"revision"`
}

func (v version) below(o version) bool {
	return v.Epoch < o.Epoch || v.Epoch == o.Epoch && v.Revision < o.Revision
}

func (v version) max(o version) version {
	if v.below(o) {
		return o
	}
	return v
}
