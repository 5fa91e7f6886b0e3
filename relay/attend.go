package relay

import (
	"context"
	"errors"
	"hash/fnv"
	"io"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"

	"github.com/musterhq/muster/dataplane"
)

const (
	// attendMin and attendMax bound the jittered wait before the next server is tried.
	attendMin = 200 * time.Millisecond
	attendMax = 10 * time.Second
	// firstAnswer bounds the wait for a server's first word.
	firstAnswer = 15 * time.Second
	// foreignRetry is how often an upstream that is not muster is asked again.
	foreignRetry = time.Minute
	// followInterval is how often it is looked whether the groups hang on another
	// server than the one attended at.
	followInterval = 5 * time.Second
)

// errNotTold says that no upstream has told yet which groups there are.
var errNotTold = status.Error(codes.Unavailable, "this relay has not heard from its upstream yet")

// attendant holds the stream on which the upstream tells of groups and is told of
// data planes.
type attendant struct {
	cfg      *Config
	upstream *dataplane.Upstream
	carriers *carriers
	reports  reporter
	metrics  *metrics
	log      *slog.Logger
}

// run attends until ctx ends.
func (a *attendant) run(ctx context.Context) error {
	servers := a.upstream.Servers()
	h := fnv.New32a()
	_, _ = h.Write([]byte(a.cfg.ID)) // never fails
	next := int(h.Sum32() % uint32(len(servers)))
	failures := 0
	for ctx.Err() == nil {
		// Where the groups are is where the connection is.
		server := a.carriers.server()
		if server == "" || failures > 0 {
			server = servers[next%len(servers)]
		}
		heard, err := a.attend(ctx, server)
		if ctx.Err() != nil {
			return nil
		}
		wait := min(attendMin<<min(failures, 10), attendMax)
		switch {
		case status.Code(err) == codes.Unimplemented:
			a.carriers.alien()
			wait = foreignRetry
		case errors.Is(err, errMoved):
			failures = 0
			continue
		default:
			a.log.Warn("the upstream does not tell of groups any more", "server", server, "error", err)
		}
		if heard {
			failures, wait = 0, attendMin
		} else {
			failures++
			next++
		}
		if !sleep(ctx, wait/2+time.Duration(rand.Float64()*float64(wait)/2)) {
			return nil
		}
	}
	return nil
}

// errMoved ends a stream because the groups hang on another server.
var errMoved = errors.New("the groups hang on another server")

// attend holds one stream; heard tells that the server answered.
func (a *attendant) attend(ctx context.Context, server string) (heard bool, err error) {
	conn, release, err := a.upstream.Use(server)
	if err != nil {
		return false, err
	}
	defer func() { release(!heard && status.Code(err) == codes.Unavailable) }()
	ctx, cancel := context.WithCancel(ctx)
	responses := make(chan *musterv1.AttendResponse)
	ended := make(chan error, 1)
	received := make(chan struct{})
	close(received) // until there is a receiver
	defer func() { cancel(); <-received }()

	giveUp := time.AfterFunc(firstAnswer, cancel)
	defer giveUp.Stop()
	stream, err := musterv1.NewRelayServiceClient(conn).Attend(ctx)
	if err != nil {
		return false, err
	}
	received = make(chan struct{})
	go func() {
		defer close(received)
		ended <- receiveAll(ctx, stream, responses)
	}()
	hello := &musterv1.RelayHello{Relay: a.cfg.ID, Version: a.cfg.Version, Groups: a.cfg.Groups, Labels: a.cfg.Labels}
	if err := stream.Send(&musterv1.AttendRequest{Request: &musterv1.AttendRequest_Hello{Hello: hello}}); err != nil {
		return false, endOf(ctx, err, ended)
	}
	a.reports.begin()
	defer a.metrics.attended(false)
	tick := time.NewTicker(reportUrgent)
	defer tick.Stop()
	looked := time.Now()
	for {
		select {
		case err := <-ended:
			return heard, err
		case resp := <-responses:
			if !heard {
				heard = true
				giveUp.Stop()
				a.metrics.attended(true)
				a.log.Info("attending", "server", server)
			}
			if resp.GetGroups() != nil {
				a.carriers.list(resp.GetGroups().GetGroups())
			}
			a.reports.answered(resp)
		case now := <-tick.C:
			if heard && now.Sub(looked) >= followInterval {
				looked = now
				if at := a.carriers.server(); at != "" && at != server {
					return heard, errMoved
				}
			}
		}
		if report := a.reports.due(heard, time.Now()); report != nil {
			if err := stream.Send(&musterv1.AttendRequest{Request: &musterv1.AttendRequest_Report{Report: report}}); err != nil {
				return heard, endOf(ctx, err, ended)
			}
		}
	}
}

func receiveAll(ctx context.Context, stream grpc.BidiStreamingClient[musterv1.AttendRequest, musterv1.AttendResponse], to chan<- *musterv1.AttendResponse) error {
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		select {
		case to <- resp:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// endOf returns why the stream ended when a Send says only that it did.
func endOf(ctx context.Context, err error, ended <-chan error) error {
	if !errors.Is(err, io.EOF) {
		return err
	}
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// sleep waits and reports whether ctx is still live.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
