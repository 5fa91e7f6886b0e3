package xds

import (
	"strings"
	"time"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// stage is when a type is sent in relation to the others.
type stage uint8

const (
	// stageMake: clusters and what they need go first.
	stageMake stage = iota
	// stageRoute: what refers to clusters waits until they are in place.
	stageRoute
	// stageFree: types of which nothing is known wait for nothing.
	stageFree
	// stageManifest: goes when everything else has gone.
	stageManifest
)

// order is how a type is sent.
type order struct {
	typeURL string
	stage   stage
	// split: removals go in responses of their own, after the routes that used
	// what is removed were replaced. The others replace in one response: Envoy
	// refuses a domain that is in two virtual hosts, or a port in two listeners.
	split bool
	// complete: a state-of-the-world response holds everything; what is not in
	// it is removed.
	complete bool
	// legacy: a first request without names subscribes to everything.
	legacy bool
}

// orders are the known types in the order of sending.
var orders = [...]order{
	{typeURL: compile.ClusterType, stage: stageMake, split: true, complete: true, legacy: true},
	{typeURL: compile.EndpointType, stage: stageMake, split: true},
	{typeURL: compile.SecretType, stage: stageMake, split: true},
	{typeURL: compile.ExtensionConfigType, stage: stageRoute, split: true},
	{typeURL: compile.ListenerType, stage: stageRoute, complete: true, legacy: true},
	{typeURL: scopedRouteType, stage: stageRoute, legacy: true},
	{typeURL: compile.RouteConfigurationType, stage: stageRoute},
	{typeURL: compile.VirtualHostType, stage: stageRoute, legacy: true},
}

const scopedRouteType = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration"

// orderOf returns how a type is sent, and its rank among the types.
func orderOf(typeURL string) (order, int) {
	for i, o := range orders {
		if o.typeURL == typeURL {
			return o, i
		}
	}
	if typeURL == snapshot.ManifestType {
		return order{typeURL: typeURL, stage: stageManifest, legacy: true}, len(orders) + 1
	}
	return order{typeURL: typeURL, stage: stageFree}, len(orders)
}

// track is one type on one stream.
//
// What the client holds of the type is what held holds of the names it subscribes
// to, apart from exceptions: names in answers are to be sent whatever their
// version, those in extra the client has besides, and those in refused are at an
// older version or absent.
type track struct {
	order
	rank int

	// The subscription.
	wildcard bool
	names    interest
	globs    []string // prefixes of xdstp collections

	// What the client holds.
	held  *snapshot.Set
	at    *snapshot.Snapshot // the newest snapshot whose resources held are; nil while exceptions are on their way
	least *snapshot.Snapshot // no push may lead to an older one
	// extra is what the client has though it is gone: of split types until no route
	// uses it, of others until the next push.
	extra   map[string]surplus
	refused map[string]*refusal
	old     map[string]prior // of names that the client does not hold as held has them

	// What is to be sent, and on its way.
	answers map[string]bool // false: sent if it exists, nobody asked
	must    bool            // a response is due even if it is empty
	resend  bool            // the client asked for everything anew
	goal    *snapshot.Set   // where the push under way leads; nil when none is
	goalAt  *snapshot.Snapshot
	pushed  time.Time // when the push began
	queue   []chunk
	flights []flight
	warmBy  time.Time // when routes go that wait for a client to know their clusters,
	warmAt  time.Time // and when because it does; zero while none wait
	trials  int       // parts of refused responses that were sent in this push
	linger  time.Time // when removals are due; zero when none waits for time

	beat time.Time // when the next heartbeat is due; see ttl.go

	// State of the world only.
	sent     uint64 // the newest nonce
	named    bool   // the client named something once
	deaf     bool   // the last request was stale: wait for the one that is not
	accepted map[string]bool
}

// chunk is a response to send.
type chunk struct {
	frame   *snapshot.Frame // nil: made when it is sent
	kind    chunkKind
	test    []*snapshot.Resource // what is new to the client in it
	removed []string
	missing []string // names that were asked for and do not exist
	// clusters are those that the client must know before; see warmup.go.
	clusters []string
}

type chunkKind uint8

const (
	push chunkKind = iota
	answer
	removal
	heartbeat
	warmup
)

// flight is a response that was sent and not answered.
type flight struct {
	chunk
	nonce uint64
	sent  time.Time
}

// busy reports whether something of the type is on its way or waits for that.
func (t *track) busy() bool { return len(t.flights) > 0 || len(t.queue) > 0 }

// wants reports whether the client subscribes to a name.
func (t *track) wants(name string) bool {
	if t.wildcard || t.names.has(name) {
		return true
	}
	for _, prefix := range t.globs {
		if inCollection(name, prefix) {
			return true
		}
	}
	return false
}

// ask queues an answer for a name.
func (t *track) ask(name string) {
	if t.answers == nil {
		t.answers = map[string]bool{}
	}
	t.answers[name] = true
}

// offer queues a resource that nobody asked for.
func (t *track) offer(name string) {
	if t.answers == nil {
		t.answers = map[string]bool{}
	}
	if !t.answers[name] {
		t.answers[name] = t.wants(name)
	}
}

// isGlob reports whether a name stands for an xdstp collection.
func isGlob(name string) bool {
	if !strings.HasPrefix(name, "xdstp://") {
		return false
	}
	path, _, _ := strings.Cut(name, "?")
	return strings.HasSuffix(path, "/*")
}

// inCollection reports whether a resource is in the collection of a glob: the
// same path up to the last slash and the same context parameters, in any order.
func inCollection(name, glob string) bool {
	if !strings.HasPrefix(name, "xdstp://") {
		return false
	}
	path, params, _ := strings.Cut(name, "?")
	globPath, globParams, _ := strings.Cut(glob, "?")
	slash := strings.LastIndexByte(path, '/')
	return path[:slash+1] == globPath[:len(globPath)-1] && sameParams(params, globParams)
}

func sameParams(a, b string) bool {
	if a == b {
		return true
	}
	if len(a) != len(b) {
		return false
	}
	count := map[string]int{}
	for p := range strings.SplitSeq(a, "&") {
		count[p]++
	}
	for p := range strings.SplitSeq(b, "&") {
		if count[p]--; count[p] < 0 {
			return false
		}
	}
	return true
}

// surplus is a resource that is gone from the set, but not from the client.
type surplus struct {
	resource *snapshot.Resource // nil when nobody knows
	// gone is the version at which it was gone for certain: the client may lose it
	// when every route is there.
	gone snapshot.Version
	due  time.Time // when the client may lose it, of those that linger
}

// prior is what the client has of a name instead of what held has.
type prior struct {
	has      bool
	resource *snapshot.Resource // nil when nobody knows
}

// keep notes that the client keeps, for now, a resource that is gone at the version.
func (t *track) keep(name string, gone snapshot.Version) {
	if t.held == nil || !t.wants(name) {
		return
	}
	r, ok := t.held.Get(name)
	if f := t.refused[name]; f != nil && ok && r.SameContent(f.resource) {
		r, ok = f.good, f.good != nil || f.unknown
	}
	if ok {
		t.leave(name, surplus{resource: r, gone: gone})
	}
}

func (t *track) leave(name string, x surplus) {
	if t.extra == nil {
		t.extra = map[string]surplus{}
	}
	t.extra[name] = x
}
