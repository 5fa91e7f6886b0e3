package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/ports"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// runMain makes this test's binary behave as muster, so that a process can be
// killed without building the program a second time. Unlike MUSTER_ variables it
// is passed on by dev to the servers that it runs.
const runMain = "TEST_RUN_MUSTER_MAIN"

func TestMain(m *testing.M) {
	if os.Getenv(runMain) != "" {
		main()
		return
	}
	goleak.VerifyTestMain(m)
}

const crashKey = "mst-a-key-of-the-crash-test"

// devProcess is `muster dev` in a process of its own.
type devProcess struct {
	cmd    *exec.Cmd
	output bytes.Buffer // read it only after wait
}

func startDev(t *testing.T, dir string, offset int) *devProcess {
	t.Helper()
	p := &devProcess{cmd: exec.Command(os.Args[0], "dev", "--gateways", "0",
		"--data-dir", dir, "--listen-offset", strconv.Itoa(offset), "--api-key", crashKey)}
	p.cmd.Env = append(os.Environ(), runMain+"=1")
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.kill)
	return p
}

// kill is kill -9.
func (p *devProcess) kill() {
	if p.cmd.ProcessState == nil {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	}
}

// interrupt is Ctrl-C; it returns how the process ended.
func (p *devProcess) interrupt() error {
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		return err
	}
	return p.cmd.Wait()
}

func adminClient(t *testing.T, addr string) musterv1.AdminServiceClient {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
			return invoke(metadata.AppendToOutgoingContext(ctx, "x-api-key", crashKey), method, req, reply, cc, opts...)
		}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return musterv1.NewAdminServiceClient(conn)
}

// write commits one consumer and repeats it, with the same request id, until it
// is acknowledged.
func write(ctx context.Context, admin musterv1.AdminServiceClient, n int) error {
	req := &musterv1.CommitRequest{
		Group:     "default",
		RequestId: fmt.Sprintf("write-%d", n),
		Changes: []*musterv1.Change{{Action: &musterv1.Change_Put{Put: &musterv1.Resource{
			Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{Username: fmt.Sprintf("user-%d", n)}},
		}}}},
	}
	for {
		_, err := admin.Commit(ctx, req)
		switch status.Code(err) {
		case codes.OK:
			return nil
		case codes.Unavailable, codes.Unknown, codes.NotFound: // down, outcome unknown, or not caught up
		default:
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.NewTimer(5 * time.Millisecond).C:
		}
	}
}

func consumers(t *testing.T, admin musterv1.AdminServiceClient) (map[string]bool, uint64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	for {
		resp, err := admin.ListResources(ctx, &musterv1.ListResourcesRequest{Group: "default", Kinds: []musterv1.Kind{musterv1.Kind_KIND_CONSUMER}})
		if status.Code(err) == codes.Unavailable && ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		names := make(map[string]bool, len(resp.GetResources()))
		for _, r := range resp.GetResources() {
			names[r.GetResource().GetConsumer().GetUsername()] = true
		}
		return names, resp.GetRevision()
	}
}

// Eight writers make 1,000 changes; meanwhile the process is killed with SIGKILL
// three times and started again on its data.
func TestNoAcknowledgedWriteIsLostAndNoneIsDoneTwiceWhenMusterDevIsKilled(t *testing.T) {
	const writes, writers, kills = 1000, 8, 3
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	offset, err := ports.Offset(7443, 7943, 7180)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	admin := adminClient(t, net.JoinHostPort("127.0.0.1", strconv.Itoa(7443+offset)))
	dev := startDev(t, dir, offset)
	consumers(t, admin) // the group is there

	var acknowledged [writes]atomic.Bool
	var count atomic.Int64
	var next atomic.Int64
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() {
			for {
				n := int(next.Add(1)) - 1
				if n >= writes {
					return
				}
				if err := write(ctx, admin, n); err != nil {
					t.Errorf("write %d: %v", n, err)
					return
				}
				acknowledged[n].Store(true)
				count.Add(1)
			}
		})
	}
	for k := range kills {
		for count.Load() < int64((k+1)*writes/(kills+1)) && ctx.Err() == nil {
			time.Sleep(time.Millisecond)
		}
		dev.kill()
		var before []int
		for n := range acknowledged {
			if acknowledged[n].Load() {
				before = append(before, n)
			}
		}
		dev = startDev(t, dir, offset)
		stored, _ := consumers(t, admin)
		for _, n := range before {
			if !stored[fmt.Sprintf("user-%d", n)] {
				t.Errorf("kill %d: write %d was acknowledged and is lost", k+1, n)
			}
		}
		t.Logf("kill %d: %d writes were acknowledged before it, all of them there after", k+1, len(before))
	}
	wg.Wait()

	stored, revision := consumers(t, admin)
	if len(stored) != writes {
		t.Errorf("%d of %d writes are there", len(stored), writes)
	}
	// One revision for the service that muster dev makes, one for each write.
	if revision != 1+writes {
		t.Errorf("the group is at revision %d, want %d: a repeated write was done twice", revision, 1+writes)
	}
	if err := dev.interrupt(); err != nil {
		t.Errorf("Ctrl-C: %v\n%s", err, dev.output.String())
	}
}
