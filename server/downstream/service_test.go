package downstream

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// attend is a relay's stream, without a network.
type attend struct {
	grpc.ServerStream
	ctx      context.Context
	requests chan *musterv1.AttendRequest
	sent     []*musterv1.AttendResponse
}

func (a *attend) Context() context.Context { return a.ctx }

func (a *attend) Recv() (*musterv1.AttendRequest, error) {
	select {
	case req, open := <-a.requests:
		if !open {
			return nil, io.EOF
		}
		return req, nil
	case <-a.ctx.Done():
		return nil, a.ctx.Err()
	}
}

func (a *attend) Send(resp *musterv1.AttendResponse) error {
	a.sent = append(a.sent, resp)
	return nil
}

// two groups that never change.
type two struct{}

func (two) Groups() ([]*musterv1.RelayedGroup, error) {
	return []*musterv1.RelayedGroup{
		{Id: "b", Name: "second", Labels: map[string]string{"site": "north"}},
		{Id: "a", Name: "first"},
	}, nil
}

func (two) Watch() (<-chan struct{}, func()) { return make(chan struct{}), func() {} }

// served runs a stream that sends the requests and then ends, unless it is left
// open, and returns what it was sent and with what it ended.
func served(t *testing.T, s *Service, open bool, requests ...*musterv1.AttendRequest) ([]*musterv1.AttendResponse, error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := &attend{ctx: ctx, requests: make(chan *musterv1.AttendRequest, len(requests))}
	for _, r := range requests {
		a.requests <- r
	}
	if !open {
		close(a.requests)
	}
	err := s.Attend(a)
	return a.sent, err
}

func service() *Service {
	return New(Config{
		// Certificates are the auth package's own.
		Authorize: func(ctx context.Context, relay string) (auth.Carrier, error) {
			return auth.DataPlanes{Plaintext: true}.AuthorizeRelay(ctx, relay)
		},
		Groups: two{}, Fleet: fleet.New(fleet.Config{Now: time.Now}),
	})
}

func hello(change func(*musterv1.RelayHello)) *musterv1.AttendRequest {
	h := &musterv1.RelayHello{Relay: "r"}
	change(h)
	return &musterv1.AttendRequest{Request: &musterv1.AttendRequest_Hello{Hello: h}}
}

func TestARelayIsHeldToItsLimits(t *testing.T) {
	named := func(n int) []string {
		out := make([]string, n)
		for i := range out {
			out[i] = fmt.Sprint("group-", i)
		}
		return out
	}
	labelled := func(n int) map[string]string {
		out := map[string]string{}
		for i := range n {
			out[fmt.Sprint("label-", i)] = "x"
		}
		return out
	}
	fine := hello(func(*musterv1.RelayHello) {})
	for name, tc := range map[string]struct {
		requests []*musterv1.AttendRequest
		code     codes.Code
		says     string
	}{
		"everything at its limit": {[]*musterv1.AttendRequest{hello(func(h *musterv1.RelayHello) {
			h.Relay, h.Groups, h.Labels = strings.Repeat("r", maxRelayID), named(maxNamed), labelled(maxLabels)
		})}, codes.OK, ""},
		"too many groups": {[]*musterv1.AttendRequest{hello(func(h *musterv1.RelayHello) { h.Groups = named(maxNamed + 1) })}, codes.InvalidArgument, "more than 10000 groups or 64 labels"},
		"too many labels": {[]*musterv1.AttendRequest{hello(func(h *musterv1.RelayHello) { h.Labels = labelled(maxLabels + 1) })}, codes.InvalidArgument, "more than 10000 groups or 64 labels"},
		"a long id":       {[]*musterv1.AttendRequest{hello(func(h *musterv1.RelayHello) { h.Relay = strings.Repeat("r", maxRelayID+1) })}, codes.InvalidArgument, "1 to 256 characters"},
		"no id":           {[]*musterv1.AttendRequest{hello(func(h *musterv1.RelayHello) { h.Relay = "" })}, codes.InvalidArgument, "1 to 256 characters"},
		"no hello":        {[]*musterv1.AttendRequest{{}}, codes.InvalidArgument, "first request of the stream must be a hello"},
		"two hellos":      {[]*musterv1.AttendRequest{fine, fine}, codes.InvalidArgument, "neither a first hello nor a report"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := served(t, service(), false, tc.requests...)
			if status.Code(err) != tc.code || !strings.Contains(status.Convert(err).Message(), tc.says) {
				t.Errorf("ended with %v", err)
			}
		})
	}
}

func TestAStreamWithoutAHelloIsEnded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		if _, err := served(t, service(), true); status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "no hello came") {
			t.Errorf("ended with %v", err)
		}
	})
}

func TestARelayIsToldTheGroupsThatItWants(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*musterv1.RelayHello)
		want   string
	}{
		"all":        {func(*musterv1.RelayHello) {}, "a b"},
		"by name":    {func(h *musterv1.RelayHello) { h.Groups = []string{"first"} }, "a"},
		"by id":      {func(h *musterv1.RelayHello) { h.Groups = []string{"b", "unknown"} }, "b"},
		"by label":   {func(h *musterv1.RelayHello) { h.Labels = map[string]string{"site": "north"} }, "b"},
		"by another": {func(h *musterv1.RelayHello) { h.Labels = map[string]string{"site": "south"} }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			sent, err := served(t, service(), false, hello(tc.change))
			if err != nil || len(sent) == 0 {
				t.Fatalf("told %v, ended with %v", sent, err)
			}
			var ids []string
			for _, g := range sent[0].GetGroups().GetGroups() {
				ids = append(ids, g.GetId())
			}
			if got := strings.Join(ids, " "); got != tc.want {
				t.Errorf("told of %q, want %q", got, tc.want)
			}
		})
	}
}

func TestADrainedServiceSendsRelaysElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := service()
		ended := make(chan error, 1)
		go func() {
			_, err := served(t, s, true, hello(func(*musterv1.RelayHello) {}))
			ended <- err
		}()
		synctest.Wait()
		select {
		case err := <-ended:
			t.Fatalf("it ended before: %v", err)
		default:
		}
		s.Drain()
		if err := <-ended; status.Code(err) != codes.Unavailable {
			t.Errorf("the stream ended with %v", err)
		}
		if _, err := served(t, s, true); status.Code(err) != codes.Unavailable {
			t.Errorf("a later stream ended with %v", err)
		}
	})
}

// shifting are groups that a test changes.
type shifting struct {
	wake chan struct{} // of one slot
	mu   sync.Mutex
	all  []*musterv1.RelayedGroup
}

func (s *shifting) Watch() (<-chan struct{}, func()) { return s.wake, func() {} }

func (s *shifting) Groups() ([]*musterv1.RelayedGroup, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all, nil
}

func (s *shifting) become(all ...*musterv1.RelayedGroup) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = all
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// A relay that follows the group named first reports on its id, which by now is
// another group's.
func TestAReportIsJudgedByTheGroupsThatThereAreNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		groups := &shifting{wake: make(chan struct{}, 1)}
		groups.become(&musterv1.RelayedGroup{Id: "a", Name: "first"})
		s := service()
		s.cfg.Groups = groups
		s.cfg.Fleet.Published("a", fleet.Version{Epoch: 1, Revision: 1})
		ctx, cancel := context.WithCancel(t.Context())
		a := &attend{ctx: ctx, requests: make(chan *musterv1.AttendRequest)}
		ended := make(chan error, 1)
		go func() { ended <- s.Attend(a) }()
		report := func(id string) {
			a.requests <- &musterv1.AttendRequest{Request: &musterv1.AttendRequest_Report{Report: &musterv1.RelayReport{
				DataPlanes: []*musterv1.DataPlane{{Id: id, Group: "a", State: musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED}},
			}}}
			synctest.Wait()
		}
		a.requests <- hello(func(h *musterv1.RelayHello) { h.Groups = []string{"first"} })
		synctest.Wait()
		report("one")
		groups.become(&musterv1.RelayedGroup{Id: "a", Name: "another"})
		report("two")
		seen := s.cfg.Fleet.List("a", fleet.ListOptions{})
		if len(seen) != 1 || seen[0].GetId() != "one" {
			t.Errorf("seen are %v", seen)
		}
		cancel()
		if err := <-ended; err == nil {
			t.Error("the stream ended well without its context")
		}
	})
}
