package control

import (
	"context"
	"fmt"
	"net"
	"strconv"

	"github.com/musterhq/muster/test/e2e/ports"
)

// The ports of `muster dev` without an offset.
const (
	adminPort  = 7443
	xdsPort    = 7943
	httpPort   = 9080
	httpsPort  = 9443
	statusPort = 7085
	echoPort   = 7180
)

// DevConfig describes a `muster dev`.
type DevConfig struct {
	Binary  string
	DataDir string
	// Gateways is the number of embedded gateways of the group `default`.
	Gateways int
	// Offset is added to every port; 0 finds one.
	Offset int
	// Key is the API key; empty means `e2e-key-of-a-test`.
	Key string
}

// Dev is a running `muster dev` and a client of it. Its methods are safe for
// concurrent use, but for Restart.
type Dev struct {
	*Process
	*API
	Config DevConfig
}

// StartDev runs `muster dev` and returns when its API answers.
func StartDev(ctx context.Context, cfg DevConfig) (*Dev, error) {
	if cfg.Key == "" {
		cfg.Key = "e2e-key-of-a-test"
	}
	if cfg.Offset == 0 {
		var err error
		if cfg.Offset, err = ports.Offset(adminPort, xdsPort, httpPort, httpsPort, statusPort, echoPort); err != nil {
			return nil, err
		}
	}
	d := &Dev{Config: cfg}
	var err error
	d.API, err = dial(API{
		Binary: cfg.Binary, Key: cfg.Key, Home: cfg.DataDir,
		AdminAddrs: []string{d.addr(adminPort)}, XDSAddrs: []string{d.addr(xdsPort)},
	})
	if err != nil {
		return nil, err
	}
	if err := d.Restart(ctx); err != nil {
		d.API.close()
		return nil, err
	}
	return d, nil
}

// Restart starts the process anew, with the same ports and data, after it has
// ended, and returns when the API answers.
func (d *Dev) Restart(ctx context.Context) error {
	p, err := startProcess(d.Config.Binary, []string{"MUSTER_API_KEY="},
		"dev",
		"--data-dir", d.Config.DataDir,
		"--gateways", strconv.Itoa(d.Config.Gateways),
		"--listen-offset", strconv.Itoa(d.Config.Offset),
		"--api-key", d.Config.Key,
	)
	if err != nil {
		return err
	}
	d.Process = p
	if err := d.waitReady(ctx); err != nil {
		p.Kill()
		return fmt.Errorf("muster dev: %w\n%s", err, p.Output())
	}
	return nil
}

func (d *Dev) waitReady(ctx context.Context) error { return d.API.waitReady(ctx, d.Exited()) }

// Close kills the process if it still runs, and the connection to it.
func (d *Dev) Close() {
	d.Kill()
	d.API.close()
}

// GatewayAddr is the HTTP address of the n-th embedded gateway, from 0.
func (d *Dev) GatewayAddr(n int) string { return d.addr(httpPort + n) }

func (d *Dev) addr(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+d.Config.Offset))
}
