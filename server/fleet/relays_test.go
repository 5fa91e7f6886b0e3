package fleet

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

func anything(string, string) bool { return true }

func TestWhatARelayCanMakeTheServerRememberIsBounded(t *testing.T) {
	r, _ := newRegistry(t, func(c *Config) { c.RememberOffline = 80 })
	r.Published("g", rev(1))
	number := r.RelayJoined("relay-1", "test", "127.0.0.1:1")
	served := []*musterv1.RelayedVersion{{Group: "g", Epoch: 1, Revision: 1}}
	// Below it there is always another relay and another data plane that has left.
	for report := range 3 * servedLimit / relayLimit {
		told := &musterv1.RelayReport{Number: uint64(report + 1)}
		for i := range relayLimit {
			name := fmt.Sprintf("%d-%d", report, i)
			told.Relays = append(told.Relays, &musterv1.RelayState{Id: "relay-" + name, Relay: "relay-1", Groups: served})
			told.DataPlanes = append(told.DataPlanes, &musterv1.DataPlane{Id: "dp-" + name, Group: "g", State: offline})
		}
		r.RelayReported("relay-1", number, told, anything)
		g := r.existing("g")
		if n := len(g.served); n == 0 || n > servedLimit {
			t.Fatalf("after %d reports it is known of %d relays what they serve, want at most %d", report+1, n, servedLimit)
		}
		if n := len(g.below["relay-1"]); n > 80+80/8 {
			t.Fatalf("after %d reports %d data planes that have left are remembered", report+1, n)
		}
	}
	if n := len(r.Relays("g")); n > relayLimit {
		t.Errorf("%d relays are listed", n)
	}
}

func TestAReportOnADataPlaneCostsNoLookAtTheOthers(t *testing.T) {
	r, _ := newRegistry(t)
	r.Published("g", rev(1))
	number := r.RelayJoined("relay-1", "test", "127.0.0.1:1")
	report := func(n uint64, planes ...*musterv1.DataPlane) {
		r.RelayReported("relay-1", number, &musterv1.RelayReport{Number: n, DataPlanes: planes}, anything)
	}
	plane := func(i int) *musterv1.DataPlane {
		return &musterv1.DataPlane{Id: fmt.Sprintf("dp-%d", i), Group: "g", State: musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED}
	}
	const reports = 500
	cost := func(fleet int) time.Duration {
		for i := range fleet {
			report(1, plane(i))
		}
		began := time.Now()
		for range reports {
			report(2, plane(0))
		}
		return time.Since(began) / reports
	}
	// A look at each of 20,000 takes a hundred times as long as a report.
	few, many := cost(10), cost(20_000)
	if many > 20*few {
		t.Errorf("a report costs %s below a relay of 10 data planes and %s below one of 20,000", few, many)
	}
}

// A group that was deleted and made again under its id is another group: what a relay
// that has not heard of it tells is of the one before.
func TestARelaysReportOnAnEarlierGroupIsNotTaken(t *testing.T) {
	r, _ := newRegistry(t)
	first, second := time.Unix(100, 0).UTC(), time.Unix(200, 0).UTC()
	r.Created("g", first)
	r.Published("g", rev(1))
	number := r.RelayJoined("relay-1", "test", "127.0.0.1:1")
	report := func(id string, created *timestamppb.Timestamp) {
		r.RelayReported("relay-1", number, &musterv1.RelayReport{DataPlanes: []*musterv1.DataPlane{
			{Id: id, Group: "g", GroupCreatedAt: created, State: musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED},
		}}, anything)
	}
	seen := func() string {
		var ids []string
		for _, p := range r.List("g", ListOptions{}) {
			ids = append(ids, p.GetId())
		}
		slices.Sort(ids)
		return strings.Join(ids, " ")
	}
	report("a", timestamppb.New(first))
	report("old-relay", nil)
	if got := seen(); got != "a old-relay" {
		t.Errorf("before: %q", got)
	}
	r.Created("g", second)
	report("b", timestamppb.New(first))
	if got := seen(); got != "" {
		t.Errorf("of the group before: %q", got)
	}
	report("b", timestamppb.New(second))
	if got := seen(); got != "b" {
		t.Errorf("of this group: %q", got)
	}
}
