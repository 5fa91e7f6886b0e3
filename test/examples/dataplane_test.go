package examples

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/musterhq/muster/cmd/muster/cli"
)

// program is the example's, as it was built.
type program struct {
	t    *testing.T
	cmd  *exec.Cmd
	addr string

	mu   sync.Mutex
	said []string
	done chan error
}

func (p *program) has(text string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Contains(strings.Join(p.said, "\n"), text)
}

func startProgram(t *testing.T, path string, args ...string) *program {
	t.Helper()
	p := &program{t: t, cmd: exec.Command(path, args...), done: make(chan error, 1)}
	said, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	serving := make(chan string, 1)
	go func() {
		for lines := bufio.NewScanner(said); lines.Scan(); {
			p.mu.Lock()
			p.said = append(p.said, lines.Text())
			p.mu.Unlock()
			if _, addr, ok := strings.Cut(lines.Text(), "serving on "); ok {
				serving <- addr
			}
		}
		p.done <- p.cmd.Wait()
	}()
	t.Cleanup(p.stop)
	select {
	case p.addr = <-serving:
	case err := <-p.done:
		p.done <- err
		t.Fatalf("it ended: %v\n%v", err, p.said)
	case <-time.After(30 * time.Second):
		t.Fatal("it does not serve")
	}
	return p
}

// stop interrupts it; it must end well.
func (p *program) stop() {
	if p.cmd == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-p.done:
		if err != nil {
			p.t.Errorf("the program ended with %v\n%v", err, p.said)
		}
	case <-time.After(30 * time.Second):
		p.t.Error("the program does not end")
		_ = p.cmd.Process.Kill()
		<-p.done
	}
	p.cmd = nil
}

func (p *program) get(path string) string {
	p.t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	resp, err := client.Get(p.addr + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return fmt.Sprintf("%d %s", resp.StatusCode, strings.TrimSpace(string(body)))
}

func TestTheGatewayInOneFileFollowsAGroupAndOutlivesItsServer(t *testing.T) {
	need(t, "go")
	dir := t.TempDir()
	path := filepath.Join(dir, "gateway")
	if out, err := exec.Command("go", "build", "-o", path, examples+"/dataplane").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "you asked for %s", r.URL) }))
	defer upstream.Close()
	shop, err := os.ReadFile(filepath.Join(examples, "shop.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	here := strings.ReplaceAll(string(shop), "port: 7180", "port: "+upstream.URL[strings.LastIndexByte(upstream.URL, ':')+1:])
	if err := os.WriteFile(filepath.Join(dir, "shop.yaml"), []byte(here), 0o600); err != nil {
		t.Fatal(err)
	}

	l := &lab{t: t, vars: map[string]string{}}
	ctx, stopServer := context.WithCancel(context.WithoutCancel(t.Context()))
	said, code := &output{}, make(chan int, 1)
	go func() {
		code <- cli.Run(ctx, []string{"server", "--server-id", "a", "--data-dir", filepath.Join(dir, "server"), "--admin-addr", "127.0.0.1:0",
			"--xds-addr", "127.0.0.1:0", "--insecure", "--bootstrap", "--log-level", "error"}, l.env(said, said))
	}()
	stop := sync.OnceFunc(func() {
		stopServer()
		if c := <-code; c != 0 {
			t.Errorf("the server's exit code is %d\n%s", c, said)
		}
	})
	t.Cleanup(stop)
	var admin, xds string
	l.eventually("the server says where it is", func() (bool, error) {
		text := said.String()
		if _, rest, ok := strings.Cut(text, "  mst-"); ok {
			l.vars["MUSTER_API_KEY"] = "mst-" + strings.Fields(rest)[0]
		}
		_, rest, ok := strings.Cut(text, "admin on ")
		if !ok {
			return false, nil
		}
		n, err := fmt.Sscanf(strings.ReplaceAll(rest, ",", ""), "%s xDS on %s", &admin, &xds)
		return n == 2, err
	})
	l.vars["MUSTER_ADDR"] = admin
	must := func(args ...string) string {
		t.Helper()
		var out, err output
		if code := cli.Run(t.Context(), args, l.env(&out, &err)); code != 0 {
			t.Fatalf("muster %s: %d\n%s", strings.Join(args, " "), code, &err)
		}
		return out.String()
	}
	must("group", "create", "default")
	must("apply", "-f", filepath.Join(dir, "shop.yaml"))

	args := []string{"-servers", strings.TrimSuffix(xds, "."), "-listen", "127.0.0.1:0", "-cache-dir", filepath.Join(dir, "cache")}
	p := startProgram(t, path, args...)
	l.eventually("it has the group", func() (bool, error) { return p.has("revision 1: 1 services, from disk: false"), nil })
	if got := p.get("/shop/catalog/shoes?size=42"); got != "200 you asked for /catalog/shoes?size=42" {
		t.Errorf("through it: %s", got)
	}
	if got := p.get("/other/x"); got != "404 no such service" {
		t.Errorf("of a service that is not there: %s", got)
	}
	must("wait", "--timeout", "30s")
	if out := must("dp", "status", "-o", "json"); !strings.Contains(out, "dataplane-example") || !strings.Contains(out, `"state": "SYNCED"`) {
		t.Errorf("dp status: %s", out)
	}
	stop()
	if got := p.get("/shop/still"); got != "200 you asked for /still" {
		t.Errorf("without a server: %s", got)
	}
	p.stop()
	p = startProgram(t, path, args...)
	l.eventually("it started from disk", func() (bool, error) { return p.has("revision 1: 1 services, from disk: true"), nil })
	if got := p.get("/shop/again"); got != "200 you asked for /again" {
		t.Errorf("started without a server: %s", got)
	}
}
