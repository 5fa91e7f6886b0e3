//go:build e2e

package e2e

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/grpcclient"
)

// tlsClients are the clients that take mutual TLS from the bootstrap's own
// `channel_creds` (gRPC A65).
var tlsClients = map[string]bool{"go": true, "python": true}

// TestGRPCClientsProveTheirGroupByCertificate starts clients with the bootstrap
// that the command line prints for certificate files: one of the group, and one
// whose certificate is another group's.
func TestGRPCClientsProveTheirGroupByCertificate(t *testing.T) {
	for _, client := range clients {
		if !tlsClients[client.Name] {
			continue
		}
		t.Run(client.Name, func(t *testing.T) {
			t.Parallel()
			c := newRolling(t)
			c.first()
			ready, cancel := context.WithTimeout(c.as(t.Context()), 30*time.Second)
			defer cancel()
			for _, group := range []string{"mesh", "other"} {
				for {
					_, err := c.clients[0].CreateGroup(ready, &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: group}}, grpc.WaitForReady(true))
					if err == nil {
						break
					}
					if ready.Err() != nil {
						t.Fatal(err)
					}
					time.Sleep(50 * time.Millisecond)
				}
				c.recipe("dataplane", c.dir, group, "shop-client")
				if _, err := c.clients[0].Commit(ready, &musterv1.CommitRequest{Group: group, Changes: []*musterv1.Change{
					grpcService("shop", startHealth(t, group)), routeOf("shop", "/*"),
				}}); err != nil {
					t.Fatal(err)
				}
			}
			run := c.startGRPC(client, "mesh", "mesh")
			answered(t, run, 0, "mesh")
			noneLost(t, run, 0, "mutual TLS")

			// A certificate of mesh does not open other.
			refused := c.startGRPC(client, "other", "mesh")
			some, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			rs, err := refused.Next(some, 0, func(rs []grpcclient.Result) bool { return len(rs) >= 3 })
			if err != nil {
				t.Fatal(err)
			}
			said := refused.Stderr()
			for _, r := range rs {
				if r.OK() {
					t.Fatalf("a client of mesh was let into other, to %s", r.Backend)
				}
				said += r.Detail
			}
			if why := `the certificate does not allow node "shop-client" in group "other"`; !strings.Contains(said, why) {
				t.Errorf("the client does not say why it was refused: %s", tailOf(said, 2000))
			}
			// With its own, other serves.
			own := c.startGRPC(client, "other", "other")
			answered(t, own, 0, "other")
		})
	}
}

// startGRPC runs a client of a group with the certificate that a group's data plane
// of the same id has.
func (c *rollingCluster) startGRPC(client grpcclient.Client, group, certificate string) *grpcclient.Run {
	c.t.Helper()
	cmd := exec.CommandContext(c.t.Context(), muster, "bootstrap", "grpc", "--group", group, "--node-id", "shop-client", "--xds-address", c.xds[0],
		"--xds-ca-file", c.path("ca.pem"), "--xds-cert-file", c.path("dp-"+certificate+"-shop-client.pem"),
		"--xds-key-file", c.path("dp-"+certificate+"-shop-client.key"))
	bootstrap, err := cmd.Output()
	if err != nil {
		c.t.Fatal(err)
	}
	run, err := client.Start(grpcclient.Config{Bootstrap: string(bootstrap), Target: "xds:///shop", Rate: 20, Timeout: 5 * time.Second, Dir: c.t.TempDir()})
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() {
		run.Stop()
		if c.t.Failed() {
			c.t.Logf("the %s client said:\n%s", client.Name, tailOf(run.Stderr(), 2000))
		}
	})
	return run
}
