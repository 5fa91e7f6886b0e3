package dataplane

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// talk is a session with what the test knows about the upstream's side of it.
type talk struct {
	*testing.T
	s      *session
	nonces int
}

func newTalk(t *testing.T, mode ManifestMode, applied *State, fresh bool) *talk {
	cfg := Config{TypeURLs: []string{ClusterType, VirtualHostType}, Manifest: mode, Timing: Timing{}.withDefaults()}
	return &talk{T: t, s: newSession(&cfg, applied, version{applied.epoch, applied.revision}, fresh)}
}

// resource returns a resource whose content depends on its version.
func resource(typeURL, name, version string) *discoveryv3.Resource {
	return &discoveryv3.Resource{
		Name: name, Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: []byte(name + "@" + version)},
	}
}

// response builds a response; entries are name@version, or -name for a removal.
func response(typeURL string, entries ...string) *discoveryv3.DeltaDiscoveryResponse {
	r := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL}
	for _, e := range entries {
		if name, ok := strings.CutPrefix(e, "-"); ok {
			r.RemovedResources = append(r.RemovedResources, name)
			continue
		}
		name, v, _ := strings.Cut(e, "@")
		r.Resources = append(r.Resources, resource(typeURL, name, v))
	}
	return r
}

// manifest builds the Manifest of a revision; contents are type URL and entries.
func manifestOf(epoch, revision uint64, contents map[string][]string) *discoveryv3.DeltaDiscoveryResponse {
	m := &musterv1.Manifest{Epoch: epoch, Revision: revision, Group: "g"}
	for typeURL, entries := range contents {
		var sum digest
		for _, e := range entries {
			name, v, _ := strings.Cut(e, "@")
			sum.add(resourceDigest(name, v))
		}
		m.Types = append(m.Types, &musterv1.TypeDigest{TypeUrl: typeURL, Count: uint64(len(entries)), Digest: sum.bytes()})
	}
	body, err := anypb.New(m)
	if err != nil {
		panic(err)
	}
	return &discoveryv3.DeltaDiscoveryResponse{TypeUrl: ManifestType, Resources: []*discoveryv3.Resource{{
		Name: "g", Version: fmt.Sprintf("%d.%d.00000000", epoch, revision), Resource: body,
	}}}
}

func (t *talk) receive(r *discoveryv3.DeltaDiscoveryResponse) step {
	t.nonces++
	r.Nonce = fmt.Sprint(t.nonces)
	return t.s.receive(r)
}

// applied wants a step that applies, and lets the handler answer it.
func (t *talk) applied(st step, answer error) (*Update, []*held) {
	t.Helper()
	if !st.apply {
		t.Fatalf("nothing is applied: %+v", st)
	}
	u := t.s.update("g")
	return u, t.s.done(u, answer)
}

// waits wants a step that applies nothing and leaves nothing.
func (t *talk) waits(st step) {
	t.Helper()
	if st.apply || st.leave != nil || len(st.acknowledge) > 0 {
		t.Fatalf("not just waiting: %+v", st)
	}
}

// changes returns an update as text: +name@content -name, per type.
func changes(u *Update) string {
	var out []string
	for typeURL, t := range u.Types {
		for name, body := range t.Upsert {
			out = append(out, shortType(typeURL)+"+"+name+"="+string(body.GetValue()))
		}
		for _, name := range t.Remove {
			out = append(out, shortType(typeURL)+"-"+name)
		}
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// nonces returns acknowledgements as text: 1 is an ACK, !1 a NACK.
func nonces(acks []*held) string {
	var out []string
	for _, h := range acks {
		if h.err != nil {
			out = append(out, "!"+h.nonce)
		} else {
			out = append(out, h.nonce)
		}
	}
	return strings.Join(out, " ")
}

func names(s *State, typeURL string) string {
	var out []string
	for r := range s.All(typeURL) {
		out = append(out, r.Name+"@"+r.Version)
	}
	return strings.Join(out, " ")
}

func want(t *testing.T, what, got, want string) {
	t.Helper()
	if got != want {
		t.Errorf("%s: %q, want %q", what, got, want)
	}
}

// stateOf returns a state of clusters.
func stateOf(epoch, revision uint64, clusters ...string) *State {
	return applyChange(emptyState(), response(ClusterType, clusters...)).at(epoch, revision)
}

func TestARevisionIsAppliedWholeWhenItsManifestMatches(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.waits(c.receive(response(ClusterType, "a@1.1.aaaaaaaa")))
	c.waits(c.receive(response(VirtualHostType, "v@1.1.bbbbbbbb")))
	u, acks := c.applied(c.receive(manifestOf(1, 1, map[string][]string{
		ClusterType: {"a@1.1.aaaaaaaa"}, VirtualHostType: {"v@1.1.bbbbbbbb"},
	})), nil)
	want(t, "the update", changes(u), "Cluster+a=a@1.1.aaaaaaaa VirtualHost+v=v@1.1.bbbbbbbb")
	if !u.Whole || u.Epoch != 1 || u.Revision != 1 || u.State.Revision() != 1 {
		t.Errorf("the update is not revision 1.1: %+v", u)
	}
	want(t, "acknowledged, the manifest last", nonces(acks), "1 2 3")
}

func TestAnIncompleteRevisionIsNotApplied(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.waits(c.receive(response(ClusterType, "a@1.1.aaaaaaaa")))
	c.waits(c.receive(manifestOf(1, 1, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa", "b@1.1.cccccccc"}})))
	if got := c.s.wait(); got == 0 {
		t.Error("the session waits for ever")
	}
	st := c.s.silence()
	want(t, "acknowledged when the server may be waiting for it", nonces(st.acknowledge), "1")
	if st = c.s.silence(); !errors.Is(st.leave, errIncomplete) {
		t.Errorf("the session stays: %+v", st)
	}
}

func TestAResourceOfAnotherVersionThanTheManifestSaysIsNotApplied(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.waits(c.receive(response(ClusterType, "a@1.1.aaaaaaaa")))
	c.waits(c.receive(manifestOf(1, 1, map[string][]string{ClusterType: {"a@1.1.dddddddd"}})))
}

func TestATypeThatTheManifestDoesNotListMustBeEmpty(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.waits(c.receive(response(ClusterType, "a@1.1.aaaaaaaa")))
	c.waits(c.receive(manifestOf(1, 1, nil)))
}

func TestTypesThatWereNotSubscribedToDoNotCountInTheManifest(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.receive(response(ClusterType, "a@1.1.aaaaaaaa"))
	c.applied(c.receive(manifestOf(1, 1, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}, ListenerType: {"x@1.1.eeeeeeee"}})), nil)
}

func TestAnEmptyGroupIsARevisionToo(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.waits(c.receive(response(ClusterType)))
	u, _ := c.applied(c.receive(manifestOf(1, 1, nil)), nil)
	if !u.Empty() || u.Revision != 1 {
		t.Errorf("%+v", u)
	}
}

func TestALowerVersionIsNeverMovedTo(t *testing.T) {
	for _, older := range []struct{ epoch, revision uint64 }{{2, 4}, {1, 9}} {
		c := newTalk(t, ManifestAuto, stateOf(2, 5, "a@2.5.aaaaaaaa"), false)
		st := c.receive(manifestOf(older.epoch, older.revision, map[string][]string{ClusterType: {"a@2.5.aaaaaaaa"}}))
		if !errors.Is(st.leave, errBehind) {
			t.Errorf("%v: %+v", older, st)
		}
	}
	c := newTalk(t, ManifestAuto, stateOf(2, 5, "a@2.5.aaaaaaaa"), false)
	c.applied(c.receive(manifestOf(3, 1, map[string][]string{ClusterType: {"a@2.5.aaaaaaaa"}})), nil)
}

func TestOnlyWhatChangedIsHandedOn(t *testing.T) {
	c := newTalk(t, ManifestAuto, stateOf(1, 1, "a@1.1.aaaaaaaa", "b@1.1.bbbbbbbb"), false)
	c.receive(response(ClusterType, "a@1.1.aaaaaaaa", "c@1.2.cccccccc", "-b", "-unknown"))
	u, _ := c.applied(c.receive(manifestOf(1, 2, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa", "c@1.2.cccccccc"}})), nil)
	want(t, "the update", changes(u), "Cluster+c=c@1.2.cccccccc Cluster-b")
}

func TestARefusedResourceKeepsItsLastGoodVersion(t *testing.T) {
	c := newTalk(t, ManifestAuto, stateOf(1, 1, "a@1.1.aaaaaaaa"), false)
	c.receive(response(ClusterType, "a@1.2.bad00000", "b@1.2.bbbbbbbb", "new@1.2.bad00001"))
	c.receive(response(VirtualHostType, "v@1.2.cccccccc"))
	refused := &Refused{}
	refused.Add(ClusterType, "a", "no")
	refused.Add(ClusterType, "new", "no")
	_, acks := c.applied(c.receive(manifestOf(1, 2, map[string][]string{
		ClusterType: {"a@1.2.bad00000", "b@1.2.bbbbbbbb", "new@1.2.bad00001"}, VirtualHostType: {"v@1.2.cccccccc"},
	})), refused)
	want(t, "in service", names(c.s.applied, ClusterType), "a@1.1.aaaaaaaa b@1.2.bbbbbbbb")
	want(t, "acknowledged", nonces(acks), "!1 2 3")
	if c.s.applied.Revision() != 2 {
		t.Errorf("revision %d is in service, want 2", c.s.applied.Revision())
	}
	st := acks[0].request().GetErrorDetail()
	want(t, "the reason", st.GetMessage(), `Cluster "a": no; Cluster "new": no`)
	var r musterv1.Refusal
	if len(st.GetDetails()) != 2 || st.GetDetails()[0].UnmarshalTo(&r) != nil || r.GetResourceName() != "a" || r.GetDetail() != "no" {
		t.Errorf("details: %v", st.GetDetails())
	}

	t.Run("which is what the next server is told", func(t *testing.T) {
		next := newTalk(t, ManifestAuto, c.s.applied, false)
		want(t, "known versions", fmt.Sprint(next.s.requests()[0].GetInitialResourceVersions()), "map[a:1.1.aaaaaaaa b:1.2.bbbbbbbb]")
	})
	t.Run("and refused again when it is sent again", func(t *testing.T) {
		u, acks := c.applied(c.receive(response(ClusterType, "a@1.2.bad00000")), refused)
		want(t, "the update", changes(u), "Cluster+a=a@1.2.bad00000")
		want(t, "acknowledged", nonces(acks), "!4")
	})
}

func TestWhenNothingWasAppliedTheNextRevisionCarriesAll(t *testing.T) {
	c := newTalk(t, ManifestAuto, stateOf(1, 1, "a@1.1.aaaaaaaa"), false)
	c.receive(response(ClusterType, "b@1.2.bbbbbbbb"))
	_, acks := c.applied(c.receive(manifestOf(1, 2, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa", "b@1.2.bbbbbbbb"}})), errors.New("no"))
	want(t, "acknowledged", nonces(acks), "!1 !2")
	want(t, "in service", names(c.s.applied, ClusterType), "a@1.1.aaaaaaaa")
	c.receive(response(ClusterType, "c@1.3.cccccccc"))
	u, _ := c.applied(c.receive(manifestOf(1, 3, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa", "b@1.2.bbbbbbbb", "c@1.3.cccccccc"}})), nil)
	want(t, "the update", changes(u), "Cluster+b=b@1.2.bbbbbbbb Cluster+c=c@1.3.cccccccc")
}

func TestAResponseAcknowledgedTooEarlyIsRefusedOnTheManifest(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.receive(response(ClusterType, "a@1.1.aaaaaaaa"))
	want(t, "acknowledged early", nonces(c.s.silence().acknowledge), "1")
	refused := &Refused{}
	refused.Add(ClusterType, "a", "no")
	_, acks := c.applied(c.receive(manifestOf(1, 1, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})), refused)
	want(t, "acknowledged", nonces(acks), "!2")
}

func TestAnUpstreamWithoutManifestIsAppliedTypeByType(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	st := c.receive(response(ClusterType, "a@1"))
	c.waits(st)
	if st.wait != c.s.timing.Manifest {
		t.Errorf("waits %v for a manifest", st.wait)
	}
	u, acks := c.applied(c.s.silence(), nil)
	want(t, "the update", changes(u), "Cluster+a=a@1")
	want(t, "acknowledged", nonces(acks), "1")
	if u.Whole {
		t.Error("the update says it is a whole revision")
	}
	u, acks = c.applied(c.receive(response(VirtualHostType, "v@1")), nil)
	want(t, "the next update, at once", changes(u), "VirtualHost+v=v@1")
	want(t, "acknowledged", nonces(acks), "2")
}

func TestAnUpstreamThatSaysItHasNoManifestIsBelievedAtOnce(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.receive(response(ClusterType, "a@1"))
	st := c.receive(response(ManifestType, "-g"))
	want(t, "acknowledged", nonces(st.acknowledge), "2")
	c.applied(st, nil)
}

func TestAMusterServerIsWaitedForHoweverLong(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.receive(response(ClusterType, "a@1.1.aaaaaaaa"))
	if st := c.s.silence(); st.apply {
		t.Error("resources of muster were applied without their manifest")
	}
}

func TestARemovedManifestRemovesNothing(t *testing.T) {
	c := newTalk(t, ManifestAuto, stateOf(1, 1, "a@1.1.aaaaaaaa"), false)
	c.applied(c.receive(manifestOf(1, 1, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})), nil)
	st := c.receive(response(ManifestType, "-g"))
	if st.apply || st.leave != nil {
		t.Errorf("%+v", st)
	}
	want(t, "in service", names(c.s.applied, ClusterType), "a@1.1.aaaaaaaa")
}

func TestManifestRequiredNeverAppliesTypeByType(t *testing.T) {
	c := newTalk(t, ManifestRequired, emptyState(), false)
	c.receive(response(ClusterType, "a@1"))
	for range 2 {
		if st := c.s.silence(); st.apply {
			t.Error("applied without a manifest")
		}
	}
}

func TestManifestOffAsksForNone(t *testing.T) {
	c := newTalk(t, ManifestOff, emptyState(), false)
	for _, r := range c.s.requests() {
		if r.GetTypeUrl() == ManifestType {
			t.Error("a manifest is asked for")
		}
	}
	c.applied(c.receive(response(ClusterType, "a@1.1.aaaaaaaa")), nil)
}

func TestAFreshSessionAsksForEverythingAndDropsWhatIsNotSent(t *testing.T) {
	c := newTalk(t, ManifestAuto, stateOf(1, 1, "a@1.1.aaaaaaaa", "b@1.1.bbbbbbbb"), true)
	if n := len(c.s.requests()[0].GetInitialResourceVersions()); n > 0 {
		t.Errorf("%d known versions are told", n)
	}
	c.receive(response(ClusterType, "a@1.1.aaaaaaaa"))
	u, _ := c.applied(c.receive(manifestOf(1, 2, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})), nil)
	want(t, "the update", changes(u), "Cluster-b")
}

func TestMalformedResponsesAreRefused(t *testing.T) {
	mixed := response(ClusterType, "a@1")
	mixed.Resources = append(mixed.Resources, resource(VirtualHostType, "v", "1"))
	broken := response(ManifestType, "g@1")
	for name, r := range map[string]*discoveryv3.DeltaDiscoveryResponse{
		"two types in one response": mixed, "a type that was not asked for": response(ListenerType, "l@1"), "no manifest": broken,
	} {
		c := newTalk(t, ManifestAuto, emptyState(), false)
		st := c.receive(r)
		if got := nonces(st.acknowledge); got != "!1" {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestAHeartbeatChangesNothing(t *testing.T) {
	c := newTalk(t, ManifestOff, stateOf(0, 0, "a@1"), false)
	r := response(ClusterType)
	r.Resources = []*discoveryv3.Resource{{Name: "a", Version: "1"}}
	u, acks := c.applied(c.receive(r), nil)
	if !u.Empty() {
		t.Errorf("%+v", u.Types)
	}
	want(t, "acknowledged", nonces(acks), "1")
	want(t, "in service", names(c.s.applied, ClusterType), "a@1")
}

func TestSilenceFromTheStartEndsTheStream(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	if c.s.wait() != c.s.timing.FirstResponse {
		t.Errorf("waits %v", c.s.wait())
	}
	if st := c.s.silence(); !errors.Is(st.leave, errSilent) {
		t.Errorf("%+v", st)
	}
}

func TestAnIdleSessionWaitsForEver(t *testing.T) {
	c := newTalk(t, ManifestAuto, emptyState(), false)
	c.receive(response(ClusterType, "a@1.1.aaaaaaaa"))
	c.applied(c.receive(manifestOf(1, 1, map[string][]string{ClusterType: {"a@1.1.aaaaaaaa"}})), nil)
	if d := c.s.wait(); d != 0 {
		t.Errorf("waits %v", d)
	}
}

func TestDigestsDoNotDependOnTheOrderOfChanges(t *testing.T) {
	a := applyChange(emptyState(), response(ClusterType, "a@1", "b@2", "c@3"))
	b := applyChange(emptyState(), response(ClusterType, "c@1", "x@9", "a@1"))
	b = applyChange(b, response(ClusterType, "b@2", "c@3", "-x"))
	if a.types[ClusterType].digest != b.types[ClusterType].digest {
		t.Error("one content has two digests")
	}
	if c := applyChange(b, response(ClusterType, "b@3")); c.types[ClusterType].digest == b.types[ClusterType].digest {
		t.Error("two contents have one digest")
	}
	if s := applyChange(b, response(ClusterType, "-a", "-b", "-c")); len(s.types) != 0 {
		t.Error("an empty type is left")
	}
}

func TestStillRefusedUntilSentAgainOrGone(t *testing.T) {
	before := []Refusal{{ClusterType, "a", "no"}, {ClusterType, "b", "no"}, {ClusterType, "c", "no"}}
	state := stateOf(1, 2, "a@1.1.aaaaaaaa", "b@1.2.bbbbbbbb")
	u := &Update{State: state, Types: map[string]TypeUpdate{ClusterType: {Upsert: map[string]*anypb.Any{"b": {}}}}}
	got := stillRefused(before, nil, u)
	if len(got) != 1 || got[0].Name != "a" {
		t.Errorf("%v", got)
	}
}

func TestPickerSpreadsFailsOverAndBacksOff(t *testing.T) {
	timing := Timing{BackoffMin: time.Second, BackoffMax: 8 * time.Second}
	servers := []string{"a", "b", "c"}
	first := map[string]bool{}
	for i := range 50 {
		s, _ := newPicker(servers, OrderSpread, fmt.Sprint("node-", i), timing).next(time.Now())
		first[s] = true
	}
	if len(first) != len(servers) {
		t.Errorf("data planes begin at %v only", first)
	}
	p := newPicker(servers, OrderPreferred, "n", timing)
	p.randomness = func() float64 { return 0.5 }
	now := time.Now()
	for _, wanted := range servers {
		s, wait := p.next(now)
		if s != wanted || wait != 0 {
			t.Errorf("next is %s after %v, want %s at once", s, wait, wanted)
		}
		p.failed(s, now)
	}
	s, wait := p.next(now)
	if s != "a" || wait != 750*time.Millisecond {
		t.Errorf("when all have failed: %s after %v", s, wait)
	}
	for range 10 {
		p.failed("a", now)
	}
	if p.server("a").retryAt.Sub(now) > 8*time.Second {
		t.Error("the back-off is unbounded")
	}
	p.worked("a")
	if s, wait := p.next(now); s != "a" || wait != 0 {
		t.Errorf("after it worked: %s after %v", s, wait)
	}
}
