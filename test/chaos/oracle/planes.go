package oracle

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Version orders a group's configurations.
type Version struct{ Epoch, Revision uint64 }

// Below tells whether v comes before o.
func (v Version) Below(o Version) bool {
	return v.Epoch < o.Epoch || v.Epoch == o.Epoch && v.Revision < o.Revision
}

func (v Version) String() string { return fmt.Sprintf("%d.%d", v.Epoch, v.Revision) }

// Resource is one xDS resource as a data plane received it.
type Resource struct {
	TypeURL, Name, Version string
	Body                   []byte
}

// Snapshot is a whole configuration that a data plane put into service.
type Snapshot struct {
	Plane, Group string
	At           Version
	Resources    []Resource
	// Endpoints and Routes are the slots' values as two types of resources tell
	// them; they differ when revisions were mixed.
	Endpoints, Routes Values
}

// Planes is what all data planes received. Its methods are safe for concurrent
// use.
type Planes struct {
	groups []string

	mu         sync.Mutex
	violations []string
	snapshots  int
	resources  int
	// at is each plane's newest version, named each plane's newest version of a
	// resource.
	at    map[string]Version
	named map[string]held
	// contents is the one content of a version of a group, bodies that of a
	// version of a resource.
	contents map[string]content
	bodies   map[string][sha256.Size]byte
}

type content struct {
	sum    [sha256.Size]byte
	values Values
	plane  string
	// bodies are the sums of the resources' bodies, by type and name. Versions do
	// not count: a server that published several revisions at once gives what they
	// brought the last one's number, with the same hash.
	bodies map[string]string
}

// difference names the resources in which two contents differ.
func (c content) difference(o content) string {
	var out []string
	for name, v := range c.bodies {
		if short(o.bodies[name]) != short(v) {
			out = append(out, fmt.Sprintf("%s is %s and %q", name, v, o.bodies[name]))
		}
	}
	for name, v := range o.bodies {
		if _, ok := c.bodies[name]; !ok {
			out = append(out, fmt.Sprintf("%s is absent and %s", name, v))
		}
	}
	slices.Sort(out)
	return strings.Join(out, "; ")
}

func short(body string) string { sum, _, _ := strings.Cut(body, " "); return sum }

// NewPlanes returns a record of the data planes of some groups, whose names are
// part of the names of all that belongs to them.
func NewPlanes(groups []string) *Planes {
	return &Planes{groups: groups, at: map[string]Version{}, named: map[string]held{}, contents: map[string]content{}, bodies: map[string][sha256.Size]byte{}}
}

func (p *Planes) violate(format string, args ...any) {
	p.violations = append(p.violations, fmt.Sprintf(format, args...))
}

// Saw notes a whole configuration.
func (p *Planes) Saw(s Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snapshots++
	if was := p.at[s.Plane]; s.At.Below(was) {
		p.violate("I2: data plane %s of %s went from %s back to %s", s.Plane, s.Group, was, s.At)
	}
	p.at[s.Plane] = s.At
	for _, r := range s.Resources {
		p.body(s.Plane, s.Group, r)
	}
	if s.Endpoints != s.Routes {
		p.violate("I3: data plane %s holds a mixture at %s of %s: endpoints %#x, routes %#x", s.Plane, s.At, s.Group, s.Endpoints, s.Routes)
	}
	key := s.Group + "@" + s.At.String()
	now := content{sum: sumOf(s.Resources), values: s.Endpoints, plane: s.Plane, bodies: map[string]string{}}
	for _, r := range s.Resources {
		sum := sha256.Sum256(r.Body)
		now.bodies[r.TypeURL+" "+r.Name] = fmt.Sprintf("%x (version %s)", sum[:6], r.Version)
	}
	if was, ok := p.contents[key]; ok && was.sum != now.sum {
		p.violate("I3: %s has two contents, at data planes %s and %s: %s", key, was.plane, s.Plane, was.difference(now))
	}
	p.contents[key] = now
}

// Received notes one resource of a data plane that follows no Manifest.
func (p *Planes) Received(plane, group string, r Resource) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.resources++
	p.body(plane, group, r)
	v, hash, ok := versionOf(r.Version)
	if !ok {
		p.violate("I2: data plane %s received %s %q of version %q", plane, r.TypeURL, r.Name, r.Version)
		return
	}
	key := plane + " " + r.TypeURL + " " + r.Name
	if was := p.named[key]; v.Below(was.Version) && hash != was.hash {
		p.violate("I2: data plane %s went from %s of %s %q back to %s", plane, was.Version, r.TypeURL, r.Name, v)
	}
	p.named[key] = held{v, hash}
}

// body checks that a resource is of the group, and has one content a version.
func (p *Planes) body(plane, group string, r Resource) {
	for _, other := range p.groups {
		if other != group && (strings.Contains(r.Name, other) || bytes.Contains(r.Body, []byte(other))) {
			p.violate("I7: data plane %s of %s received %s %q, which is of %s", plane, group, r.TypeURL, r.Name, other)
		}
	}
	key := group + " " + r.TypeURL + " " + r.Name + " " + r.Version
	sum := sha256.Sum256(r.Body)
	if was, ok := p.bodies[key]; ok && was != sum {
		p.violate("I3: %s has two contents, the second at data plane %s", key, plane)
	}
	p.bodies[key] = sum
}

// Acknowledged compares what the data planes held at the revisions of
// acknowledged puts with the puts.
func (p *Planes) Acknowledged(ops []Op) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, op := range ops {
		if op.Kind != Put || op.Outcome != OK {
			continue
		}
		key := op.Group + "@" + Version{op.Epoch, op.Revision}.String()
		if c, ok := p.contents[key]; ok && c.values[op.Slot] != op.Value {
			p.violate("I3: data plane %s holds %#x at the revision of %s", c.plane, c.values, op)
		}
	}
}

// Forget lets a data plane begin anew: it has lost what it knew.
func (p *Planes) Forget(plane string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.at, plane)
}

// At returns a plane's newest version.
func (p *Planes) At(plane string) Version {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.at[plane]
}

// Take returns the violations since the last call.
func (p *Planes) Take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	taken := p.violations
	p.violations = nil
	return taken
}

// Counts returns how many configurations and single resources were received.
func (p *Planes) Counts() (snapshots, resources int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.snapshots, p.resources
}

func sumOf(resources []Resource) (sum [sha256.Size]byte) {
	sorted := slices.SortedFunc(slices.Values(resources), func(a, b Resource) int {
		return strings.Compare(a.TypeURL+" "+a.Name, b.TypeURL+" "+b.Name)
	})
	h := sha256.New()
	for _, r := range sorted {
		fmt.Fprintf(h, "%s %s %d\n", r.TypeURL, r.Name, len(r.Body))
		h.Write(r.Body)
	}
	h.Sum(sum[:0])
	return sum
}

// held is a version of a resource.
type held struct {
	Version
	hash string
}

// versionOf reads the version out of a resource's, `epoch.revision.hash`.
func versionOf(s string) (v Version, hash string, ok bool) {
	parts := strings.Split(s, ".")
	if len(parts) != 3 {
		return Version{}, "", false
	}
	epoch, err1 := strconv.ParseUint(parts[0], 10, 64)
	revision, err2 := strconv.ParseUint(parts[1], 10, 64)
	return Version{epoch, revision}, parts[2], err1 == nil && err2 == nil
}
