package xds

import (
	"time"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// takeSotW carries out a request of the state-of-the-world protocol.
func (s *session) takeSotW(now time.Time, t *track, r *request, first bool) error {
	switch {
	case first || t.sent == 0:
		// A nonce would be of an earlier stream.
	case len(r.nonce) == 0:
		// The client has forgotten the type: begin anew.
		t.flights, t.queue, t.goal, t.goalAt, t.held, t.extra, t.deaf = nil, nil, nil, nil, nil, nil, false
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
		t.held, t.least, t.must = set, s.newest, false
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

// composeSotW returns the responses that bring the client to the set, which is that
// of the version.
func (s *session) composeSotW(now time.Time, t *track, set *snapshot.Set, to snapshot.Version) []chunk {
	var c composition
	gone, asked := false, len(t.answers) > 0
	if t.held == nil && !t.wildcard {
		t.answers = nil // the first push is the answer
		s.firstNamed(t, set, &c, to)
		missing := c.removed
		c.removed, c.missing = nil, nil
		for _, name := range missing {
			s.nothing(t, &c, name)
		}
	} else {
		for name, r := range set.Changes(t.held) {
			switch {
			case !t.wants(name):
			case r != nil:
				t.back(name)
				c.add(t, name, r)
			case s.splits(t) && t.complete:
				t.keep(name, to)
			default:
				gone = true // where that can be said
			}
		}
	}
	for name := range t.answers {
		if r, ok := s.lookup(t, set, name, to); ok {
			c.answer(r)
		} else {
			s.nothing(t, &c, name)
		}
	}
	must := t.must
	t.answers, t.must = nil, false
	if !t.complete {
		return s.warmed(t, set, s.partial(t, set, &c))
	}
	if len(c.up)+len(c.alone) == 0 && !gone && !asked && !must {
		return nil
	}
	if routes := s.routesAt(); routes != nil && s.client.family != grpcClient {
		s.drop(now, t, routes.Version()) // there is a response anyway
	}
	if len(c.alone) == 0 {
		return []chunk{{test: c.up, missing: c.missing}}
	}
	// Each new content of what was refused is tried by itself.
	t.accepted = map[string]bool{}
	var out []chunk
	if len(c.up) > 0 || gone || asked || must {
		out = append(out, chunk{test: c.up, missing: c.missing})
	}
	for _, r := range c.alone {
		out = append(out, chunk{test: []*snapshot.Resource{r}})
	}
	return out
}

// nothing answers for a name that does not exist. The protocol has no word for
// that, and most clients find out by waiting. An Envoy that waits for endpoints does
// not acknowledge the clusters: it is told that there are none.
func (s *session) nothing(t *track, c *composition, name string) {
	c.missing = append(c.missing, name)
	if t.typeURL != compile.EndpointType || s.client.family == grpcClient {
		return
	}
	body := protowire.AppendTag(nil, assignmentCluster, protowire.BytesType)
	c.answer(snapshot.NewResource(t.typeURL, name, snapshot.Version{}, protowire.AppendString(body, name)))
}

// assignmentCluster is the number of ClusterLoadAssignment.cluster_name.
const assignmentCluster protowire.Number = 1

// partial returns responses of what is new, for types where a response need not
// hold everything.
func (s *session) partial(t *track, set *snapshot.Set, c *composition) []chunk {
	var out []chunk
	add := func(part []*snapshot.Resource) {
		f := s.encoder.EncodeSotW(t.typeURL, set.String(), part, s.client.wrapped)
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
	if s.cfg.errors && len(c.missing) > 0 && len(out) == 0 {
		add(nil)
	}
	if len(out) > 0 {
		out[0].missing = c.missing
	}
	return out
}

// maxPartial is the size above which responses are split, in bytes.
const maxPartial = 3 << 20

// frameSotW encodes a response that holds everything: what the client should
// have, but what has not been tried yet, and is not in test, as the client has
// it, what is in quarantine at its last good version, and what it keeps for now.
func (s *session) frameSotW(t *track, c *chunk) *snapshot.Frame {
	set := t.goal
	if set == nil {
		set = t.held
	}
	if t.wildcard && len(t.refused) == 0 && t.accepted == nil && len(t.extra) == 0 {
		return s.encoder.SotW(t.typeURL, set, s.client.wrapped)
	}
	version := set.String()
	var test map[string]bool
	if t.accepted != nil {
		test = make(map[string]bool, len(c.test))
		for _, r := range c.test {
			test[r.Name] = true
		}
		version += "~" + string(appendNonce(nil, s.nonce+1))
	} else if len(t.extra) > 0 {
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
	for name, x := range t.extra {
		if t.wants(name) {
			up = append(up, x.resource)
		}
	}
	return s.encoder.EncodeSotW(t.typeURL, version, up, s.client.wrapped)
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
