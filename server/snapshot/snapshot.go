package snapshot

import (
	"maps"
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
)

// Snapshot is one group's xDS resources at one version. It is immutable; all
// methods are safe for concurrent use.
type Snapshot struct {
	group   string
	version Version
	at      time.Time
	types   map[string]*kind
	empty   *Set // of every type that never had a resource
	lineage *lineage

	inline    *inline
	manifests *manifests
	relayed   *relayed

	sign    func(*musterv1.Manifest) // nil: Manifests are not signed
	passed  *musterv1.Manifest       // what relays are told; nil: made here
	partial bool                     // there is no Manifest
}

// kind is the resources of one type: those of all clients, and per view that has
// resources of its own a whole set of that view. A nil view is as base.
type kind struct {
	base  *Set
	views [viewCount]*Set
}

const viewCount = compile.ViewGRPC + 1

// View says which resources a client sees. It is comparable.
type View struct {
	// Client is the kind of client: ViewDelta, ViewSotW or ViewGRPC. ViewAll sees
	// what is for every client only.
	Client compile.View
	// Listen is where the data plane listens, when that is not as compiled.
	Listen compile.ListenOptions
	// Relay is set for a relay, which sees the resources of all views, as RelayType.
	Relay bool
	// Sources is where the data plane asks for what resources refer to, when it does
	// not use ADS.
	Sources compile.Sources
}

// Empty returns a group's snapshot without any resource, of revision 0.
func Empty(group string, epoch uint64) *Snapshot {
	l := &lineage{}
	return &Snapshot{
		group:     group,
		version:   Version{Epoch: epoch},
		types:     map[string]*kind{},
		empty:     newSet(l, epoch),
		lineage:   l,
		inline:    &inline{},
		manifests: &manifests{},
		relayed:   &relayed{},
	}
}

// WithTemplate returns the snapshot in which a name of the type that is not there
// has the resource whose body make returns, if it returns one: for clients that
// ask by a name of their own making. Sets list no such resource. A name has the
// same body always.
func (s *Snapshot) WithTemplate(typeURL string, make func(name string) (body []byte, ok bool)) *Snapshot {
	c := *s
	c.types = maps.Clone(s.types)
	base := newSet(s.lineage, s.version.Epoch)
	if k := s.types[typeURL]; k != nil {
		b := *k.base
		base = &b
	}
	base.template = func(name string, epoch uint64) (*Resource, bool) {
		body, ok := make(name)
		if !ok {
			return nil, false
		}
		return NewResource(typeURL, name, Version{Epoch: epoch}, body), true
	}
	k := kind{base: base}
	if old := s.types[typeURL]; old != nil {
		k.views = old.views
	}
	c.types[typeURL] = &k
	return &c
}

// Group returns the name of the group.
func (s *Snapshot) Group() string { return s.group }

// Version returns the version of the group.
func (s *Snapshot) Version() Version { return s.version }

// PublishedAt returns when the snapshot was published; zero when it was not said.
func (s *Snapshot) PublishedAt() time.Time { return s.at }

// Published returns the snapshot with a time of publication, from which the
// latency of pushes is measured.
func (s *Snapshot) Published(at time.Time) *Snapshot {
	c := *s
	c.at = at
	return &c
}

// Types returns the type URLs of which there are or were resources, sorted.
func (s *Snapshot) Types() []string { return slices.Sorted(maps.Keys(s.types)) }

// Next returns the snapshot of version v, which differs from s by the delta.
// Removals are carried out first and take a name out of every view. It costs
// O(delta), but where v does not follow s in the same epoch: then revisions are
// counted anew, which costs O(group).
func (s *Snapshot) Next(v Version, d compile.Delta) *Snapshot {
	up := make([]Upsert, len(d.Upsert))
	for i, r := range d.Upsert {
		up[i] = Upsert{Key: r.Key, Body: r.Body, Origins: r.Origins, View: r.View}
	}
	return s.Apply(v, up, d.Remove)
}

// Upsert is a resource to add or replace.
type Upsert struct {
	compile.Key
	// Version is the version to pass on unchanged, as a relay does; empty makes
	// one from the revision and the body.
	Version string
	Body    []byte
	Origins []resource.Key
	View    compile.View
}

// Apply is Next for resources that may bring versions of their own.
func (s *Snapshot) Apply(v Version, upsert []Upsert, remove []compile.Key) *Snapshot {
	if v.Epoch != s.version.Epoch || v.Revision <= s.version.Revision {
		s = s.rebase(v)
	}
	n := &Snapshot{
		group: s.group, version: v, types: s.types, empty: s.empty, lineage: s.lineage,
		inline: s.inline, manifests: &manifests{}, relayed: &relayed{}, sign: s.sign, partial: s.partial,
	}
	edits := map[string]*kindEdit{}
	at := func(typeURL string) *kindEdit {
		e := edits[typeURL]
		if e == nil {
			k := s.types[typeURL]
			if k == nil {
				k = &kind{base: newSet(s.lineage, v.Epoch)}
			}
			e = &kindEdit{kind: k, to: v}
			edits[typeURL] = e
		}
		return e
	}
	for _, k := range remove {
		at(k.TypeURL).remove(k.Name)
	}
	for _, u := range upsert {
		r := newResource(u.TypeURL, u.Name, u.Version, v, u.Body, u.Origins, u.View)
		r.passed = u.Version != ""
		at(u.TypeURL).put(r)
	}
	if len(edits) > 0 {
		n.types = maps.Clone(s.types)
	}
	var touched []*Resource
	for typeURL, e := range edits {
		k, t := e.commit()
		if k != nil {
			n.types[typeURL] = k
		}
		touched = append(touched, t...)
	}
	n.nextRelayed(s.relayed, upsert, touched, remove)
	if n.types[compile.RouteConfigurationType] != s.types[compile.RouteConfigurationType] ||
		n.types[compile.VirtualHostType] != s.types[compile.VirtualHostType] {
		n.inline = &inline{}
	}
	return n
}

// rebase returns the snapshot in a lineage of its own, in which everything
// changed at v. The resources keep their versions.
func (s *Snapshot) rebase(v Version) *Snapshot {
	n := Empty(s.group, v.Epoch)
	n.version, n.sign, n.partial = v, s.sign, s.partial
	for typeURL, k := range s.types {
		fresh := &kind{base: k.base.rebase(n.lineage, v)}
		for i, set := range k.views {
			if set != nil {
				fresh.views[i] = set.rebase(n.lineage, v)
			}
		}
		n.types[typeURL] = fresh
	}
	return n
}

// Replace returns the snapshot of version v that holds exactly the resources
// given. What has the same content keeps its version.
func (s *Snapshot) Replace(v Version, upsert []Upsert) *Snapshot {
	keep := make(map[compile.Key]bool, len(upsert))
	for _, u := range upsert {
		keep[u.Key] = true
	}
	var remove []compile.Key
	for typeURL, k := range s.types {
		for _, t := range append([]*Set{k.base}, k.views[:]...) {
			if t == nil {
				continue
			}
			for r := range t.All() {
				if key := (compile.Key{TypeURL: typeURL, Name: r.Name}); !keep[key] {
					keep[key] = true // once
					remove = append(remove, key)
				}
			}
		}
	}
	return s.Apply(v, upsert, remove)
}

// Set returns the resources of a type in a view.
func (s *Snapshot) Set(typeURL string, view View) *Set {
	switch {
	case typeURL == ManifestType:
		return s.manifest(view)
	case typeURL == RelayType && view.Relay:
		return s.relaySet()
	}
	k := s.types[typeURL]
	if k == nil {
		return s.empty
	}
	set := k.view(view.Client)
	switch {
	case view.Sources != (compile.Sources{}) && compile.HasSources(typeURL):
		from := view.Sources
		view.Sources = compile.Sources{}
		return s.Set(typeURL, view).sourced(typeURL, from)
	case typeURL == compile.ListenerType && view.Listen != (compile.ListenOptions{}):
		return set.listening(view.Listen)
	case typeURL == compile.RouteConfigurationType && view.Client == compile.ViewSotW:
		// Virtual hosts belong to the delta view: whoever cannot use VHDS gets them here.
		return s.inline.set(set, s.Set(compile.VirtualHostType, View{Client: compile.ViewDelta}))
	}
	return set
}

func (k *kind) view(v compile.View) *Set {
	if v > 0 && v < viewCount && k.views[v] != nil {
		return k.views[v]
	}
	return k.base
}

// kindEdit is a kind in the making.
type kindEdit struct {
	kind  *kind
	to    Version
	base  *edit
	views [viewCount]*edit
	split [viewCount]bool // views that come into being
}

func (e *kindEdit) baseEdit() *edit {
	if e.base == nil {
		e.base = e.kind.base.edit(e.to)
	}
	return e.base
}

// viewEdit returns the edit of a view's set; nil where the view is as base.
func (e *kindEdit) viewEdit(v compile.View) *edit {
	if e.views[v] == nil && e.kind.views[v] != nil {
		e.views[v] = e.kind.views[v].edit(e.to)
	}
	return e.views[v]
}

func (e *kindEdit) put(r *Resource) {
	if r.view != compile.ViewAll {
		v := e.viewEdit(r.view)
		if v == nil {
			// The first of its view: from here on the view has a set of its own, which
			// begins as everyone's, in the middle of the edit as it is.
			v = e.branch(r.view)
		}
		v.put(r)
		return
	}
	e.baseEdit().put(r)
	for view := compile.View(1); view < viewCount; view++ {
		if v := e.viewEdit(view); v != nil {
			if own, ok := v.byName.Get([]byte(r.Name)); !ok || own.view == compile.ViewAll {
				v.put(r)
			}
		}
	}
}

func (e *kindEdit) branch(view compile.View) *edit {
	base := e.baseEdit()
	set := *base.set
	set.variants = &variants{}
	e.views[view] = &edit{
		set: &set, to: e.to, dirty: true,
		byName: base.byName.Clone(), byRev: base.byRev.Clone(), gone: base.gone.Clone(),
	}
	e.split[view] = true
	return e.views[view]
}

func (e *kindEdit) remove(name string) {
	e.baseEdit().remove(name)
	for view := compile.View(1); view < viewCount; view++ {
		if v := e.viewEdit(view); v != nil {
			v.remove(name)
		}
	}
}

// touch moves versions on where nothing but removals would show, and returns the
// resources of which it did. One that is of all views moves on in all of them: it
// comes to a relay as one resource, and must not differ there.
func (e *kindEdit) touch() (touched []*Resource) {
	for view := range viewCount {
		of := e.base
		if view != compile.ViewAll {
			of = e.views[view]
		}
		if of == nil {
			continue
		}
		r := of.touch(view)
		if r == nil {
			continue
		}
		touched = append(touched, r)
		if r.view != compile.ViewAll {
			continue
		}
		e.baseEdit().move(r)
		for other := compile.View(1); other < viewCount; other++ {
			if v := e.viewEdit(other); v != nil {
				v.move(r)
			}
		}
	}
	return touched
}

// commit returns the edited kind, or nil when nothing changed, and the resources
// whose versions were moved on to show removals.
func (e *kindEdit) commit() (_ *kind, touched []*Resource) {
	k := *e.kind
	changed := false
	touched = e.touch()
	if e.base != nil {
		if set := e.base.commit(e.kind.base); set != nil {
			k.base, changed = set, true
		}
	}
	for view, v := range e.views {
		if v == nil {
			continue
		}
		before := e.kind.views[view]
		if e.split[view] {
			before = e.kind.base
		}
		if set := v.commit(before); set != nil {
			k.views[view], changed = set, true
		}
	}
	if !changed {
		return nil, nil
	}
	return &k, touched
}
