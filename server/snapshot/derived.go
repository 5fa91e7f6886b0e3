package snapshot

import (
	"bytes"
	"encoding/binary"
	"iter"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
)

// ManifestType is the type URL of the resource that says what a revision
// consists of. Every group has one of it, of the group's name.
const ManifestType = "type.googleapis.com/muster.v1.Manifest"

// maxVariants bounds the variants that are kept per set. More are
// derived anew for each session that asks.
const maxVariants = 64

// variants are the sets derived from a set for data planes that listen elsewhere
// or do not use ADS.
type variants struct {
	mu   sync.Mutex
	sets map[any]*Set // by compile.ListenOptions and compile.Sources
}

// get returns the variant of a key, made when it is first asked for.
func (v *variants) get(key any, derive func() *Set) *Set {
	v.mu.Lock()
	defer v.mu.Unlock()
	if s, ok := v.sets[key]; ok {
		return s
	}
	s := derive()
	if len(v.sets) < maxVariants {
		if v.sets == nil {
			v.sets = map[any]*Set{}
		}
		v.sets[key] = s
	}
	return s
}

// listening returns the set of listeners as a data plane needs it that listens
// where listen says.
func (t *Set) listening(listen compile.ListenOptions) *Set {
	return t.variants.get(listen, func() *Set {
		return t.derive(t.version, func(r *Resource) ([]byte, uint64) {
			body, err := compile.ListenerFor(r.Body, listen)
			if err != nil {
				return r.Body, r.Rev // not for us to judge: the data plane will
			}
			return body, r.Rev
		})
	})
}

// sourced returns the set as a data plane needs it that does not use ADS. It costs
// O(set) for each set that changed, whatever the number of such data planes.
func (t *Set) sourced(typeURL string, from compile.Sources) *Set {
	return t.variants.get(from, func() *Set {
		return t.derive(t.version, func(r *Resource) ([]byte, uint64) {
			if m := r.sourced.Load(); m != nil && m.from == from {
				return m.body, r.Rev
			}
			body, err := compile.SourcedFrom(typeURL, r.Body, from)
			if err != nil {
				body = r.Body // not for us to judge: the data plane will
			}
			r.sourced.Store(&sourcedBody{from, body})
			return body, r.Rev
		})
	})
}

// sourcedBody is a resource's body for data planes without ADS.
type sourcedBody struct {
	from compile.Sources
	body []byte
}

// derive returns the set, of version to, with other bodies; body also tells at
// which revision the derived resource changed.
func (t *Set) derive(to Version, body func(*Resource) ([]byte, uint64)) *Set {
	out := newSet(t.lineage, to.Epoch)
	out.floor, out.template = t.floor, t.template
	e := out.edit(to)
	it := t.byRev.Root().Iterator()
	for key, c, ok := it.Next(); ok; key, c, ok = it.Next() {
		if c.resource == nil {
			e.gone.Insert([]byte(c.name), binary.BigEndian.Uint64(key))
			e.byRev.Insert(key, c)
			continue
		}
		r := c.resource
		if b, rev := body(r); !bytes.Equal(b, r.Body) {
			r = newResource(r.TypeURL, r.Name, "", Version{to.Epoch, rev}, b, r.Origins, r.view)
		}
		e.byName.Insert([]byte(r.Name), r)
		e.byRev.Insert(revKey(r.Rev, r.Name), change{r.Name, r})
		e.set.print += r.print
		e.set.names += namePrintOf(r.Name)
		e.set.digest.add(r.digest)
	}
	s := e.set
	s.version = to
	s.byName, s.byRev, s.gone = e.byName.CommitOnly(), e.byRev.CommitOnly(), e.gone.CommitOnly()
	return s
}

// inline is the set of route configurations with their virtual hosts inline. It
// is made when a client of the state-of-the-world protocol first asks, and
// shared by snapshots between which neither type changed.
type inline struct {
	once sync.Once
	made *Set
}

func (i *inline) set(routes, hosts *Set) *Set {
	i.once.Do(func() {
		to := routes.version
		if to.Less(hosts.version) {
			to = hosts.version
		}
		i.made = routes.derive(to, func(r *Resource) ([]byte, uint64) {
			if !hasField(r.Body, routeConfigVhds) {
				return r.Body, r.Rev
			}
			body, err := compile.SotWRouteConfiguration(r.Body, bodiesOf(hosts.Under(r.Name+"/")))
			if err != nil {
				return r.Body, r.Rev // not for us to judge: the data plane will
			}
			return body, max(r.Rev, hosts.version.Revision)
		})
	})
	return i.made
}

// routeConfigVhds is the number of RouteConfiguration.vhds.
const routeConfigVhds protowire.Number = 9

func hasField(message []byte, want protowire.Number) bool {
	for len(message) > 0 {
		num, _, n := protowire.ConsumeField(message)
		if n < 0 {
			return false
		}
		if num == want {
			return true
		}
		message = message[n:]
	}
	return false
}

func bodiesOf(rs iter.Seq[*Resource]) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for r := range rs {
			if !yield(r.Body) {
				return
			}
		}
	}
}

// manifests are the manifests of one snapshot, by view.
type manifests struct {
	mu   sync.Mutex
	sets map[View]*Set
}

// Manifest says what the snapshot consists of in a view.
func (s *Snapshot) Manifest(view View) *musterv1.Manifest {
	if view.Relay && s.passed != nil {
		return s.passed
	}
	m := &musterv1.Manifest{Epoch: s.version.Epoch, Revision: s.version.Revision, Group: s.group}
	types := s.Types()
	if view.Relay {
		types = []string{RelayType}
	}
	for _, typeURL := range types {
		if set := s.Set(typeURL, view); set.Len() > 0 {
			digest := set.Digest()
			m.Types = append(m.Types, &musterv1.TypeDigest{TypeUrl: typeURL, Count: uint64(set.Len()), Digest: digest.Bytes()})
		}
	}
	if s.sign != nil {
		s.sign(m)
	}
	return m
}

func (s *Snapshot) manifest(view View) *Set {
	if s.partial {
		return s.empty
	}
	s.manifests.mu.Lock()
	defer s.manifests.mu.Unlock()
	if set, ok := s.manifests.sets[view]; ok {
		return set
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(s.Manifest(view))
	if err != nil {
		// Names and URLs of the compiler's are valid UTF-8; a relay's upstream may
		// send others, and then there is no manifest to send on.
		return s.empty
	}
	e := newSet(s.lineage, s.version.Epoch).edit(s.version)
	e.put(newResource(ManifestType, s.group, "", s.version, body, nil, compile.ViewAll))
	set := e.commit(s.empty)
	set.past = nil
	if s.manifests.sets == nil {
		s.manifests.sets = map[View]*Set{}
	}
	if len(s.manifests.sets) < maxVariants {
		s.manifests.sets[view] = set
	}
	return set
}
