package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/http"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/ports"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
)

// transcript is a process's output while it grows.
type transcript struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *transcript) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *transcript) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// await returns the last match of a pattern once there are so many.
func (o *transcript) await(t *testing.T, n int, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		if all := re.FindAllStringSubmatch(o.String(), -1); len(all) >= n {
			return all[len(all)-1]
		}
		if time.Now().After(deadline) {
			t.Fatalf("no %q in:\n%s", pattern, o)
		}
	}
}

// devServers is `muster dev --servers 3` in a process of its own.
type devServers struct {
	t      *testing.T
	cmd    *exec.Cmd
	out    transcript
	offset int
}

func startDevServers(t *testing.T) *devServers {
	t.Helper()
	offset, err := ports.Offset(7443, 7444, 7445, 7943, 7944, 7945, 7100, 7101, 7102, 7180, 9080, 9443, 7085)
	if err != nil {
		t.Fatal(err)
	}
	d := &devServers{t: t, offset: offset}
	d.cmd = exec.Command(os.Args[0], "dev", "--servers", "3", "--data-dir", t.TempDir(),
		"--listen-offset", strconv.Itoa(offset), "--api-key", crashKey)
	d.cmd.Env = append(os.Environ(), runMain+"=1")
	d.cmd.Stdout, d.cmd.Stderr = &d.out, &d.out
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if d.cmd.ProcessState == nil {
			_ = d.cmd.Process.Kill()
			_ = d.cmd.Wait()
		}
	})
	d.out.await(t, 1, `muster dev is running`)
	return d
}

func (d *devServers) port(base int) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(base+d.offset))
}

// pid is the process that a server runs as now.
func (d *devServers) pid(server string, starts int) int {
	d.t.Helper()
	pid, err := strconv.Atoi(d.out.await(d.t, starts, `(?m)^`+server+` \| runs as process (\d+)$`)[1])
	if err != nil {
		d.t.Fatal(err)
	}
	return pid
}

func (d *devServers) cluster(i int) musterv1.ClusterServiceClient {
	d.t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+d.port(7443+i),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close() })
	return musterv1.NewClusterServiceClient(conn)
}

func asAdmin(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", crashKey)
}

// leader returns the number of the server that leads, from 0.
func (d *devServers) leader() int {
	d.t.Helper()
	resp, err := d.cluster(0).ListPeers(asAdmin(d.t.Context()), &musterv1.ListPeersRequest{})
	if err != nil {
		d.t.Fatal(err)
	}
	for i, p := range resp.GetPeers() {
		if p.GetLeader() {
			return i
		}
	}
	d.t.Fatalf("no leader in %v", resp)
	return -1
}

// gone waits until a process has ended. One whose parent died may stay as a
// zombie until somebody looks after it.
func gone(pid int) bool {
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			return true
		}
		if stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat"); err == nil && bytes.Contains(stat, []byte(") Z ")) {
			return true
		}
	}
	return false
}

func (d *devServers) gateway() int {
	d.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + d.port(9080) + "/echo/hello")
	if err != nil {
		d.t.Fatal(err)
	}
	_ = resp.Body.Close()
	return resp.StatusCode
}

func TestTheLeaderOfDevIsKilledWritesGoOnAndItComesBack(t *testing.T) {
	d := startDevServers(t)
	leader := d.leader()
	name := "server-" + strconv.Itoa(leader+1)
	if code := d.gateway(); code != http.StatusOK {
		t.Fatalf("the gateway answers %d", code)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	other := adminClient(t, d.port(7443+(leader+1)%3))
	if err := write(ctx, other, 0); err != nil {
		t.Fatal(err)
	}

	if err := syscall.Kill(d.pid(name, 1), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := write(ctx, other, 1); err != nil {
		t.Fatalf("a write after the leader's death: %v", err)
	}
	t.Logf("the first write after the leader's death took %s", time.Since(began))
	if code := d.gateway(); code != http.StatusOK {
		t.Fatalf("the gateway answers %d", code)
	}
	d.out.await(t, 1, `(?m)^`+name+` \| died \(signal: killed\); it starts again in 2s$`)
	d.pid(name, 2)
	if away := time.Since(began); away < 2*time.Second {
		t.Errorf("it came back after %s", away)
	}
	back := adminClient(t, d.port(7443+leader))
	if err := write(ctx, back, 2); err != nil {
		t.Fatalf("a write to the server that came back: %v", err)
	}
	if got, _ := consumers(t, back); len(got) != 3 {
		t.Errorf("of three writes %v are there", got)
	}

	pids := []int{d.pid("server-1", 1), d.pid("server-2", 1), d.pid("server-3", 1)}
	if err := d.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := d.cmd.Wait(); err != nil {
		t.Errorf("Ctrl-C: %v\n%s", err, &d.out)
	}
	for _, pid := range pids {
		if !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			t.Errorf("process %d is still there", pid)
		}
	}
}

func TestServersOfDevDoNotOutliveItsViolentDeath(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux ends a child with its parent")
	}
	d := startDevServers(t)
	pids := []int{d.pid("server-1", 1), d.pid("server-2", 1), d.pid("server-3", 1)}
	if err := d.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = d.cmd.Wait()
	for _, pid := range pids {
		if !gone(pid) {
			t.Errorf("process %d is still there", pid)
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
}

func TestAServerOfDevThatCannotStartEndsItWithTheReason(t *testing.T) {
	offset, err := ports.Offset(7443, 7444, 7445, 7943, 7944, 7945, 7100, 7101, 7102, 7180)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(7101+offset)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "dev", "--servers", "3", "--gateways", "0", "--data-dir", t.TempDir(), "--listen-offset", strconv.Itoa(offset))
	cmd.Env = append(os.Environ(), runMain+"=1")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 4 || !bytes.Contains(out, []byte("address already in use")) || !bytes.Contains(out, []byte("--listen-offset")) {
		t.Errorf("%v\n%s", err, out)
	}
}
