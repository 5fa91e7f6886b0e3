package raftstore

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"
)

// TLSFiles names the certificate files of the connections between servers.
// They are read again when they change.
type TLSFiles struct {
	// CertFile and KeyFile hold this server's PEM chain and key. The
	// certificate's only URI is `spiffe://<trust domain>/server/<server id>`;
	// it is good for server and for client use.
	CertFile, KeyFile string
	// CAFile holds the PEM bundle that the other servers' certificates must chain to.
	CAFile string
}

func (f TLSFiles) enabled() bool { return f != TLSFiles{} }

func (f TLSFiles) validate() error {
	if f.CertFile == "" || f.KeyFile == "" || f.CAFile == "" {
		return errors.New("raftstore: TLS needs CertFile, KeyFile and CAFile")
	}
	return nil
}

// The protocols on the raft port, told apart by ALPN.
const (
	protoRaft = "muster-raft/1"
	protoPeer = "muster-peer/1"
)

// certs serves TLS configurations that follow the files.
type certs struct {
	files  TLSFiles
	logger *slog.Logger

	mu     sync.Mutex
	now    *loadedCerts
	looked time.Time
}

type loadedCerts struct {
	cert   tls.Certificate
	roots  *x509.CertPool
	domain string
	stamps [3]fileStamp
}

type fileStamp struct {
	size  int64
	mtime time.Time
}

// relook is how often, at most, the files are looked at.
const relook = time.Second

// loadCerts reads the files, which must hold a certificate for this server.
func loadCerts(files TLSFiles, id string, logger *slog.Logger) (*certs, error) {
	c := &certs{files: files, logger: logger}
	l, err := c.load()
	if err != nil {
		return nil, err
	}
	if _, own, _ := serverIdentity(l.cert.Leaf); own != id {
		return nil, fmt.Errorf("raftstore: the certificate in %s is server %q's, this is server %q", files.CertFile, own, id)
	}
	c.now, c.looked = l, time.Now()
	return c, nil
}

func (c *certs) load() (*loadedCerts, error) {
	// The stamps come first: a change during the load is seen as one later.
	l := &loadedCerts{stamps: c.stamps()}
	var err error
	if l.cert, err = tls.LoadX509KeyPair(c.files.CertFile, c.files.KeyFile); err != nil {
		return nil, fmt.Errorf("raftstore: load certificate: %w", err)
	}
	if l.domain, _, err = serverIdentity(l.cert.Leaf); err != nil {
		return nil, fmt.Errorf("raftstore: %s: %w", c.files.CertFile, err)
	}
	pem, err := os.ReadFile(c.files.CAFile)
	if err != nil {
		return nil, fmt.Errorf("raftstore: load CA: %w", err)
	}
	l.roots = x509.NewCertPool()
	if !l.roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("raftstore: %s holds no certificate", c.files.CAFile)
	}
	return l, nil
}

func (c *certs) stamps() (s [3]fileStamp) {
	for i, path := range []string{c.files.CertFile, c.files.KeyFile, c.files.CAFile} {
		if info, err := os.Stat(path); err == nil {
			s[i] = fileStamp{info.Size(), info.ModTime()}
		}
	}
	return s
}

// current returns the newest files that load.
func (c *certs) current() *loadedCerts {
	c.mu.Lock()
	defer c.mu.Unlock()
	if time.Since(c.looked) < relook {
		return c.now
	}
	c.looked = time.Now()
	if c.stamps() == c.now.stamps {
		return c.now
	}
	l, err := c.load()
	if err != nil {
		c.logger.Error("the certificate files changed but do not load; keeping the last good ones", "error", err)
		return c.now
	}
	c.logger.Info("certificate files reloaded", "file", c.files.CertFile, "expires", l.cert.Leaf.NotAfter)
	c.now = l
	return l
}

// server is the configuration of one accepted connection.
func (c *certs) server() *tls.Config {
	l := c.current()
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{l.cert},
		NextProtos:             []string{protoRaft, protoPeer},
		ClientAuth:             tls.RequireAnyClientCert, // VerifyConnection does the rest
		SessionTicketsDisabled: true,
		VerifyConnection:       l.verify(x509.ExtKeyUsageClientAuth),
	}
}

// client is the configuration of one dialled connection.
func (c *certs) client(proto string) *tls.Config {
	l := c.current()
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{l.cert},
		NextProtos:   []string{proto},
		// Servers are known by their SPIFFE id, not by a host name; the chain
		// and the id are verified below.
		InsecureSkipVerify: true,
		VerifyConnection:   l.verify(x509.ExtKeyUsageServerAuth),
	}
}

// verify checks that the peer is a server of this trust domain.
func (l *loadedCerts) verify(usage x509.ExtKeyUsage) func(tls.ConnectionState) error {
	return func(cs tls.ConnectionState) error {
		if len(cs.PeerCertificates) == 0 {
			return errors.New("the peer has no certificate")
		}
		rest := x509.NewCertPool()
		for _, cert := range cs.PeerCertificates[1:] {
			rest.AddCert(cert)
		}
		leaf := cs.PeerCertificates[0]
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: l.roots, Intermediates: rest, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			return err
		}
		domain, _, err := serverIdentity(leaf)
		if err != nil {
			return err
		}
		if domain != l.domain {
			return fmt.Errorf("the peer is of trust domain %q, not %q", domain, l.domain)
		}
		if cs.NegotiatedProtocol == "" {
			return errors.New("no protocol was agreed on")
		}
		return nil
	}
}

// serverIdentity reads the server id out of a certificate: its only URI must be
// `spiffe://<trust domain>/server/<id>`. A certificate of another role, signed
// by the same authority, is none.
func serverIdentity(leaf *x509.Certificate) (domain, id string, err error) {
	if leaf == nil || len(leaf.URIs) != 1 {
		return "", "", errors.New("the certificate does not carry exactly one URI")
	}
	u := leaf.URIs[0]
	id, found := strings.CutPrefix(u.Path, "/server/")
	plain := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path}
	if u.Scheme != "spiffe" || u.Host == "" || plain.String() != u.String() || !found || id == "" || strings.ContainsFunc(id, notIDRune) {
		return "", "", fmt.Errorf("the certificate's URI %q does not name a server", u)
	}
	return u.Host, id, nil
}
