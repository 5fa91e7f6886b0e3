package relay

import (
	"crypto/tls"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/test/e2e/pki"
)

// What holds for a server's connections holds for a relay's: what a certificate
// proves does not outlive it.
func TestADataPlanesConnectionEndsWithItsCertificate(t *testing.T) {
	ca, err := pki.New("relays")
	if err != nil {
		t.Fatal(err)
	}
	own, err := ca.Leaf("127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	file := func(name, pem string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(pem), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	c := newCentre(t)
	c.group("g", nil)
	rev := c.service("g", "a", 80)
	r := newRelay(t, "r", []string{c.addr()}, func(cfg *Config) {
		cfg.Insecure, cfg.TrustDomain = false, "example.org"
		cfg.TLS = auth.TLSFiles{
			CertFile: file("cert.pem", own.CertPEM), KeyFile: file("key.pem", own.KeyPEM), ClientCAFile: file("ca.pem", ca.CertPEM),
		}
	})
	plane := func(id string, life time.Duration, group string) *plane {
		leaf, err := ca.Brief(id, life, &url.URL{Scheme: "spiffe", Host: "example.org", Path: "/group/" + group + "/node/" + id})
		if err != nil {
			t.Fatal(err)
		}
		return newPlane(t, id, "g", []string{r.addr()}, func(cfg *dataplane.Config) {
			cfg.Insecure = false
			cfg.TLS = &tls.Config{RootCAs: ca.Pool(), Certificates: []tls.Certificate{leaf.TLS}}
		})
	}
	const life = 3 * time.Second
	began := time.Now()
	lasting, brief, strange := plane("lasting", time.Hour, "g"), plane("brief", life, "g"), plane("strange", time.Hour, "other")
	eventually(t, "both to have the revision", func() bool { return lasting.at(rev)() && brief.at(rev)() })
	eventually(t, "the brief one to be cut off", func() bool { return brief.Status().Server == "" })
	if took := time.Since(began); took < life-time.Second {
		t.Errorf("it was cut off after %s already", took)
	}
	next := c.service("g", "b", 81)
	eventually(t, "the other to go on", lasting.at(next))
	if brief.at(next)() {
		t.Error("a data plane whose certificate has run out got a later revision")
	}
	if strange.at(rev)() || strange.at(next)() {
		t.Error("a data plane got another group than its certificate names")
	}
}
