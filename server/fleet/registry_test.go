package fleet

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/xds"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a hand that the test turns.
type clock struct{ at time.Time }

func (c *clock) now() time.Time          { return c.at }
func (c *clock) advance(d time.Duration) { c.at = c.at.Add(d) }

func newRegistry(t *testing.T, change ...func(*Config)) (*Registry, *clock) {
	t.Helper()
	c := &clock{at: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	cfg := Config{Server: "srv-1", Now: c.now}
	for _, f := range change {
		f(&cfg)
	}
	return New(cfg), c
}

func rev(n uint64) Version { return Version{Epoch: 1, Revision: n} }

// dp drives one data plane's stream.
type dp struct {
	r *Registry
	s *xds.Stream
}

func connect(r *Registry, id uint64, node string, change ...func(*xds.Stream)) *dp {
	s := &xds.Stream{ID: id, Group: "g", Node: node, UserAgent: "muster-gateway/0.1.0", Protocol: "delta", Address: "127.0.0.1:1"}
	for _, f := range change {
		f(s)
	}
	r.Connected(s)
	return &dp{r, s}
}

func (d *dp) subscribe(types ...string) *dp {
	for _, typ := range types {
		d.r.Subscribed(d.s, xds.Subscribed{TypeURL: typ, Wildcard: true})
	}
	return d
}

func (d *dp) ack(typ string, v uint64, cleared ...string) *dp {
	d.r.Sent(d.s, xds.Sent{TypeURL: typ, To: rev(v)})
	d.r.Acked(d.s, xds.Acked{TypeURL: typ, Version: rev(v), Cleared: cleared})
	return d
}

func (d *dp) nack(typ, name, detail string) *dp {
	d.r.Nacked(d.s, xds.Nacked{TypeURL: typ, Detail: detail, Refused: []xds.Refused{{
		Name: name, Rev: 7, Serving: "1.5.abcd", Origins: []resource.Key{{Kind: musterv1.Kind_KIND_SERVICE, ID: "pay"}},
	}}})
	return d
}

func (d *dp) synced(v uint64) *dp { d.r.Synced(d.s, rev(v)); return d }

func (d *dp) disconnect() { d.r.Disconnected(d.s, nil) }

func one(t *testing.T, r *Registry, node string) *musterv1.DataPlane {
	t.Helper()
	list := r.List("g", ListOptions{IDs: []string{node}, Types: true})
	if len(list) != 1 {
		t.Fatalf("List(%s) = %v, want one data plane", node, list)
	}
	return list[0]
}

func wantState(t *testing.T, r *Registry, node string, state musterv1.DataPlaneState, revision uint64) *musterv1.DataPlane {
	t.Helper()
	p := one(t, r, node)
	if p.GetState() != state || p.GetRevision() != revision {
		t.Fatalf("%s is %s at revision %d, want %s at %d", node, p.GetState(), p.GetRevision(), state, revision)
	}
	return p
}

func TestADataPlaneIsSyncedOnceEveryTypeIsAcknowledged(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(3))
	d := connect(r, 1, "a").subscribe(compile.ClusterType, compile.ListenerType)
	wantState(t, r, "a", stale, 0)
	d.ack(compile.ClusterType, 3)
	wantState(t, r, "a", stale, 0)
	d.ack(compile.ListenerType, 3)
	p := wantState(t, r, "a", synced, 3)
	if p.GetGroupRevision() != 3 || p.GetServer() != "srv-1" || p.GetLag() != nil {
		t.Fatalf("data plane = %v", p)
	}
}

func TestANewRevisionMakesADataPlaneStaleUntilItHoldsIt(t *testing.T) {
	r, c := newRegistry(t)
	r.Published("g", rev(3))
	d := connect(r, 1, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	c.advance(time.Minute)
	r.Published("g", rev(4))
	c.advance(2 * time.Second)
	r.Published("g", rev(5))
	c.advance(time.Second)
	p := wantState(t, r, "a", stale, 3)
	if lag := p.GetLag().AsDuration(); lag != 3*time.Second {
		t.Fatalf("lag = %s, want that of the oldest unacknowledged revision, 3s", lag)
	}
	d.ack(compile.ClusterType, 5)
	wantState(t, r, "a", synced, 5)
}

func TestARevisionThatChangesNothingForADataPlaneIsSyncedWithoutAnAcknowledgement(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(3))
	d := connect(r, 1, "a").subscribe(compile.ClusterType, compile.ListenerType).synced(3)
	r.Published("g", rev(4))
	wantState(t, r, "a", stale, 3)
	d.synced(4)
	p := wantState(t, r, "a", synced, 4)
	for _, typ := range p.GetTypes() {
		if typ.GetAckedRevision() != 4 || typ.GetState() != synced {
			t.Fatalf("type = %v", typ)
		}
	}
}

func TestAStartingEnvoyIsNotSyncedBeforeItHasAListener(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(3))
	envoy := func(s *xds.Stream) { s.UserAgent = "envoy/1.40.0" }
	d := connect(r, 1, "a", envoy).subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	wantState(t, r, "a", stale, 3)
	d.subscribe(compile.ListenerType).ack(compile.ListenerType, 3)
	wantState(t, r, "a", synced, 3)
}

func TestARefusalIsAttributedToTheObjectBehindIt(t *testing.T) {
	r, _ := newRegistry(t, func(c *Config) {
		c.Describe = func(group, typeURL, name string) ([]resource.Key, *musterv1.Revision, bool) {
			if group != "g" || typeURL != compile.ClusterType || name != "service/pay" {
				t.Errorf("Describe(%s, %s, %s)", group, typeURL, name)
			}
			return []resource.Key{{Kind: musterv1.Kind_KIND_SERVICE, ID: "pay"}}, &musterv1.Revision{Revision: 6, Author: "ann"}, true
		}
	})
	r.Published("g", rev(7))
	d := connect(r, 1, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 5)
	d.nack(compile.ClusterType, "service/pay", "bad endpoint address").synced(7)
	p := wantState(t, r, "a", nacked, 7)
	if len(p.GetRefusals()) != 1 {
		t.Fatalf("refusals = %v, want one", p.GetRefusals())
	}
	got := p.GetRefusals()[0]
	if got.GetAuthor() != "ann" || got.GetRevision() != 6 || got.GetField() != "upstream.nodes" ||
		got.GetObjects()[0].GetId() != "pay" || got.GetServingVersion() != "1.5.abcd" || got.GetAt() == nil {
		t.Fatalf("refusal = %v", got)
	}
	if p.GetTypes()[0].GetState() != nacked {
		t.Fatalf("type = %v, want NACKED", p.GetTypes()[0])
	}
}

func TestTheNextGoodContentClearsARefusal(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(7))
	d := connect(r, 1, "a").subscribe(compile.ClusterType).nack(compile.ClusterType, "service/pay", "no").synced(7)
	wantState(t, r, "a", nacked, 7)
	r.Published("g", rev(8))
	d.ack(compile.ClusterType, 8, "service/pay")
	if p := wantState(t, r, "a", synced, 8); len(p.GetRefusals()) != 0 {
		t.Fatalf("refusals = %v, want none", p.GetRefusals())
	}
}

func TestADisconnectedDataPlaneIsRememberedOffline(t *testing.T) {
	r, c := newRegistry(t)
	r.Published("g", rev(3))
	connect(r, 1, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 3).disconnect()
	seen := c.at
	c.advance(time.Hour)
	p := wantState(t, r, "a", offline, 3)
	if !p.GetLastSeen().AsTime().Equal(seen) {
		t.Fatalf("last seen = %s, want %s", p.GetLastSeen().AsTime(), seen)
	}
	if n := r.Live("g"); n != 0 {
		t.Fatalf("Live = %d, want 0", n)
	}
}

func TestOfflineDataPlanesAreForgottenByAgeAndNumber(t *testing.T) {
	r, c := newRegistry(t, func(c *Config) { c.RememberOffline, c.ForgetAfter = 3, 24*time.Hour })
	r.Published("g", rev(1))
	for i, node := range []string{"a", "b", "c", "d", "e"} {
		connect(r, uint64(i+1), node).disconnect()
		c.advance(time.Hour)
	}
	names := func() string {
		var ids []string
		for _, p := range r.List("g", ListOptions{}) {
			ids = append(ids, p.GetId())
		}
		return strings.Join(ids, " ")
	}
	if got := names(); got != "c d e" {
		t.Fatalf("remembered %q, want the three that left last", got)
	}
	c.advance(22 * time.Hour)
	if got := names(); got != "d e" {
		t.Fatalf("remembered %q, want those that left within a day", got)
	}
}

func TestTheNewestStreamOfADataPlaneCounts(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(3))
	old := connect(r, 1, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	young := connect(r, 2, "a")
	// Late events of the old stream neither count nor end the data plane.
	old.ack(compile.ClusterType, 3)
	young.subscribe(compile.ClusterType)
	wantState(t, r, "a", stale, 0)
	old.ack(compile.ClusterType, 3)
	old.disconnect()
	wantState(t, r, "a", stale, 0)
	young.ack(compile.ClusterType, 3)
	wantState(t, r, "a", synced, 3)
	if n := r.Live("g"); n != 1 {
		t.Fatalf("Live = %d, want 1", n)
	}
}

func TestANewStreamIsANewTry(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(3))
	connect(r, 1, "a").subscribe(compile.ClusterType).nack(compile.ClusterType, "x", "no").synced(3)
	wantState(t, r, "a", nacked, 3)
	connect(r, 2, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	wantState(t, r, "a", synced, 3)
}

func TestPerTypeStreamsOfADataPlaneAreOneDataPlane(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(3))
	of := func(typ string) func(*xds.Stream) { return func(s *xds.Stream) { s.TypeURL = typ } }
	cds := connect(r, 1, "a", of(compile.ClusterType)).subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	lds := connect(r, 2, "a", of(compile.ListenerType)).subscribe(compile.ListenerType)
	wantState(t, r, "a", stale, 0)
	lds.ack(compile.ListenerType, 3)
	wantState(t, r, "a", synced, 3)
	cds.disconnect()
	wantState(t, r, "a", synced, 3)
	lds.disconnect()
	wantState(t, r, "a", offline, 3)
}

func TestAllStreamsOfAGRPCClientMustHoldARevision(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(3))
	grpc := func(s *xds.Stream) { s.UserAgent = "gRPC Go/1.85.0" }
	first := connect(r, 1, "a", grpc).subscribe(compile.ListenerType).ack(compile.ListenerType, 3)
	wantState(t, r, "a", synced, 3)
	second := connect(r, 2, "a", grpc).subscribe(compile.ListenerType)
	if p := wantState(t, r, "a", stale, 0); len(p.GetTypes()) != 1 || p.GetTypes()[0].GetAckedRevision() != 0 {
		t.Fatalf("types = %v, want the least of both streams", p.GetTypes())
	}
	second.ack(compile.ListenerType, 3)
	wantState(t, r, "a", synced, 3)
	first.nack(compile.ListenerType, "x", "no")
	wantState(t, r, "a", nacked, 3)
	first.disconnect() // and with it what it refused
	wantState(t, r, "a", synced, 3)
}

func TestATypeThatIsNoLongerSubscribedToDoesNotHoldARevisionBack(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(3))
	connect(r, 1, "a").subscribe(compile.ClusterType, compile.SecretType).ack(compile.ClusterType, 3).disconnect()
	connect(r, 2, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	wantState(t, r, "a", synced, 3)
}

func TestGroupsDoNotMix(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(1))
	r.Published("h", rev(9))
	connect(r, 1, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 1)
	connect(r, 2, "a", func(s *xds.Stream) { s.Group = "h" })
	wantState(t, r, "a", synced, 1)
	if list := r.List("h", ListOptions{}); len(list) != 1 || list[0].GetState() != stale || list[0].GetGroup() != "h" {
		t.Fatalf("List(h) = %v", list)
	}
	r.Dropped("h")
	if list := r.List("h", ListOptions{}); len(list) != 0 {
		t.Fatalf("List(h) = %v after the group was dropped", list)
	}
	wantState(t, r, "a", synced, 1)
}

func TestAnEpochOrdersBeforeARevision(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(9))
	d := connect(r, 1, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 9)
	r.Published("g", Version{Epoch: 2, Revision: 4})
	wantState(t, r, "a", stale, 9)
	d.r.Acked(d.s, xds.Acked{TypeURL: compile.ClusterType, Version: Version{Epoch: 2, Revision: 4}})
	if p := wantState(t, r, "a", synced, 4); p.GetEpoch() != 2 {
		t.Fatalf("epoch = %d, want 2", p.GetEpoch())
	}
}

func TestWhatADataPlaneCanMakeTheServerRememberIsBounded(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(1))
	d := connect(r, 1, "a")
	for i := range 2 * typeLimit {
		d.subscribe(strings.Repeat("t", i+1))
	}
	for i := range 2 * refusalLimit {
		d.nack(compile.ClusterType, strings.Repeat("n", i+1), strings.Repeat("long ", 4096))
	}
	p := one(t, r, "a")
	if len(p.GetTypes()) != typeLimit || len(p.GetRefusals()) != refusalLimit || len(p.GetRefusals()[0].GetDetail()) > detailLimit+8 {
		t.Fatalf("%d types, %d refusals, %d bytes of detail", len(p.GetTypes()), len(p.GetRefusals()), len(p.GetRefusals()[0].GetDetail()))
	}
}

func TestCountsTellTheStates(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(1))
	connect(r, 1, "synced").subscribe(compile.ClusterType).ack(compile.ClusterType, 1)
	connect(r, 2, "stale").subscribe(compile.ClusterType)
	connect(r, 3, "nacked").subscribe(compile.ClusterType).nack(compile.ClusterType, "x", "no")
	connect(r, 4, "offline").disconnect()
	if got, want := r.Counts()["g"], (Counts{1, 1, 1, 1}); got != want {
		t.Fatalf("Counts = %+v, want %+v", got, want)
	}
}

func TestTheTimelineStaysBounded(t *testing.T) {
	var line timeline
	start := time.Unix(0, 0)
	for i := range uint64(10 * timelineLimit) {
		line.add(rev(i+1), start.Add(time.Duration(i)))
	}
	if len(line.entries) > timelineLimit {
		t.Fatalf("%d entries, limit %d", len(line.entries), timelineLimit)
	}
	last := uint64(10 * timelineLimit)
	if at, ok := line.since(rev(last - 1)); !ok || !at.Equal(start.Add(time.Duration(last-1))) {
		t.Fatalf("since = %v, %v", at, ok)
	}
	if _, ok := line.since(rev(last)); ok {
		t.Fatal("the newest version has a lag")
	}
	if at, ok := line.since(rev(1)); !ok || at.Before(start) {
		t.Fatalf("a version before all that is remembered has no lag: %v, %v", at, ok)
	}
}

func TestAStreamThatOutlivesItsGroupLeavesNothingBehind(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(1))
	d := connect(r, 1, "a")
	r.Dropped("g")
	d.ack(compile.ClusterType, 1)
	late := connect(r, 2, "b") // was let in a moment before
	late.disconnect()
	d.disconnect()
	if len(r.groups) != 0 || len(r.Counts()) != 0 {
		t.Errorf("groups = %v", r.Counts())
	}
}

func TestARefusalNamesABoundedNumberOfObjects(t *testing.T) {
	var origins []resource.Key
	for i := range 5000 {
		origins = append(origins, resource.CredentialKey("ann", fmt.Sprint(i)))
	}
	r, _ := newRegistry(t, func(c *Config) {
		c.Describe = func(string, string, string) ([]resource.Key, *musterv1.Revision, bool) {
			return origins, &musterv1.Revision{Revision: 3}, true
		}
	})
	r.Published("g", rev(3))
	d := connect(r, 1, "a").subscribe(compile.ExtensionConfigType)
	r.Nacked(d.s, xds.Nacked{TypeURL: compile.ExtensionConfigType, Detail: "no", Refused: []xds.Refused{{Name: "key-auth"}}})
	got := one(t, r, "a").GetRefusals()[0]
	if len(got.GetObjects()) != objectLimit || got.GetObjects()[0].GetId() != "ann/0" || got.GetRevision() != 3 {
		t.Errorf("%d objects, revision %d", len(got.GetObjects()), got.GetRevision())
	}
}

func TestOnlyConnectedDataPlanesCountAsLive(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(1))
	want := func(n int) {
		t.Helper()
		if here, all := r.LiveHere("g"), r.Live("g"); here != n || all != n {
			t.Fatalf("%d live here, %d in all, want %d", here, all, n)
		}
	}
	a, b := connect(r, 1, "a"), connect(r, 2, "b")
	want(2)
	again := connect(r, 3, "a") // in place of the first stream
	a.disconnect()
	want(2)
	again.disconnect()
	again.disconnect()
	want(1)
	connect(r, 4, "a")
	b.disconnect()
	want(1)
	r.Dropped("g")
	want(0)
}
