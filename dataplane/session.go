package dataplane

import (
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/manifest"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Reasons to leave a stream.
var (
	errSilent     = errors.New("the server did not answer")
	errIncomplete = errors.New("the resources do not add up to the manifest")
	errBehind     = errors.New("the server is behind this data plane")
	errOtherGroup = errors.New("the server answered for another group")
	errNoManifest = errors.New("the server tells no manifest, and only signed ones are trusted")
)

// holdACKs is how long responses are held unacknowledged while the Manifest that
// covers them has not come. A server that waits for an acknowledgement before it
// goes on would otherwise never go on.
const holdACKs = 2 * time.Second

// mode is how a session applies what it receives.
type mode int

const (
	undecided mode = iota
	byManifest
	byType
)

// session is the client's side of the conversation on one stream. It does no
// I/O, knows no clock and is used from one goroutine: the stream feeds it
// responses and silence and carries out the steps that it returns.
type session struct {
	types    []string
	manifest ManifestMode
	keys     []ed25519.PublicKey // one of them must have signed the Manifest; none: no matter
	timing   Timing

	floor    version // the highest version that was ever in service
	applied  *State  // in service
	received *State  // what the upstream has sent
	fresh    bool    // received began empty: what was not sent again is gone
	byName   bool    // a relay says what it holds by name, not by its digest
	mode     mode

	current    *musterv1.Manifest // the newest
	currentRes *Resource          // as it came
	pendingM   *held              // the Manifest's response, unacknowledged
	held       []*held            // responses to acknowledge, in order of arrival
	touched    map[string]map[string]struct{}
	answered   bool // anything was received
	musterLike bool // a resource had a version of muster's form
	released   bool // the held responses were acknowledged before their Manifest came
}

// held is a response that has not been acknowledged.
type held struct {
	typeURL string
	nonce   string
	names   []string // its upserts
	err     error    // why it is refused as such
	refused []Refusal
}

// step is what the stream has to do next.
type step struct {
	acknowledge []*held
	apply       bool // call the handler with update(), then done()
	leave       error
	wait        time.Duration // call silence() after so long without a response; 0 is never
}

func newSession(cfg *Config, applied *State, floor version, fresh bool) *session {
	s := &session{floor: floor,
		types: cfg.TypeURLs, manifest: cfg.Manifest, keys: cfg.ManifestKeys, timing: cfg.Timing,
		applied: applied, received: applied, fresh: fresh,
		touched: map[string]map[string]struct{}{},
	}
	if fresh {
		s.received = emptyState()
	}
	if cfg.Manifest == ManifestOff {
		s.mode = byType
	}
	return s
}

// requests returns the subscriptions, with the known versions unless the session
// is fresh.
func (s *session) requests() []*discoveryv3.DeltaDiscoveryRequest {
	var out []*discoveryv3.DeltaDiscoveryRequest
	for _, t := range s.types {
		r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: t, ResourceNamesSubscribe: []string{"*"}}
		if n := s.received.Len(t); n > 0 && t == RelayType && !s.byName {
			// A relay says what it holds in one entry.
			r.InitialResourceVersions = map[string]string{"*": s.received.sum(t)}
		} else if n > 0 {
			r.InitialResourceVersions = make(map[string]string, n)
			for res := range s.received.All(t) {
				r.InitialResourceVersions[res.Name] = res.Version
			}
		}
		out = append(out, r)
	}
	if s.manifest != ManifestOff {
		out = append(out, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: ManifestType, ResourceNamesSubscribe: []string{"*"}})
	}
	return out
}

// receive takes a response in.
func (s *session) receive(resp *discoveryv3.DeltaDiscoveryResponse) step {
	s.answered = true
	h := &held{typeURL: resp.GetTypeUrl(), nonce: resp.GetNonce()}
	switch {
	case h.typeURL == ManifestType:
		return s.receiveManifest(h, resp)
	case !slices.Contains(s.types, h.typeURL):
		h.err = fmt.Errorf("type %q was not subscribed to", h.typeURL)
		return step{acknowledge: []*held{h}, wait: s.wait()}
	}
	if err := s.genuine(resp); err != nil {
		return step{leave: err}
	}
	if h.err = s.stage(h, resp); h.err != nil {
		return step{acknowledge: []*held{h}, wait: s.wait()}
	}
	s.held = append(s.held, h)
	return s.decide()
}

// genuine checks, where Manifests must be signed, that resources are what their
// versions say: it is versions that a signature is of.
func (s *session) genuine(resp *discoveryv3.DeltaDiscoveryResponse) error {
	if len(s.keys) == 0 {
		return nil
	}
	for _, r := range resp.GetResources() {
		if r.GetResource() != nil && !(&Resource{Version: r.GetVersion(), Body: r.GetResource()}).authentic() {
			return fmt.Errorf("%w: %q", errContent, r.GetName())
		}
	}
	return nil
}

// stage puts the resources of a response into received.
func (s *session) stage(h *held, resp *discoveryv3.DeltaDiscoveryResponse) error {
	var upsert []*Resource
	for _, r := range resp.GetResources() {
		if r.GetResource() == nil {
			continue // a heartbeat: the resource is unchanged
		}
		if got := r.GetResource().GetTypeUrl(); got != h.typeURL && h.typeURL != RelayType {
			return fmt.Errorf("resource %q has the type %q in a response of %q", r.GetName(), got, h.typeURL)
		}
		if isMusterVersion(r.GetVersion()) {
			s.musterLike = true
		}
		upsert = append(upsert, &Resource{Name: r.GetName(), Version: r.GetVersion(), Body: r.GetResource()})
		h.names = append(h.names, r.GetName())
	}
	touched := s.touched[h.typeURL]
	if touched == nil {
		touched = map[string]struct{}{}
		s.touched[h.typeURL] = touched
	}
	for _, name := range h.names {
		touched[name] = struct{}{}
	}
	for _, name := range resp.GetRemovedResources() {
		touched[name] = struct{}{}
	}
	s.received = s.received.with(h.typeURL, upsert, resp.GetRemovedResources())
	return nil
}

func (s *session) receiveManifest(h *held, resp *discoveryv3.DeltaDiscoveryResponse) step {
	if len(resp.GetResources()) == 0 {
		// The upstream has none. That is how one that does not know Manifests says
		// so; from muster it is a group that went away, which removes nothing.
		if s.mode == undecided && s.manifest == ManifestAuto && !s.musterLike && s.applied.Revision() == 0 {
			if len(s.keys) > 0 {
				return step{leave: errNoManifest}
			}
			s.mode = byType
		}
		st := s.decide()
		st.acknowledge = append(st.acknowledge, h)
		return st
	}
	m := &musterv1.Manifest{}
	if err := resp.GetResources()[0].GetResource().UnmarshalTo(m); err != nil {
		h.err = fmt.Errorf("manifest: %w", err)
		return step{acknowledge: []*held{h}, wait: s.wait()}
	}
	if at := (version{m.GetEpoch(), m.GetRevision()}); at.below(s.floor) {
		return step{leave: fmt.Errorf("%w: it offers version %d.%d, the newest in service was %d.%d", errBehind,
			at.Epoch, at.Revision, s.floor.Epoch, s.floor.Revision)}
	}
	if c := s.current; c != nil && c.GetGroup() != m.GetGroup() {
		return step{leave: fmt.Errorf("%w: %q after %q", errOtherGroup, m.GetGroup(), c.GetGroup())}
	}
	if err := s.trusted(m); err != nil {
		return step{leave: err}
	}
	s.mode = byManifest
	s.current = m
	first := resp.GetResources()[0]
	s.currentRes = &Resource{Version: first.GetVersion(), Body: first.GetResource()}
	if s.pendingM != nil {
		s.held = append(s.held, s.pendingM) // superseded; acknowledged with the rest
	}
	s.pendingM = h
	return s.decide()
}

// trusted checks who signed a Manifest.
func (s *session) trusted(m *musterv1.Manifest) error {
	if len(s.keys) == 0 {
		return nil
	}
	return manifest.Verify(m, s.keys)
}

// sum is the version of everything that a state holds of a type.
func (s *State) sum(typeURL string) string {
	d := s.types[typeURL].digest
	return fmt.Sprintf("%d.%d.%s", s.epoch, s.revision, base64.RawURLEncoding.EncodeToString(d.bytes()))
}

// decide says what to do after something was received.
func (s *session) decide() step {
	switch s.mode {
	case byType:
		if len(s.held) > 0 {
			return step{apply: true}
		}
	case byManifest:
		if s.complete() && (len(s.held) > 0 || s.pendingM != nil) {
			return step{apply: true}
		}
	}
	return step{wait: s.wait()}
}

// wait says after how long without a response silence is to be called.
func (s *session) wait() time.Duration {
	switch {
	case !s.answered:
		return s.timing.FirstResponse
	case len(s.held) == 0 && s.pendingM == nil && !s.released:
		return 0
	case s.mode == undecided && s.manifest == ManifestAuto && !s.musterLike:
		return s.timing.Manifest
	case !s.released:
		return min(holdACKs, s.timing.Incomplete)
	}
	return s.timing.Incomplete
}

// silence is called when no response has come for the time that wait said.
func (s *session) silence() step {
	switch {
	case !s.answered:
		return step{leave: errSilent}
	case s.mode == undecided && s.manifest == ManifestAuto && !s.musterLike:
		if len(s.keys) > 0 {
			return step{leave: errNoManifest}
		}
		s.mode = byType
		return s.decide()
	case !s.released:
		out := s.held
		s.held, s.released = nil, true
		return step{acknowledge: out, wait: s.timing.Incomplete}
	}
	return step{leave: errIncomplete}
}

// complete reports whether received is what the newest Manifest says.
func (s *session) complete() bool {
	return s.current != nil && s.received.adhering(s.current, s.types)
}

// update returns the change from what is in service to what was received.
func (s *session) update(group string) *Update {
	u := &Update{Group: group, Whole: s.mode == byManifest, Previous: s.applied, Types: map[string]TypeUpdate{}}
	u.Epoch, u.Revision = s.applied.Epoch(), s.applied.Revision()
	u.State = s.received.at(u.Epoch, u.Revision)
	if u.Whole {
		u.Epoch, u.Revision = s.current.GetEpoch(), s.current.GetRevision()
		s.received = s.received.withManifest(s.currentRes, s.current)
		u.State = s.received.at(u.Epoch, u.Revision)
		if s.fresh {
			s.touchAll()
		}
	}
	for typeURL, names := range s.touched {
		t := TypeUpdate{Upsert: map[string]*anypb.Any{}, Versions: map[string]string{}}
		for name := range names {
			now, ok := s.received.Get(typeURL, name)
			before, had := s.applied.Get(typeURL, name)
			switch {
			case ok && had && sameResource(now, before):
			case ok:
				t.Upsert[name], t.Versions[name] = now.Body, now.Version
			case had:
				t.Remove = append(t.Remove, name)
			}
		}
		slices.Sort(t.Remove)
		if len(t.Upsert)+len(t.Remove) > 0 {
			u.Types[typeURL] = t
		}
	}
	return u
}

// touchAll marks everything that is in service, so that what a fresh session was
// not sent is removed.
func (s *session) touchAll() {
	for _, typeURL := range s.types {
		if s.applied.Len(typeURL) == 0 {
			continue
		}
		if s.touched[typeURL] == nil {
			s.touched[typeURL] = map[string]struct{}{}
		}
		for r := range s.applied.All(typeURL) {
			s.touched[typeURL][r.Name] = struct{}{}
		}
	}
}

// done takes the handler's answer to an update: the state that is in service now
// is s.applied, and what is returned is to be acknowledged.
func (s *session) done(u *Update, err error) []*held {
	acks := s.held
	if s.pendingM != nil {
		acks = append(acks, s.pendingM)
	}
	manifest := s.pendingM
	s.held, s.pendingM, s.released = nil, nil, false

	var refused *Refused
	if err != nil && !errors.As(err, &refused) {
		// Nothing was applied; what was touched stays so for the next attempt.
		for _, h := range acks {
			h.err = err
		}
		return acks
	}
	s.applied = u.State
	s.floor = s.floor.max(version{u.State.Epoch(), u.State.Revision()})
	s.touched = map[string]map[string]struct{}{}
	s.fresh = false
	if refused == nil {
		return acks
	}
	for _, r := range refused.Resources {
		s.keepLastGood(u, r)
		attributed := manifest
		for _, h := range acks {
			if h.typeURL == r.TypeURL && slices.Contains(h.names, r.Name) {
				attributed = h
			}
		}
		if attributed == nil && len(acks) > 0 {
			attributed = acks[len(acks)-1]
		}
		if attributed != nil {
			attributed.refused = append(attributed.refused, r)
		}
	}
	for _, h := range acks {
		if len(h.refused) > 0 {
			h.err = &Refused{Resources: h.refused}
		}
	}
	return acks
}

// keepLastGood puts the version before back in the place of a refused resource.
func (s *session) keepLastGood(u *Update, r Refusal) {
	if _, ok := u.Types[r.TypeURL].Upsert[r.Name]; !ok {
		return
	}
	if before, ok := u.Previous.Get(r.TypeURL, r.Name); ok {
		s.applied = s.applied.with(r.TypeURL, []*Resource{before}, nil)
		return
	}
	s.applied = s.applied.with(r.TypeURL, nil, []string{r.Name})
}

// request returns the ACK or NACK of a response.
func (h *held) request() *discoveryv3.DeltaDiscoveryRequest {
	r := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: h.typeURL, ResponseNonce: h.nonce}
	if h.err != nil {
		r.ErrorDetail = nackStatus(h.err, h.refused)
	}
	return r
}

// nackStatus describes a refusal: the text for people, and a muster.v1.Refusal
// per resource for a server that understands it.
func nackStatus(err error, refused []Refusal) *rpcStatus {
	st := &rpcStatus{Code: codeInvalidArgument, Message: err.Error()}
	for _, r := range refused[:min(len(refused), maxRefusalDetails)] {
		detail, err := anypb.New(&musterv1.Refusal{TypeUrl: r.TypeURL, ResourceName: r.Name, Detail: r.Reason})
		if err == nil { // a Refusal of valid strings always encodes
			st.Details = append(st.Details, detail)
		}
	}
	return st
}

const maxRefusalDetails = 100

// isMusterVersion reports whether a resource version has the form of muster's.
func isMusterVersion(v string) bool {
	parts := strings.Split(v, ".")
	if len(parts) != musterResourceVersionLen {
		return false
	}
	for _, p := range parts[:2] {
		if _, err := strconv.ParseUint(p, 10, 64); err != nil {
			return false
		}
	}
	return len(parts[2]) > 0
}
