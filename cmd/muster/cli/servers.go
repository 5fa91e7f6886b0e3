package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

// servers are the servers of a target, of which one is called at a time. One
// that cannot be reached, that answers that it cannot serve (it has no leader, or
// is starting), or that does not answer at all is left for the next: another may
// still be part of a majority.
type servers struct {
	app    *app
	target target
	conns  []*grpc.ClientConn // one for each endpoint; connected when first used

	mu  sync.Mutex
	at  int
	ask int // how often the server was changed
}

var _ grpc.ClientConnInterface = (*servers)(nil)

func (a *app) dial(t target) (*servers, error) {
	s := &servers{app: a, target: t}
	creds := insecure.NewCredentials()
	if t.endpoints[0].tls {
		conf := &tls.Config{MinVersion: tls.VersionTLS12}
		if t.caFile != "" {
			pem, err := os.ReadFile(a.env.path(t.caFile))
			if err != nil {
				return nil, fmt.Errorf("read --ca-file: %w", err)
			}
			conf.RootCAs = x509.NewCertPool()
			if !conf.RootCAs.AppendCertsFromPEM(pem) {
				return nil, usagef("%s holds no PEM certificate", t.caFile)
			}
		}
		if t.certFile != "" {
			pair, err := tls.LoadX509KeyPair(a.env.path(t.certFile), a.env.path(t.keyFile))
			if err != nil {
				return nil, fmt.Errorf("read --cert-file: %w", err)
			}
			conf.Certificates = []tls.Certificate{pair}
		}
		creds = credentials.NewTLS(conf)
	}
	for _, ep := range t.endpoints {
		conn, err := grpc.NewClient("dns:///"+ep.hostport,
			grpc.WithTransportCredentials(creds),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
			grpc.WithDisableRetry(), // retry below is the one place that retries
			grpc.WithDisableServiceConfig(),
			grpc.WithUserAgent("muster-cli/"+readBuildVersion().Version),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
				MinConnectTimeout: patience,
			}),
		)
		if err != nil {
			s.close()
			return nil, fmt.Errorf("connect: %w", err)
		}
		s.conns = append(s.conns, conn)
	}
	return s, nil
}

// current is the server that is called now, and how many were before it.
func (s *servers) current() (conn *grpc.ClientConn, turn int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns[s.at], s.ask
}

// next turns to the next server, unless another call has done so since that turn.
func (s *servers) next(turn int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ask == turn {
		s.at, s.ask = (s.at+1)%len(s.conns), turn+1
	}
}

// patience is how long a server may take to answer before the next is asked,
// when there are several: longer than the choice of a new leader takes. It
// doubles each time, for some calls are long.
const patience = 3 * time.Second

// Invoke implements grpc.ClientConnInterface: it adds the key and repeats what
// may be repeated. Every write carries a request_id, so a repeated one returns
// the first answer.
func (s *servers) Invoke(ctx context.Context, method string, req, reply any, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithTimeout(withKey(ctx, s.target.apiKey), s.app.requestTimeout)
	defer cancel()
	wait := patience
	several := len(s.conns) > 1
	return s.retry(ctx, func() error {
		conn, _ := s.current()
		attempt, cancel := ctx, context.CancelFunc(func() {})
		if several {
			attempt, cancel = context.WithTimeout(ctx, wait)
		}
		defer cancel()
		err := conn.Invoke(attempt, method, req, reply, opts...)
		if several && status.Code(err) == codes.DeadlineExceeded && ctx.Err() == nil {
			wait *= 2
			return errSilent
		}
		return err
	})
}

// errSilent says that a server took a call and did not answer in time.
var errSilent = errors.New("the server did not answer in time")

// NewStream implements grpc.ClientConnInterface. It is not repeated: the caller
// knows how to go on, and wraps it in retry.
func (s *servers) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	conn, _ := s.current()
	return conn.NewStream(withKey(ctx, s.target.apiKey), desc, method, opts...)
}

func (s *servers) close() {
	for _, conn := range s.conns {
		_ = conn.Close()
	}
}

// How long a call is repeated: a server that cannot be reached may be starting
// again, one that answers "no leader" will have one after an election.
const (
	retryUnreachable = 3 * time.Second
	retryNoLeader    = 15 * time.Second
)

// retry repeats a call while it may be repeated, on one server after the other.
func (s *servers) retry(ctx context.Context, call func() error) error {
	wait, limit := 50*time.Millisecond, retryUnreachable
	said := false
	start := time.Now()
	for attempt := 1; ; attempt++ {
		_, turn := s.current()
		err := call()
		if errors.Is(err, errSilent) {
			s.next(turn)
			continue // the call's time bounds this
		}
		if !retriable(err) {
			return err
		}
		s.next(turn)
		if serverAnswered(err) {
			limit = retryNoLeader
		}
		if attempt%len(s.conns) != 0 {
			continue // all are asked before a pause
		}
		if time.Since(start)+wait > limit {
			return unavailable(s.target, err)
		}
		if !said && time.Since(start) > 500*time.Millisecond && s.app.env.StderrTTY {
			said = true
			s.app.say("%s does not answer; trying again ...", s.target)
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return unavailable(s.target, err)
		case <-timer.C:
		}
		wait = min(2*wait, time.Second)
	}
}
