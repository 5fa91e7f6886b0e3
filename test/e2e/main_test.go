//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/musterhq/muster/test/e2e/control"
	"github.com/musterhq/muster/test/e2e/envoy"
	"github.com/musterhq/muster/test/e2e/grpcclient"
	"github.com/musterhq/muster/test/e2e/pki"
)

// What every test shares: the binary under test, the Envoys, an authority.
var (
	muster    string
	envoys    []envoy.Binary
	authority *pki.Authority
	// The proxyless gRPC clients, and a gRPC server that muster configures.
	clients    []grpcclient.Client
	grpcServer string
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	fail := func(err error) int {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var err error
	if envoys, err = envoy.Binaries(); err != nil {
		return fail(err)
	}
	if authority, err = pki.New("muster e2e"); err != nil {
		return fail(err)
	}
	dir, err := os.MkdirTemp("", "muster-e2e-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(dir)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	if muster, err = control.Build(ctx, dir); err != nil {
		return fail(err)
	}
	if clients, grpcServer, err = grpcclient.Clients(ctx, dir); err != nil {
		return fail(err)
	}
	return m.Run()
}
