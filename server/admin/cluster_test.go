package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/raftstore/state"
)

// fakeCluster remembers what it was asked for and answers with fail.
type fakeCluster struct {
	fail  error
	asked []string
	// saved is what SaveSnapshot writes, restored what RestoreSnapshot read.
	saved, restored []byte
}

func (f *fakeCluster) note(format string, args ...any) error {
	f.asked = append(f.asked, fmt.Sprintf(format, args...))
	return f.fail
}

func (f *fakeCluster) Status() (raftstore.Status, error) {
	return raftstore.Status{ID: "srv-1", Role: "leader", Leader: "srv-1", Voters: 5, NonVoters: 1, Epoch: 3, LastContact: -1, DiskFull: true}, f.fail
}
func (f *fakeCluster) Ready() error                     { return raftstore.ErrNotReady }
func (f *fakeCluster) WaitLeader(context.Context) error { return nil }
func (f *fakeCluster) Leader() (string, string, bool)   { return "srv-2", "", false }

func (f *fakeCluster) Peers(context.Context) ([]raftstore.Peer, error) {
	return []raftstore.Peer{
		{ID: "srv-2", Address: "b:1", Voter: true, LastContact: -1},
		{ID: "srv-1", Address: "a:1", Leader: true, Voter: true, Self: true, Reachable: true, Ready: true, Role: "leader", LastContact: time.Second},
	}, f.fail
}

func (f *fakeCluster) Join(_ context.Context, addresses []string) error {
	return f.note("join %v", addresses)
}

func (f *fakeCluster) Remove(_ context.Context, id string, force bool) error {
	return f.note("remove %s %v", id, force)
}
func (f *fakeCluster) TransferLeader(_ context.Context, id string) error {
	return f.note("transfer %s", id)
}

func (f *fakeCluster) SaveSnapshot(_ context.Context, w io.Writer) (raftstore.SnapshotInfo, error) {
	if _, err := w.Write(f.saved); err != nil {
		return raftstore.SnapshotInfo{}, err
	}
	return raftstore.SnapshotInfo{Epoch: 3, Groups: 2, Bytes: int64(len(f.saved))}, f.fail
}

func (f *fakeCluster) RestoreSnapshot(_ context.Context, r io.Reader) (raftstore.SnapshotInfo, error) {
	var err error
	if f.restored, err = io.ReadAll(r); err != nil {
		return raftstore.SnapshotInfo{}, err
	}
	return raftstore.SnapshotInfo{Epoch: 4}, f.fail
}

func TestPeersAreListedByIDWithWhatTheySayOfThemselves(t *testing.T) {
	h := newHarness(t)
	resp, err := h.ops.ListPeers(h.as(viewerKey), &musterv1.ListPeersRequest{})
	if err != nil || len(resp.GetPeers()) != 2 {
		t.Fatalf("peers = %v, %v", resp, err)
	}
	a, b := resp.GetPeers()[0], resp.GetPeers()[1]
	if a.GetId() != "srv-1" || !a.GetLeader() || !a.GetVoter() || !a.GetSelf() || a.GetVersion() != "v-srv-1" || a.GetAdminAddress() != "admin-srv-1" || a.GetLastContact().AsDuration() != time.Second {
		t.Errorf("srv-1 = %v", a)
	}
	if b.GetId() != "srv-2" || b.GetReachable() || b.GetLastContact() != nil || b.GetAddress() != "b:1" {
		t.Errorf("srv-2 = %v", b)
	}
}

func TestTheStatusSaysHowManyMayFail(t *testing.T) {
	h := newHarness(t)
	h.group("g")
	st, err := h.ops.GetClusterStatus(h.as(viewerKey), &musterv1.GetClusterStatusRequest{})
	if err != nil || st.GetFaultTolerance() != 2 || st.GetReady() || st.GetNotReadyReason() == "" || !st.GetDiskFull() || st.GetGroups() != 1 || st.GetLastContact() != nil {
		t.Fatalf("status = %v, %v", st, err)
	}
}

func TestOnlyAnAdministratorRunsTheCluster(t *testing.T) {
	h := newHarness(t)
	calls := map[string]func(ctx context.Context) error{
		"join 1": func(ctx context.Context) error {
			_, err := h.ops.JoinCluster(ctx, &musterv1.JoinClusterRequest{Addresses: []string{"a:1", "b:1"}})
			return err
		},
		"remove": func(ctx context.Context) error {
			_, err := h.ops.RemovePeer(ctx, &musterv1.RemovePeerRequest{Id: "srv-3", Force: true})
			return err
		},
		"transfer": func(ctx context.Context) error {
			_, err := h.ops.TransferLeader(ctx, &musterv1.TransferLeaderRequest{Id: "srv-2"})
			return err
		},
		"save": func(ctx context.Context) error { _, _, err := save(ctx, h); return err },
		"restore": func(ctx context.Context) error {
			_, err := restore(ctx, h, []byte("x"))
			return err
		},
	}
	for name, call := range calls {
		if err := call(h.as(editorKey)); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s as an editor: %v", name, err)
		}
	}
	if len(h.cluster.asked) != 0 || h.cluster.restored != nil {
		t.Fatalf("something was done: %v", h.cluster.asked)
	}
	for name, call := range calls {
		if err := call(h.as(adminKey)); err != nil {
			t.Errorf("%s as an administrator: %v", name, err)
		}
	}
	if got := strings.Join(h.cluster.asked, "; "); !strings.Contains(got, "join [a:1 b:1]") || !strings.Contains(got, "remove srv-3 true") || !strings.Contains(got, "transfer srv-2") {
		t.Fatalf("asked for %s", got)
	}
}

func save(ctx context.Context, h *harness) ([]byte, *musterv1.SnapshotInfo, error) {
	stream, err := h.ops.SaveSnapshot(ctx, &musterv1.SaveSnapshotRequest{})
	if err != nil {
		return nil, nil, err
	}
	var data []byte
	var info *musterv1.SnapshotInfo
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return data, info, nil
		}
		if err != nil {
			return data, info, err
		}
		if info != nil {
			return nil, nil, errors.New("something came after the info")
		}
		data = append(data, m.GetChunk()...)
		info = m.GetInfo()
	}
}

func restore(ctx context.Context, h *harness, data []byte) (*musterv1.SnapshotInfo, error) {
	stream, err := h.ops.RestoreSnapshot(ctx)
	if err != nil {
		return nil, err
	}
	for len(data) > 0 {
		n := min(len(data), 100_000)
		if err := stream.Send(&musterv1.RestoreSnapshotRequest{Chunk: data[:n]}); err != nil {
			break
		}
		data = data[n:]
	}
	resp, err := stream.CloseAndRecv()
	return resp.GetInfo(), err
}

func TestASnapshotTravelsWhole(t *testing.T) {
	h := newHarness(t)
	h.cluster.saved = bytes.Repeat([]byte("snapshot "), 150_000)
	data, info, err := save(h.as(adminKey), h)
	if err != nil || !bytes.Equal(data, h.cluster.saved) || info.GetBytes() != uint64(len(data)) || info.GetGroups() != 2 {
		t.Fatalf("%d bytes, info %v, %v", len(data), info, err)
	}
	info, err = restore(h.as(adminKey), h, data)
	if err != nil || !bytes.Equal(h.cluster.restored, data) || info.GetEpoch() != 4 {
		t.Fatalf("restored %d bytes, info %v, %v", len(h.cluster.restored), info, err)
	}
}

func TestASnapshotThatFailsMidwayHasNoInfo(t *testing.T) {
	h := newHarness(t)
	h.cluster.saved, h.cluster.fail = []byte("some"), raftstore.ErrNoLeader
	_, info, err := save(h.as(adminKey), h)
	wantCode(t, err, codes.Unavailable, ReasonNoLeader)
	if info != nil {
		t.Fatalf("info = %v", info)
	}
}

func TestAFileThatIsNoSnapshotIsRefused(t *testing.T) {
	h := newHarness(t)
	stream, err := h.ops.InspectSnapshot(h.as(adminKey))
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&musterv1.InspectSnapshotRequest{Chunk: []byte("not a snapshot at all")}); err != nil {
		t.Fatal(err)
	}
	_, err = stream.CloseAndRecv()
	wantCode(t, err, codes.InvalidArgument, ReasonBadSnapshot)
}

func TestWhatTheClusterRefusesIsToldWithItsReason(t *testing.T) {
	h := newHarness(t)
	for _, c := range []struct {
		err    error
		code   codes.Code
		reason string
	}{
		{fmt.Errorf("server %q: %w", "x", raftstore.ErrNotMember), codes.NotFound, ReasonNotMember},
		{fmt.Errorf("%w: too few", raftstore.ErrRefused), codes.FailedPrecondition, ReasonRefused},
		{&state.SnapshotError{Reason: "cut short"}, codes.InvalidArgument, ReasonBadSnapshot},
	} {
		h.cluster.fail = c.err
		_, err := h.ops.RemovePeer(h.as(adminKey), &musterv1.RemovePeerRequest{Id: "x"})
		wantCode(t, err, c.code, c.reason)
	}
	_, err := h.ops.RemovePeer(h.as(adminKey), &musterv1.RemovePeerRequest{})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
	_, err = h.ops.JoinCluster(h.as(adminKey), &musterv1.JoinClusterRequest{})
	wantCode(t, err, codes.InvalidArgument, ReasonInvalid)
}
