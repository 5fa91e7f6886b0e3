package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// API calls one server, or the first of several that answers, by gRPC and by the
// command line. Its methods are safe for concurrent use.
type API struct {
	// Binary is muster's, Key the API key; Home takes the command line's files.
	Binary, Key, Home string
	// AdminAddrs and XDSAddrs are host:port of the servers.
	AdminAddrs, XDSAddrs []string

	Admin musterv1.AdminServiceClient
	Fleet musterv1.FleetServiceClient
	Peers musterv1.ClusterServiceClient
	conn  *grpc.ClientConn
}

func dial(api API) (*API, error) {
	servers := manual.NewBuilderWithScheme("servers")
	var state resolver.State
	for _, addr := range api.AdminAddrs {
		state.Endpoints = append(state.Endpoints, resolver.Endpoint{Addresses: []resolver.Address{{Addr: addr}}})
	}
	servers.InitialState(state)
	outgoing := func(ctx context.Context) context.Context {
		return metadata.AppendToOutgoingContext(ctx, "x-api-key", api.Key)
	}
	var err error
	api.conn, err = grpc.NewClient("servers:///",
		grpc.WithResolvers(servers),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(outgoing(ctx), method, req, reply, cc, opts...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, stream grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
			return stream(outgoing(ctx), desc, cc, method, opts...)
		}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(256<<20)),
	)
	if err != nil {
		return nil, err
	}
	api.Admin, api.Fleet = musterv1.NewAdminServiceClient(api.conn), musterv1.NewFleetServiceClient(api.conn)
	api.Peers = musterv1.NewClusterServiceClient(api.conn)
	return &api, nil
}

func (a *API) close() { _ = a.conn.Close() }

// AdminAddr is the address of the admin API, of the first server.
func (a *API) AdminAddr() string { return a.AdminAddrs[0] }

// XDSAddr is the address of the xDS server, of the first server.
func (a *API) XDSAddr() string { return a.XDSAddrs[0] }

// waitReady returns when the group `default` is served, or the process has exited.
func (a *API) waitReady(ctx context.Context, exited <-chan struct{}) error {
	return poll(ctx, exited, func(ctx context.Context) error {
		_, err := a.Admin.GetGroup(ctx, &musterv1.GetGroupRequest{Group: "default"}, grpc.WaitForReady(true))
		return err
	})
}

// poll tries until there is no error, for half a minute at most.
func poll(ctx context.Context, exited <-chan struct{}, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	for {
		call, done := context.WithTimeout(ctx, time.Second)
		err := try(call)
		done()
		if err == nil {
			return nil
		}
		select {
		case <-exited:
			return errors.New("exited at once")
		case <-ctx.Done():
			return fmt.Errorf("does not answer: %w", err)
		case <-ticker.C:
		}
	}
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

// CLI runs the command line against the servers and returns standard output.
// A non-zero exit is a *CLIError.
func (a *API) CLI(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, a.Binary, args...)
	cmd.Env = append(os.Environ(),
		"MUSTER_ADDR="+strings.Join(a.AdminAddrs, ","), "MUSTER_API_KEY="+a.Key, "NO_COLOR=1",
		"XDG_CONFIG_HOME="+a.Home)
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
