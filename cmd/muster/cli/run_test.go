package cli

import (
	"bytes"
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/musterhq/muster/test/e2e/ports"
)

// lines collects output and tells when a pattern has appeared.
type lines struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	wake chan struct{}
}

func newLines() *lines { return &lines{wake: make(chan struct{}, 1)} }

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func (l *lines) await(t *testing.T, pattern string) []string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	timeout := time.NewTimer(30 * time.Second)
	defer timeout.Stop()
	for {
		if m := re.FindStringSubmatch(l.String()); m != nil {
			return m
		}
		select {
		case <-l.wake:
		case <-timeout.C:
			t.Fatalf("no %q in:\n%s", pattern, l)
		}
	}
}

// background runs a command that ends with its context, and returns its output
// and a function that interrupts it and returns its exit code.
func background(t *testing.T, dir string, vars map[string]string, args ...string) (stdout, stderr *lines, stop func() int) {
	t.Helper()
	stdout, stderr = newLines(), newLines()
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() { code <- Run(ctx, args, testEnv(dir, vars, stdout, stderr)) }()
	stop = sync.OnceValue(func() int {
		cancel()
		return <-code
	})
	t.Cleanup(func() { stop() })
	return stdout, stderr, stop
}

func testEnv(dir string, vars map[string]string, stdout, stderr *lines) Env {
	return Env{
		Stdin: strings.NewReader(""), Stdout: stdout, Stderr: stderr, Dir: dir, Now: time.Now,
		LookupEnv: func(key string) (string, bool) {
			v, ok := vars[key]
			return v, ok
		},
	}
}

func run(t *testing.T, dir string, vars map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	o, e := newLines(), newLines()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code = Run(ctx, args, testEnv(dir, vars, o, e))
	return code, o.String(), e.String()
}

func TestAServerAndAGatewayRunFromTheCommandLineAndStopCleanly(t *testing.T) {
	dir := t.TempDir()
	err := os.WriteFile(filepath.Join(dir, "server.yaml"), []byte("server_id: a\ndata_dir: data\nadmin_addr: 127.0.0.1:0\nxds_addr: 127.0.0.1:0\ninsecure: true\nbootstrap: true\nlog_level: error\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	_, said, stopServer := background(t, dir, nil, "server", "--config", "server.yaml")
	key := said.await(t, `shown once[^\n]*\n  (mst-\S+)`)[1]
	addrs := said.await(t, `admin on (\S+), xDS on (\S+)\.`)
	vars := map[string]string{"MUSTER_ADDR": addrs[1], "MUSTER_API_KEY": key}

	if code, _, stderr := run(t, dir, vars, "group", "create", "default"); code != 0 {
		t.Fatalf("group create: %d\n%s", code, stderr)
	}
	file := filepath.Join(dir, "a.yaml")
	err = os.WriteFile(file, []byte("services:\n- id: a\n  name: a\n  upstream: {nodes: [{host: 127.0.0.1, port: 1, weight: 1}]}\n  routes: [{id: a, name: a, uris: [/a]}]\n"), 0o600)
	if err != nil {
		t.Fatal(err)
	}
	status, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	statusAddr := net.JoinHostPort("127.0.0.1", strconv.Itoa(status))
	_, _, stopGateway := background(t, dir, vars, "gateway", "--servers", addrs[2], "--node-id", "g1",
		"--http-addr", "127.0.0.1:0", "--https-addr", "", "--status-addr", statusAddr, "--log-level", "error")
	if code, _, stderr := run(t, dir, vars, "apply", "-f", "a.yaml", "--wait"); code != 0 || !strings.Contains(stderr, "1 data plane acknowledged r1") {
		// The gateway may connect a moment after the wait began, never so late that it fails.
		t.Fatalf("apply: %d\n%s", code, stderr)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get("http://" + statusAddr + "/status")
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusOK {
		t.Errorf("the gateway's status is %d", resp.StatusCode)
	}
	if code := stopGateway(); code != 0 {
		t.Errorf("the gateway's exit code is %d", code)
	}
	if code, stdout, _ := run(t, dir, vars, "dp", "status"); code != 0 || !strings.Contains(stdout, "OFFLINE") {
		t.Errorf("dp status after the gateway stopped: %d\n%s", code, stdout)
	}
	if code := stopServer(); code != 0 {
		t.Errorf("the server's exit code is %d\n%s", code, said)
	}
	if kept, err := os.ReadFile(filepath.Join(dir, "data", "api-keys.json")); err != nil || bytes.Contains(kept, []byte(key)) {
		t.Errorf("the key file holds the key itself, or is not there: %v", err)
	}
}

func TestTheBannerOfDevHoldsCommandsThatWork(t *testing.T) {
	offset, err := ports.Offset(7443, 7943, 7180, 9080, 9443, 7085)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	stdout, stderr, stop := background(t, dir, nil, "dev", "--data-dir", "data dir", "--listen-offset", strconv.Itoa(offset))
	url := stdout.await(t, `(?m)^  curl (http\S+)$`)[1]
	export := stdout.await(t, `(?m)^  export MUSTER_ADDR=(\S+) MUSTER_API_KEY="\$\(cat '(.*)'\)"$`)
	stdout.await(t, `bootstrap envoy`)

	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	if resp.Body.Close(); resp.StatusCode != http.StatusOK {
		t.Errorf("curl %s: %d", url, resp.StatusCode)
	}
	key, err := os.ReadFile(export[2])
	if err != nil {
		t.Fatal(err)
	}
	vars := map[string]string{"MUSTER_ADDR": export[1], "MUSTER_API_KEY": strings.TrimSpace(string(key))}
	if code, out, said := run(t, dir, vars, "dp", "status", "-o", "json"); code != 0 || !strings.Contains(out, `"state": "SYNCED"`) {
		t.Errorf("dp status: %d\n%s%s", code, out, said)
	}
	// The same ports once more: it says which number to try.
	if code, _, said := run(t, dir, nil, "dev", "--data-dir", "other", "--listen-offset", strconv.Itoa(offset)); code != exitConflict || !strings.Contains(said, "Try: muster dev --listen-offset") {
		t.Errorf("a second dev on the same ports: %d\n%s", code, said)
	}
	if code := stop(); code != 0 {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	if !strings.Contains(stderr.String(), "Stopped.") {
		t.Errorf("stderr: %s", stderr)
	}
}

func TestAGroupOfManyPagesIsSynchronisedWhole(t *testing.T) {
	srv, err := startFakeServer()
	if err != nil {
		t.Fatal(err)
	}
	defer srv.stop()
	dir := t.TempDir()
	vars := map[string]string{"MUSTER_ADDR": srv.addr, "MUSTER_API_KEY": "alice-key"}
	const many = 2*listPage + 1
	var all strings.Builder
	all.WriteString("consumers:\n")
	for i := range many {
		all.WriteString("- username: u" + strconv.Itoa(i) + "\n")
	}
	for name, text := range map[string]string{"all.yaml": all.String(), "one.yaml": "consumers:\n- username: u0\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if code, _, said := run(t, dir, vars, "group", "create", "default"); code != 0 {
		t.Fatal(said)
	}
	if code, _, said := run(t, dir, vars, "apply", "-f", "all.yaml"); code != 0 {
		t.Fatal(said)
	}
	if code, out, _ := run(t, dir, vars, "get"); code != 0 || strings.Count(out, "consumer/") != many {
		t.Errorf("get: %d with %d of %d consumers", code, strings.Count(out, "consumer/"), many)
	}
	code, out, said := run(t, dir, vars, "sync", "-f", "one.yaml", "--yes")
	if code != 0 || strings.Count(out, " deleted\n") != many-1 || !strings.HasSuffix(out, "group default → r2\n") {
		t.Errorf("sync: %d with %d deletions\n%s", code, strings.Count(out, " deleted\n"), said)
	}
}
