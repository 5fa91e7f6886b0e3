package xds

import (
	"time"

	"github.com/musterhq/muster/server/snapshot"
)

// takeSotW carries out a request of the state-of-the-world protocol.
func (s *session) takeSotW(now time.Time, t *track, r *request, first bool) error {
	switch {
	case first || t.sent == 0:
		// A nonce would be of an earlier stream.
	case len(r.nonce) == 0:
		// The client has forgotten the type: begin anew.
		t.flights, t.queue, t.goal, t.goalAt, t.held, t.deaf = nil, nil, nil, nil, nil, false
		t.must = true
	default:
		n, ok := parseNonce(r.nonce)
		if !ok || n != t.sent {
			// The client has not seen the newest response yet. Its names count, but
			// the answer waits for the request that it sends when it has.
			t.deaf = true
			return s.namesSotW(t, r)
		}
		t.deaf = false
		if f, ok := t.answered(r.nonce); ok {
			if r.failed {
				s.refuse(now, t, &f, r.failure)
			} else {
				s.acknowledge(now, t, &f)
			}
		}
	}
	if err := s.namesSotW(t, r); err != nil {
		return err
	}
	if !first {
		return nil
	}
	t.must = t.wildcard || t.names.len() > 0
	set := s.newest.Set(t.typeURL, s.client.view)
	if t.wildcard && t.names.len() == 0 && t.complete && string(r.version) == set.String() {
		// The client comes back with everything. Only for a pure wildcard does an
		// equal version mean that. [P]
		t.held, t.dropped, t.least, t.must = set, set, s.newest, false
	}
	return nil
}

// namesSotW takes in the names of a request, which are all names.
func (s *session) namesSotW(t *track, r *request) error {
	if r.subscribe == 0 {
		// Nothing named: everything, but for a client that named something before,
		// which then unsubscribes from all of it.
		t.wildcard = t.legacy && !t.named
		if t.named && t.names.len() > 0 {
			t.names, t.answers = interest{}, nil
		}
		return nil
	}
	t.named = true
	wildcard := false
	var sum snapshot.Names
	for name := range r.subscribed() {
		if string(name) == "*" {
			wildcard = true
		} else {
			sum.Add(name)
		}
	}
	if wildcard && !t.wildcard {
		t.must = true
	}
	t.wildcard = wildcard
	if sum == t.names.sum {
		return nil
	}
	now := make(map[string]bool, r.subscribe)
	for name := range r.subscribed() {
		if string(name) == "*" {
			continue
		}
		now[string(name)] = true
		added, err := s.subscribe(t, name)
		if err != nil {
			return err
		}
		if added {
			t.ask(string(name))
		}
	}
	if t.names.len() > len(now) {
		for name := range t.names.all() {
			if !now[name] {
				t.names.remove(name)
				delete(t.answers, name)
				delete(t.refused, name)
			}
		}
	}
	return nil
}

// composeSotW returns the responses that bring the client to the set.
func (s *session) composeSotW(t *track, set *snapshot.Set) []chunk {
	var c composition
	gone := false
	if t.held == nil && !t.wildcard {
		t.firstNamed(set, &c)
		c.removed = nil
	} else {
		for name, r := range set.Changes(t.held) {
			if !t.wants(name) {
				continue
			}
			if r == nil {
				gone = gone || !s.splits(t)
			} else {
				c.add(t, name, r)
			}
		}
	}
	asked := len(t.answers) > 0
	for name := range t.answers {
		if r, ok := set.Get(name); ok {
			c.answer(r)
		}
	}
	must := t.must
	t.answers, t.must = nil, false
	if !t.complete {
		return s.partial(t, set, &c)
	}
	if len(c.up)+len(c.alone) == 0 && !gone && !asked && !must {
		return nil
	}
	var surplus *snapshot.Set
	if s.splits(t) && t.held != nil {
		surplus = t.dropped
		// gRPC acknowledges a route before it asks for its clusters.
		if routes := s.routesAt(); routes != nil && s.client.family != grpcClient {
			surplus = routes.Set(t.typeURL, s.client.view)
		}
	}
	if len(c.alone) == 0 {
		return []chunk{{test: c.up, goal: surplus}}
	}
	// Each new content of what was refused is tried by itself.
	t.accepted = map[string]bool{}
	var out []chunk
	if len(c.up) > 0 || gone || asked || must {
		out = append(out, chunk{test: c.up, goal: surplus})
	}
	for _, r := range c.alone {
		out = append(out, chunk{test: []*snapshot.Resource{r}, goal: surplus})
	}
	return out
}

// partial returns responses of what is new, for types where a response need not
// hold everything.
func (s *session) partial(t *track, set *snapshot.Set, c *composition) []chunk {
	var out []chunk
	add := func(part []*snapshot.Resource) {
		f := s.cfg.encoder.EncodeSotW(t.typeURL, set.String(), part, s.client.wrapped)
		out = append(out, chunk{frame: f, test: part})
	}
	size, from := 0, 0
	for i, r := range c.up {
		if size += len(r.Encoded); size > maxPartial && i > from {
			add(c.up[from:i:i])
			size, from = len(r.Encoded), i
		}
	}
	if from < len(c.up) {
		add(c.up[from:])
	}
	for _, r := range c.alone {
		add([]*snapshot.Resource{r})
	}
	return out
}

// maxPartial is the size above which responses are split, in bytes.
const maxPartial = 3 << 20

// frameSotW encodes a response that holds everything: what the client should
// have, but what has not been tried yet, and is not in test, as the client has
// it, and what is in quarantine at its last good version.
func (s *session) frameSotW(t *track, c *chunk) *snapshot.Frame {
	set := t.goal
	if set == nil {
		set = t.held
	}
	plain := t.wildcard && len(t.refused) == 0 && t.accepted == nil
	extra := surplusOf(t, set, c.goal)
	if plain && len(extra) == 0 {
		return s.cfg.encoder.SotW(t.typeURL, set, s.client.wrapped)
	}
	version := set.String()
	var test map[string]bool
	if t.accepted != nil {
		test = make(map[string]bool, len(c.test))
		for _, r := range c.test {
			test[r.Name] = true
		}
		version += "~" + string(appendNonce(nil, s.nonce+1))
	} else if len(extra) > 0 {
		version += "+"
	}
	var up []*snapshot.Resource
	add := func(r *snapshot.Resource) {
		if f := t.refused[r.Name]; f != nil && !test[r.Name] && f.resource.SameContent(r) {
			r = f.good
		} else if t.accepted != nil && !test[r.Name] && !t.accepted[r.Name] {
			r = t.before(r)
		}
		if r != nil {
			up = append(up, r)
		}
	}
	if t.wildcard {
		for r := range set.All() {
			add(r)
		}
	} else {
		for name := range t.names.all() {
			if r, ok := set.Get(name); ok {
				add(r)
			}
		}
	}
	up = append(up, extra...)
	return s.cfg.encoder.EncodeSotW(t.typeURL, version, up, s.client.wrapped)
}

// before returns what the client holds in the place of a resource that it was not
// sent yet: the resource itself where that did not change.
func (t *track) before(r *snapshot.Resource) *snapshot.Resource {
	if t.held == nil {
		return nil
	}
	held, ok := t.held.Get(r.Name)
	if !ok {
		return nil
	}
	if f := t.refused[r.Name]; f != nil && f.resource.SameContent(held) {
		return f.good
	}
	return held
}

// surplusOf returns what the client keeps for now although it is not in the set:
// what the routes may still refer to.
func surplusOf(t *track, set, surplus *snapshot.Set) []*snapshot.Resource {
	if surplus == nil || surplus.Same(set) {
		return nil
	}
	var out []*snapshot.Resource
	for name, r := range set.Changes(surplus) {
		if r != nil || !t.wants(name) {
			continue
		}
		if r, ok := surplus.Get(name); ok {
			out = append(out, r)
		}
	}
	return out
}

// removalSotW returns the response without what no route refers to any more,
// where the client holds such.
func (s *session) removalSotW(t *track, to *snapshot.Set) []chunk {
	if !t.complete {
		t.dropped = to // a removal cannot be said
		return nil
	}
	due := false
	for _, r := range surplusOf(t, t.held, t.dropped) {
		if !hasName(to, r.Name) {
			due = true
			break
		}
	}
	if !due {
		t.dropped = to
		return nil
	}
	return []chunk{{kind: removal, goal: to}}
}
