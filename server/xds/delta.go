package xds

import (
	"bytes"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// takeDelta carries out a request of the incremental protocol.
func (s *session) takeDelta(now time.Time, t *track, r *request, first bool) error {
	if !first && len(r.nonce) > 0 {
		// The nonce only says which response is answered. Of an unknown one nothing
		// follows, and the subscriptions count all the same.
		if f, ok := t.answered(r.nonce); ok {
			if r.failed {
				s.refuse(now, t, &f, r.failure)
			} else {
				s.acknowledge(now, t, &f)
			}
		}
	}
	if first {
		return s.firstDelta(t, r)
	}
	for name := range r.subscribed() {
		if err := s.subscribeDelta(t, name); err != nil {
			return err
		}
	}
	for name := range r.unsubscribed() {
		s.unsubscribeDelta(t, string(name))
	}
	return nil
}

// firstDelta begins the subscription to a type.
func (s *session) firstDelta(t *track, r *request) error {
	set := s.newest.Set(t.typeURL, s.client.view)
	t.wildcard = t.legacy && r.subscribe == 0 && r.unsubscribe == 0
	if err := s.subscribeFirst(t, r, set); err != nil {
		return err
	}
	for name := range r.unsubscribed() {
		s.unsubscribeDelta(t, string(name))
	}
	if !t.wildcard && len(t.globs) == 0 || r.initial > 0 {
		t.answers = nil // everything is new: the whole push is the answer
	}
	t.must = t.wildcard
	if r.initial == 0 {
		return nil
	}
	t.must, t.resend = false, false
	if t.typeURL == snapshot.RelayType && r.initial == 1 {
		return s.resumeRelay(t, r, set)
	}
	s.resume(t, r, set)
	return nil
}

// subscribeFirst adds the names of a first request. Where they are the names of
// the set, nothing is stored but that.
func (s *session) subscribeFirst(t *track, r *request, set *snapshot.Set) error {
	if r.subscribe >= 16 && r.subscribe == set.Len() {
		var sum snapshot.Names
		for name := range r.subscribed() {
			sum.Add(name)
		}
		if sum == set.Names() {
			t.names = interest{base: set, sum: sum}
			return s.checkSubscriptions()
		}
	}
	for name := range r.subscribed() {
		if err := s.subscribeDelta(t, name); err != nil {
			return err
		}
	}
	return nil
}

// resume works out what a client that comes back holds of the set: everything
// but the exceptions, of which there are usually none.
func (s *session) resume(t *track, r *request, set *snapshot.Set) {
	t.held, t.least = set, s.newest
	everything := t.wildcard || len(t.globs) == 0 && t.names.sum == r.tally.Names()
	if rev, ok := set.Holds(r.tally); ok && everything {
		if changed, ok := set.ChangedSince(rev); ok {
			for name, res := range changed {
				s.except(t, name, res)
			}
			return
		}
	}
	known := make(map[string]bool, r.initial)
	r.versions(func(name, version []byte) {
		if !t.wants(string(name)) {
			return // not a subscription, [P]
		}
		res, ok := set.Find(name)
		switch {
		case !ok:
			known[string(name)] = true
			t.leave(string(name), surplus{gone: s.newest.Version()})
		case res.IsContent(version):
			known[res.Name] = true
		default:
			t.hasOld(res.Name)
		}
	})
	if t.wildcard || len(t.globs) > 0 {
		for res := range set.All() {
			if !known[res.Name] && t.wants(res.Name) {
				t.lacks(res.Name)
			}
		}
	}
	for name := range t.names.all() {
		if !known[name] {
			t.lacks(name)
		}
	}
}

// except notes that the client does not hold what the set holds of a name.
func (s *session) except(t *track, name string, res *snapshot.Resource) {
	switch {
	case !t.wants(name):
	case res == nil:
		t.leave(name, surplus{gone: s.newest.Version()})
	default:
		t.hasOld(name)
		t.lacks(name)
	}
}

// hasOld notes that the client may hold some other content of a name than held.
func (t *track) hasOld(name string) { t.note(name, prior{has: true}) }

// lacks notes that the client does not hold what held has of a name.
func (t *track) lacks(name string) {
	t.ask(name)
	if _, ok := t.old[name]; !ok {
		t.note(name, prior{})
	}
}

func (t *track) note(name string, p prior) {
	if t.old == nil {
		t.old = map[string]prior{}
	}
	t.old[name] = p
}

// back notes that a name is there again which the client has not lost.
func (t *track) back(name string) {
	if x, ok := t.extra[name]; ok {
		delete(t.extra, name)
		t.note(name, prior{has: true, resource: x.resource})
	}
}

func (s *session) subscribeDelta(t *track, name []byte) error {
	switch {
	case string(name) == "*":
		t.wildcard, t.must, t.resend = true, true, true
		return nil
	case isGlob(string(name)):
		if !slices.Contains(t.globs, string(name)) {
			t.globs = append(t.globs, string(name))
		}
		t.ask(string(name))
		return s.checkSubscriptions()
	}
	if _, err := s.subscribe(t, name); err != nil {
		return err
	}
	t.ask(string(name))
	return nil
}

func (s *session) unsubscribeDelta(t *track, name string) {
	switch {
	case name == "*":
		t.wildcard = false
		return
	case isGlob(name):
		t.globs = slices.DeleteFunc(t.globs, func(g string) bool { return g == name })
		delete(t.answers, name)
		return
	}
	removed := t.names.remove(name)
	delete(t.answers, name)
	if removed && t.wildcard {
		// The client forgets the name but for what the wildcard says of it. [P]
		t.ask(name)
	}
	if !t.wants(name) {
		delete(t.refused, name)
	}
}

// composeDelta returns the responses that bring the client to the set, which is
// that of the version.
func (s *session) composeDelta(t *track, set *snapshot.Set, to snapshot.Version) []chunk {
	parts := snapshot.PartBoth
	if s.splits(t) {
		parts = snapshot.PartUpserts
	}
	must := t.must
	resend := t.resend && t.held != nil // else the push is whole anyway
	t.must, t.resend = false, false
	if t.wildcard && !resend && len(t.answers) == 0 && len(t.refused) == 0 && (parts == snapshot.PartUpserts || len(t.extra) == 0) {
		if t.held.Same(set) && !must {
			return nil
		}
		return s.shared(t, set, parts, must, to)
	}
	var c composition
	all := true // every change is wanted
	if t.held == nil && !t.wildcard && len(t.globs) == 0 {
		all = s.firstNamed(t, set, &c, to)
	} else {
		for name, r := range set.Changes(t.held) {
			switch {
			case !t.wants(name):
				all = false
			case r == nil && parts == snapshot.PartUpserts:
				t.keep(name, to)
			default:
				t.back(name)
				all = c.add(t, name, r) && all
			}
		}
	}
	changed := len(c.up) + len(c.removed)
	for name, asked := range t.answers {
		switch r, ok := s.lookup(t, set, name, to); {
		case ok:
			c.answer(r)
		case isGlob(name) && c.collection(set, name):
		case asked:
			c.answerNone(name)
			c.missing = append(c.missing, name)
		}
	}
	t.answers = nil
	if resend {
		for r := range set.All() {
			if t.wants(r.Name) {
				c.answer(r)
			}
		}
	}
	if parts == snapshot.PartBoth {
		for name := range t.extra {
			if t.wants(name) && !hasName(set, name) {
				c.answerNone(name)
			}
		}
		t.extra = nil
	}
	if all && len(c.alone) == 0 && changed == len(c.up)+len(c.removed) && (changed > 0 || must) {
		return s.shared(t, set, parts, must, to)
	}
	return c.chunks(s.encoder, t.typeURL, set, must)
}

// shared returns the responses that every client at the same place needs.
func (s *session) shared(t *track, set *snapshot.Set, parts snapshot.Parts, must bool, to snapshot.Version) []chunk {
	frames := s.encoder.Delta(t.typeURL, t.held, set, parts)
	for _, name := range frames[0].Gone {
		t.keep(name, to)
	}
	if len(t.extra) > 0 {
		for _, f := range frames {
			for _, r := range f.Upserts {
				t.back(r.Name)
			}
		}
	}
	return chunksOf(frames, must)
}

// firstNamed composes the first push to a client that subscribes by name; it
// reports whether that is the whole set.
func (s *session) firstNamed(t *track, set *snapshot.Set, c *composition, to snapshot.Version) (all bool) {
	if t.names.base == set && len(t.names.minus) == 0 && len(t.names.plus) == 0 {
		for r := range set.All() {
			c.up = append(c.up, r)
		}
		return true
	}
	for name := range t.names.all() {
		if r, ok := s.lookup(t, set, name, to); ok {
			c.up = append(c.up, r)
		} else {
			c.removed = append(c.removed, name)
			c.missing = append(c.missing, name)
		}
	}
	return false
}

// lookup returns the resource of a name. One that is gone from the set, but that
// routes may still refer to, is there for who asks.
func (s *session) lookup(t *track, set *snapshot.Set, name string, to snapshot.Version) (*snapshot.Resource, bool) {
	if r, ok := set.Get(name); ok || !s.splits(t) {
		return r, ok
	}
	if x, ok := t.extra[name]; ok && x.resource != nil {
		return x.resource, true
	}
	// Any snapshot counts of which the client has the clusters or routes, or is
	// getting them.
	for _, other := range s.tracks {
		if other.stage != stageRoute && other.typeURL != compile.ClusterType {
			continue
		}
		for _, at := range [...]*snapshot.Snapshot{other.goalAt, other.at} {
			if at == nil {
				continue
			}
			if r, ok := at.Set(t.typeURL, s.client.view).Get(name); ok {
				t.leave(name, surplus{resource: r, gone: to})
				return r, true
			}
		}
	}
	return nil, false
}

// answerDelta returns responses to what was asked for while a push to the set is
// under way. What is not in the set but will come with the next push waits for
// that: told that there is nothing, an Envoy would begin to use the nothing.
func (s *session) answerDelta(t *track, set *snapshot.Set) []chunk {
	var c composition
	var next *snapshot.Set
	at := s.newest.Version()
	if to := s.allowed(t); to != nil {
		next = to.Set(t.typeURL, s.client.view)
	}
	for name, asked := range t.answers {
		if r, ok := s.lookup(t, set, name, at); ok {
			c.answer(r)
		} else if next != nil && hasName(next, name) {
			continue
		} else if isGlob(name) && c.collection(set, name) {
			// done
		} else if asked {
			c.answerNone(name)
			c.missing = append(c.missing, name)
		}
		delete(t.answers, name)
	}
	chunks := c.chunks(s.encoder, t.typeURL, set, false)
	for i := range chunks {
		chunks[i].kind = answer
	}
	return chunks
}

func hasName(set *snapshot.Set, name string) bool {
	_, ok := set.Get(name)
	return ok
}

// composition is the content of responses in the making.
type composition struct {
	up      []*snapshot.Resource
	removed []string
	// alone are new contents of resources that were refused: each in a response of
	// its own, so that they do no harm to others if they are refused again.
	alone []*snapshot.Resource
	// missing are names that were asked for and do not exist.
	missing []string
	seen    map[string]bool // the names of all of them, kept when needed
}

// add adds a change; it reports whether it did so without regard to refusals.
func (c *composition) add(t *track, name string, r *snapshot.Resource) bool {
	if r == nil {
		c.removed = append(c.removed, name)
		return true
	}
	if f := t.refused[name]; f != nil {
		if !f.resource.SameContent(r) {
			c.alone = append(c.alone, r)
		}
		return false
	}
	c.up = append(c.up, r)
	return true
}

// answer adds a resource that may be among the changes already.
func (c *composition) answer(r *snapshot.Resource) {
	if c.first(r.Name) {
		c.up = append(c.up, r)
	}
}

// answerNone adds a removal that may be among the changes already.
func (c *composition) answerNone(name string) {
	if c.first(name) {
		c.removed = append(c.removed, name)
	}
}

// first reports whether a name is in the composition for the first time.
func (c *composition) first(name string) bool {
	if c.seen == nil {
		c.seen = make(map[string]bool, len(c.up)+len(c.removed))
		for _, r := range c.up {
			c.seen[r.Name] = true
		}
		for _, r := range c.alone {
			c.seen[r.Name] = true
		}
		for _, name := range c.removed {
			c.seen[name] = true
		}
	}
	if c.seen[name] {
		return false
	}
	c.seen[name] = true
	return true
}

// collection answers a glob with its collection; false when that is empty.
func (c *composition) collection(set *snapshot.Set, glob string) bool {
	path, _, _ := strings.Cut(glob, "?")
	found := false
	for r := range set.Under(path[:len(path)-1]) {
		if inCollection(r.Name, glob) {
			c.answer(r)
			found = true
		}
	}
	return found
}

func (c *composition) chunks(enc *snapshot.Encoder, typeURL string, set *snapshot.Set, must bool) []chunk {
	var out []chunk
	if len(c.up)+len(c.removed) > 0 || must && len(c.alone) == 0 {
		out = chunksOf(enc.EncodeDelta(typeURL, set.String(), c.up, c.removed), true)
	}
	for _, r := range c.alone {
		out = append(out, chunksOf(enc.EncodeDelta(typeURL, set.String(), []*snapshot.Resource{r}, nil), true)...)
	}
	if len(out) > 0 {
		out[0].missing = c.missing
	}
	return out
}

// chunksOf makes chunks of frames; of an empty frame only when one is due.
func chunksOf(frames []*snapshot.Frame, must bool) []chunk {
	out := make([]chunk, 0, len(frames))
	for _, f := range frames {
		if must || len(f.Upserts)+len(f.Removed) > 0 {
			out = append(out, chunk{frame: f, test: f.Upserts, removed: f.Removed})
		}
	}
	return out
}

// composeRemoval returns the responses that take from the client what no route uses
// any more, when every route is at the version.
func (s *session) composeRemoval(now time.Time, t *track, at snapshot.Version) []chunk {
	removed := s.drop(now, t, at)
	switch {
	case len(removed) == 0:
		return nil
	case !s.delta:
		return []chunk{{kind: removal}}
	}
	slices.Sort(removed)
	chunks := chunksOf(s.encoder.EncodeDelta(t.typeURL, t.held.String(), nil, removed), true)
	for i := range chunks {
		chunks[i].kind = removal
	}
	return chunks
}

// drop takes out of extra what no route uses when every route is at the version, and
// returns it. Of what has to wait for time only, linger tells how long.
func (s *session) drop(now time.Time, t *track, at snapshot.Version) (names []string) {
	t.linger = time.Time{}
	for name, x := range t.extra {
		switch {
		case !t.wants(name):
			delete(t.extra, name) // the client does not ask for it any more
			continue
		case at.Less(x.gone) || s.inUse(name):
			continue
		case s.client.family != grpcClient:
			// The client may not have asked yet for all that it has of earlier days.
			x.due = s.began.Add(s.cfg.timing.Settle)
		case x.due.IsZero():
			x.due = now.Add(s.cfg.timing.Linger)
			t.extra[name] = x
		}
		if now.Before(x.due) {
			if t.linger.IsZero() || x.due.Before(t.linger) {
				t.linger = x.due
			}
			continue
		}
		delete(t.extra, name)
		names = append(names, name)
	}
	return names
}

// owes reports whether the client has something that it is to lose.
func (s *session) owes(t *track) bool {
	for name := range t.extra {
		if t.wants(name) && !s.inUse(name) {
			return true
		}
	}
	return false
}

// inUse reports whether the last good version of a resource in quarantine, which
// the client goes on using, mentions a name, or may.
func (s *session) inUse(name string) bool {
	for _, t := range s.tracks {
		if t.stage != stageRoute {
			continue
		}
		for _, f := range t.refused {
			if f.unknown || f.good != nil && bytes.Contains(f.good.Body, []byte(name)) {
				return true
			}
		}
	}
	return false
}

// warm sends the endpoints of new and changed clusters with the clusters: Envoy
// accepts a cluster when its endpoints are there, and does not ask again for
// those of one that changed.
func (s *session) warm(clusters []*snapshot.Resource) {
	eds := s.find(compile.EndpointType)
	if eds == nil {
		return
	}
	for _, r := range clusters {
		name := endpointsOf(r)
		switch {
		case name == "":
		case eds.wants(name):
			eds.ask(name)
		case s.delta && len(clusters) <= maxUnasked:
			eds.offer(name)
		}
	}
}

// maxUnasked bounds how many endpoints are sent before they are asked for. It
// saves a round trip; when there are many, sending them twice costs more.
const maxUnasked = 64

// Field numbers of envoy.config.cluster.v3.Cluster.
const (
	clusterType   protowire.Number = 2
	clusterEDS    protowire.Number = 3
	edsService    protowire.Number = 2
	discoveryEDS                   = 3
	clusterCustom protowire.Number = 38
)

// endpointsOf returns the name of the ClusterLoadAssignment that a cluster takes
// its endpoints from; empty when it takes them from elsewhere.
func endpointsOf(r *snapshot.Resource) string {
	name, eds := r.Name, false
	b := r.Body
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return ""
		}
		b = b[n:]
		switch {
		case num == clusterType && typ == protowire.VarintType:
			v, _ := protowire.ConsumeVarint(b)
			eds = v == discoveryEDS
		case num == clusterCustom:
			return ""
		case num == clusterEDS && typ == protowire.BytesType:
			v, _ := protowire.ConsumeBytes(b)
			for num, value := range fields(v) {
				if num == edsService && len(value) > 0 {
					name = string(value)
				}
			}
		}
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return ""
		}
		b = b[n:]
	}
	if !eds {
		return ""
	}
	return name
}
