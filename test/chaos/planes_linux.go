package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/test/chaos/oracle"
)

const (
	clusterType  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	endpointType = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	hostType     = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
)

// plane is a data plane that applies whole revisions and keeps them on disk.
type plane struct {
	id, group string
	c         *cluster
	saw       *oracle.Planes
	cacheDir  string

	mu     sync.Mutex
	client *dataplane.Client
	cancel context.CancelFunc
	done   chan struct{}
	// slow makes each change take this long.
	slow time.Duration
	// refuse makes the plane refuse every change, as a whole.
	refuse bool
}

// planeTLS is the identity of a data plane.
func (l *lab) planeTLS(group, id string) (*tls.Config, error) {
	leaf, err := l.ca.Identity(id, &url.URL{Scheme: "spiffe", Host: trustDomain, Path: "/group/" + group + "/node/" + id})
	if err != nil {
		return nil, err
	}
	return &tls.Config{RootCAs: l.ca.Pool(), Certificates: []tls.Certificate{leaf.TLS}}, nil
}

// xdsServers are the addresses at which servers may be.
func (l *lab) xdsServers() []string {
	var out []string
	for _, h := range l.hosts {
		out = append(out, h.addr(xdsPort))
	}
	return out
}

var quickDial = grpc.WithConnectParams(grpc.ConnectParams{
	Backoff:           backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: 200 * time.Millisecond},
	MinConnectTimeout: 500 * time.Millisecond,
})

// start begins the data plane, from its cache if there is one.
func (p *plane) start() error {
	identity, err := p.c.planeTLS(p.group, p.id)
	if err != nil {
		return err
	}
	client, err := dataplane.New(dataplane.Config{
		Servers: p.c.xdsServers(), Group: p.group, NodeID: p.id, TLS: identity,
		Handler: dataplane.HandlerFunc(p.apply), Manifest: dataplane.ManifestRequired,
		CacheDir: p.cacheDir, Logger: slog.New(slog.NewTextHandler(io.Discard, nil)),
		DialOptions: []grpc.DialOption{quickDial},
		Timing: dataplane.Timing{
			BackoffMin: 50 * time.Millisecond, BackoffMax: 300 * time.Millisecond,
			Connect: time.Second, FirstResponse: 2 * time.Second, Keepalive: 10 * time.Second,
		},
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	p.mu.Lock()
	p.client, p.cancel, p.done = client, cancel, done
	p.mu.Unlock()
	go func() {
		defer close(done)
		_ = client.Run(ctx) // it says what is wrong by not converging
	}()
	return nil
}

// stop ends the data plane; what it kept on disk stays.
func (p *plane) stop() {
	p.mu.Lock()
	cancel, done := p.cancel, p.done
	p.mu.Unlock()
	if cancel != nil {
		cancel()
		<-done
	}
}

func (p *plane) set(slow time.Duration, refuse bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow, p.refuse = slow, refuse
}

// version is what is in service.
func (p *plane) version() (oracle.Version, bool) {
	p.mu.Lock()
	client := p.client
	p.mu.Unlock()
	st := client.Status()
	return oracle.Version{Epoch: st.Epoch, Revision: st.Revision}, st.Configured
}

func (p *plane) apply(ctx context.Context, u *dataplane.Update) error {
	p.mu.Lock()
	slow, refuse := p.slow, p.refuse
	p.mu.Unlock()
	if slow > 0 {
		sleep(ctx, slow)
	}
	if refuse && !u.Cached {
		return fmt.Errorf("this data plane refuses everything for now")
	}
	s := oracle.Snapshot{Plane: p.id, Group: p.group, At: oracle.Version{Epoch: u.Epoch, Revision: u.Revision}}
	for _, t := range u.State.Types() {
		for r := range u.State.All(t) {
			s.Resources = append(s.Resources, oracle.Resource{TypeURL: t, Name: r.Name, Version: r.Version, Body: r.Body.GetValue()})
			slotValue(p.group, t, r.Body.GetValue(), &s.Endpoints, &s.Routes)
		}
	}
	p.saw.Saw(s)
	return nil
}

// slotValue reads the value of a slot out of a resource that tells one.
func slotValue(group, typeURL string, body []byte, endpoints, routes *oracle.Values) {
	switch typeURL {
	case endpointType:
		var a endpointv3.ClusterLoadAssignment
		if proto.Unmarshal(body, &a) != nil {
			return
		}
		slot, ok := slotOf(group, strings.TrimPrefix(a.GetClusterName(), "service/"))
		if !ok {
			return
		}
		for _, l := range a.GetEndpoints() {
			for _, e := range l.GetLbEndpoints() {
				endpoints[slot], _ = valueOf(e.GetEndpoint().GetAddress().GetSocketAddress().GetAddress())
			}
		}
	case hostType:
		var v routev3.VirtualHost
		if proto.Unmarshal(body, &v) != nil {
			return
		}
		for _, r := range v.GetRoutes() {
			cluster := r.GetRoute().GetCluster()
			slot, ok := slotOf(group, strings.TrimPrefix(cluster, "service/"))
			if !ok {
				continue
			}
			path := r.GetMatch().GetPath()
			if n, err := strconv.ParseUint(strings.TrimPrefix(path, "/v/"), 10, 32); err == nil {
				routes[slot] = uint32(n)
			}
		}
	}
}

func slotOf(group, id string) (int, bool) {
	rest, ok := strings.CutPrefix(id, group+"-")
	slot, err := strconv.Atoi(rest)
	return slot, ok && err == nil && slot >= 0 && slot < oracle.Slots
}

// fleet is the data planes of a schedule.
type fleet struct {
	saw    *oracle.Planes
	planes []*plane
	raws   []*rawPlane
}

// newFleet starts two data planes and a raw one for each group.
func newFleet(c *cluster, dir string) (*fleet, error) {
	f := &fleet{saw: oracle.NewPlanes(groups)}
	for _, g := range groups {
		for i := range 2 {
			p := &plane{id: fmt.Sprintf("dp-%s-%d", g, i), group: g, c: c, saw: f.saw, cacheDir: filepath.Join(dir, fmt.Sprintf("cache-%s-%d", g, i))}
			if err := p.start(); err != nil {
				return f, err
			}
			f.planes = append(f.planes, p)
		}
		raw, err := newRawPlane(c, f.saw, g, "raw-"+g, c.xdsServers())
		if err != nil {
			return f, err
		}
		raw.start()
		f.raws = append(f.raws, raw)
	}
	return f, nil
}

func (f *fleet) close() {
	for _, p := range f.planes {
		p.stop()
	}
	for _, r := range f.raws {
		r.stop()
	}
}

// behind names a data plane that does not hold what a group holds, if any.
func (f *fleet) behind(last map[string]oracle.Op) string {
	for _, p := range f.planes {
		want := oracle.Version{Epoch: last[p.group].Epoch, Revision: last[p.group].Revision}
		if v, ok := p.version(); !ok || v != want {
			return fmt.Sprintf("data plane %s is at %s, the group at %s (%v)", p.id, v, want, p.lastError())
		}
	}
	for _, r := range f.raws {
		if got := r.values(); got != last[r.group].Values {
			return fmt.Sprintf("data plane %s holds %#x, the group %#x (%v)", r.id, got, last[r.group].Values, r.lastError())
		}
	}
	return ""
}

func (p *plane) lastError() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.client.Status().LastError
}
