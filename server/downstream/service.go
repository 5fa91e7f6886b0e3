package downstream

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/fleet"
)

// Groups offers the groups that relays may carry.
type Groups interface {
	// Groups returns them all, or why they are not known yet.
	Groups() ([]*musterv1.RelayedGroup, error)
	// Watch returns a channel that gets a value after each change of Groups, and
	// what ends that.
	Watch() (<-chan struct{}, func())
}

// Config holds what a Service works with. All fields but Logger are required.
type Config struct {
	// Authorize checks that the peer is the relay, and says what that may do.
	Authorize func(ctx context.Context, relay string) (auth.Carrier, error)
	Groups    Groups
	Fleet     *fleet.Registry
	Logger    *slog.Logger
}

// Limits of what a relay can ask for.
const (
	helloTimeout = 10 * time.Second
	maxNamed     = 10_000
	maxLabels    = 64
	maxRelayID   = 256
	// lookInterval is how often it is looked whether groups changed and somebody waits.
	lookInterval = 100 * time.Millisecond
)

// Service implements muster.v1.RelayService.
type Service struct {
	musterv1.UnimplementedRelayServiceServer
	cfg      Config
	draining context.Context
	drain    context.CancelFunc
}

// New returns a Service. It starts no goroutine.
func New(cfg Config) *Service {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Service{cfg: cfg}
	s.draining, s.drain = context.WithCancel(context.Background())
	return s
}

// Register adds the service to a gRPC server.
func (s *Service) Register(r grpc.ServiceRegistrar) { musterv1.RegisterRelayServiceServer(r, s) }

// Drain ends every stream, and those that come later at once: relays go elsewhere.
func (s *Service) Drain() { s.drain() }

var errStopping = status.Error(codes.Unavailable, "this server is shutting down")

// Attend implements RelayService.
func (s *Service) Attend(stream grpc.BidiStreamingServer[musterv1.AttendRequest, musterv1.AttendResponse]) error {
	requests := make(chan *musterv1.AttendRequest)
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(stream.Context())
	defer cancel()
	// It ends with the stream's context, which ends when this handler returns.
	go func() { ended <- receive(ctx, stream, requests) }()

	a := &attendance{Service: s, stream: stream}
	hello := time.NewTimer(helloTimeout)
	defer hello.Stop()
	select {
	case <-s.draining.Done():
		return errStopping
	case <-hello.C:
		return status.Error(codes.DeadlineExceeded, "no hello came on the new stream")
	case err := <-ended:
		return err
	case req := <-requests:
		if err := a.begin(req.GetHello()); err != nil {
			return err
		}
	}
	defer a.end()
	return a.run(requests, ended)
}

func receive(ctx context.Context, stream grpc.BidiStreamingServer[musterv1.AttendRequest, musterv1.AttendResponse], to chan<- *musterv1.AttendRequest) error {
	for {
		req, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		}
		select {
		case to <- req:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// attendance is one relay's stream.
type attendance struct {
	*Service
	stream grpc.BidiStreamingServer[musterv1.AttendRequest, musterv1.AttendResponse]
	hello  *musterv1.RelayHello
	may    auth.Carrier
	number uint64 // of the stream, at the fleet

	groups  *musterv1.RelayedGroups // that the relay may carry, as last looked at
	carries map[string]bool         // their ids
	untold  bool                    // they were not sent yet
	urgent  bool                    // as last sent
}

func (a *attendance) begin(hello *musterv1.RelayHello) (err error) {
	switch {
	case hello == nil:
		return status.Error(codes.InvalidArgument, "the first request of the stream must be a hello")
	case hello.GetRelay() == "" || len(hello.GetRelay()) > maxRelayID:
		return status.Errorf(codes.InvalidArgument, "a relay's id has 1 to %d characters", maxRelayID)
	case len(hello.GetGroups()) > maxNamed || len(hello.GetLabels()) > maxLabels:
		return status.Errorf(codes.InvalidArgument, "more than %d groups or %d labels", maxNamed, maxLabels)
	}
	if a.may, err = a.cfg.Authorize(a.stream.Context(), hello.GetRelay()); err != nil {
		return err
	}
	address := ""
	if p, ok := peer.FromContext(a.stream.Context()); ok {
		address = p.Addr.String()
	}
	a.hello = hello
	a.number = a.cfg.Fleet.RelayJoined(hello.GetRelay(), hello.GetVersion(), address)
	a.cfg.Logger.Info("relay connected", "relay", hello.GetRelay(), "address", address, "version", hello.GetVersion())
	return nil
}

func (a *attendance) end() {
	a.cfg.Fleet.RelayLeft(a.hello.GetRelay(), a.number)
	a.cfg.Logger.Info("relay disconnected", "relay", a.hello.GetRelay())
}

func (a *attendance) run(requests <-chan *musterv1.AttendRequest, ended <-chan error) error {
	wake, stop := a.cfg.Groups.Watch()
	defer stop()
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	changed := !a.look()
	if err := a.tell(0); err != nil {
		return err
	}
	for {
		received := uint64(0)
		select {
		case <-a.draining.Done():
			return errStopping
		case err := <-ended:
			return err
		case req := <-requests:
			report := req.GetReport()
			if report == nil {
				return status.Error(codes.InvalidArgument, "a request that is neither a first hello nor a report")
			}
			// Of the groups as they are now: since they were told one may have gone, or
			// another have come in its place.
			select {
			case <-wake:
				changed = true
			default:
			}
			if changed {
				changed = !a.look()
			}
			a.cfg.Fleet.RelayReported(a.hello.GetRelay(), a.number, report, func(group, node string) bool {
				return a.carries[group] && (node == "" || a.may.Tells(node))
			})
			received = report.GetNumber()
		case <-wake:
			changed = true
			continue // a busy store changes often; the next tick is soon
		case <-tick.C:
			if !changed && a.groups != nil && a.urgent == a.cfg.Fleet.Waiting() {
				continue
			}
			changed = !a.look()
		}
		if err := a.tell(received); err != nil {
			return err
		}
	}
}

// look finds out which groups the relay may carry now. Groups that are not known yet
// are looked at later, and false is returned: no list is not an empty list. It costs
// all groups, so it is done only after something has changed.
func (a *attendance) look() bool {
	all, err := a.cfg.Groups.Groups()
	if err != nil {
		return false
	}
	groups := a.selected(all)
	if a.groups != nil && proto.Equal(groups, a.groups) {
		return true
	}
	a.groups, a.untold = groups, true
	a.carries = make(map[string]bool, len(groups.GetGroups()))
	for _, g := range groups.GetGroups() {
		a.carries[g.GetId()] = true
	}
	return true
}

// tell sends what the relay does not know yet.
func (a *attendance) tell(received uint64) error {
	resp := &musterv1.AttendResponse{Received: received, Urgent: a.cfg.Fleet.Waiting()}
	if a.untold {
		resp.Groups, a.untold = a.groups, false
	}
	if resp.Groups == nil && received == 0 && resp.Urgent == a.urgent {
		return nil
	}
	a.urgent = resp.Urgent
	return a.stream.Send(resp)
}

// selected returns the groups that the relay wants and may carry.
func (a *attendance) selected(all []*musterv1.RelayedGroup) *musterv1.RelayedGroups {
	out := &musterv1.RelayedGroups{}
	for _, g := range all {
		if a.wants(g) && (a.may.Carries(g.GetId()) || a.may.Carries(g.GetName())) {
			out.Groups = append(out.Groups, g)
		}
	}
	slices.SortFunc(out.Groups, func(x, y *musterv1.RelayedGroup) int { return strings.Compare(x.GetId(), y.GetId()) })
	return out
}

func (a *attendance) wants(g *musterv1.RelayedGroup) bool {
	if names := a.hello.GetGroups(); len(names) > 0 && !slices.Contains(names, g.GetId()) && !slices.Contains(names, g.GetName()) {
		return false
	}
	for k, v := range a.hello.GetLabels() {
		if had, ok := g.GetLabels()[k]; !ok || had != v {
			return false
		}
	}
	return true
}
