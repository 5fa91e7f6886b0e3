package xds

import (
	"slices"
	"strings"
	"time"

	rpcstatus "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/snapshot"
)

// refusal is a resource in quarantine: its content is not sent again until it
// changes or the client asks for it by name.
type refusal struct {
	resource *snapshot.Resource // the refused content
	good     *snapshot.Resource // what the client keeps; nil when it has none, or nobody knows
	unknown  bool               // it may keep something that nobody knows
	detail   string             // what the client said
	at       time.Time
}

const (
	// maxTrials bounds the parts into which one push is taken apart: a client that
	// refuses everything is believed.
	maxTrials = 256
	// maxListed bounds the resources of one Nacked.
	maxListed = 100
	// maxSuspects bounds the resources that are tried alone because the client's
	// words name them.
	maxSuspects = 16
)

// refuse takes in that the client refused a response.
func (s *session) refuse(now time.Time, t *track, f *flight, failure []byte) {
	detail, told := failureOf(failure, t.typeURL)
	s.effects = append(s.effects, effect{track: t, refusedFrame: true})
	defer s.landed(t)
	switch {
	case f.kind == removal:
		// Nothing can be done about it: the client keeps what it should not have.
		s.nacked(t, Nacked{TypeURL: t.typeURL, Detail: detail, Refused: refusedNames(f.removed)})
	case f.kind == warmup && len(f.test) == 0:
		// The routes themselves are what counts; they are on their way.
	case len(told) > 0:
		// The client tells the refused from the rest, which it has applied.
		n := Nacked{TypeURL: t.typeURL, Detail: detail}
		for _, r := range f.test {
			if reason, bad := told[r.Name]; bad {
				n.Refused = append(n.Refused, s.quarantine(now, t, r, detail, reason))
			} else if t.accepted != nil {
				t.accepted[r.Name] = true
			}
		}
		for name, reason := range told {
			if !slices.ContainsFunc(n.Refused, func(r Refused) bool { return r.Name == name }) {
				n.Refused = append(n.Refused, Refused{Name: name, Detail: reason})
			}
		}
		s.nacked(t, n)
	case len(f.test)+len(f.removed) <= 1, s.whole, t.trials >= maxTrials:
		n := Nacked{TypeURL: t.typeURL, Detail: detail}
		for _, r := range f.test {
			n.Refused = append(n.Refused, s.quarantine(now, t, r, detail, ""))
		}
		n.Refused = append(n.Refused, refusedNames(f.removed)...)
		s.nacked(t, n)
	default:
		t.trials++
		t.queue = append(s.takeApart(t, f, detail), t.queue...)
	}
}

func (s *session) nacked(t *track, n Nacked) {
	if len(n.Refused) > maxListed {
		n.Truncated = len(n.Refused) - maxListed
		n.Refused = n.Refused[:maxListed:maxListed]
	}
	s.effects = append(s.effects, effect{track: t, nacked: &n})
}

func refusedNames(names []string) []Refused {
	out := make([]Refused, len(names))
	for i, name := range names {
		out[i].Name = name
	}
	return out
}

// quarantine holds a resource back until its content changes.
func (s *session) quarantine(now time.Time, t *track, r *snapshot.Resource, detail, reason string) Refused {
	f := &refusal{resource: r, detail: detail, at: now}
	if reason != "" {
		f.detail = reason
	}
	if before := t.refused[r.Name]; before != nil {
		f.good, f.unknown = before.good, before.unknown
	} else if p, exception := t.old[r.Name]; exception {
		f.good, f.unknown = p.resource, p.has && p.resource == nil
	} else if t.held == nil {
		f.unknown = !s.delta && s.resumed
	} else if good, ok := t.held.Get(r.Name); ok && !good.SameContent(r) {
		f.good = good
	}
	if t.refused == nil {
		t.refused = map[string]*refusal{}
	}
	t.refused[r.Name] = f
	out := Refused{Name: r.Name, Version: r.Version, Rev: r.Rev, Origins: r.Origins, Detail: reason}
	if f.good != nil {
		out.Serving = f.good.Version
	}
	return out
}

// clear takes out of quarantine what an accepted response holds.
func (t *track) clear(f *flight) (cleared []string) {
	if len(t.old) > 0 {
		for _, r := range f.test {
			delete(t.old, r.Name)
		}
	}
	if len(t.refused) == 0 {
		return nil
	}
	lift := func(name string) {
		if t.refused[name] != nil {
			delete(t.refused, name)
			cleared = append(cleared, name)
		}
	}
	for _, r := range f.test {
		lift(r.Name)
	}
	for _, name := range f.removed {
		lift(name)
	}
	return cleared
}

// takeApart returns the content of a refused response in parts, so that the bad
// resources end up alone: those that the client's words name at once, others by
// halves. Removals go first, in one part.
func (s *session) takeApart(t *track, f *flight, detail string) []chunk {
	var parts [][]*snapshot.Resource
	suspects, rest := suspectsOf(f.test, detail)
	switch {
	case len(suspects) > 1 || len(suspects) == 1 && len(rest)+len(f.removed) > 0:
		parts = append(parts, rest)
		for _, r := range suspects {
			parts = append(parts, []*snapshot.Resource{r})
		}
	case len(f.removed) > 0:
		parts = [][]*snapshot.Resource{nil, f.test}
	default:
		half := len(f.test) / 2
		parts = [][]*snapshot.Resource{f.test[:half:half], f.test[half:]}
	}
	set := t.goal
	if set == nil {
		set = t.held
	}
	if t.accepted == nil && t.complete && !s.delta {
		t.accepted = map[string]bool{}
	}
	var out []chunk
	removed := f.removed
	for _, part := range parts {
		switch {
		case len(part)+len(removed) == 0:
		case t.complete && !s.delta:
			out = append(out, chunk{kind: f.kind, test: part})
		case !s.delta:
			out = append(out, chunk{kind: f.kind, test: part, frame: s.encoder.EncodeSotW(t.typeURL, set.String(), part, s.client.wrapped)})
		default:
			for _, c := range chunksOf(s.encoder.EncodeDelta(t.typeURL, set.String(), part, removed), true) {
				c.kind = f.kind
				out = append(out, c)
			}
		}
		removed = nil
	}
	return out
}

// suspectsOf returns the resources that are named in the client's words.
func suspectsOf(test []*snapshot.Resource, detail string) (suspects, rest []*snapshot.Resource) {
	for _, r := range test {
		if r.Name != "" && strings.Contains(detail, r.Name) {
			suspects = append(suspects, r)
		} else {
			rest = append(rest, r)
		}
	}
	if len(suspects) > maxSuspects {
		return nil, test
	}
	return suspects, rest
}

// failureOf returns the client's words and, where it tells them, the refused
// resources of the type with the reasons: muster's data planes add a
// muster.v1.Refusal for each, and have applied everything else.
func failureOf(failure []byte, typeURL string) (detail string, told map[string]string) {
	var st rpcstatus.Status
	if err := proto.Unmarshal(failure, &st); err != nil {
		return "", nil // refused all the same
	}
	for _, d := range st.GetDetails() {
		var r musterv1.Refusal
		if d.UnmarshalTo(&r) != nil || r.GetResourceName() == "" || r.GetTypeUrl() != "" && r.GetTypeUrl() != typeURL {
			continue
		}
		if told == nil {
			told = map[string]string{}
		}
		told[r.GetResourceName()] = r.GetDetail()
	}
	return st.GetMessage(), told
}
