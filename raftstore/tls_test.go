package raftstore

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"io"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// testCA signs certificates for servers and for those who only pretend.
type testCA struct {
	t    testing.TB
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t testing.TB) *testCA {
	ca := &testCA{t: t, dir: t.TempDir()}
	ca.key, _ = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &ca.key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	ca.cert, _ = x509.ParseCertificate(der)
	ca.write("ca.pem", "CERTIFICATE", der)
	return ca
}

func (ca *testCA) write(name, typ string, der []byte) string {
	path := filepath.Join(ca.dir, name)
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: typ, Bytes: der}), 0o600); err != nil {
		ca.t.Fatal(err)
	}
	return path
}

func serverURI(id string) string { return "spiffe://example.org/server/" + id }

// issue writes a certificate that carries some URIs and returns its files.
func (ca *testCA) issue(name string, lifetime time.Duration, uris ...string) TLSFiles {
	ca.t.Helper()
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	serial, _ := rand.Int(rand.Reader, big.NewInt(1<<62))
	tmpl := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(lifetime),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, s := range uris {
		u, err := url.Parse(s)
		if err != nil {
			ca.t.Fatal(err)
		}
		tmpl.URIs = append(tmpl.URIs, u)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	keyDER, _ := x509.MarshalECPrivateKey(key)
	return TLSFiles{
		CertFile: ca.write(name+".pem", "CERTIFICATE", der),
		KeyFile:  ca.write(name+"-key.pem", "EC PRIVATE KEY", keyDER),
		CAFile:   filepath.Join(ca.dir, "ca.pem"),
	}
}

func (ca *testCA) secure(cfg *Config) {
	cfg.Insecure = false
	cfg.TLS = ca.issue(cfg.ServerID, time.Hour, serverURI(cfg.ServerID))
}

// knock tries to speak a protocol with a server and reports whether the server
// kept the connection.
func knock(t *testing.T, m *member, files TLSFiles, proto string) error {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.CertFile, files.KeyFile)
	cfg := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{proto}, MinVersion: tls.VersionTLS12}
	if err == nil {
		cfg.Certificates = []tls.Certificate{pair}
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", m.cfg.RaftAddr, cfg)
	if err != nil {
		return err
	}
	defer c.Close()
	// A server that refuses hangs up; one that agrees waits for us.
	_ = c.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	_, err = c.Read(make([]byte, 1))
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	if err == nil {
		return nil // gRPC's server speaks first
	}
	return err
}

func TestOnlyServersOfTheClusterMaySpeakRaft(t *testing.T) {
	t.Parallel() // it mostly waits
	ca := newTestCA(t)
	c := newCluster(t, 3, func(_ int, cfg *Config) { ca.secure(cfg) })
	mustApply(t, c.followers()[0].Store, groupG())
	c.converge()
	m := c.leader()
	if err := knock(t, m, c.followers()[0].cfg.TLS, protoRaft); err != nil {
		t.Errorf("a member was refused: %v", err)
	}
	other := newTestCA(t)
	for name, files := range map[string]TLSFiles{
		"a server that is not a member":             ca.issue("x1", time.Hour, serverURI("stranger")),
		"a data plane of the same authority":        ca.issue("x2", time.Hour, "spiffe://example.org/group/g/node/n"),
		"a data plane that is called like a member": ca.issue("x3", time.Hour, "spiffe://example.org/group/server/node/"+m.id),
		"a path that only contains the role":        ca.issue("x4", time.Hour, "spiffe://example.org/x/server/"+m.id),
		"a path that goes on":                       ca.issue("x5", time.Hour, serverURI(m.id)+"/more"),
		"a server of another trust domain":          ca.issue("x6", time.Hour, "spiffe://example.com/server/"+m.id),
		"another scheme":                            ca.issue("x7", time.Hour, "https://example.org/server/"+m.id),
		"a query":                                   ca.issue("x8", time.Hour, serverURI(m.id)+"?x"),
		"two identities":                            ca.issue("x9", time.Hour, serverURI(m.id), serverURI("s1")),
		"no identity":                               ca.issue("x10", time.Hour),
		"a certificate that has run out":            ca.issue("x11", -time.Minute, serverURI(m.id)),
		"a member's name from another authority":    other.issue("x12", time.Hour, serverURI(m.id)),
		"no certificate":                            {},
	} {
		t.Run(name, func(t *testing.T) {
			if err := knock(t, m, files, protoRaft); err == nil {
				t.Error("may speak raft")
			}
		})
	}
	t.Run("no protocol", func(t *testing.T) {
		if err := knock(t, m, c.followers()[0].cfg.TLS, "h2"); err == nil {
			t.Error("accepted")
		}
	})
	t.Run("plaintext", func(t *testing.T) {
		conn, err := net.Dial("tcp", m.cfg.RaftAddr)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, protoRaft)
		_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
		if n, err := io.ReadFull(conn, make([]byte, 64)); err == nil {
			t.Errorf("%d bytes were answered", n)
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		pair, _ := tls.LoadX509KeyPair(c.followers()[0].cfg.TLS.CertFile, c.followers()[0].cfg.TLS.KeyFile)
		conn, err := tls.Dial("tcp", m.cfg.RaftAddr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, NextProtos: []string{protoRaft}, MaxVersion: tls.VersionTLS12})
		if err == nil {
			conn.Close()
			t.Error("accepted")
		}
	})
}

// TestAServerThatIsNotAMemberMayOnlyJoin calls the peer service with the
// certificate of a server that is not part of the cluster.
func TestAServerThatIsNotAMemberMayOnlyJoin(t *testing.T) {
	ca := newTestCA(t)
	c := newCluster(t, 1, func(_ int, cfg *Config) { ca.secure(cfg) })
	mustApply(t, c.members[0].Store, groupG())
	pair, err := tls.LoadX509KeyPair(ca.issue("x", time.Hour, serverURI("stranger")).CertFile, filepath.Join(ca.dir, "x-key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	cc, err := grpc.NewClient("passthrough:///"+c.members[0].cfg.RaftAddr, grpc.WithTransportCredentials(connIdentity{}),
		grpc.WithContextDialer(func(_ context.Context, addr string) (net.Conn, error) {
			return tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{pair}, NextProtos: []string{protoPeer}})
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	client, ctx := musterv1.NewPeerServiceClient(cc), testCtx(t)
	entry, _ := encodeCommand(examples()["create_group"])
	denied := map[string]func() error{
		"Apply":     func() error { _, err := client.Apply(ctx, &musterv1.PeerServiceApplyRequest{Entry: entry}); return err },
		"ReadIndex": func() error { _, err := client.ReadIndex(ctx, &musterv1.PeerServiceReadIndexRequest{}); return err },
		"Status":    func() error { _, err := client.Status(ctx, &musterv1.PeerServiceStatusRequest{}); return err },
		"Remove":    func() error { _, err := client.Remove(ctx, &musterv1.PeerServiceRemoveRequest{Id: "s0"}); return err },
		"TransferLeader": func() error {
			_, err := client.TransferLeader(ctx, &musterv1.PeerServiceTransferLeaderRequest{})
			return err
		},
		"Call": func() error { _, err := client.Call(ctx, &musterv1.PeerServiceCallRequest{}); return err },
		"Restore": func() error {
			stream, err := client.Restore(ctx)
			if err != nil {
				return err
			}
			_, err = stream.CloseAndRecv()
			return err
		},
		"Join as another": func() error {
			_, err := client.Join(ctx, &musterv1.PeerServiceJoinRequest{Id: "s0", Address: "127.0.0.1:1"})
			return err
		},
		"Join on behalf of another": func() error {
			_, err := client.Join(ctx, &musterv1.PeerServiceJoinRequest{Id: "s9", Address: "127.0.0.1:1", Forwarded: true})
			return err
		},
	}
	// A method that is added must be thought about here.
	if n := len(musterv1.PeerService_ServiceDesc.Methods) + len(musterv1.PeerService_ServiceDesc.Streams); n != 8 {
		t.Errorf("the service has %d methods", n)
	}
	for name, call := range denied {
		if err := call(); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s: got %v", name, err)
		}
	}
	if answer, err := client.Join(ctx, &musterv1.PeerServiceJoinRequest{Id: "stranger", Address: "127.0.0.1:1", Fresh: true}); err != nil || answer.GetError() != nil {
		t.Errorf("Join: %v %v", answer, err)
	}
	if c.members[0].voters() != 1 {
		t.Error("it was given a vote at once")
	}
}

func TestARemovedServersConnectionsAreClosed(t *testing.T) {
	ca := newTestCA(t)
	c := newCluster(t, 3, func(_ int, cfg *Config) { ca.secure(cfg) })
	mustApply(t, c.members[0].Store, groupG())
	gone := c.followers()[0]
	leader := c.leader()
	eventually(t, "connections", func() bool { return connsOf(leader, gone.id) > 0 })
	if err := leader.Remove(testCtx(t), gone.id, false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connections that speak raft to be closed", func() bool { return connsOf(leader, gone.id) == 0 })
	if err := knock(t, leader, gone.cfg.TLS, protoRaft); err == nil {
		t.Error("a removed server may still speak raft")
	}
}

func connsOf(m *member, id string) (n int) {
	m.wire.conns.mu.Lock()
	defer m.wire.conns.mu.Unlock()
	for c := range m.wire.conns.all {
		if c.id == id && c.proto == protoRaft {
			n++
		}
	}
	return n
}

func TestCertificatesAreReloadedAndExpiredConnectionsCut(t *testing.T) {
	t.Parallel() // it mostly waits
	ca := newTestCA(t)
	c := newCluster(t, 2, func(_ int, cfg *Config) {
		ca.secure(cfg)
		cfg.TLS = ca.issue(cfg.ServerID, 3*time.Second, serverURI(cfg.ServerID))
	})
	mustApply(t, c.members[0].Store, groupG())
	time.Sleep(1200 * time.Millisecond)
	for _, m := range c.members {
		ca.issue(m.id, time.Hour, serverURI(m.id))
	}
	// Long after the first certificates have run out the cluster still works,
	// and on connections with the new ones only.
	time.Sleep(3500 * time.Millisecond)
	write := func(m *member, id string) {
		t.Helper()
		cmd := putService("g", id, "")
		cmd.RequestId = id // a connection may be cut in the middle of it
		mustApply(t, m.Store, cmd)
	}
	write(c.members[0], "a")
	c.converge()
	for _, m := range c.members {
		m.wire.conns.closeWhere(func(p *peerConn) bool {
			if time.Until(p.expires) < time.Minute {
				t.Errorf("%s still has a connection that expired %s", m.id, p.expires)
			}
			return false
		})
	}
	// A file that does not load keeps the last good one in use.
	if err := os.WriteFile(c.members[0].cfg.TLS.CertFile, []byte("half a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1200 * time.Millisecond)
	c.members[0].wire.conns.closeWhere(func(*peerConn) bool { return true })
	write(c.members[1], "b")
	c.converge()
}

func TestACertificateMustBeThisServers(t *testing.T) {
	ca := newTestCA(t)
	cfg := quick(Config{DataDir: t.TempDir(), ServerID: "a", RaftAddr: "127.0.0.1:0", Bootstrap: true, Logger: quiet()})
	cfg.TLS = ca.issue("b", time.Hour, serverURI("b"))
	if s, err := Open(cfg); err == nil {
		s.Close()
		t.Error("opened with another server's certificate")
	}
}

func TestPlaintextNeedsInsecureAndLoopback(t *testing.T) {
	for name, cfg := range map[string]Config{
		"neither":           {RaftAddr: "127.0.0.1:0"},
		"not loopback":      {RaftAddr: "192.0.2.1:0", Insecure: true},
		"all interfaces":    {RaftAddr: "0.0.0.0:0", Insecure: true},
		"half of the files": {RaftAddr: "127.0.0.1:0", TLS: TLSFiles{CertFile: "x"}},
	} {
		cfg.DataDir, cfg.Bootstrap, cfg.Logger = t.TempDir(), true, quiet()
		if s, err := Open(cfg); err == nil {
			s.Close()
			t.Errorf("%s: opened", name)
		}
	}
}
