package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// authority is a certificate authority of a test.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
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
	return &authority{t, cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue returns the PEM of a certificate for 127.0.0.1 and its key.
func (a *authority) issue(name string, uris ...string) (cert, key []byte) {
	a.t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, u := range uris {
		parsed, err := url.Parse(u)
		if err != nil {
			a.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, parsed)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &k.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

func write(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func tlsFiles(t *testing.T, ca *authority, name string) TLSFiles {
	t.Helper()
	dir := t.TempDir()
	cert, key := ca.issue(name)
	return TLSFiles{CertFile: write(t, filepath.Join(dir, "cert.pem"), cert), KeyFile: write(t, filepath.Join(dir, "key.pem"), key)}
}

// serverName shakes hands with a configuration and returns whose certificate
// it presented.
func serverName(t *testing.T, config *tls.Config, ca *authority, client ...tls.Certificate) (string, error) {
	t.Helper()
	server, conn := net.Pipe()
	done := make(chan error, 1)
	go func() {
		defer server.Close()
		s := tls.Server(server, config)
		err := s.Handshake()
		if err == nil {
			_, err = s.Write([]byte("x"))
		}
		done <- err
	}()
	defer conn.Close()
	c := tls.Client(conn, &tls.Config{RootCAs: ca.pool(), ServerName: "127.0.0.1", Certificates: client, MaxVersion: 0})
	err := c.Handshake()
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	conn.Close()
	if serverErr := <-done; err == nil {
		err = serverErr
	}
	if err != nil {
		return "", err
	}
	return c.ConnectionState().PeerCertificates[0].Subject.CommonName, nil
}

func TestNewCertificateFilesAreUsedWithoutARestart(t *testing.T) {
	ca := newAuthority(t)
	files := tlsFiles(t, ca, "first")
	certs, err := LoadTLS(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	config := certs.Config("h2")
	expect := func(want string) {
		t.Helper()
		if got, err := serverName(t, config, ca); err != nil || got != want {
			t.Fatalf("presented %q, %v; want %q", got, err, want)
		}
	}
	expect("first")
	if certs.Reload() {
		t.Fatal("reloaded files that did not change")
	}
	cert, key := ca.issue("second")
	write(t, files.CertFile, cert)
	if certs.Reload() {
		t.Fatal("took a certificate whose key is not there yet")
	}
	expect("first")
	write(t, files.KeyFile, key)
	if !certs.Reload() {
		t.Fatal("did not take the new pair")
	}
	expect("second")
	write(t, files.CertFile, []byte("garbage"))
	if certs.Reload() {
		t.Fatal("took garbage")
	}
	expect("second")
}

func TestCertificatesAreFollowedUntilTheContextEnds(t *testing.T) {
	ca := newAuthority(t)
	files := tlsFiles(t, ca, "first")
	certs, err := LoadTLS(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- certs.Run(ctx, time.Millisecond) }()
	cert, key := ca.issue("second name")
	write(t, files.KeyFile, key)
	write(t, files.CertFile, cert)
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		if got, _ := serverName(t, certs.Config(), ca); got == "second name" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the new certificate was never presented")
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestAClientCertificateIsDemandedWhereThereIsAClientCA(t *testing.T) {
	ca, stranger := newAuthority(t), newAuthority(t)
	files := tlsFiles(t, ca, "server")
	files.ClientCAFile = write(t, filepath.Join(t.TempDir(), "ca.pem"), ca.pem)
	certs, err := LoadTLS(files, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := serverName(t, certs.Config(), ca); err == nil {
		t.Fatal("a client without a certificate got in")
	}
	for name, c := range map[string]struct {
		by *authority
		ok bool
	}{"its own": {ca, true}, "a stranger's": {stranger, false}} {
		cert, key := c.by.issue("client")
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := serverName(t, certs.Config(), ca, pair); (err == nil) != c.ok {
			t.Errorf("%s certificate: %v", name, err)
		}
	}
}

func TestTLSFilesThatDoNotWorkAreRefused(t *testing.T) {
	ca := newAuthority(t)
	good := tlsFiles(t, ca, "x")
	other := tlsFiles(t, ca, "y")
	for name, f := range map[string]TLSFiles{
		"no key":          {CertFile: good.CertFile},
		"missing file":    {CertFile: good.CertFile, KeyFile: "/nonexistent"},
		"another's key":   {CertFile: good.CertFile, KeyFile: other.KeyFile},
		"an empty bundle": {CertFile: good.CertFile, KeyFile: good.KeyFile, ClientCAFile: write(t, filepath.Join(t.TempDir(), "e"), nil)},
	} {
		if _, err := LoadTLS(f, slog.New(slog.DiscardHandler)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestADataPlaneGetsTheGroupThatItsCertificateNames(t *testing.T) {
	ca := newAuthority(t)
	planes := DataPlanes{TrustDomain: "example.org"}
	node := func(id, cluster, meta string) *corev3.Node {
		n := &corev3.Node{Id: id, Cluster: cluster}
		if meta != "" {
			n.Metadata = &structpb.Struct{Fields: map[string]*structpb.Value{"muster.group": structpb.NewStringValue(meta)}}
		}
		return n
	}
	const mine = "spiffe://example.org/group/pay/node/gw-1"
	for name, c := range map[string]struct {
		uris []string
		node *corev3.Node
		want codes.Code
	}{
		"its own":                    {[]string{mine}, node("gw-1", "pay", ""), codes.OK},
		"by metadata":                {[]string{mine}, node("gw-1", "other", "pay"), codes.OK},
		"one of several":             {[]string{"spiffe://example.org/group/x/node/gw-1", mine}, node("gw-1", "pay", ""), codes.OK},
		"another group":              {[]string{mine}, node("gw-1", "shop", ""), codes.PermissionDenied},
		"another group by metadata":  {[]string{mine}, node("gw-1", "pay", "shop"), codes.PermissionDenied},
		"another node":               {[]string{mine}, node("gw-2", "pay", ""), codes.PermissionDenied},
		"another trust domain":       {[]string{"spiffe://evil.org/group/pay/node/gw-1"}, node("gw-1", "pay", ""), codes.PermissionDenied},
		"another scheme":             {[]string{"https://example.org/group/pay/node/gw-1"}, node("gw-1", "pay", ""), codes.PermissionDenied},
		"another role":               {[]string{"spiffe://example.org/server/gw-1"}, node("gw-1", "pay", ""), codes.PermissionDenied},
		"a path in the group":        {[]string{"spiffe://example.org/group/a/b/node/gw-1"}, node("gw-1", "a/b", ""), codes.PermissionDenied},
		"an escaped path":            {[]string{"spiffe://example.org/group/pay%2Fnode%2Fgw-1"}, node("gw-1", "pay", ""), codes.PermissionDenied},
		"an escaped name":            {[]string{"spiffe://example.org/group/p%61y/node/gw-1"}, node("gw-1", "pay", ""), codes.PermissionDenied},
		"a query":                    {[]string{mine + "?x=1"}, node("gw-1", "pay", ""), codes.PermissionDenied},
		"a user":                     {[]string{"spiffe://me@example.org/group/pay/node/gw-1"}, node("gw-1", "pay", ""), codes.PermissionDenied},
		"no URI":                     {nil, node("gw-1", "pay", ""), codes.PermissionDenied},
		"no group":                   {[]string{mine}, node("gw-1", "", ""), codes.InvalidArgument},
		"no node id":                 {[]string{mine}, node("", "pay", ""), codes.InvalidArgument},
		"a node id of control bytes": {[]string{mine}, node("gw\n1", "pay", ""), codes.InvalidArgument},
	} {
		t.Run(name, func(t *testing.T) {
			group, err := planes.Authorize(withPeer(t, ca, c.uris), c.node)
			if status.Code(err) != c.want || (err == nil) != (group == "pay") {
				t.Fatalf("group %q, %v; want %s", group, err, c.want)
			}
		})
	}
}

func withPeer(t *testing.T, ca *authority, uris []string) context.Context {
	t.Helper()
	data, _ := ca.issue("client", uris...)
	block, _ := pem.Decode(data)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}, VerifiedChains: [][]*x509.Certificate{{cert, ca.cert}}}
	return peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}})
}

func TestADataPlaneWithoutACertificateIsForPlaintextPortsOnly(t *testing.T) {
	node := &corev3.Node{Id: "gw-1", Cluster: "pay"}
	if group, err := (DataPlanes{Plaintext: true}).Authorize(t.Context(), node); err != nil || group != "pay" {
		t.Fatalf("on a plaintext port: %q, %v", group, err)
	}
	if _, err := (DataPlanes{TrustDomain: "example.org"}).Authorize(t.Context(), node); status.Code(err) != codes.Unauthenticated {
		t.Fatalf("on a TLS port: %v, want UNAUTHENTICATED", err)
	}
	// A certificate that no authority of ours vouches for is none.
	state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/group/pay/node/gw-1"}}}}}
	ctx := peer.NewContext(t.Context(), &peer.Peer{AuthInfo: credentials.TLSInfo{State: state}})
	if _, err := (DataPlanes{TrustDomain: "example.org"}).Authorize(ctx, node); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("with an unverified certificate: %v, want PERMISSION_DENIED", err)
	}
}
