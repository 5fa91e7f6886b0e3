package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/dataplane"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/relay"
	"github.com/musterhq/muster/server"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/xds"
)

// core is a whole muster server with one group of raw virtual hosts, the same as
// the other arms have.
type core struct {
	running
	srv   *server.Server
	as    context.Context // an administrator
	want  []uint64        // hash by resource index
	ended chan error

	revision uint64 // the newest
}

// everyAddress are limits for clients that all come from one address.
var everyAddress = xds.Limits{Connections: -1, ConnectionsPerAddress: -1, Replacements: -1}

func startCore(ctx context.Context, dir string, resources int) (*core, error) {
	srv, err := server.New(server.Config{
		ServerID: "core", DataDir: dir, Bootstrap: true, Insecure: true,
		AdminAddr: "127.0.0.1:0", XDSAddr: "127.0.0.1:0", XDSLimits: everyAddress,
		Keys: auth.NewKeys(auth.NewKey("bench", auth.RoleAdmin, "key")),
	})
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c := &core{srv: srv, ended: make(chan error, 1), as: auth.WithIdentity(ctx, auth.Identity{Name: "bench", Role: auth.RoleAdmin})}
	c.cancel = cancel
	c.wg.Go(func() { c.ended <- srv.Run(run) })
	if err := until(ctx, "the server is ready", func() bool { return srv.Ready() == nil }); err != nil {
		c.close()
		return nil, err
	}
	if _, err = srv.Admin().CreateGroup(c.as, &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: "group", Name: "group"}}); err == nil {
		indices := make([]int, resources)
		for i := range indices {
			indices[i] = i
		}
		c.want = make([]uint64, resources)
		err = c.change(time.Time{}, indices...)
	}
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// change commits newly stamped virtual hosts as one transaction.
func (c *core) change(stamp time.Time, indices ...int) error {
	req := &musterv1.CommitRequest{Group: "group"}
	for _, i := range indices {
		body := virtualHostBytes(i, stamp)
		req.Changes = append(req.Changes, &musterv1.Change{Action: &musterv1.Change_Put{Put: &musterv1.Resource{
			Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{
				Id: fmt.Sprintf("s%d", i), Resource: &anypb.Any{TypeUrl: typeURL, Value: body},
			}},
		}}})
		c.want[i] = bodyHash(body)
	}
	resp, err := c.srv.Admin().Commit(c.as, req)
	c.revision = resp.GetRevision()
	return err
}

// wait waits until n data planes have the newest revision, as the command line does.
func (c *core) wait(ctx context.Context, n uint32) error {
	ctx, cancel := context.WithTimeout(auth.WithIdentity(ctx, auth.Identity{Name: "bench", Role: auth.RoleAdmin}), 5*time.Minute)
	defer cancel()
	w := &waitStream{ctx: ctx}
	if err := c.srv.Admin().Wait(&musterv1.WaitRequest{Group: "group", Revision: c.revision, AckedPercent: 100, MinDataPlanes: &n}, w); err != nil {
		return err
	}
	if !w.last.GetDone() {
		return fmt.Errorf("the wait ended undone: %v", w.last)
	}
	return nil
}

// waitStream keeps the last that a wait told.
type waitStream struct {
	grpc.ServerStream
	ctx  context.Context
	last *musterv1.WaitResponse
}

func (w *waitStream) Context() context.Context { return w.ctx }

func (w *waitStream) Send(r *musterv1.WaitResponse) error {
	w.last = r
	return nil
}

// coreProcess is the process of a muster server.
func coreProcess(ctx context.Context, resources int) error {
	dir, err := os.MkdirTemp("", "muster-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	c, err := startCore(ctx, dir, resources)
	if err != nil {
		return err
	}
	defer c.close()
	stop, err := profiling("core")
	if err != nil {
		return err
	}
	defer stop()
	return answer(func(r request) (reply, error) {
		switch r.Do {
		case "addr":
			return reply{Addr: c.srv.XDSAddr().String()}, nil
		case "digest":
			return reply{Digest: digestOf(c.want)}, nil
		case "push":
			cpu, start := cpuSeconds(), time.Now()
			err := c.change(start, r.Indices...)
			return reply{Wall: time.Since(start).Seconds(), CPU: cpuSeconds() - cpu}, err
		case "synced":
			// From before a commit until every data plane is known to have it.
			start := time.Now()
			if err := c.change(start, r.Indices...); err != nil {
				return reply{}, err
			}
			err := c.wait(ctx, uint32(r.Acks))
			return reply{Wall: time.Since(start).Seconds()}, err
		}
		return processState(r)
	})
}

// processState answers what every process can be asked.
func processState(r request) (reply, error) {
	switch r.Do {
	case "cpu":
		return reply{CPU: cpuSeconds()}, nil
	case "usage":
		runtime.GC()
		debug.FreeOSMemory()
		return reply{RSS: rss(), CPU: cpuSeconds()}, nil
	}
	return reply{}, fmt.Errorf("unknown request %q", r.Do)
}

// profiling starts a CPU profile when profileEnv asks for one.
func profiling(who string) (stop func(), err error) {
	file := os.Getenv(profileEnv)
	if file == "" {
		return func() {}, nil
	}
	return profile(fmt.Sprintf("%s.%s.%d", file, who, os.Getpid()))
}

// meter counts the bytes on connections that it dials.
type meter struct{ down, up atomic.Int64 }

func (m *meter) dial(ctx context.Context, addr string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &meteredConn{c, m}, nil
}

func (m *meter) option() []grpc.DialOption {
	return []grpc.DialOption{grpc.WithContextDialer(m.dial)}
}

type meteredConn struct {
	net.Conn
	meter *meter
}

func (c *meteredConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.meter.down.Add(int64(n))
	return n, err
}

func (c *meteredConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.meter.up.Add(int64(n))
	return n, err
}

// relayProcess is the process of a relay.
func relayProcess(ctx context.Context, id, upstream, addr, dir string) error {
	var m meter
	r, err := relay.New(relay.Config{
		ID: id, Upstream: strings.Split(upstream, ","), UpstreamInsecure: true, Insecure: true,
		Addr: addr, DataDir: filepath.Join(dir, id), Limits: everyAddress, DialOptions: m.option(),
	})
	if err != nil {
		return err
	}
	run, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	ended := make(chan error, 1)
	wg.Go(func() { ended <- r.Run(run) })
	defer wg.Wait()
	defer cancel()
	stop, err := profiling(id)
	if err != nil {
		return err
	}
	defer stop()
	return answer(func(req request) (reply, error) {
		switch req.Do {
		case "addr":
			err := until(ctx, "the relay serves", func() bool { return r.Ready() == nil || len(ended) > 0 })
			return reply{Addr: r.Addr().String()}, errors.Join(err, r.Ready())
		case "bytes":
			return reply{Bytes: m.down.Load(), Sent: m.up.Load()}, nil
		}
		return processState(req)
	})
}

// probe is one data plane of muster's own at the core: what a change takes on its
// connection is one message.
type probe struct {
	running
	meter  meter
	client *dataplane.Client
}

func startProbe(ctx context.Context, addr string) (*probe, error) {
	p := &probe{}
	var err error
	p.client, err = dataplane.New(dataplane.Config{
		Servers: []string{addr}, Insecure: true, Compress: true, Group: "group", NodeID: "probe", UserAgentName: "muster-bench", Logger: quiet(),
		DialOptions: p.meter.option(), Handler: dataplane.HandlerFunc(func(context.Context, *dataplane.Update) error { return nil }),
	})
	if err != nil {
		return nil, err
	}
	run, cancel := context.WithCancel(ctx)
	p.cancel = cancel
	p.wg.Go(func() { _ = p.client.Run(run) }) // without a cache it fails at nothing
	return p, until(ctx, "the data plane is configured", func() bool { return p.client.Status().Configured })
}

func until(ctx context.Context, what string, ok func() bool) error {
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return fmt.Errorf("waited in vain: %s", what)
		}
	}
	return nil
}
