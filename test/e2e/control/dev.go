package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
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
	Config DevConfig
	Admin  musterv1.AdminServiceClient
	Fleet  musterv1.FleetServiceClient

	conn *grpc.ClientConn
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
	conn, err := grpc.NewClient(d.AdminAddr(),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(d.outgoing(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(d.outgoing(ctx), desc, cc, method, opts...)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20)),
	)
	if err != nil {
		return nil, err
	}
	d.conn = conn
	d.Admin, d.Fleet = musterv1.NewAdminServiceClient(conn), musterv1.NewFleetServiceClient(conn)
	if err := d.Restart(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return d, nil
}

func (d *Dev) outgoing(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", d.Config.Key)
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

func (d *Dev) waitReady(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		call, done := context.WithTimeout(ctx, time.Second)
		_, err := d.Admin.GetGroup(call, &musterv1.GetGroupRequest{Group: "default"}, grpc.WaitForReady(true))
		done()
		if err == nil {
			return nil
		}
		select {
		case <-d.Exited():
			return errors.New("exited at once")
		case <-ctx.Done():
			return fmt.Errorf("does not answer: %w", err)
		case <-ticker.C:
		}
	}
}

// Close kills the process if it still runs, and the connection to it.
func (d *Dev) Close() {
	d.Kill()
	_ = d.conn.Close()
}

// AdminAddr is the address of the admin API.
func (d *Dev) AdminAddr() string { return d.addr(adminPort) }

// XDSAddr is the address of the xDS server.
func (d *Dev) XDSAddr() string { return d.addr(xdsPort) }

// GatewayAddr is the HTTP address of the n-th embedded gateway, from 0.
func (d *Dev) GatewayAddr(n int) string { return d.addr(httpPort + n) }

func (d *Dev) addr(port int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+d.Config.Offset))
}

// CLIError is a command that did not exit with 0.
type CLIError struct {
	Args   []string
	Code   int
	Stderr string
}

func (e *CLIError) Error() string {
	return fmt.Sprintf("muster %s: exit code %d\n%s", strings.Join(e.Args, " "), e.Code, strings.TrimSpace(e.Stderr))
}

// CLI runs the command line against this server and returns standard output.
// A non-zero exit is a *CLIError.
func (d *Dev) CLI(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, d.Config.Binary, args...)
	cmd.Env = append(os.Environ(),
		"MUSTER_ADDR="+d.AdminAddr(), "MUSTER_API_KEY="+d.Config.Key, "NO_COLOR=1",
		"XDG_CONFIG_HOME="+d.Config.DataDir)
	cmd.Stdin = strings.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = &CLIError{Args: args, Code: exit.ExitCode(), Stderr: stderr.String()}
	}
	return stdout.String(), err
}
