//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/behaviour"
	"github.com/musterhq/muster/test/e2e/control"
	"github.com/musterhq/muster/test/e2e/envoy"
	"github.com/musterhq/muster/test/e2e/ports"
)

// ackTimeout bounds how long data planes may take to have a revision, on a
// machine that runs many of them.
const ackTimeout = 25 * time.Second

// site is a muster server with the data planes of its tests.
type site struct {
	*control.Dev
}

// newSite starts a server for one test.
func newSite(t *testing.T, gateways int) *site {
	t.Helper()
	dev, err := control.StartDev(t.Context(), control.DevConfig{Binary: muster, DataDir: t.TempDir(), Gateways: gateways})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("muster dev said:\n%s", tailOf(dev.Output(), 4000))
		}
		dev.Close()
	})
	return &site{Dev: dev}
}

func tailOf(s string, n int) string { return strings.TrimSpace(s[max(0, len(s)-n):]) }

// group creates a group that the test deletes at its end.
func (s *site) group(t *testing.T, id string) {
	t.Helper()
	if _, err := s.Admin.CreateGroup(t.Context(), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: id}}); err != nil {
		t.Fatalf("create group %s: %v", id, err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 10*time.Second)
		defer cancel()
		_, _ = s.Admin.DeleteGroup(ctx, &musterv1.DeleteGroupRequest{Group: id, Force: true})
	})
}

// sync makes a group hold exactly what a file declares, by the command line,
// and returns the group's revision.
func (s *site) sync(ctx context.Context, group, config string) (uint64, error) {
	out, err := s.CLI(ctx, config, "sync", "-f", "-", "--group", group, "--yes", "-o", "json")
	if err != nil {
		return 0, err
	}
	var resp struct {
		Revision json.Number `json:"revision"`
	}
	if err := json.Unmarshal([]byte(out), &resp); err != nil {
		return 0, fmt.Errorf("muster sync -o json printed %q: %w", out, err)
	}
	if resp.Revision == "" {
		return 0, nil
	}
	return strconv.ParseUint(resp.Revision.String(), 10, 64)
}

// commit applies changes as one transaction and returns its revision.
func (s *site) commit(ctx context.Context, group string, changes ...*musterv1.Change) (uint64, error) {
	resp, err := s.Admin.Commit(ctx, &musterv1.CommitRequest{Group: group, Changes: changes})
	return resp.GetRevision(), err
}

// wait returns when n data planes are connected and all have the revision.
func (s *site) wait(ctx context.Context, group string, revision uint64, n int) error {
	ctx, cancel := context.WithTimeout(ctx, ackTimeout)
	defer cancel()
	least := uint32(n)
	stream, err := s.Fleet.Wait(ctx, &musterv1.WaitRequest{
		Group: group, Revision: revision, AckedPercent: 100, MinDataPlanes: &least,
	})
	if err != nil {
		return err
	}
	var last *musterv1.WaitResponse
	for {
		resp, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("wait for revision %d of %s on %d data planes: %w; the last that was heard: %v", revision, group, n, err, last)
		}
		last = resp
	}
	if !last.GetDone() {
		return fmt.Errorf("wait for revision %d of %s ended undone: %v", revision, group, last)
	}
	return nil
}

// plane is a data plane under test.
type plane struct {
	name  string // for people: envoy-1.40.0, gateway
	id    string // its node id
	gate  behaviour.Gate
	envoy *envoy.Process // nil for the embedded gateway
}

// planes starts an Envoy of each version and an embedded gateway in a group. An
// Envoy without ADS is not among them: nothing orders what it is sent, so that
// changes may fail requests.
func (s *site) planes(t *testing.T, group string) []*plane {
	t.Helper()
	var all []*plane
	for _, binary := range envoys {
		if !binary.PerType {
			all = append(all, s.startEnvoy(t, group, binary))
		}
	}
	return append(all, s.startGateway(t, group))
}

// startEnvoy runs an Envoy with the bootstrap that `muster bootstrap envoy` prints.
func (s *site) startEnvoy(t *testing.T, group string, binary envoy.Binary) *plane {
	t.Helper()
	var port [3]int
	for i := range port {
		var err error
		if port[i], err = ports.Free(); err != nil {
			t.Fatal(err)
		}
	}
	p := &plane{
		name: "envoy-" + binary.Name(),
		id:   fmt.Sprintf("envoy-%s-%d", binary.Name(), port[0]),
		gate: behaviour.Gate{HTTP: loopback(port[0]), HTTPS: loopback(port[1])},
	}
	args := []string{
		"bootstrap", "envoy", "--group", group,
		"--node-id", p.id,
		"--listen-address", "127.0.0.1",
		"--http-port", strconv.Itoa(port[0]),
		"--https-port", strconv.Itoa(port[1]),
		"--admin-port", strconv.Itoa(port[2]),
		"--xds-address", strings.Join(s.XDSAddrs, ","),
	}
	if binary.SotW {
		args = append(args, "--sotw")
	}
	if binary.PerType {
		args = append(args, "--per-type")
	}
	bootstrap, err := s.CLI(t.Context(), "", args...)
	if err != nil {
		t.Fatal(err)
	}
	p.envoy, err = envoy.Start(t.Context(), envoy.Config{
		Binary:    binary,
		Bootstrap: []byte(bootstrap),
		Admin:     loopback(port[2]),
		Dir:       t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if !p.envoy.Running() {
			t.Errorf("%s ended by itself", p.name)
		}
		p.envoy.Stop()
		if t.Failed() {
			t.Logf("%s said:\n%s", p.name, p.envoy.LogTail(3000))
		}
	})
	return p
}

func (s *site) startGateway(t *testing.T, group string) *plane {
	t.Helper()
	port, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	g, err := s.StartGateway(group, fmt.Sprintf("gateway-%d", port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Stop(); err != nil {
			t.Errorf("the gateway did not stop cleanly: %v", err)
		}
		if t.Failed() {
			t.Logf("the gateway said:\n%s", tailOf(g.Output(), 3000))
		}
	})
	return &plane{name: "gateway", id: g.NodeID, gate: behaviour.Gate{HTTP: g.HTTP, HTTPS: g.HTTPS}}
}

func loopback(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// settled returns when the data plane takes connections and nothing that it
// acknowledged is still being prepared.
func (p *plane) settled(ctx context.Context) error {
	return eventually(ctx, 30*time.Second, func() error {
		if p.envoy != nil {
			if !p.envoy.Running() {
				return fmt.Errorf("%s has ended", p.name)
			}
			warming, err := p.envoy.Sum(ctx, `^(listener_manager\.total_listeners_warming|cluster_manager\.warming_clusters)$`)
			if err != nil {
				return err
			}
			if warming != 0 {
				return fmt.Errorf("%s is warming %d listeners and clusters", p.name, warming)
			}
		}
		conn, err := net.DialTimeout("tcp", p.gate.HTTP, time.Second)
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		return conn.Close()
	})
}

// eventually tries until there is no error or the time is over.
func eventually(ctx context.Context, timeout time.Duration, try func() error) error {
	deadline := time.Now().Add(timeout)
	for {
		err := try()
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("after %v: %w", timeout, err)
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
