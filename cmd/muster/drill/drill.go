package drill

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/dataplane/gateway"
	"github.com/musterhq/muster/relay"
)

// As says what to start.
type As string

// What is started: the embedded gateway; an agent with a data plane below it, which
// needs what a relay wrote; or, without a word, what can be.
const (
	AsAll     As = ""
	AsGateway As = "gateway"
	AsAgent   As = "agent"
)

// Config says what to try. Home and Group are required.
type Config struct {
	Home  *dataplane.SecondHome
	Group string // id or name
	As    As
	// MinEpoch is the least epoch that will do.
	MinEpoch uint64
	// Timeout bounds each start. Default: 30 s.
	Timeout time.Duration
	Logger  *slog.Logger
}

// Report is what a drill found.
type Report struct {
	Group    string    `json:"group"`  // the id
	Object   string    `json:"object"` // its name in the second home
	Written  time.Time `json:"written"`
	Bytes    int64     `json:"bytes"`
	Epoch    uint64    `json:"epoch"`
	Revision uint64    `json:"revision"`
	Relay    bool      `json:"relay"` // a relay wrote it
	// Older counts what else there is of the group.
	Older     int      `json:"older"`
	Resources int      `json:"resources"`
	Gateway   *Serving `json:"gateway,omitempty"`
	Agent     *Serving `json:"agent,omitempty"`
}

// Serving is what was started from it.
type Serving struct {
	// Seconds is how long it took from the start until it served.
	Seconds   float64  `json:"seconds"`
	Resources int      `json:"resources"`
	Listeners []string `json:"listeners,omitempty"`
}

// Errors of Run; others are of the second home itself, which could not be read.
var (
	ErrNothing = errors.New("the second home has nothing of the group")
	ErrRefused = errors.New("the newest snapshot is refused")
	ErrServes  = errors.New("it does not serve")
	ErrTimeout = errors.New("it does not serve in time")
)

// Run makes a drill. What it reports is true as far as it came when it fails.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Timeout <= 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	reading, cancel := context.WithTimeout(ctx, cfg.Timeout)
	defer cancel()
	kept, err := cfg.Home.Snapshots(reading, cfg.Group)
	if err != nil {
		return nil, err
	}
	if cfg.As == AsAgent {
		kept = slices.DeleteFunc(kept, func(k dataplane.KeptSnapshot) bool { return !k.Relay })
	}
	if len(kept) == 0 {
		return nil, fmt.Errorf("%w %q", ErrNothing, cfg.Group)
	}
	newest := kept[0]
	r := &Report{
		Group: newest.Group, Object: newest.Name, Written: newest.Modified, Bytes: newest.Size,
		Epoch: newest.Epoch, Revision: newest.Revision, Relay: newest.Relay, Older: len(kept) - 1,
	}
	state, err := cfg.Home.Read(reading, newest, nil)
	if err != nil {
		return r, fmt.Errorf("%w: %s: %w", ErrRefused, newest.Name, err)
	}
	if newest.Epoch < cfg.MinEpoch {
		return r, fmt.Errorf("%w: %s is of an older epoch than %d", ErrRefused, newest.Name, cfg.MinEpoch)
	}
	r.Resources = count(state)
	if cfg.As != AsAgent {
		if r.Gateway, err = cfg.within(ctx, "the embedded gateway", state, cfg.gateway); err != nil {
			return r, err
		}
	}
	if cfg.As == AsAgent || cfg.As == AsAll && newest.Relay {
		if r.Agent, err = cfg.within(ctx, "the agent", state, cfg.agent); err != nil {
			return r, err
		}
	}
	return r, nil
}

func count(s *dataplane.State) int {
	n := 0
	for _, typeURL := range s.Types() {
		if typeURL != dataplane.ManifestType {
			n += s.Len(typeURL)
		}
	}
	return n
}

// within bounds a start, and measures it.
func (c *Config) within(ctx context.Context, what string, want *dataplane.State, start func(context.Context, *dataplane.State) (*Serving, error)) (*Serving, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	s, err := start(ctx, want)
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, fmt.Errorf("%s: %w (%v)", what, ErrTimeout, c.Timeout)
	case err != nil:
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return s, nil
}

// nowhere is an upstream that cannot be reached, whatever network there is.
const nowhere = "passthrough:///no-control-plane"

var errNoControlPlane = errors.New("in a drill there is no control plane")

func unreachable() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return nil, errNoControlPlane })}
}

// gateway starts the embedded gateway from the second home alone.
func (c *Config) gateway(ctx context.Context, want *dataplane.State) (*Serving, error) {
	upstream, err := dataplane.NewUpstream(dataplane.UpstreamConfig{Servers: []string{nowhere}, Insecure: true, DialOptions: unreachable()})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	g, err := gateway.New(gateway.Config{
		HTTPAddr: "127.0.0.1:0", HTTPSAddr: "127.0.0.1:0", StatusAddr: "127.0.0.1:0",
		Upstream: upstream, Group: c.Group, NodeID: "drill", SecondHome: c.Home, DrainTimeout: time.Second, Logger: c.Logger,
	})
	if err != nil {
		return nil, err
	}
	ctx, stop := alongside(ctx, g.Run)
	defer stop()
	if err := await(ctx, func() bool { return g.Client().Status().Configured }); err != nil {
		return nil, err
	}
	if err := c.same(g.Client(), want); err != nil {
		return nil, err
	}
	s := &Serving{Resources: count(g.Client().State())}
	for l := range want.All(dataplane.ListenerType) {
		if !slices.Contains([]string{"http", "https"}, l.Name) {
			continue // the gateway binds no others
		}
		addr := g.Addr(l.Name)
		if addr == nil {
			return nil, fmt.Errorf("%w: the listener %q is not bound", ErrServes, l.Name)
		}
		s.Listeners = append(s.Listeners, l.Name)
		if l.Name == "http" {
			if err := speaks(ctx, addr); err != nil {
				return nil, err
			}
		}
	}
	if err := ready(ctx, g.Addr("status")); err != nil {
		return nil, err
	}
	s.Seconds = time.Since(began).Seconds()
	return s, nil
}

// agent starts an agent from the second home alone, and a data plane below it.
func (c *Config) agent(ctx context.Context, want *dataplane.State) (*Serving, error) {
	dir, err := os.MkdirTemp("", "muster-drill-*") // mode 0700
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	began := time.Now()
	key := []byte(rand.Text()) // what is written in passing can be read by nobody later
	r, err := relay.New(relay.Config{
		ID: "drill", Upstream: []string{nowhere}, UpstreamInsecure: true, DialOptions: unreachable(),
		Groups: []string{c.Group}, DataDir: dir, CacheKey: key, SecondHome: c.Home,
		Addr: "127.0.0.1:0", Insecure: true, ShutdownGrace: time.Second, Logger: c.Logger,
	})
	if err != nil {
		return nil, err
	}
	ctx, stop := alongside(ctx, r.Run)
	defer stop()
	plane, err := dataplane.New(dataplane.Config{
		Servers: []string{r.Addr().String()}, Insecure: true, Group: c.Group, NodeID: "drill", UserAgentName: "muster-drill",
		Manifest: dataplane.ManifestRequired, Logger: c.Logger,
		Timing:  dataplane.Timing{BackoffMin: 50 * time.Millisecond, BackoffMax: 200 * time.Millisecond},
		Handler: dataplane.HandlerFunc(func(context.Context, *dataplane.Update) error { return nil }),
	})
	if err != nil {
		return nil, err
	}
	ctx, leave := alongside(ctx, plane.Run)
	defer leave()
	if err := await(ctx, func() bool { return plane.Status().Configured }); err != nil {
		return nil, err
	}
	if err := c.same(plane, want); err != nil {
		return nil, err
	}
	return &Serving{Seconds: time.Since(began).Seconds(), Resources: count(plane.State())}, nil
}

// same returns nil when a client has in service what is wanted, all of it.
func (c *Config) same(client *dataplane.Client, want *dataplane.State) error {
	status, got := client.Status(), client.State()
	if len(status.Refused) > 0 {
		refused := &dataplane.Refused{Resources: status.Refused}
		return fmt.Errorf("%w: it refuses %w", ErrServes, refused)
	}
	if status.Epoch != want.Epoch() || status.Revision != want.Revision() {
		return fmt.Errorf("%w: it serves epoch %d, revision %d", ErrServes, status.Epoch, status.Revision)
	}
	for _, typeURL := range want.Types() {
		if typeURL != dataplane.ManifestType && got.Len(typeURL) != want.Len(typeURL) {
			return fmt.Errorf("%w: it has %d of %d resources of %s", ErrServes, got.Len(typeURL), want.Len(typeURL), typeURL)
		}
	}
	return nil
}

// alongside runs something until stop, which waits for it. The context that it
// returns ends when it does, with its error as the cause.
func alongside(ctx context.Context, run func(context.Context) error) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	var running sync.WaitGroup
	running.Go(func() { cancel(run(ctx)) })
	return ctx, func() {
		cancel(nil)
		running.Wait()
	}
}

const poll = 2 * time.Millisecond

func await(ctx context.Context, ok func() bool) error {
	t := time.NewTicker(poll)
	defer t.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrServes, context.Cause(ctx))
		case <-t.C:
		}
	}
	return nil
}

// speaks returns nil when an HTTP listener answers. It is asked what no route can
// match, a request without a Host: a drill sends nothing to anybody's upstream.
func speaks(ctx context.Context, addr net.Addr) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr.String())
	if err != nil {
		return fmt.Errorf("%w: %w", ErrServes, err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline) // only fails on a closed connection
	}
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\n\r\n"); err != nil {
		return fmt.Errorf("%w: %w", ErrServes, err)
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return fmt.Errorf("%w: the listener does not answer: %w", ErrServes, err)
	}
	if !strings.HasPrefix(line, "HTTP/1.1 400 ") {
		return fmt.Errorf("%w: the listener answered %q", ErrServes, line)
	}
	return nil
}

// ready asks the gateway whether it is.
func ready(ctx context.Context, status net.Addr) error {
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+status.String()+"/status/ready", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrServes, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%w: /status/ready answers %s", ErrServes, resp.Status)
	}
	return nil
}
