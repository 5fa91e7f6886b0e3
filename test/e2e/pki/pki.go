package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"sync"
	"time"
)

// Leaf is a certificate with its key, in PEM.
type Leaf struct {
	CertPEM, KeyPEM string
	TLS             tls.Certificate
}

// Authority signs leaves. Its methods are safe for concurrent use.
type Authority struct {
	CertPEM string

	cert *x509.Certificate
	key  *ecdsa.PrivateKey

	mu     sync.Mutex
	serial int64
	leaves map[string]*Leaf
}

// New makes an authority of its own key.
func New(name string) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          big.NewInt(1),
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return nil, fmt.Errorf("self-sign: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, err
	}
	return &Authority{
		CertPEM: encode("CERTIFICATE", der),
		cert:    cert,
		key:     key,
		serial:  1,
		leaves:  map[string]*Leaf{},
	}, nil
}

// Pool holds the authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Leaf returns the certificate for a DNS name or IP address, for servers and
// clients alike; the same one each time.
func (a *Authority) Leaf(name string) (*Leaf, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if leaf, ok := a.leaves[name]; ok {
		return leaf, nil
	}
	leaf, err := a.issue(name, usual)
	if err != nil {
		return nil, err
	}
	a.leaves[name] = leaf
	return leaf, nil
}

// Fresh returns a new certificate for name, as a renewal would.
func (a *Authority) Fresh(name string) (*Leaf, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issue(name, usual)
}

// Identity returns a new certificate for name that carries URIs, such as SPIFFE
// ids, too.
func (a *Authority) Identity(name string, uris ...*url.URL) (*Leaf, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issue(name, usual, uris...)
}

// usual is how long a certificate holds, in a test that does not say.
const usual = 12 * time.Hour

// Brief is Identity of a certificate that holds for so long only.
func (a *Authority) Brief(name string, life time.Duration, uris ...*url.URL) (*Leaf, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.issue(name, life, uris...)
}

func (a *Authority) issue(name string, life time.Duration, uris ...*url.URL) (*Leaf, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	a.serial++
	template := &x509.Certificate{
		SerialNumber: big.NewInt(a.serial),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(life),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:         uris,
	}
	if ip := net.ParseIP(name); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = []string{name}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign %s: %w", name, err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	leaf := &Leaf{CertPEM: encode("CERTIFICATE", der), KeyPEM: encode("PRIVATE KEY", keyDER)}
	leaf.TLS, err = tls.X509KeyPair([]byte(leaf.CertPEM), []byte(leaf.KeyPEM))
	if err != nil {
		return nil, err
	}
	return leaf, nil
}

func encode(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}
