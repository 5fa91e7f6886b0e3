package snapshot

import (
	"strings"
	"sync"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
)

// RelayType is the type URL by which a relay subscribes to a group: to every
// resource of every type and view, each under a name that holds all three. What
// comes in its responses are the resources themselves, of their own types.
const RelayType = "type.googleapis.com/muster.v1.Relayed"

// ResumeName is the name under which a relay that comes back says, in
// initial_resource_versions, what it holds as a whole: see [ResumeVersion].
const ResumeName = "*"

const googleapis = "type.googleapis.com/"

// viewNames are the views in names of RelayType.
var viewNames = [viewCount]string{
	compile.ViewAll: "all", compile.ViewDelta: "delta", compile.ViewSotW: "sotw", compile.ViewGRPC: "grpc",
}

// relayName is the name of a resource among those of RelayType.
func relayName(view compile.View, k compile.Key) string {
	return viewNames[view] + "|" + strings.TrimPrefix(k.TypeURL, googleapis) + "|" + k.Name
}

// ParseRelayName takes the name of a resource of RelayType apart.
func ParseRelayName(name string) (view compile.View, key compile.Key, ok bool) {
	v, rest, ok1 := strings.Cut(name, "|")
	typeURL, own, ok2 := strings.Cut(rest, "|")
	if !ok1 || !ok2 || typeURL == "" {
		return 0, compile.Key{}, false
	}
	if !strings.Contains(typeURL, "/") {
		typeURL = googleapis + typeURL
	}
	for view, known := range viewNames {
		if v == known {
			return compile.View(view), compile.Key{TypeURL: typeURL, Name: own}, true
		}
	}
	return 0, compile.Key{}, false
}

// relayed is the set of RelayType of one snapshot. It is made when a relay first
// asks, and from then on each snapshot's follows from the one before.
type relayed struct {
	mu   sync.Mutex
	made *Set
}

// relayHistory is how many of its earlier contents a set of RelayType knows
// again: relays come back with one digest instead of a map of names.
const relayHistory = 256

func (s *Snapshot) relaySet() *Set {
	s.relayed.mu.Lock()
	defer s.relayed.mu.Unlock()
	if s.relayed.made == nil {
		s.relayed.made = s.gatherRelayed()
	}
	return s.relayed.made
}

// gatherRelayed puts the set together from those of all types and views.
func (s *Snapshot) gatherRelayed() *Set {
	out := newSet(s.lineage, s.version.Epoch)
	out.history = relayHistory
	e := out.edit(out.version)
	put := func(r *Resource) {
		e.byName.Insert([]byte(r.Name), r)
		e.byRev.Insert(revKey(r.Rev, r.Name), change{r.Name, r})
		e.set.print += r.print
		e.set.names += namePrintOf(r.Name)
		e.set.digest.add(r.digest)
	}
	add := func(t *Set, typeURL string, view compile.View) {
		e.set.floor = max(e.set.floor, t.floor)
		if e.to.Less(t.version) {
			e.to = t.version
		}
		it := t.byRev.Root().Iterator()
		for key, c, ok := it.Next(); ok; key, c, ok = it.Next() {
			name := relayName(view, compile.Key{TypeURL: typeURL, Name: c.name})
			switch {
			case c.resource == nil:
				rev := revOf(key)
				e.gone.Insert([]byte(name), rev)
				e.byRev.Insert(revKey(rev, name), change{name: name})
			case c.resource.view == view:
				put(relayedResource(c.resource))
			case c.resource.untouched != nil:
				// One of all views shows a removal from this one.
				r := relayedResource(c.resource)
				if before, ok := e.byName.Get([]byte(r.Name)); ok && before.SameContent(r) && before.Rev < r.Rev {
					e.forget(before)
					put(r)
				}
			}
		}
	}
	for typeURL, k := range s.types {
		add(k.base, typeURL, compile.ViewAll)
		for view, set := range k.views {
			if set != nil {
				add(set, typeURL, compile.View(view))
			}
		}
	}
	e.dirty = true
	set := e.commit(out)
	set.past = nil
	return set
}

// relayedResource is a resource as one of RelayType. It shares the resource's bytes.
func relayedResource(r *Resource) *Resource {
	name := relayName(r.view, compile.Key{TypeURL: r.TypeURL, Name: r.Name})
	head := appendString(nil, resourceVersion, r.Version)
	head = appendString(head, resourceName, name)
	return &Resource{
		Name: name, TypeURL: RelayType, Version: r.Version, Rev: r.Rev,
		head: head, passed: true, Encoded: r.Encoded[len(r.Encoded)-sizeOf(resourceResource, r.anyLen):], Body: r.Body, Origins: r.Origins,
		anyLen: r.anyLen, view: r.view, content: r.content,
		print:  printOfName(name, r.content),
		digest: digestOf(name, r.content),
	}
}

// nextRelayed derives the set of RelayType from that of the snapshot before,
// where that was made.
func (s *Snapshot) nextRelayed(before *relayed, upsert []Upsert, touched []*Resource, remove []compile.Key) {
	before.mu.Lock()
	from := before.made
	before.mu.Unlock()
	if from == nil || from.lineage != s.lineage {
		return
	}
	e := from.edit(s.version)
	for _, k := range remove {
		for view := range viewCount {
			e.remove(relayName(view, k))
		}
	}
	for _, u := range upsert {
		k := s.types[u.TypeURL]
		if k == nil {
			continue
		}
		// As the type's set has it: what did not change keeps its version.
		r, ok := k.view(u.View).Get(u.Name)
		if !ok || r.view != u.View {
			continue
		}
		// One that shows a removal from another view's set is left so, unless upstream
		// its version was moved on.
		next := relayedResource(r)
		before, ok := e.byName.Get([]byte(next.Name))
		if !ok || !before.SameContent(next) || u.Version != "" && before.Version != next.Version {
			e.put(next)
		}
	}
	for _, r := range touched {
		e.put(relayedResource(r))
	}
	s.relayed.made = from
	if set := e.commit(from); set != nil {
		s.relayed.made = set
	}
}

// RevisionOf returns the revision of the set's lineage from which on a client has
// to be told what changed, that holds resources of the digest: the set's own or
// that of one of its last predecessors. ok is false when there was no such set.
func (t *Set) RevisionOf(d Digest) (rev uint64, ok bool) {
	if t.digest == d {
		return t.version.Revision, true
	}
	for i := len(t.past) - 1; i >= 0; i-- {
		if p := t.past[i]; p.digest == d && p.rev >= t.floor {
			return p.rev, true
		}
	}
	return 0, false
}

// WithManifest returns the snapshot with the Manifest that relays are told: a
// relay passes on the one that it was given, with its signature.
func (s *Snapshot) WithManifest(m *musterv1.Manifest) *Snapshot {
	c := *s
	c.passed, c.manifests = m, &manifests{}
	return &c
}

// Partial returns the snapshot as one of which no Manifest is told: its resources
// came from an upstream without revisions.
func (s *Snapshot) Partial() *Snapshot {
	c := *s
	c.partial, c.manifests = true, &manifests{}
	return &c
}

// Signed returns the snapshot, and with it those that follow from it, with a
// function that signs each Manifest.
func (s *Snapshot) Signed(sign func(*musterv1.Manifest)) *Snapshot {
	c := *s
	c.sign, c.manifests = sign, &manifests{}
	return &c
}

// RelayNames returns the names that a resource may have among those of RelayType,
// one for each view.
func RelayNames(k compile.Key) []string {
	names := make([]string, viewCount)
	for view := range viewCount {
		names[view] = relayName(view, k)
	}
	return names
}
