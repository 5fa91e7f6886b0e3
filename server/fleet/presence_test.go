package fleet

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
)

// pair is two servers' registries, of which the second hears of the first.
type pair struct {
	t        *testing.T
	a, b     *Registry
	clock    *clock
	instance string
	since    uint64
}

func newPair(t *testing.T) *pair {
	t.Helper()
	p := &pair{t: t, instance: "1"}
	p.a, p.clock = newRegistry(t, func(c *Config) { c.Server = "a" })
	p.b, _ = newRegistry(t, func(c *Config) { c.Server = "b"; c.Now = p.clock.now })
	for _, r := range []*Registry{p.a, p.b} {
		r.Published("g", rev(1))
	}
	return p
}

// tell sends what changed from a to b, over the wire, and returns how many.
func (p *pair) tell() int {
	p.t.Helper()
	n := 0
	for {
		planes, until, more := p.a.Presence(p.since)
		n += len(planes)
		wire := make([]*musterv1.DataPlane, len(planes))
		for i, m := range planes {
			wire[i] = proto.CloneOf(m)
		}
		if !p.b.Learn("a", p.instance, wire) {
			p.t.Fatal("b left something out")
		}
		p.since = until
		if !more {
			return n
		}
	}
}

func TestADataPlaneIsSeenFromEveryServer(t *testing.T) {
	p := newPair(t)
	d := connect(p.a, 1, "dp").subscribe(compile.ClusterType)
	p.tell()
	wantState(t, p.b, "dp", stale, 0)
	d.ack(compile.ClusterType, 1)
	p.tell()
	got := wantState(t, p.b, "dp", synced, 1)
	if got.GetServer() != "a" || got.GetUserAgent() != "muster-gateway/0.1.0" || len(got.GetTypes()) != 1 || got.GetTypes()[0].GetAckedRevision() != 1 {
		t.Fatalf("data plane = %v", got)
	}
	if p.b.Live("g") != 1 || p.b.LiveHere("g") != 0 {
		t.Fatalf("Live = %d, LiveHere = %d", p.b.Live("g"), p.b.LiveHere("g"))
	}
	d.nack(compile.ClusterType, "service/pay", "no")
	p.tell()
	if got := wantState(t, p.b, "dp", nacked, 1); got.GetRefusals()[0].GetObjects()[0].GetId() != "pay" {
		t.Fatalf("refusals = %v", got.GetRefusals())
	}
	d.disconnect()
	p.tell()
	wantState(t, p.b, "dp", offline, 1)
}

func TestOnlyWhatChangedIsTold(t *testing.T) {
	p := newPair(t)
	var dps []*dp
	for i := range 50 {
		dps = append(dps, connect(p.a, uint64(i+1), strings.Repeat("x", i+1)))
	}
	if n := p.tell(); n != 50 {
		t.Fatalf("told %d, want 50", n)
	}
	if n := p.tell(); n != 0 {
		t.Fatalf("told %d, want nothing", n)
	}
	dps[7].subscribe(compile.ClusterType)
	dps[9].disconnect()
	if n := p.tell(); n != 2 {
		t.Fatalf("told %d, want 2", n)
	}
}

func TestALargeFleetIsToldInParts(t *testing.T) {
	p := newPair(t)
	for i := range 8000 {
		connect(p.a, uint64(i+1), fmt.Sprintf("dp-%04d", i)).subscribe(compile.ClusterType, compile.ListenerType, compile.EndpointType, compile.VirtualHostType)
	}
	planes, _, more := p.a.Presence(0)
	if !more || len(planes) == 8000 {
		t.Fatalf("one answer tells of %d data planes", len(planes))
	}
	if n := p.tell(); n != 8000 {
		t.Fatalf("told %d, want 8000", n)
	}
	if n := p.b.Live("g"); n != 8000 {
		t.Fatalf("b knows %d", n)
	}
}

func TestADataPlaneThatMovedIsWhereItIsNow(t *testing.T) {
	p := newPair(t)
	d := connect(p.a, 1, "dp").subscribe(compile.ClusterType).ack(compile.ClusterType, 1)
	p.tell()
	p.clock.advance(time.Second)
	connect(p.b, 1, "dp").subscribe(compile.ClusterType)
	if got := wantState(t, p.b, "dp", stale, 0); got.GetServer() != "b" {
		t.Fatalf("server = %s", got.GetServer())
	}
	d.disconnect()
	p.tell()
	if got := wantState(t, p.b, "dp", stale, 0); got.GetServer() != "b" {
		t.Fatalf("server = %s", got.GetServer())
	}
	if n := len(p.b.List("g", ListOptions{})); n != 1 {
		t.Fatalf("%d data planes, want 1", n)
	}
}

func TestTheDataPlanesOfALostServerAreOfflineUntilItIsBack(t *testing.T) {
	p := newPair(t)
	connect(p.a, 1, "dp").subscribe(compile.ClusterType).ack(compile.ClusterType, 1)
	p.tell()
	p.b.Lost("a")
	wantState(t, p.b, "dp", offline, 1)
	p.since = 0
	p.tell()
	wantState(t, p.b, "dp", synced, 1)
}

func TestWhatARestartedServerToldBeforeIsVoid(t *testing.T) {
	p := newPair(t)
	connect(p.a, 1, "dp")
	p.tell()
	p.a, _ = newRegistry(t, func(c *Config) { c.Server = "a" })
	p.instance, p.since = "2", 0
	p.tell()
	if list := p.b.List("g", ListOptions{}); len(list) != 0 {
		t.Fatalf("data planes = %v", list)
	}
}

func TestAGroupThatIsNotKnownYetIsAskedForAgain(t *testing.T) {
	p := newPair(t)
	p.a.Published("h", rev(1))
	p.a.Connected(connect(p.a, 1, "dp").s)
	s := *connect(p.a, 2, "dp").s
	s.Group = "h"
	p.a.Connected(&s)
	planes, _, _ := p.a.Presence(0)
	if p.b.Learn("a", "1", planes) {
		t.Fatal("nothing was said to be left out")
	}
	if p.b.Live("g") != 1 || p.b.Live("h") != 0 {
		t.Fatal("the known group was left out, or the unknown was not")
	}
	p.b.Published("h", rev(1))
	if !p.b.Learn("a", "1", planes) || p.b.Live("h") != 1 {
		t.Fatal("the group is known now")
	}
}

// Clocks differ: what tells a group from one that had its id before is when it
// was created, not when its data planes were seen.
func TestDataPlanesOfAnEarlierGroupOfTheIDAreLeftOut(t *testing.T) {
	born := time.Date(2026, 11, 24, 11, 0, 0, 0, time.UTC)
	r, _ := newRegistry(t, func(c *Config) { c.Server = "b" })
	r.Created("g", born)
	r.Published("g", rev(1))
	for node, created := range map[string]time.Time{"old": born.Add(-time.Hour), "young": born} {
		behind := &clock{born.Add(-2 * time.Hour)}
		other, _ := newRegistry(t, func(cfg *Config) { cfg.Now = behind.now })
		other.Created("g", created)
		other.Published("g", rev(1))
		connect(other, 1, node)
		planes, _, _ := other.Presence(0)
		if complete := r.Learn(node, "1", planes); complete != (node == "young") {
			t.Errorf("%s: complete is %v", node, complete)
		}
		r.Recall(&musterv1.RememberedFleet{DataPlanes: planes})
	}
	if list := r.List("g", ListOptions{}); len(list) != 1 || list[0].GetId() != "young" {
		t.Fatalf("data planes = %v", list)
	}
}

func TestAGroupThatIsMadeAgainBetweenTwoLooksBeginsAfresh(t *testing.T) {
	p := newPair(t)
	born := time.Date(2026, 11, 24, 11, 0, 0, 0, time.UTC)
	p.a.Created("g", born)
	p.b.Created("g", born)
	connect(p.a, 1, "there")
	connect(p.b, 1, "here")
	connect(p.b, 2, "gone").disconnect()
	p.tell()
	p.b.Created("g", born.Add(time.Hour))
	if list := p.b.List("g", ListOptions{}); len(list) != 1 || list[0].GetId() != "here" {
		t.Fatalf("data planes = %v", list)
	}
	// What the other server told before is to be told again, by its new group.
	if p.b.Learn("a", p.instance, nil) {
		t.Fatal("nothing was said to be missing")
	}
	p.a.Created("g", born.Add(time.Hour))
	p.since = 0
	p.tell()
	if n := p.b.Live("g"); n != 2 {
		t.Fatalf("%d data planes are live", n)
	}
}

// Data planes come and go under ever new ids wherever containers are replaced.
func TestWhatIsRememberedOfOtherServersIsBounded(t *testing.T) {
	p := &pair{t: t, instance: "1"}
	p.a, p.clock = newRegistry(t, func(c *Config) { c.Server, c.RememberOffline = "a", 80 })
	p.b, _ = newRegistry(t, func(c *Config) { c.Server, c.Now, c.RememberOffline = "b", p.clock.now, 80 })
	p.a.Published("g", rev(1))
	p.b.Published("g", rev(1))
	for i := range 2000 {
		d := connect(p.a, uint64(i+1), fmt.Sprintf("dp-%04d", i))
		p.tell()
		p.clock.advance(time.Second)
		if i%100 != 0 {
			d.disconnect()
			p.tell()
		}
	}
	g := p.b.existing("g")
	if n := len(g.remote["a"]); n > 20+80+10 {
		t.Errorf("b remembers %d data planes of a; 20 are connected and 80 may be remembered", n)
	}
	if n := p.b.Live("g"); n != 20 {
		t.Errorf("%d are live, want 20", n)
	}
	p.b.Lost("a")
	if n := len(g.remote["a"]); n > 80 {
		t.Errorf("b remembers %d data planes of a lost server", n)
	}
}

func TestDataPlanesSurviveARestartOfTheirServer(t *testing.T) {
	before, c := newRegistry(t)
	before.Published("g", rev(3))
	connect(before, 1, "dp").subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	connect(before, 2, "back").subscribe(compile.ClusterType).ack(compile.ClusterType, 2)
	data, err := proto.Marshal(before.Remember())
	if err != nil {
		t.Fatal(err)
	}
	c.advance(time.Minute)
	after, _ := newRegistry(t, func(cfg *Config) { cfg.Now = c.now })
	after.Published("g", rev(3))
	connect(after, 1, "back").subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	kept := &musterv1.RememberedFleet{}
	if err := proto.Unmarshal(data, kept); err != nil {
		t.Fatal(err)
	}
	after.Recall(kept)
	if p := wantState(t, after, "dp", offline, 3); !p.GetLastSeen().AsTime().Equal(c.at.Add(-time.Minute)) {
		t.Fatalf("last seen = %s", p.GetLastSeen().AsTime())
	}
	wantState(t, after, "back", synced, 3)
	connect(after, 2, "dp").subscribe(compile.ClusterType).ack(compile.ClusterType, 3)
	wantState(t, after, "dp", synced, 3)
}

func TestAWaitCountsTheDataPlanesOfEveryServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPair(t)
		here := connect(p.b, 1, "here").subscribe(compile.ClusterType)
		there := connect(p.a, 1, "there").subscribe(compile.ClusterType)
		p.tell()
		w := startWait(t.Context(), p.b, all(1))
		if w.last().GetConnected() != 2 || !p.b.Waiting() {
			t.Fatalf("progress = %v", w.last())
		}
		here.ack(compile.ClusterType, 1)
		if w.finished() {
			t.Fatal("done without the other server's")
		}
		there.ack(compile.ClusterType, 1)
		p.tell()
		if !w.finished() || w.err != nil || p.b.Waiting() {
			t.Fatalf("err = %v", w.err)
		}
	})
}
