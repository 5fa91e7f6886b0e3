package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/auth"
)

func TestWhatIsAcknowledgedSurvivesARestart(t *testing.T) {
	cfg := testConfig(t)
	n := start(t, cfg)
	n.group("g")
	n.commit("g", put(serviceOf("pay", 8080)))
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	n = start(t, cfg)
	got, err := n.admin.GetGroup(n.ctx(), &musterv1.GetGroupRequest{Group: "g"})
	if err != nil || got.GetGroup().GetRevision() != 1 || got.GetGroup().GetResources() != 1 {
		t.Fatalf("group = %v, %v", got, err)
	}
}

func TestTheAdminPortSpeaksGRPCAndHTTP(t *testing.T) {
	n := start(t, testConfig(t))
	base := "http://" + n.srv.AdminAddr().String()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/metrics": 401, "/": 404} {
		if resp := get(t, client, base+path); resp.StatusCode != want {
			t.Errorf("GET %s = %d, want %d", path, resp.StatusCode, want)
		}
	}
	body, err := io.ReadAll(get(t, client, base+"/metrics", "Authorization", "Bearer "+testKey).Body)
	if err != nil || !strings.Contains(string(body), "muster_publish_seconds") {
		t.Errorf("metrics = %.200s, %v", body, err)
	}
	if _, err := n.admin.ListGroups(n.ctx(), &musterv1.ListGroupsRequest{}); err != nil {
		t.Errorf("gRPC on the same port: %v", err)
	}
	if _, err := n.admin.ListGroups(t.Context(), &musterv1.ListGroupsRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("without a key: %v", err)
	}
}

func TestTheOpsPortNeedsNoKey(t *testing.T) {
	n := start(t, testConfig(t))
	n.group("g")
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	eventually(t, "the group's revision is exported", func() bool {
		body, err := io.ReadAll(get(t, client, "http://"+n.srv.OpsAddr().String()+"/metrics").Body)
		for _, want := range []string{
			`muster_group_revision{group="g"} 0`, "muster_store_leader 1", "muster_store_ready 1",
			`muster_admin_calls_total{code="OK",method="/muster.v1.AdminService/CreateGroup"} 1`,
			`muster_data_planes{group="g",state="synced"} 0`,
		} {
			if !strings.Contains(string(body), want) {
				return false
			}
		}
		return err == nil
	})
}

func TestHealthNeedsNoKeyAndReflectionDoes(t *testing.T) {
	n := start(t, testConfig(t))
	eventually(t, "the health service serves", func() bool {
		resp, err := grpc_health_v1.NewHealthClient(n.conn).Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
		return err == nil && resp.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
	})
	stream, err := grpc_reflection_v1.NewServerReflectionClient(n.conn).ServerReflectionInfo(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("reflection without a key: %v", err)
	}
}

func TestAPortThatOthersCanReachIsNotOpenedInPlaintext(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"admin": func(c *Config) { c.AdminAddr = "0.0.0.0:0" },
		"xDS":   func(c *Config) { c.XDSAddr = "0.0.0.0:0" },
		"ops":   func(c *Config) { c.OpsAddr = "0.0.0.0:0" },
	} {
		cfg := testConfig(t)
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, auth.ErrPlaintext) {
			t.Errorf("%s port: %v, want ErrPlaintext", name, err)
		}
	}
	cfg := testConfig(t)
	cfg.Insecure = false
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "plaintext was not asked for") {
		t.Errorf("without Insecure: %v", err)
	}
}

func TestEveryMissingSettingIsNamedAtOnce(t *testing.T) {
	_, err := New(Config{})
	for _, want := range []string{"server id", "data directory", "API key", "admin port", "xDS port"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("err = %v, want it to name %q", err, want)
		}
	}
	cfg := testConfig(t)
	cfg.XDSTLS = auth.TLSFiles{CertFile: "cert.pem", KeyFile: "key.pem"}
	_, err = New(cfg)
	for _, want := range []string{"no client CA", "no trust domain"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v does not name %q", err, want)
		}
	}
}

func TestAServerThatIsNeverRunReleasesEverything(t *testing.T) {
	cfg := testConfig(t)
	srv, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	cfg.AdminAddr = srv.AdminAddr().String()
	if err := srv.Close(); err != nil {
		t.Fatal(err)
	}
	start(t, cfg) // the same port, the same data directory
}

func TestUnderTLSTheAdminPortSpeaksWhatTheClientOffers(t *testing.T) {
	cfg := testConfig(t)
	cfg.AdminTLS = selfSigned(t)
	n := start(t, cfg)
	if _, err := n.admin.ListGroups(n.ctx(), &musterv1.ListGroupsRequest{}); err != nil {
		t.Fatalf("gRPC: %v", err)
	}
	// A client of net/http offers both h2 and http/1.1.
	client := &http.Client{Transport: &http.Transport{
		ForceAttemptHTTP2: true,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, //nolint:gosec // the test's own certificate
	}}
	defer client.CloseIdleConnections()
	resp := get(t, client, "https://"+n.srv.AdminAddr().String()+"/readyz")
	if resp.StatusCode != http.StatusOK || resp.ProtoMajor != 1 {
		t.Fatalf("HTTP: %s %d", resp.Proto, resp.StatusCode)
	}
	old, err := tls.Dial("tcp", n.srv.AdminAddr().String(), &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}) //nolint:gosec // on purpose
	if err == nil {
		old.Close()
		t.Fatal("TLS 1.2 was accepted")
	}
}

func selfSigned(t *testing.T) auth.TLSFiles {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := auth.TLSFiles{CertFile: filepath.Join(dir, "cert.pem"), KeyFile: filepath.Join(dir, "key.pem")}
	for path, block := range map[string]*pem.Block{files.CertFile: {Type: "CERTIFICATE", Bytes: der}, files.KeyFile: {Type: "EC PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func TestASilentConnectionDoesNotHoldTheAdminPortUp(t *testing.T) {
	n := start(t, testConfig(t))
	for range 20 {
		conn, err := net.Dial("tcp", n.srv.AdminAddr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
	}
	if _, err := n.admin.ListGroups(n.ctx(), &musterv1.ListGroupsRequest{}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := n.stop(); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > sniffTimeout/2 {
		t.Fatalf("stopping took %s", took)
	}
}

func TestAPanicInACallIsAnsweredAndTheServerGoesOn(t *testing.T) {
	s := &Server{cfg: testConfig(t)}
	_, err := s.recoverUnary(t.Context(), nil, &grpc.UnaryServerInfo{FullMethod: "/x/Y"}, func(context.Context, any) (any, error) { panic("boom") })
	if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "boom") {
		t.Fatalf("err = %v, want INTERNAL without the panic's own words", err)
	}
}
