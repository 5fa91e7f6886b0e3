package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/fleet"
	"github.com/musterhq/muster/server/snapshot"
)

// memoryStore is the state machine without a log.
type memoryStore struct {
	mu    sync.Mutex
	st    *state.State
	ready error
	watch chan struct{}
}

func (m *memoryStore) State() *state.State              { m.mu.Lock(); defer m.mu.Unlock(); return m.st }
func (m *memoryStore) Ready() error                     { m.mu.Lock(); defer m.mu.Unlock(); return m.ready }
func (m *memoryStore) Watch() (<-chan struct{}, func()) { return m.watch, func() {} }

func (m *memoryStore) set(change func(*memoryStore)) {
	m.mu.Lock()
	change(m)
	m.mu.Unlock()
	select {
	case m.watch <- struct{}{}:
	default:
	}
}

// published is a publisher over a memoryStore, with what it told the fleet.
type published struct {
	t     *testing.T
	store *memoryStore
	pub   *publisher

	mu      sync.Mutex
	told    []fleet.Version
	dropped []string
}

func (p *published) Published(_ string, v fleet.Version) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told = append(p.told, v)
}

func (*published) Created(string, time.Time) {}

func (p *published) Dropped(g string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dropped = append(p.dropped, g)
}

func newPublished(t *testing.T) *published {
	t.Helper()
	p := &published{t: t, store: &memoryStore{st: state.New(), ready: errors.New("not yet"), watch: make(chan struct{}, 1)}}
	p.pub = newPublisher(p.store, p, newMetrics(), slog.New(slog.DiscardHandler), time.Now)
	return p
}

// run publishes until the test ends.
func (p *published) run() {
	p.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(p.t.Context()))
	done := make(chan error, 1)
	go func() { done <- p.pub.run(ctx) }()
	p.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			p.t.Error(err)
		}
	})
}

func (p *published) ready() {
	p.store.set(func(m *memoryStore) { m.ready = nil })
	eventually(p.t, "the publisher is ready", p.pub.ready.Load)
}

// apply applies commands and wakes the publisher once.
func (p *published) apply(cmds ...*musterv1.Command) {
	p.t.Helper()
	var failed error
	p.store.set(func(m *memoryStore) {
		for _, cmd := range cmds {
			cmd.Author, cmd.Time = "ann", timestamppb.New(time.Unix(1, 0))
			next, res := m.st.Apply(cmd)
			failed = errors.Join(failed, res.Err)
			m.st = next
		}
	})
	if failed != nil {
		p.t.Fatal(failed)
	}
}

// snap waits for the group's snapshot of a version.
func (p *published) snap(group string, epoch, revision uint64) *snapshot.Snapshot {
	p.t.Helper()
	var found *snapshot.Snapshot
	eventually(p.t, fmt.Sprintf("%s is published at %d.%d", group, epoch, revision), func() bool {
		if pg := p.pub.lookup(group); pg != nil && pg.current.Load() != nil {
			found = pg.current.Load().snap
			return found.Version() == snapshot.Version{Epoch: epoch, Revision: revision}
		}
		return false
	})
	return found
}

func clusters(s *snapshot.Snapshot) string {
	var names []string
	for r := range s.Set(compile.ClusterType, snapshot.View{Client: compile.ViewDelta}).All() {
		names = append(names, r.Name)
	}
	return strings.Join(names, " ")
}

func createGroup(id string, limit uint32) *musterv1.Command {
	return &musterv1.Command{Command: &musterv1.Command_CreateGroup{CreateGroup: &musterv1.Group{Id: id, HistoryLimit: limit}}}
}

func deleteGroup(id string) *musterv1.Command {
	return &musterv1.Command{Command: &musterv1.Command_DeleteGroup{DeleteGroup: &musterv1.DeleteGroupCommand{Id: id, Force: true}}}
}

func commit(group string, changes ...*musterv1.Change) *musterv1.Command {
	return &musterv1.Command{Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: group, Changes: changes}}}
}

func raiseEpoch() *musterv1.Command {
	return &musterv1.Command{Command: &musterv1.Command_RaiseEpoch{RaiseEpoch: &musterv1.RaiseEpochCommand{}}}
}

func TestNothingIsServedBeforeTheStoreHasCaughtUp(t *testing.T) {
	p := newPublished(t)
	p.apply(createGroup("g", 0))
	p.run()
	time.Sleep(5 * readyPoll)
	if p.pub.ready.Load() || p.pub.lookup("g") != nil {
		t.Fatal("an old state was published")
	}
	p.ready()
	p.snap("g", 1, 0)
	if _, err := p.pub.Subscribe("g", nil, func() {}); err != nil {
		t.Fatal(err)
	}
	if _, err := p.pub.Subscribe("other", nil, func() {}); status.Code(err) != codes.Unavailable {
		t.Fatalf("a group that is gone: %v, want UNAVAILABLE", err)
	}
}

func TestRevisionsThatCameDuringAPublicationAreOne(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0), commit("g", put(serviceOf("a", 1))), commit("g", put(serviceOf("b", 1))), commit("g", del(musterv1.Kind_KIND_SERVICE, "a")))
	if got := clusters(p.snap("g", 1, 3)); got != "service/b" {
		t.Fatalf("clusters = %q", got)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.told) != 1 || p.told[0].Revision != 3 {
		t.Fatalf("published %v, want revision 3 at once", p.told)
	}
}

func TestAGroupIsPublishedRightFromBehindItsKeptHistory(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 2), commit("g", put(serviceOf("gone", 1)), put(serviceOf("stays", 1))))
	p.snap("g", 1, 1)
	cmds := []*musterv1.Command{commit("g", del(musterv1.Kind_KIND_SERVICE, "gone"))}
	for i := range int32(8) {
		cmds = append(cmds, commit("g", put(serviceOf("new", 1000+i))))
	}
	p.apply(cmds...) // more than history keeps, in one wake-up
	if got := clusters(p.snap("g", 1, 10)); got != "service/new service/stays" {
		t.Fatalf("clusters = %q", got)
	}
}

func TestAGroupMadeAgainUnderItsIDHoldsNothingOfTheOldOne(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0), commit("g", put(serviceOf("old", 1))))
	p.snap("g", 1, 1)
	// In one wake-up: the publisher never sees the group gone.
	p.apply(deleteGroup("g"), createGroup("g", 0), commit("g", put(serviceOf("new", 1))))
	if got := clusters(p.snap("g", 1, 3)); got != "service/new" {
		t.Fatalf("clusters = %q", got)
	}
}

func TestADeletedGroupIsTakenAway(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0), createGroup("h", 0))
	p.snap("g", 1, 0)
	p.snap("h", 1, 0)
	woken := make(chan struct{}, 1)
	feed, err := p.pub.Subscribe("g", nil, func() { woken <- struct{}{} })
	if err != nil {
		t.Fatal(err)
	}
	defer feed.Close()
	p.apply(deleteGroup("g"))
	<-woken
	if feed.Current() != nil {
		t.Fatal("the feed still has a snapshot")
	}
	eventually(t, "the fleet is told", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.dropped) == 1 && p.dropped[0] == "g"
	})
	p.snap("h", 1, 0)
}

func TestARaisedEpochIsPublishedEvenIfNothingChanged(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0), commit("g", put(serviceOf("a", 1))))
	p.snap("g", 1, 1)
	p.apply(raiseEpoch())
	if got := clusters(p.snap("g", 2, 1)); got != "service/a" {
		t.Fatalf("clusters = %q", got)
	}
}

func TestARestoreToAnOlderRevisionIsPublishedWhole(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0), commit("g", put(serviceOf("a", 1))))
	backup := p.store.State()
	p.apply(commit("g", put(serviceOf("b", 1))), commit("g", del(musterv1.Kind_KIND_SERVICE, "a")))
	p.snap("g", 1, 3)
	p.store.set(func(m *memoryStore) { m.st = backup.WithEpoch(2) })
	if got := clusters(p.snap("g", 2, 1)); got != "service/a" {
		t.Fatalf("clusters = %q", got)
	}
}

// A restore may bring another history, in which the revision that is served holds
// something else: its change sets do not lead from there.
func TestWhatChangedIsToldFromTheVeryContentThatIsServed(t *testing.T) {
	of := func(ids ...string) *state.Group {
		st, _ := state.New().Apply(createGroup("g", 100))
		for _, id := range ids {
			r := &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: id}}}
			st, _ = st.Apply(commit("g", &musterv1.Change{Action: &musterv1.Change_Put{Put: r}}))
		}
		g, _ := st.Group("g")
		return g
	}
	var got []string
	for _, c := range changesBetween(of("a"), of("b", "c")) {
		got = append(got, c.Key.String())
	}
	if want := "[service/a service/b service/c]"; fmt.Sprint(got) != want {
		t.Errorf("got %v, want %s", got, want)
	}
}

func TestATrialSeesWhatATransactionWouldBreak(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0), commit("g", put(serviceOf("a", 1))))
	p.snap("g", 1, 1)
	bad := serviceOf("b", 1)
	bad.GetService().Upstream.DiscoveryType = "dns"
	bad.GetService().Upstream.Nodes = nil
	trial := func() resource.Problems {
		t.Helper()
		g, _ := p.store.State().Group("g")
		out, err := state.Preview(g, &musterv1.CommitCommand{Group: "g", Changes: []*musterv1.Change{put(bad), put(serviceOf("c", 1))}}, "ann", timestamppb.Now())
		if err != nil {
			t.Fatal(err)
		}
		_, problems := p.pub.Trial(nil, g, out.Group.View(), out.Changes)
		return problems
	}
	problems := trial()
	if len(problems) == 0 || problems[0].Object.ID != "b" {
		t.Fatalf("problems = %v, want one of service b", problems)
	}
	// The same on a base that the publisher has not published, and has passed.
	fresh := newPublished(t)
	fresh.store.st = p.store.State()
	g, _ := fresh.store.State().Group("g")
	out, _ := state.Preview(g, &musterv1.CommitCommand{Group: "g", Changes: []*musterv1.Change{put(bad)}}, "ann", timestamppb.Now())
	if _, problems := fresh.pub.Trial(nil, g, out.Group.View(), out.Changes); len(problems) == 0 {
		t.Fatal("no problem without a publication")
	}
	for i := range int32(3) {
		p.apply(commit("g", put(serviceOf("a", 100+i))))
		p.snap("g", 1, uint64(2+i))
	}
	if _, problems := p.pub.Trial(nil, g, out.Group.View(), out.Changes); len(problems) == 0 {
		t.Fatal("no problem on an older base")
	}
}

func TestWhatAnXDSResourceIsMadeOfCanBeTold(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0), commit("g", put(serviceOf("pay", 1)), put(routeOf("r", "pay", "/"))), commit("g", put(serviceOf("other", 1))))
	p.snap("g", 1, 2)
	origins, rev, ok := p.pub.Describe("g", compile.ClusterType, "service/pay")
	if !ok || len(origins) == 0 || origins[0].String() != "service/pay" || rev.GetRevision() != 1 || rev.GetAuthor() != "ann" {
		t.Fatalf("Describe = %v, %v, %v", origins, rev, ok)
	}
	if _, _, ok := p.pub.Describe("g", compile.ClusterType, "service/none"); ok {
		t.Fatal("an unknown resource is described")
	}
	if _, _, ok := p.pub.Describe("none", compile.ClusterType, "service/pay"); ok {
		t.Fatal("a resource of an unknown group is described")
	}
}

func TestAChangeOfAGroupsLabelsPublishesNothing(t *testing.T) {
	p := newPublished(t)
	p.run()
	p.ready()
	p.apply(createGroup("g", 0))
	before := p.snap("g", 1, 0)
	p.apply(&musterv1.Command{Command: &musterv1.Command_UpdateGroup{UpdateGroup: &musterv1.Group{Id: "g", Name: "g", Description: "new"}}})
	eventually(t, "the update is seen", func() bool {
		return p.pub.lookup("g").current.Load().group.Meta().GetDescription() == "new"
	})
	if p.pub.lookup("g").current.Load().snap != before {
		t.Fatal("a new snapshot was made")
	}
}
