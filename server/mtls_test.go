package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/compile"
)

// authority issues the certificates of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &authority{t, cert, key}
}

// issue returns a certificate for 127.0.0.1 and its key, PEM.
func (a *authority) issue(uris ...string) (cert, key []byte) {
	a.t.Helper()
	return a.issueFor(time.Hour, uris...)
}

func (a *authority) issueFor(life time.Duration, uris ...string) (cert, key []byte) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(life),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, uri := range uris {
		u, err := url.Parse(uri)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return encode("CERTIFICATE", der), encode("EC PRIVATE KEY", keyDER)
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// files writes a server's certificate, its key and the authority's own.
func (a *authority) files(uris ...string) (cert, key, ca string) {
	a.t.Helper()
	c, k := a.issue(uris...)
	dir := a.t.TempDir()
	out := [3]string{filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem"), filepath.Join(dir, "ca.pem")}
	for i, data := range [][]byte{c, k, encode("CERTIFICATE", a.cert.Raw)} {
		if err := os.WriteFile(out[i], data, 0o600); err != nil {
			a.t.Fatal(err)
		}
	}
	return out[0], out[1], out[2]
}

func TestADataPlaneGetsOnlyTheGroupOfItsCertificate(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	cfg := testConfig(t)
	cert, key, caFile := ca.files()
	cfg.XDSTLS = auth.TLSFiles{CertFile: cert, KeyFile: key, ClientCAFile: caFile}
	cfg.TrustDomain = "example.org"
	n := start(t, cfg)
	n.group("pay")
	n.group("shop")

	// first asks for clusters and returns how that went.
	first := func(by *authority, uri, node, group string) codes.Code {
		t.Helper()
		creds := &tls.Config{RootCAs: x509.NewCertPool()}
		creds.RootCAs.AddCert(ca.cert)
		if by != nil {
			c, k := by.issue(uri)
			pair, err := tls.X509KeyPair(c, k)
			if err != nil {
				t.Fatal(err)
			}
			creds.Certificates = []tls.Certificate{pair}
		}
		conn, err := grpc.NewClient(n.srv.XDSAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(creds)))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			return status.Code(err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: node, Cluster: group}, TypeUrl: compile.ClusterType}); err != nil {
			t.Log(err) // Recv tells why
		}
		_, err = stream.Recv()
		return status.Code(err)
	}
	const mine = "spiffe://example.org/group/pay/node/gw-1"
	for name, c := range map[string]struct {
		got, want codes.Code
	}{
		"its own group":               {first(ca, mine, "gw-1", "pay"), codes.OK},
		"another group":               {first(ca, mine, "gw-1", "shop"), codes.PermissionDenied},
		"another node":                {first(ca, mine, "gw-2", "pay"), codes.PermissionDenied},
		"a server's certificate":      {first(ca, "spiffe://example.org/server/srv-1", "srv-1", "pay"), codes.PermissionDenied},
		"a stranger's certificate":    {first(stranger, mine, "gw-1", "pay"), codes.Unavailable},
		"no certificate":              {first(nil, "", "gw-1", "pay"), codes.Unavailable},
		"a group that does not exist": {first(ca, "spiffe://example.org/group/none/node/gw-1", "gw-1", "none"), codes.NotFound},
	} {
		if c.got != c.want {
			t.Errorf("%s: %s, want %s", name, c.got, c.want)
		}
	}
}

func TestThreeServersOverTLS(t *testing.T) {
	ca := newAuthority(t)
	var nodes []*node
	for i := range 3 {
		cfg := testConfig(t)
		cfg.ServerID = "srv-" + string(rune('1'+i))
		cfg.RaftAddr = "127.0.0.1:0"
		cfg.Autopilot.Stabilize = 200 * time.Millisecond
		cfg.RaftTLS.CertFile, cfg.RaftTLS.KeyFile, cfg.RaftTLS.CAFile = ca.files("spiffe://example.org/server/" + cfg.ServerID)
		cfg.TrustDomain = "example.org"
		cfg.Bootstrap = i == 0
		if i > 0 {
			st, err := nodes[0].srv.store.Status()
			if err != nil {
				t.Fatal(err)
			}
			cfg.Join = []string{st.Address}
		}
		nodes = append(nodes, start(t, cfg))
	}
	nodes[2].group("g")
	nodes[1].commit("g", put(serviceOf("pay", 8080)))
	eventually(t, "all have a vote", func() bool {
		st, err := nodes[0].srv.store.Status()
		return err == nil && st.Voters == 3
	})
}

func TestAStreamEndsWhenItsCertificateRunsOut(t *testing.T) {
	ca := newAuthority(t)
	cfg := testConfig(t)
	cert, key, caFile := ca.files()
	cfg.XDSTLS = auth.TLSFiles{CertFile: cert, KeyFile: key, ClientCAFile: caFile}
	cfg.TrustDomain = "example.org"
	n := start(t, cfg)
	n.group("pay")
	streamed := func(life time.Duration) <-chan error {
		t.Helper()
		c, k := ca.issueFor(life, "spiffe://example.org/group/pay/node/gw-"+life.String())
		pair, err := tls.X509KeyPair(c, k)
		if err != nil {
			t.Fatal(err)
		}
		creds := &tls.Config{RootCAs: x509.NewCertPool(), Certificates: []tls.Certificate{pair}}
		creds.RootCAs.AddCert(ca.cert)
		conn, err := grpc.NewClient(n.srv.XDSAddr().String(), grpc.WithTransportCredentials(credentials.NewTLS(creds)))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		ctx, cancel := context.WithCancel(t.Context())
		t.Cleanup(cancel)
		stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&discoveryv3.DeltaDiscoveryRequest{Node: &corev3.Node{Id: "gw-" + life.String(), Cluster: "pay"}, TypeUrl: compile.ClusterType}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := stream.Recv()
			ended <- err
		}()
		return ended
	}
	long, brief := streamed(time.Hour), streamed(3*time.Second)
	select {
	case err := <-brief:
		if status.Code(err) != codes.Unavailable {
			t.Errorf("it ended with %v, want UNAVAILABLE", err)
		}
	case <-time.NewTimer(10 * time.Second).C:
		t.Error("the stream outlived its certificate")
	}
	select {
	case err := <-long:
		t.Errorf("another's stream ended with it: %v", err)
	default:
	}
}
