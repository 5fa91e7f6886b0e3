//go:build e2e

package e2e

import (
	"context"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/envoy"
	"github.com/musterhq/muster/test/e2e/pki"
	"github.com/musterhq/muster/test/e2e/ports"
)

// TestAnEnvoyFollowsItsRenewedCertificate gives an Envoy a certificate that soon
// runs out, and renews it in time: the server ends the connection with the first,
// and the Envoy, which was not started again, comes back with the second.
func TestAnEnvoyFollowsItsRenewedCertificate(t *testing.T) {
	const life = 20 * time.Second
	var which []envoy.Binary
	for _, b := range envoys {
		if !b.SotW && !b.PerType {
			which = append(which, b)
		}
	}
	c := newRolling(t)
	// The server takes data planes of the test's authority as well, whose
	// certificates may be brief.
	ca, err := os.OpenFile(c.path("ca.pem"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ca.WriteString(authority.CertPEM); err != nil {
		t.Fatal(err)
	}
	if err := ca.Close(); err != nil {
		t.Fatal(err)
	}
	c.first()
	ready, cancel := context.WithTimeout(c.as(t.Context()), 2*time.Minute)
	defer cancel()
	for {
		_, err := c.clients[0].CreateGroup(ready, &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: "default"}}, grpc.WaitForReady(true))
		if err == nil {
			break
		}
		if ready.Err() != nil {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
	write := func(id string, leaf *pki.Leaf) {
		t.Helper()
		for name, text := range map[string]string{id + ".key": leaf.KeyPEM, id + ".pem": leaf.CertPEM} {
			if err := os.WriteFile(c.path(name+".new"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		for _, name := range []string{id + ".key", id + ".pem"} { // the key first
			if err := os.Rename(c.path(name+".new"), c.path(name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	issue := func(id string, life time.Duration) {
		t.Helper()
		leaf, err := authority.Brief(id, life, &url.URL{Scheme: "spiffe", Host: "example.org", Path: "/group/default/node/" + id})
		if err != nil {
			t.Fatal(err)
		}
		write(id, leaf)
	}
	planes := map[string]*envoy.Process{}
	began := time.Now()
	for _, b := range which {
		id := "envoy-" + b.Version
		issue(id, life)
		admin, err := ports.Free()
		if err != nil {
			t.Fatal(err)
		}
		http, err := ports.Free()
		if err != nil {
			t.Fatal(err)
		}
		bootstrap, err := exec.CommandContext(t.Context(), muster, "bootstrap", "envoy", "--group", "default", "--node-id", id, "--xds-address", c.xds[0],
			"--admin-port", strconv.Itoa(admin), "--listen-address", "127.0.0.1", "--http-port", strconv.Itoa(http),
			"--xds-ca-file", c.path("ca.pem"), "--xds-cert-file", c.path(id+".pem"), "--xds-key-file", c.path(id+".key"), "--sds-dir", c.path("sds-"+id)).Output()
		if err != nil {
			t.Fatal(err)
		}
		p, err := envoy.Start(t.Context(), envoy.Config{Binary: b, Bootstrap: bootstrap, Admin: loopback(admin), Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			p.Stop()
			if t.Failed() {
				t.Logf("%s said:\n%s", id, p.LogTail(3000))
			}
		})
		planes[id] = p
	}
	commit := func(name string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(c.as(t.Context()), 30*time.Second)
		defer cancel()
		if _, err := c.clients[0].Commit(ctx, &musterv1.CommitRequest{Group: "default", Changes: []*musterv1.Change{
			service(&musterv1.Service{Id: name, Name: name, Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: "127.0.0.1", Port: 1}}}}),
			routeOf(name, "/"+name),
		}}); err != nil {
			t.Fatal(err)
		}
		for id, p := range planes {
			if err := p.Until(t.Context(), 30*time.Second, "it has no cluster of "+name, func() bool {
				body, err := p.Get(t.Context(), "/clusters")
				return err == nil && strings.Contains(string(body), "service/"+name+"::")
			}); err != nil {
				t.Fatalf("%s: %v", id, err)
			}
		}
	}
	commit("before")
	if took := time.Since(began); took > life-5*time.Second {
		t.Skipf("the machine is too busy: %v until the first certificate was of use", took)
	}
	ended := make(map[string]int64)
	for id, p := range planes {
		issue(id, time.Hour)
		n, err := p.Sum(t.Context(), "^cluster.muster_xds.upstream_cx_destroy_remote$")
		if err != nil {
			t.Fatal(err)
		}
		ended[id] = n
	}
	time.Sleep(time.Until(began.Add(life + time.Second)))
	for id, p := range planes {
		if err := p.Until(t.Context(), 30*time.Second, "the server has not ended the connection of the first certificate", func() bool {
			n, err := p.Sum(t.Context(), "^cluster.muster_xds.upstream_cx_destroy_remote$")
			return err == nil && n > ended[id]
		}); err != nil {
			t.Fatalf("%s: %v", id, err)
		}
	}
	commit("after")
}
