package examples

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/goccy/go-yaml"
	"go.uber.org/goleak"

	"github.com/musterhq/muster/cmd/muster/cli"
	"github.com/musterhq/muster/test/e2e/ports"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const examples = "../../examples"

// compose is what a test needs of a compose file.
type compose struct {
	Services map[string]struct {
		Command []string `yaml:"command"`
		Volumes []string `yaml:"volumes"`
	} `yaml:"services"`
}

// lab is the cluster of the compose file on this machine: the command lines of
// its containers, with the containers' names, ports and mounts replaced.
type lab struct {
	t     *testing.T
	tls   string            // what prepare.sh made
	ports map[string]string // "muster-1:7443" to an address of this machine
	vars  map[string]string
}

func need(t *testing.T, program string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skip(program + " is not installed")
	}
}

func (l *lab) prepare() {
	l.t.Helper()
	out, err := exec.Command("sh", filepath.Join(examples, "cluster", "prepare.sh"), l.tls).CombinedOutput()
	if err != nil {
		l.t.Fatalf("prepare.sh: %v\n%s", err, out)
	}
}

// here replaces what only exists between the containers.
func (l *lab) here(service, data string, args []string) []string {
	l.t.Helper()
	out := make([]string, len(args))
	for i, arg := range args {
		for _, port := range []string{"7443", "7943", "7100"} {
			arg = strings.ReplaceAll(arg, "=0.0.0.0:"+port, "="+l.ports[service+":"+port])
			for n := 1; n <= 3; n++ {
				at := fmt.Sprintf("muster-%d:%s", n, port)
				arg = strings.ReplaceAll(arg, at, l.ports[at])
			}
		}
		arg = strings.ReplaceAll(arg, "/tls/", filepath.Join(l.tls, service)+"/")
		out[i] = strings.ReplaceAll(arg, "=/data", "="+data)
	}
	return out
}

// output is what a command said, for when the test fails.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (l *lab) env(out, said io.Writer) cli.Env {
	return cli.Env{
		Stdin: strings.NewReader(""), Stdout: out, Stderr: said, Now: time.Now,
		LookupEnv: func(key string) (string, bool) { v, ok := l.vars[key]; return v, ok },
	}
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// start runs a command until the test ends.
func (l *lab) start(args []string) {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(l.t.Context()))
	said := &output{}
	done := make(chan int, 1)
	go func() { done <- cli.Run(ctx, args, l.env(said, said)) }()
	l.t.Cleanup(func() {
		cancel()
		if code := <-done; code != 0 {
			l.t.Errorf("muster %s: exit code %d\n%s", args[0], code, said)
		} else if l.t.Failed() {
			l.t.Logf("muster %s:\n%s", strings.Join(args, " "), said)
		}
	})
}

// muster runs an operator's command.
func (l *lab) muster(args ...string) (string, error) {
	var out, said bytes.Buffer
	args = append([]string{"--ca-file", filepath.Join(l.tls, "ca.pem")}, args...)
	if code := cli.Run(l.t.Context(), args, l.env(&out, &said)); code != 0 {
		return "", fmt.Errorf("muster %s: exit code %d: %s", strings.Join(args, " "), code, said.String())
	}
	return out.String(), nil
}

func (l *lab) must(args ...string) string {
	l.t.Helper()
	out, err := l.muster(args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

func (l *lab) eventually(what string, ok func() (bool, error)) {
	l.t.Helper()
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		done, err := ok()
		if done {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("waited in vain: %s: %v", what, err)
		}
	}
}

// serial shakes hands with a port and returns the serial number of what it presents.
func (l *lab) serial(addr, name, proto string, client *tls.Certificate, version uint16) (string, error) {
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(l.tls, "ca.pem"))
	if err != nil {
		return "", err
	}
	pool.AppendCertsFromPEM(ca)
	conf := &tls.Config{RootCAs: pool, ServerName: name, NextProtos: []string{proto}, MinVersion: version, MaxVersion: version}
	if client != nil {
		conf.Certificates = []tls.Certificate{*client}
	}
	dialer := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 5 * time.Second}, Config: conf}
	conn, err := dialer.DialContext(l.t.Context(), "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	// TLS 1.3 tells a client that it is refused only after its handshake.
	_ = conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		if timeout, ok := err.(net.Error); !ok || !timeout.Timeout() {
			return "", err
		}
	}
	return conn.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.String(), nil
}

func (l *lab) pair(path string) *tls.Certificate {
	l.t.Helper()
	pair, err := tls.LoadX509KeyPair(filepath.Join(l.tls, path+".pem"), filepath.Join(l.tls, path+".key"))
	if err != nil {
		l.t.Fatal(err)
	}
	return &pair
}

func TestTheComposeFileMakesAClusterWithTLSOnEveryPortAndItsCertificatesAreRenewed(t *testing.T) {
	need(t, "openssl")
	l := &lab{t: t, tls: filepath.Join(t.TempDir(), "tls"), ports: map[string]string{}}
	l.prepare()
	var file compose
	data, err := os.ReadFile(filepath.Join(examples, "cluster", "compose.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if err := yaml.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	var admin []string
	for n := 1; n <= 3; n++ {
		for _, port := range []string{"7443", "7943", "7100"} {
			free, err := ports.Free()
			if err != nil {
				t.Fatal(err)
			}
			l.ports[fmt.Sprintf("muster-%d:%s", n, port)] = net.JoinHostPort("127.0.0.1", strconv.Itoa(free))
		}
		admin = append(admin, "https://"+l.ports[fmt.Sprintf("muster-%d:7443", n)])
	}
	key, err := os.ReadFile(filepath.Join(l.tls, "admin.key"))
	if err != nil {
		t.Fatal(err)
	}
	l.vars = map[string]string{"MUSTER_ADDR": strings.Join(admin, ","), "MUSTER_API_KEY": strings.TrimSpace(string(key))}
	for _, name := range []string{"muster-1", "muster-2", "muster-3"} {
		service, ok := file.Services[name]
		if !ok || len(service.Volumes) != 2 || !strings.HasPrefix(service.Volumes[0], "./tls/"+name+":") {
			t.Fatalf("%s is %+v", name, service)
		}
		// Servers that are not told otherwise give a vote after 5 s.
		l.start(append(l.here(name, t.TempDir(), service.Command), "--promote-after=200ms", "--log-level=warn"))
	}
	l.eventually("three servers have a vote", func() (bool, error) {
		out, err := l.muster("cluster", "peers", "-o", "json")
		var peers []struct{ Voter, Ready bool }
		if err == nil {
			err = json.Unmarshal([]byte(out), &peers)
		}
		return err == nil && strings.Count(out, `"voter": true`) == 3 && strings.Count(out, `"ready": true`) == 3, err
	})
	l.must("group", "create", "default")
	gateway := l.here("gateway-1", t.TempDir(), file.Services["gateway"].Command)
	for i, arg := range gateway {
		if strings.HasPrefix(arg, "--status-addr=") {
			gateway[i] = "--status-addr="
		}
	}
	l.start(append(gateway, "--http-addr=127.0.0.1:0", "--https-addr=127.0.0.1:0", "--log-level=error"))
	l.eventually("the gateway is synced", func() (bool, error) {
		out, err := l.muster("dp", "status", "-o", "json")
		return strings.Contains(out, `"state": "SYNCED"`), err
	})

	server, plane := l.pair("muster-2/server"), l.pair("gateway-1/dp")
	probes := []struct {
		port, proto string
		client      *tls.Certificate
	}{
		{"7443", "h2", nil},
		{"7943", "h2", plane},
		{"7100", "muster-raft/1", server},
	}
	before := map[string]string{}
	for _, p := range probes {
		addr := l.ports["muster-1:"+p.port]
		if before[p.port], err = l.serial(addr, "muster-1", p.proto, p.client, tls.VersionTLS13); err != nil {
			t.Fatalf("port %s: %v", p.port, err)
		}
		if _, err := l.serial(addr, "muster-1", p.proto, p.client, tls.VersionTLS12); err == nil {
			t.Errorf("port %s speaks TLS 1.2", p.port)
		}
	}
	// The raft port is for servers, the xDS port for those who prove who they are.
	if _, err := l.serial(l.ports["muster-1:7100"], "muster-1", "muster-raft/1", plane, tls.VersionTLS13); err == nil {
		t.Error("a data plane's certificate opens the raft port")
	}
	for _, port := range []string{"7100", "7943"} {
		if _, err := l.serial(l.ports["muster-1:"+port], "muster-1", "muster-raft/1", nil, tls.VersionTLS13); err == nil {
			t.Errorf("port %s takes a client without a certificate", port)
		}
	}

	l.prepare()
	for _, p := range probes {
		l.eventually("port "+p.port+" presents the new certificate", func() (bool, error) {
			now, err := l.serial(l.ports["muster-1:"+p.port], "muster-1", p.proto, p.client, tls.VersionTLS13)
			return err == nil && now != before[p.port], err
		})
	}
	l.must("cluster", "transfer-leader")
	l.must("group", "create", "after")
	if out := l.must("dp", "status", "-o", "json"); !strings.Contains(out, `"state": "SYNCED"`) {
		t.Errorf("dp status after the renewal: %s", out)
	}
}

func TestTheUnitsAreWhatSystemdTakesAndTheirConfigurationResolves(t *testing.T) {
	var out, said bytes.Buffer
	l := &lab{t: t}
	if code := cli.Run(t.Context(), []string{"config", "print", "--resolved", "--config", filepath.Join(examples, "systemd", "server.yaml")}, l.env(&out, &said)); code != 0 {
		t.Errorf("server.yaml: exit code %d: %s", code, &said)
	}
	if strings.Contains(out.String(), "insecure  true") || !strings.Contains(out.String(), "a.example.org:7100") {
		t.Errorf("server.yaml resolves to\n%s", &out)
	}
	need(t, "systemd-analyze")
	for _, name := range []string{"muster.service", "muster-gateway.service"} {
		unit, err := os.ReadFile(filepath.Join(examples, "systemd", name))
		if err != nil {
			t.Fatal(err)
		}
		// The program must be there for systemd to be content.
		path := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(path, bytes.ReplaceAll(unit, []byte("/usr/local/bin/muster"), []byte(os.Args[0])), 0o644); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("systemd-analyze", "verify", path).CombinedOutput(); err != nil || len(out) > 0 {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func TestAServerThatDemandsCertificatesOfItsCallersGetsTheOperators(t *testing.T) {
	need(t, "openssl")
	l := &lab{t: t, tls: filepath.Join(t.TempDir(), "tls")}
	l.prepare()
	key, err := os.ReadFile(filepath.Join(l.tls, "admin.key"))
	if err != nil {
		t.Fatal(err)
	}
	port, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	l.vars = map[string]string{"MUSTER_ADDR": "https://" + addr, "MUSTER_API_KEY": strings.TrimSpace(string(key))}
	in := func(name string) string { return filepath.Join(l.tls, "muster-1", name) }
	l.start([]string{"server", "--server-id=a", "--data-dir=" + t.TempDir(), "--bootstrap", "--insecure", "--admin-addr=" + addr, "--xds-addr=127.0.0.1:0",
		"--api-keys-file=" + in("api-keys.json"), "--admin-tls-cert-file=" + in("server.pem"), "--admin-tls-key-file=" + in("server.key"), "--admin-tls-client-ca-file=" + in("ca.pem"), "--log-level=error"})
	l.eventually("the operator's certificate opens the port", func() (bool, error) {
		_, err := l.muster("cluster", "status", "--cert-file", in("server.pem"), "--key-file", in("server.key"))
		return err == nil, err
	})
	if _, err := l.muster("cluster", "status"); err == nil {
		t.Error("a caller without a certificate got in")
	}
	if _, err := l.muster("cluster", "status", "--cert-file", in("server.pem")); err == nil || !strings.Contains(err.Error(), "belong together") {
		t.Errorf("a certificate without its key: %v", err)
	}
}
