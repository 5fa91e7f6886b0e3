package admin

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/fleet"
	"github.com/musterhq/muster/server/xds"
)

func TestAGroupLivesThroughItsCalls(t *testing.T) {
	h := newHarness(t)
	g := h.group("payments")
	if g.GetId() != "payments" || g.GetType() != "api7_gateway" || g.GetControlPlaneKeyPrefix() != "/gateway_groups/payments" || g.GetCreatedAt() == nil || g.GetHistoryLimit() == 0 {
		t.Fatalf("group = %v", g)
	}
	up, err := h.admin.UpdateGroup(h.as(editorKey), &musterv1.UpdateGroupRequest{
		Group: &musterv1.Group{Id: "payments", Name: "Payments", Description: "ignored"}, UpdateMask: []string{"name"},
	})
	if err != nil || up.GetGroup().GetName() != "Payments" || up.GetGroup().GetDescription() != "" {
		t.Fatalf("update = %v, %v", up, err)
	}
	for _, name := range []string{"payments", "Payments"} {
		got, err := h.admin.GetGroup(h.as(viewerKey), &musterv1.GetGroupRequest{Group: name})
		if err != nil || got.GetGroup().GetId() != "payments" {
			t.Fatalf("get %s = %v, %v", name, got, err)
		}
	}
	h.group("a-first")
	list, err := h.admin.ListGroups(h.as(viewerKey), &musterv1.ListGroupsRequest{})
	if err != nil || len(list.GetGroups()) != 2 || list.GetGroups()[0].GetId() != "a-first" {
		t.Fatalf("list = %v, %v", list, err)
	}
	if _, err := h.admin.DeleteGroup(h.as(adminKey), &musterv1.DeleteGroupRequest{Group: "Payments"}); err != nil {
		t.Fatal(err)
	}
	_, err = h.admin.GetGroup(h.as(viewerKey), &musterv1.GetGroupRequest{Group: "payments"})
	wantCode(t, err, codes.NotFound, ReasonGroupNotFound)
}

func TestGroupsThatCollideOrAreWrongAreRefusedByField(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	create := func(g *musterv1.Group) error {
		_, err := h.admin.CreateGroup(h.as(adminKey), &musterv1.CreateGroupRequest{Group: g})
		return err
	}
	err := create(&musterv1.Group{Name: "g"})
	wantCode(t, err, codes.AlreadyExists, ReasonExists)
	err = create(&musterv1.Group{Name: "h", ControlPlaneKeyPrefix: "/gateway_groups/g"})
	wantCode(t, err, codes.AlreadyExists, ReasonExists)
	if infoIn(err)["field"] != "control_plane_key_prefix" {
		t.Fatalf("metadata = %v", infoIn(err))
	}
	err = create(&musterv1.Group{Name: "h", Type: "other"})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	if violationsIn(err)["group.type"] == nil {
		t.Fatalf("violations = %v", violationsIn(err))
	}
	wantCode(t, create(nil), codes.InvalidArgument, ReasonInvalid)
}

func TestUpdatesOfDifferentFieldsOfAGroupDoNotUndoEachOther(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.store.mu.Lock()
	h.store.before = func(f *fakeStore) {
		f.commit(&musterv1.Command{Author: "other", Command: &musterv1.Command_ChangeGroup{ChangeGroup: &musterv1.ChangeGroupCommand{
			Group: &musterv1.Group{Id: "g", Labels: map[string]string{"env": "prod"}}, Fields: []string{"labels"},
		}}})
	}
	h.store.mu.Unlock()
	resp, err := h.admin.UpdateGroup(h.as(editorKey), &musterv1.UpdateGroupRequest{Group: &musterv1.Group{Id: "g", Description: "mine"}, UpdateMask: []string{"description"}})
	if err != nil {
		t.Fatal(err)
	}
	if g := resp.GetGroup(); g.GetDescription() != "mine" || g.GetLabels()["env"] != "prod" || g.GetName() != "g" {
		t.Fatalf("group = %v", g)
	}
}

func TestTheFixedFieldsOfAGroupCannotBeChanged(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	for field, g := range map[string]*musterv1.Group{
		"group.type":                     {Id: "g", Type: "api7_ingress_controller"},
		"group.control_plane_key_prefix": {Id: "g", ControlPlaneKeyPrefix: "/elsewhere"},
	} {
		_, err := h.admin.UpdateGroup(h.as(adminKey), &musterv1.UpdateGroupRequest{Group: g})
		wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
		if violationsIn(err)[field] == nil {
			t.Errorf("violations = %v, want one of %s", violationsIn(err), field)
		}
	}
	_, err := h.admin.UpdateGroup(h.as(adminKey), &musterv1.UpdateGroupRequest{Group: &musterv1.Group{Id: "g"}, UpdateMask: []string{"name", "prefix"}})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	if violationsIn(err)["update_mask[1]"] == nil {
		t.Errorf("violations = %v", violationsIn(err))
	}
}

func TestAGroupInUseIsDeletedByForceOnly(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	_, err := h.admin.DeleteGroup(h.as(adminKey), &musterv1.DeleteGroupRequest{Group: "g"})
	wantCode(t, err, codes.FailedPrecondition, ReasonGroupNotEmpty)
	h.commit(del(musterv1.Kind_KIND_SERVICE, "pay"))
	h.fleet.Published("g", fleet.Version{Epoch: 1, Revision: 2})
	h.fleet.Connected(&xds.Stream{ID: 1, Group: "g", Node: "dp"})
	_, err = h.admin.DeleteGroup(h.as(adminKey), &musterv1.DeleteGroupRequest{Group: "g"})
	wantCode(t, err, codes.FailedPrecondition, ReasonDataPlanesLive)
	if _, err := h.admin.DeleteGroup(h.as(adminKey), &musterv1.DeleteGroupRequest{Group: "g", Force: true}); err != nil {
		t.Fatal(err)
	}
}

func TestADeleteThatIsRepeatedGetsTheFirstAnswer(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	for range 2 {
		_, err := h.admin.DeleteGroup(h.as(adminKey), &musterv1.DeleteGroupRequest{Group: "g", RequestId: "once"})
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestResourcesAreReadNowAndAtAKeptRevision(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	h.commit(put(serviceOf("pay", "10.0.0.2")))
	get := func(rev uint64) (string, error) {
		resp, err := h.admin.GetResource(h.as(viewerKey), &musterv1.GetResourceRequest{
			Group: "g", Key: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SERVICE, Id: "pay"}, Revision: rev,
		})
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("%s by %s at %d", resp.GetResource().GetResource().GetService().GetUpstream().GetNodes()[0].GetHost(), resp.GetResource().GetAuthor(), resp.GetRevision()), nil
	}
	for rev, want := range map[uint64]string{0: "10.0.0.2 by ed at 2", 1: "10.0.0.1 by ed at 1", 2: "10.0.0.2 by ed at 2"} {
		if got, err := get(rev); err != nil || got != want {
			t.Errorf("revision %d = %q, %v; want %q", rev, got, err, want)
		}
	}
	_, err := get(9)
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	_, err = h.admin.GetResource(h.as(viewerKey), &musterv1.GetResourceRequest{Group: "g", Key: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SERVICE, Id: "nope"}})
	wantCode(t, err, codes.NotFound, ReasonResourceNotFound)
}

func TestPagesTogetherAreOneConsistentList(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	var changes []*musterv1.Change
	var want []string
	for i := range 7 {
		id := fmt.Sprintf("s%d", i)
		changes = append(changes, put(serviceOf(id, "10.0.0.1")))
		want = append(want, id)
	}
	for i := range 4 {
		id := fmt.Sprintf("r%d", i)
		changes = append(changes, put(routeOf(id, "s0", "/"+id)))
		want = append(want, id)
	}
	h.commit(changes...)
	for _, size := range []uint32{1, 3, 7, 11, 100, 0} {
		var got []string
		token := ""
		for page := 0; ; page++ {
			resp, err := h.admin.ListResources(h.as(viewerKey), &musterv1.ListResourcesRequest{Group: "g", PageSize: size, PageToken: token})
			if err != nil {
				t.Fatal(err)
			}
			for _, r := range resp.GetResources() {
				got = append(got, cmp.Or(r.GetResource().GetService().GetId(), r.GetResource().GetRoute().GetId()))
			}
			if page == 0 {
				// What happens between two pages is not in the list.
				h.commit(put(serviceOf("s3-later", "10.0.0.1")), del(musterv1.Kind_KIND_ROUTE, "r3"))
			}
			if token = resp.GetNextPageToken(); token == "" {
				break
			}
		}
		h.commit(del(musterv1.Kind_KIND_SERVICE, "s3-later"), put(routeOf("r3", "s0", "/r3")))
		if !slices.Equal(got, want) {
			t.Errorf("pages of %d: %v, want %v", size, got, want)
		}
	}
	for _, token := range []string{"!", "AA", "____"} {
		_, err := h.admin.ListResources(h.as(viewerKey), &musterv1.ListResourcesRequest{Group: "g", PageSize: 1, PageToken: token})
		if token != "AA" || err != nil {
			wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
		}
	}
}

func TestRollbackRestoresContentAsANewRevision(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")), put(routeOf("r", "pay", "/pay")))
	h.commit(put(serviceOf("pay", "10.0.0.9")))
	h.commit(del(musterv1.Kind_KIND_SERVICE, "pay"))
	resp, err := h.admin.Rollback(h.as(editorKey), &musterv1.RollbackRequest{Group: "g", ToRevision: 1, Message: "back"})
	if err != nil || resp.GetRevision() != 4 {
		t.Fatalf("rollback = %v, %v", resp, err)
	}
	diff, err := h.admin.DiffRevisions(h.as(viewerKey), &musterv1.DiffRevisionsRequest{Group: "g", From: 1, To: 4})
	if err != nil || len(diff.GetChanges()) != 0 {
		t.Fatalf("revision 4 differs from 1: %v, %v", diff, err)
	}
	revs, err := h.admin.ListRevisions(h.as(viewerKey), &musterv1.ListRevisionsRequest{Group: "g", Limit: 1})
	if err != nil || len(revs.GetRevisions()) != 1 || revs.GetRevisions()[0].GetRollbackTo() != 1 {
		t.Fatalf("revisions = %v, %v", revs, err)
	}
	_, err = h.admin.Rollback(h.as(editorKey), &musterv1.RollbackRequest{Group: "g"})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
}

func TestARevisionThatIsNoLongerKeptIsTold(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	if _, err := h.admin.UpdateGroup(h.as(adminKey), &musterv1.UpdateGroupRequest{Group: &musterv1.Group{Id: "g", HistoryLimit: 2}, UpdateMask: []string{"history_limit"}}); err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		h.commit(put(serviceOf("pay", fmt.Sprintf("10.0.0.%d", i+1))))
	}
	_, err := h.admin.Rollback(h.as(editorKey), &musterv1.RollbackRequest{Group: "g", ToRevision: 1})
	wantCode(t, err, codes.OutOfRange, ReasonRevisionNotKept)
	if infoIn(err)["oldest"] != "4" {
		t.Fatalf("metadata = %v", infoIn(err))
	}
	_, err = h.admin.DiffRevisions(h.as(viewerKey), &musterv1.DiffRevisionsRequest{Group: "g", From: 1, To: 6})
	wantCode(t, err, codes.OutOfRange, ReasonRevisionNotKept)
}

func TestReadsAreLinearizableUnlessStaleIsAskedFor(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	before := h.store.reads
	if _, err := h.admin.GetGroup(h.as(viewerKey), &musterv1.GetGroupRequest{Group: "g"}); err != nil {
		t.Fatal(err)
	}
	if h.store.reads != before+1 {
		t.Fatal("a read did not ask for the read index")
	}
	h.store.mu.Lock()
	h.store.fail = raftstore.ErrNoLeader
	h.store.mu.Unlock()
	_, err := h.admin.GetGroup(h.as(viewerKey), &musterv1.GetGroupRequest{Group: "g"})
	wantCode(t, err, codes.Unavailable, ReasonNoLeader)
	if _, err := h.admin.GetGroup(h.as(viewerKey), &musterv1.GetGroupRequest{Group: "g", Stale: true}); err != nil {
		t.Fatalf("a stale read needs a leader: %v", err)
	}
}

func TestWhatTheStoreSaysBecomesAStatus(t *testing.T) {
	for _, c := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{raftstore.ErrNoLeader, codes.Unavailable, ReasonNoLeader},
		{fmt.Errorf("apply: %w", &raftstore.NotLeaderError{Leader: "a:1"}), codes.Unavailable, ReasonNotLeader},
		{raftstore.ErrNotReady, codes.Unavailable, ReasonNotReady},
		{raftstore.ErrStopped, codes.Unavailable, ReasonNotReady},
		{&raftstore.DiskFullError{Dir: "/d"}, codes.ResourceExhausted, ReasonDiskFull},
		{raftstore.ErrTooLarge, codes.InvalidArgument, ReasonInvalid},
		{fmt.Errorf("x: %w", raftstore.ErrUnknown), codes.Unknown, ReasonOutcomeUnknown},
		// A connection to the leader that broke, or a store that stopped, midway: as
		// Unavailable it would be tried again by clients without a request_id.
		{fmt.Errorf("%w: %w", raftstore.ErrUnknown, status.Error(codes.Unavailable, "broken")), codes.Unknown, ReasonOutcomeUnknown},
		{fmt.Errorf("%w: %w", raftstore.ErrUnknown, raftstore.ErrStopped), codes.Unknown, ReasonOutcomeUnknown},
		{fmt.Errorf("%w: %w", raftstore.ErrNoLeader, status.Error(codes.Canceled, "x")), codes.Unavailable, ReasonNoLeader},
		{fmt.Errorf("%w: %w", raftstore.ErrRefused, status.Error(codes.PermissionDenied, "x")), codes.FailedPrecondition, ReasonRefused},
		{context.DeadlineExceeded, codes.DeadlineExceeded, ReasonOutcomeUnknown},
		{errors.New("odd"), codes.Internal, ReasonInternal},
		{&state.RevisionConflict{Group: "g"}, codes.Aborted, ReasonRevisionConflict},
		{fleet.ErrGroupDropped, codes.NotFound, ReasonGroupDropped},
	} {
		wantCode(t, toStatus(c.err), c.code, c.reason)
	}
	if toStatus(nil) != nil {
		t.Error("nil became an error")
	}
	if err := status.Error(codes.Canceled, "x"); toStatus(err) != err {
		t.Error("a status did not stay as it is")
	}
}

func TestDataPlanesAreListedAndWaitedFor(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	h.commit(put(serviceOf("pay", "10.0.0.1")))
	v := fleet.Version{Epoch: 1, Revision: 1}
	h.fleet.Published("g", v)
	stream := &xds.Stream{ID: 1, Group: "g", Node: "dp-1", UserAgent: "muster-gateway/1", Protocol: "delta"}
	h.fleet.Connected(stream)
	h.fleet.Subscribed(stream, xds.Subscribed{TypeURL: compile.ClusterType, Wildcard: true})

	_, err := h.waitFor(&musterv1.WaitRequest{Group: "g", Timeout: durationpb.New(50 * time.Millisecond)})
	wantCode(t, err, codes.DeadlineExceeded, ReasonNotReached)
	var missing []string
	for _, d := range status.Convert(err).Details() {
		if last, ok := d.(*musterv1.WaitResponse); ok {
			for _, m := range last.GetMissing() {
				missing = append(missing, m.GetId())
			}
		}
	}
	if !slices.Equal(missing, []string{"dp-1"}) {
		t.Fatalf("missing = %v", missing)
	}

	h.fleet.Synced(stream, v)
	last, err := h.waitFor(&musterv1.WaitRequest{Group: "g", Revision: 1, Timeout: durationpb.New(5 * time.Second)})
	if err != nil || !last.GetDone() || last.GetAcked() != 1 {
		t.Fatalf("wait = %v, %v", last, err)
	}
	list, err := h.dps.ListDataPlanes(h.as(viewerKey), &musterv1.ListDataPlanesRequest{Group: "g", Types: true})
	if err != nil || len(list.GetDataPlanes()) != 1 || list.GetGroupRevision() != 1 {
		t.Fatalf("list = %v, %v", list, err)
	}
	if p := list.GetDataPlanes()[0]; p.GetState() != musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED || len(p.GetTypes()) != 1 {
		t.Fatalf("data plane = %v", p)
	}
	_, err = h.waitFor(&musterv1.WaitRequest{Group: "g", Revision: 2})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	_, err = h.waitFor(&musterv1.WaitRequest{Group: "g", AckedPercent: 101})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
}

// waitFor returns the last progress of a wait.
func (h *harness) waitFor(req *musterv1.WaitRequest) (last *musterv1.WaitResponse, err error) {
	h.t.Helper()
	stream, err := h.dps.Wait(h.as(viewerKey), req)
	if err != nil {
		return nil, err
	}
	for {
		p, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return last, nil
		}
		if err != nil {
			return last, err
		}
		last = p
	}
}

func TestTheServerTellsWhoItIs(t *testing.T) {
	h := newHarness(t)
	info, err := h.admin.GetServerInfo(h.as(viewerKey), &musterv1.GetServerInfoRequest{})
	if err != nil || info.GetServerId() != "srv-1" || info.GetVersion() != "test" || !info.GetLeader() || info.GetEpoch() != 1 {
		t.Fatalf("info = %v, %v", info, err)
	}
}

func TestAWaitDoesNotHoldAStopUp(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	stream, err := h.dps.Wait(h.as(viewerKey), &musterv1.WaitRequest{Group: "g"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	h.svc.Drain()
	_, err = stream.Recv()
	wantCode(t, err, codes.Unavailable, ReasonNotReady)
	_, err = h.waitFor(&musterv1.WaitRequest{Group: "g"})
	wantCode(t, err, codes.Unavailable, ReasonNotReady)
}

func FuzzPageToken(f *testing.F) {
	f.Add(pageToken{revision: 7, after: resource.Key{Kind: musterv1.Kind_KIND_ROUTE, ID: "r"}}.String())
	f.Add("AAA")
	f.Fuzz(func(t *testing.T, s string) {
		token, err := parsePageToken(s)
		if err != nil || s == "" {
			return
		}
		if again, err := parsePageToken(token.String()); err != nil || again != token {
			t.Fatalf("%q is %+v, which is read back as %+v, %v", s, token, again, err)
		}
	})
}
