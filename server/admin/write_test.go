package admin

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/resource"
)

// answer is what a call that goes on meanwhile came to.
type answer struct {
	resp *musterv1.CommitResponse
	err  error
}

// begin commits into group g, and returns once n transactions are on their way.
func (h *harness) begin(n int, req *musterv1.CommitRequest) <-chan answer {
	h.t.Helper()
	done := make(chan answer, 1)
	req.Group = "g"
	ctx := h.as(editorKey)
	go func() {
		resp, err := h.admin.Commit(ctx, req)
		done <- answer{resp, err}
	}()
	h.store.await(h.t, n)
	return done
}

func commitOf(changes ...*musterv1.Change) *musterv1.CommitRequest {
	return &musterv1.CommitRequest{Changes: changes}
}

// lands waits for a transaction to be committed as a revision.
func lands(t *testing.T, done <-chan answer, revision uint64) {
	t.Helper()
	if a := <-done; a.err != nil || a.resp.GetRevision() != revision {
		t.Fatalf("got revision %d, %v; want %d", a.resp.GetRevision(), a.err, revision)
	}
}

func TestManyTransactionsOfOneGroupAreOnTheirWayAtOnce(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.hold()
	// Each is judged on what those before it leave: the routes refer to a service
	// that nobody has committed yet.
	calls := []<-chan answer{h.begin(1, commitOf(put(serviceOf("pay", "10.0.0.1"))))}
	for i := range 4 {
		calls = append(calls, h.begin(2+i, commitOf(put(routeOf(fmt.Sprintf("r%d", i), "pay", fmt.Sprintf("/%d", i))))))
	}
	for i, call := range calls {
		h.store.next(nil)
		lands(t, call, uint64(i+1))
	}
	if len(h.svc.lanes.groups) != 0 {
		t.Error("a lane was left behind")
	}
}

func TestWhatWasJudgedOnAFailureIsJudgedAgain(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.hold()
	failing := h.begin(1, commitOf(put(serviceOf("pay", "10.0.0.1"))))
	needs := h.begin(2, commitOf(put(routeOf("r", "pay", "/pay"))))
	free := h.begin(3, commitOf(put(serviceOf("shop", "10.0.0.1"))))
	h.store.next(raftstore.ErrNoLeader)
	if a := <-failing; a.err == nil {
		t.Fatal("what failed was answered with a revision")
	}
	h.store.next(nil)
	h.store.next(nil)
	// Both were refused by the store; one of them can no longer be.
	h.store.await(t, 1)
	h.store.next(nil)
	lands(t, free, 1)
	wantCode(t, (<-needs).err, codes.InvalidArgument, ReasonInvalid)
}

func TestARefusalByWhatIsOnItsWayWaitsUntilThatIsCommitted(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")), put(serviceOf("shop", "10.0.0.1")))
	h.store.hold()
	for _, c := range []struct {
		service string
		outcome error
		passes  bool
	}{{"pay", raftstore.ErrNoLeader, true}, {"shop", nil, false}} {
		deletion := h.begin(1, commitOf(del(musterv1.Kind_KIND_SERVICE, c.service)))
		route := h.begin(1, commitOf(put(routeOf("r", c.service, "/"))))
		select {
		case a := <-route:
			t.Fatalf("answered before the deletion was: %v", a.err)
		default:
		}
		h.store.next(c.outcome)
		<-deletion
		if c.passes {
			h.store.await(t, 1)
			h.store.next(nil)
			lands(t, route, 2)
		} else {
			wantCode(t, (<-route).err, codes.InvalidArgument, ReasonInvalid)
		}
	}
}

func TestAConditionIsHeldAgainstWhatIsCommitted(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.hold()
	onNothing := func(id string) *musterv1.CommitRequest {
		return &musterv1.CommitRequest{ExpectedRevision: proto.Uint64(0), Changes: []*musterv1.Change{put(serviceOf(id, "10.0.0.1"))}}
	}
	failing := h.begin(1, commitOf(put(serviceOf("a", "10.0.0.1"))))
	first := h.begin(1, onNothing("b")) // waits for what comes of the other
	h.store.next(raftstore.ErrNoLeader)
	<-failing
	h.store.await(t, 1)
	second := h.begin(1, onNothing("c"))
	// One that expects the revision that is on its way is on its way as well.
	next := h.begin(2, &musterv1.CommitRequest{ExpectedRevision: proto.Uint64(1), Changes: []*musterv1.Change{put(serviceOf("d", "10.0.0.1"))}})
	h.store.next(nil)
	lands(t, first, 1)
	h.store.next(nil)
	lands(t, next, 2)
	a := <-second
	wantCode(t, a.err, codes.Aborted, ReasonRevisionConflict)
	if infoIn(a.err)["expected"] != "0" {
		t.Fatalf("metadata = %v", infoIn(a.err))
	}
}

func TestARequestThatIsRepeatedWhileItIsOnItsWayGetsTheFirstAnswer(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.hold()
	req := func() *musterv1.CommitRequest {
		return &musterv1.CommitRequest{RequestId: "once", ExpectedRevision: proto.Uint64(0), Changes: []*musterv1.Change{put(serviceOf("a", "10.0.0.1"))}}
	}
	first := h.begin(1, req())
	other := h.begin(2, commitOf(put(serviceOf("b", "10.0.0.1"))))
	again := h.begin(2, req()) // refused by what is on its way
	h.store.next(nil)
	h.store.next(nil)
	lands(t, first, 1)
	lands(t, other, 2)
	lands(t, again, 1)
	// Without a condition it is on its way twice, and carried out once.
	one := &musterv1.CommitRequest{RequestId: "two", Changes: []*musterv1.Change{put(serviceOf("c", "10.0.0.1"))}}
	two := proto.CloneOf(one)
	first = h.begin(1, one)
	other = h.begin(2, commitOf(del(musterv1.Kind_KIND_SERVICE, "c")))
	again = h.begin(3, two)
	after := h.begin(4, commitOf(put(serviceOf("d", "10.0.0.1"))))
	for range 4 {
		h.store.next(nil)
	}
	lands(t, first, 3)
	lands(t, other, 4)
	lands(t, again, 3)
	h.store.await(t, 1) // judged on a repetition that did nothing
	h.store.next(nil)
	lands(t, after, 5)
}

// A revision of another server may take the number of one that failed here.
func TestAnotherServersRevisionIsNotTakenForTheOneThatWasExpected(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.hold()
	failing := h.begin(1, commitOf(put(serviceOf("a", "10.0.0.1"))))
	mine := serviceOf("mine", "10.0.0.1")
	mine.GetService().Desc = jealous
	judged := h.begin(2, commitOf(put(mine)))
	h.store.next(raftstore.ErrNoLeader)
	<-failing
	theirs := serviceOf("theirs", "10.0.0.1")
	theirs.GetService().Desc = jealous
	h.store.commit(&musterv1.Command{Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: "g", Mark: 7, Changes: []*musterv1.Change{put(theirs)}}}})
	h.store.next(nil)
	wantCode(t, (<-judged).err, codes.InvalidArgument, ReasonInvalid)
	if g, _ := h.store.State().Group("g"); g.Revision() != 1 || g.View().Len() != 1 {
		t.Fatalf("%d resources at revision %d", g.View().Len(), g.Revision())
	}
}

// Whatever fails, gets lost or comes in between: what is committed was judged
// beside exactly what it stands with.
func TestNothingIsCommittedBesideWhatItWasNotJudgedWith(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.hold()
	const writers, each = 8, 25
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				s := serviceOf(fmt.Sprintf("s%d", w), "10.0.0.1")
				if i%2 == 0 {
					s.GetService().Desc = jealous
				} else {
					s.GetService().Desc = fmt.Sprint(i)
				}
				_, err := h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(s)}})
				if err != nil && !strings.Contains(err.Error(), "rivals") && !strings.Contains(err.Error(), "no leader") {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		wg.Wait()
	}()
	rng := rand.New(rand.NewPCG(1, 2))
	for n := 0; ; n++ {
		select {
		case <-done:
			if g, _ := h.store.State().Group("g"); g.Revision() < each {
				t.Errorf("only %d revisions", g.Revision())
			}
			return
		default:
		}
		h.store.mu.Lock()
		waiting := len(h.store.queue)
		h.store.mu.Unlock()
		switch {
		case waiting == 0:
			continue
		case rng.IntN(10) == 0:
			h.store.next(raftstore.ErrNoLeader)
		case rng.IntN(20) == 0:
			// The least that may happen on another server: the group as it is, again.
			h.store.commit(&musterv1.Command{Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{
				Group: "g", Mark: rng.Uint64(), Changes: []*musterv1.Change{put(serviceOf("other", fmt.Sprintf("10.0.%d.%d", n/250%250, n%250)))},
			}}})
		default:
			h.store.next(nil)
		}
		rivals := 0
		g, _ := h.store.State().Group("g")
		for e := range g.View().Entries() {
			if e.Resource.GetService().GetDesc() == jealous {
				rivals++
			}
		}
		if rivals > 1 {
			t.Fatalf("%d rivals at revision %d", rivals, g.Revision())
		}
	}
}

func TestAServerThatDoesNotLeadPassesTheRequestOn(t *testing.T) {
	leader, h := newHarness(t), newHarness(t)
	leader.group("g")
	h.store.follower, h.toLeader = true, leader.svc.Write
	req := &musterv1.CommitRequest{Group: "g", RequestId: "once", Message: "why", ExpectedRevision: proto.Uint64(0), Changes: []*musterv1.Change{put(serviceOf("pay", "10.0.0.1"))}}
	resp, err := h.admin.Commit(h.as(editorKey), req)
	if err != nil || resp.GetRevision() != 1 || resp.GetChanges()[0].GetResult() != musterv1.ChangeResult_CHANGE_RESULT_CREATED {
		t.Fatalf("got %v, %v", resp, err)
	}
	g, _ := leader.store.State().Group("g")
	if info, _ := g.RevisionInfo(1); info.GetAuthor() != "ed" || info.GetMessage() != "why" {
		t.Errorf("revision = %v", info)
	}
	// The same caller gets the same answer, wherever it asks.
	if again, err := leader.admin.Commit(leader.as(editorKey), req); err != nil || !proto.Equal(resp, again) {
		t.Errorf("got %v, %v; want %v", again, err, resp)
	}
	// Refusals arrive with all that is known of them.
	req.RequestId = ""
	_, err = h.admin.Commit(h.as(editorKey), req)
	wantCode(t, err, codes.Aborted, ReasonRevisionConflict)
	if m := infoIn(err); m["actual"] != "1" || m["author"] != "ed" {
		t.Errorf("metadata = %v", m)
	}
	_, err = h.admin.Commit(h.as(editorKey), &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(routeOf("r", "nope", "/x"))}})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	if v := violationsIn(err)["changes[0].put.route.service_id"]; v.GetReason() != resource.CodeReference {
		t.Errorf("violations = %v", violationsIn(err))
	}
	back, err := h.admin.Rollback(h.as(editorKey), &musterv1.RollbackRequest{Group: "g", ToRevision: 1})
	if err != nil || back.GetRevision() != 1 {
		t.Errorf("rolled back to %v, %v", back, err)
	}
	if len(h.asked) != 4 || h.store.reads != 0 {
		t.Errorf("%d requests were passed on, and %d reads made here", len(h.asked), h.store.reads)
	}
}

func TestAServerThatIsAskedAndDoesNotLeadSaysSo(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.follower = true
	req := &musterv1.WriteRequest{Author: "ed", Write: &musterv1.WriteRequest_Commit{Commit: &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(serviceOf("pay", "10.0.0.1"))}}}}
	if resp, err := h.svc.Write(t.Context(), req); !errors.Is(err, raftstore.ErrNotLeader) {
		t.Fatalf("got %v, %v", resp, err)
	}
	if len(h.asked) != 0 {
		t.Fatal("it was passed on a second time")
	}
}
