package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"

	"github.com/musterhq/muster/dataplane/bucket"
)

var keepBucket = flag.String("keep-bucket", "", "directory to write the objects of a second home to, for a new testdata/bucketN")

// fakeS3 is an S3 server that others wrote, with the bucket "edge-config".
func fakeS3() (*httptest.Server, error) {
	backend := s3mem.New()
	if err := backend.CreateBucket("edge-config"); err != nil {
		return nil, err
	}
	return httptest.NewServer(gofakes3.New(backend).Server()), nil
}

// openFakeS3 is what the tests do to it besides.
func openFakeS3(url string) (*bucket.Bucket, error) {
	return bucket.New(bucket.Config{Name: "edge-config", Prefix: "prod", Endpoint: url, Insecure: true, AccessKeyID: "id", SecretAccessKey: "secret"})
}

// fillFakeS3 copies a directory of objects into the bucket. Names of files have a
// comma for each slash.
func fillFakeS3(ctx context.Context, url, dir string) error {
	at, err := openFakeS3(url)
	if err != nil {
		return err
	}
	defer at.Close()
	files, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(dir, f.Name()))
		if err != nil {
			return err
		}
		name := strings.ReplaceAll(f.Name(), ",", "/")
		if !strings.Contains(name, "/") {
			continue // a key, not an object
		}
		if err := at.Put(ctx, name, b); err != nil {
			return err
		}
	}
	return nil
}

func damageFakeS3(ctx context.Context, url, name string) error {
	at, err := openFakeS3(url)
	if err != nil {
		return err
	}
	defer at.Close()
	b, err := at.Get(ctx, name)
	if err != nil {
		return err
	}
	b[len(b)/2] ^= 1
	return at.Put(ctx, name, b)
}

const homeCanary = "canary key of the second home"

func signingKey(t *testing.T, dir string) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"manifest.key": {Type: "PRIVATE KEY", Bytes: private}, "manifest.pub": {Type: "PUBLIC KEY", Bytes: public}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestASiteStartsFromWhatARelayKeptInABucket(t *testing.T) {
	s3, err := fakeS3()
	if err != nil {
		t.Fatal(err)
	}
	defer s3.Close()
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello from upstream") }))
	defer upstream.Close()
	dir := t.TempDir()
	signingKey(t, dir)
	port := upstream.URL[strings.LastIndexByte(upstream.URL, ':')+1:]
	for name, text := range map[string]string{
		"server.yaml": "server_id: a\ndata_dir: data\nadmin_addr: 127.0.0.1:0\nxds_addr: 127.0.0.1:0\ninsecure: true\nbootstrap: true\nlog_level: error\nmanifest_key_file: manifest.key\n",
		"group.yaml": "services:\n- id: a\n  name: a\n  hosts: [a.example.com]\n  upstream: {nodes: [{host: 127.0.0.1, port: " + port + ", weight: 1}]}\n" +
			"  routes: [{id: a, name: a, uris: [/*], plugins: {key-auth: {}}}]\nconsumers:\n- username: ann\n  credentials: [{id: k, name: k, type: key-auth, config: {key: ann-key}}]\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	refused, err := os.ReadFile("../../../examples/refused.yaml")
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "refused.yaml"), refused, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	_, said, stopServer := background(t, dir, nil, "server", "--config", "server.yaml")
	key := said.await(t, `shown once[^\n]*\n  (mst-\S+)`)[1]
	addrs := said.await(t, `admin on (\S+), xDS on (\S+)\.`)
	vars := map[string]string{
		"MUSTER_ADDR": addrs[1], "MUSTER_API_KEY": key, homeKeyEnv: homeCanary,
		"AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": "canary secret of the bucket",
	}
	home := []string{"--second-home", "s3://edge-config/prod", "--second-home-endpoint", s3.URL, "--insecure"}
	with := func(args ...string) []string { return append(args, home...) }
	if code, _, stderr := run(t, dir, vars, "group", "create", "default"); code != 0 {
		t.Fatalf("group create: %d\n%s", code, stderr)
	}
	if code, _, stderr := run(t, dir, vars, "apply", "-f", "group.yaml"); code != 0 {
		t.Fatalf("apply: %d\n%s", code, stderr)
	}
	if code, _, stderr := run(t, dir, vars, with("second-home", "drill")...); code != exitNotFound || !strings.Contains(stderr, `nothing of the group "default"`) {
		t.Errorf("a drill before anything is there: %d\n%s", code, stderr)
	}
	writing := func(revision string) string {
		_, said, stop := background(t, dir, vars, with("relay", "--upstream", addrs[2], "--data-dir", "relay", "--xds-addr", "127.0.0.1:0", "--log-level", "info")...)
		said.await(t, "configuration kept in the second home.* revision="+revision+" ")
		stop()
		return said.String()
	}
	relaySaid := writing("1")

	code, stdout, stderr := run(t, dir, vars, with("second-home", "drill", "--manifest-key-file", "manifest.pub", "-o", "json")...)
	if code != 0 {
		t.Fatalf("drill: %d\n%s", code, stderr)
	}
	var report struct {
		Revision, Resources uint64
		Gateway, Agent      struct {
			Seconds   float64
			Listeners []string
		}
	}
	if err := json.Unmarshal([]byte(stdout), &report); err != nil || report.Revision != 1 || report.Resources == 0 || report.Gateway.Seconds <= 0 || report.Agent.Seconds <= 0 {
		t.Errorf("report: %v\n%s", err, stdout)
	}
	gatewayOut, gatewaySaid, stopGateway := background(t, dir, vars, with("gateway", "--servers", "127.0.0.1:1", "--node-id", "g1", "--cache-dir", "cache",
		"--http-addr", "127.0.0.1:0", "--https-addr", "", "--status-addr", "", "--second-home-manifest-key-file", "manifest.pub")...)
	addr := gatewaySaid.await(t, `listener=http address=(\S+)`)[1]
	gatewaySaid.await(t, `last known good configuration in service.* from="second home"`)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	req, err := http.NewRequest(http.MethodGet, "http://"+addr+"/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = "a.example.com"
	req.Header.Set("apikey", "ann-key")
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	if resp.Body.Close(); string(body) != "hello from upstream" {
		t.Errorf("a request through a gateway that has nothing but the bucket: %s %q", resp.Status, body)
	}
	stopGateway()
	for what, out := range map[string]string{"relay": relaySaid, "gateway": gatewayOut.String() + gatewaySaid.String(), "drill": stdout + stderr} {
		for _, secret := range []string{homeCanary, "canary secret of the bucket", "ann-key"} {
			if strings.Contains(out, secret) {
				t.Errorf("the output of the %s holds a secret: %s", what, secret)
			}
		}
	}

	if *keepBucket != "" {
		keep(t, s3.URL, dir, *keepBucket)
	}
	// A revision that the gateway does not take whole is no home for gateways.
	if code, _, stderr := run(t, dir, vars, "apply", "-f", "refused.yaml"); code != 0 {
		t.Fatalf("apply: %d\n%s", code, stderr)
	}
	writing("2")
	stopServer()
	if code, _, stderr := run(t, dir, vars, with("second-home", "drill")...); code != exitInvalid || !strings.Contains(stderr, `it does not serve: it refuses Cluster "broken"`) {
		t.Errorf("a drill of what the gateway refuses: %d\n%s", code, stderr)
	}
	if code, _, stderr := run(t, dir, vars, with("second-home", "drill", "--as", "agent")...); code != 0 {
		t.Errorf("and as an agent: %d\n%s", code, stderr)
	}
}

func keep(t *testing.T, url, from, dir string) {
	at, err := openFakeS3(url)
	if err != nil {
		t.Fatal(err)
	}
	defer at.Close()
	all, err := at.List(t.Context(), "")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(name string, b []byte, err error) {
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range all {
		b, err := at.Get(t.Context(), o.Name)
		write(strings.ReplaceAll(o.Name, "/", ","), b, err)
	}
	pub, err := os.ReadFile(filepath.Join(from, "manifest.pub"))
	write("manifest.pub", pub, err)
	fmt.Println("kept", len(all), "objects in", dir)
}
