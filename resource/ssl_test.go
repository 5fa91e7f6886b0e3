package resource_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func pemText(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// certificate returns a self-signed certificate of the key, valid for 30 days
// around the given time, and the key in PKCS #8.
func certificate(t *testing.T, key crypto.Signer, at time.Time) (cert, private string) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "a.example.com"}, DNSNames: []string{"a.example.com"},
		NotBefore: at.AddDate(0, 0, -15), NotAfter: at.AddDate(0, 0, 15),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pemText("CERTIFICATE", der), pemText("PRIVATE KEY", keyDER)
}

func ecKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(curve, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// describe lists the problems as `path code: message`, one a line.
func describe(ps resource.Problems) string {
	var lines []string
	for _, p := range ps {
		lines = append(lines, p.Path+" "+p.Code+": "+p.Message)
	}
	return strings.Join(lines, "\n")
}

func TestCertificatesAndKeysAreChecked(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	cert, private := certificate(t, key, now)
	other, otherPrivate := certificate(t, ecKey(t, elliptic.P384()), now)
	expired, expiredKey := certificate(t, ecKey(t, elliptic.P256()), now.AddDate(0, -2, 0))
	future, futureKey := certificate(t, ecKey(t, elliptic.P256()), now.AddDate(0, 2, 0))
	p224, p224Key := certificate(t, ecKey(t, elliptic.P224()), now)
	_, edKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ed, edPrivate := certificate(t, edKey, now)
	sec1, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	weak, weakKey := certificate(t, rsaKey, now)
	pkcs1 := pemText("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(rsaKey))

	base := func(cert, key string) *musterv1.Ssl {
		return &musterv1.Ssl{Id: "s", Snis: []string{"a.example.com"}, Cert: cert, Key: key}
	}
	with := func(change func(*musterv1.Ssl)) *musterv1.Ssl {
		ssl := base(cert, private)
		change(ssl)
		return ssl
	}
	for name, test := range map[string]struct {
		ssl  *musterv1.Ssl
		want string
	}{
		"a pair":                 {base(cert, private), ""},
		"SEC 1 with parameters":  {base(cert, pemText("EC PARAMETERS", []byte{6, 8})+pemText("EC PRIVATE KEY", sec1)), ""},
		"a chain":                {base(cert+other, private), ""},
		"text around":            {base("Subject: x\n"+cert+"\n", private), ""},
		"chain in wrong order":   {base(other+cert, private), "key conflict: the private key is not that of the certificate"},
		"another's key":          {base(cert, otherPrivate), "key conflict: the private key is not that of the certificate"},
		"swapped":                {base(private, cert), "cert invalid: the text holds a private key beside certificates\nkey invalid: this is a certificate, not a private key"},
		"file names":             {base("a.crt", "a.key"), "cert invalid: this is not a certificate in PEM\nkey invalid: this is not a private key in PEM"},
		"nothing":                {base("", ""), "cert required: there is no certificate\nkey required: there is no private key"},
		"references":             {base("$secret://vault/1", "$env://KEY"), "cert invalid: references to secrets and environment variables are not supported\nkey unsupported: references to secrets and environment variables are not supported"},
		"cut certificate":        {base(cert[:len(cert)/2], private), "cert invalid: this is not a certificate in PEM"},
		"cut second certificate": {base(cert+other[:len(other)/2], private), "cert invalid: the text after certificate 1 cannot be read as PEM"},
		"garbage in PEM":         {base(pemText("CERTIFICATE", []byte("x")), pemText("PRIVATE KEY", []byte("x"))), "cert invalid: certificate 1 of the chain cannot be parsed\nkey invalid: the private key cannot be parsed"},
		"another block":          {base(pemText("PUBLIC KEY", []byte("x")), private), `cert invalid: the text holds a PEM block of type "PUBLIC KEY"`},
		"encrypted":              {base(cert, pemText("ENCRYPTED PRIVATE KEY", []byte("x"))), "key invalid: the private key is encrypted"},
		"weak RSA":               {base(weak, weakKey), "key invalid: the RSA key has 1024 bits"},
		"weak RSA in PKCS #1":    {base(weak, pkcs1), "key invalid: the RSA key has 1024 bits"},
		"P-224":                  {base(p224, p224Key), "key invalid: the curve P-224 is not supported"},
		"Ed25519":                {base(ed, edPrivate), "key invalid: keys of this type are not supported by data planes"},
		"expired":                {base(expired, expiredKey), "cert invalid: the certificate expired at 2026-10-09T12:00:00Z"},
		"not yet valid":          {base(future, futureKey), "cert invalid: the certificate is not valid before 2027-01-09T12:00:00Z"},
		"expired in the chain":   {base(cert+expired, private), "cert invalid: certificate 2 of the chain expired at 2026-10-09T12:00:00Z"},
		"too large":              {base(strings.Repeat("x", 1<<17), private), "cert invalid: the text has 131072 bytes; at most 65536 are allowed"},
		"further pairs":          {with(func(s *musterv1.Ssl) { s.Certs, s.Keys = []string{other}, []string{private} }), "keys[0] conflict: the private key is not that of the certificate"},
		"pairs that are none":    {with(func(s *musterv1.Ssl) { s.Certs = []string{other} }), "keys invalid: there are 1 further certificates and 0 further keys"},
		"no SNI":                 {with(func(s *musterv1.Ssl) { s.Snis = nil }), "snis required: a server certificate needs the names that it is served for"},
		"bad SNIs":               {with(func(s *musterv1.Ssl) { s.Snis = []string{"*", "a:443", "A.x", "a.x"} }), "snis[0] invalid: \"*\" is not a host\nsnis[1] invalid: \"a:443\" is not a host\nsnis[3] duplicate: \"a.x\" is in the list already, at [2]"},
		"a client without SNI":   {with(func(s *musterv1.Ssl) { s.Snis, s.Type = nil, "client" }), ""},
		"a client with client":   {with(func(s *musterv1.Ssl) { s.Type, s.Client = "client", &musterv1.SslClient{Ca: cert} }), "client conflict: an ssl of type client demands no client certificates"},
		"client":                 {with(func(s *musterv1.Ssl) { s.Client = &musterv1.SslClient{Ca: cert} }), ""},
		"client without CA":      {with(func(s *musterv1.Ssl) { s.Client = &musterv1.SslClient{} }), "client.ca required: client certificates are verified against a CA"},
		"client with a bad CA": {with(func(s *musterv1.Ssl) {
			s.Client = &musterv1.SslClient{Ca: "x", SkipMtlsUriRegex: []string{"/x"}}
		}), "client.ca invalid: this is not a certificate in PEM\nclient.skip_mtls_uri_regex unsupported: skip_mtls_uri_regex is not supported: the client certificate is demanded before the URI is known"},
		"protocols": {with(func(s *musterv1.Ssl) { s.SslProtocols = []string{"TLSv1.1", "TLSv1.2", "SSLv3", "TLSv1.2"} }),
			"ssl_protocols[0] unsupported: TLSv1.1 is not supported: it is not secure\nssl_protocols[2] invalid: \"SSLv3\" is not one of TLSv1.2, TLSv1.3\nssl_protocols[3] duplicate: \"TLSv1.2\" is in the list already, at [1]"},
		"type": {with(func(s *musterv1.Ssl) { s.Type = "sever" }), `type invalid: "sever" is not one of server, client`},
	} {
		t.Run(name, func(t *testing.T) {
			r := &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: test.ssl}}
			if got := describe(resource.Validator{Now: now}.Resource(r)); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
	if problems := resource.Validate(&musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: base(expired, expiredKey)}}); len(problems) > 0 {
		t.Errorf("without a time there is no expiry: %v", problems)
	}
}

func TestUpstreamClientCertificates(t *testing.T) {
	cert, private := certificate(t, ecKey(t, elliptic.P256()), now)
	_, other := certificate(t, ecKey(t, elliptic.P256()), now)
	for name, test := range map[string]struct {
		tls  *musterv1.UpstreamTls
		want string
	}{
		"a pair":        {&musterv1.UpstreamTls{ClientCert: cert, ClientKey: private}, ""},
		"an id":         {&musterv1.UpstreamTls{ClientCertId: "x"}, ""},
		"half":          {&musterv1.UpstreamTls{ClientCert: cert}, "upstream.tls.client_key required: there is no private key"},
		"another's key": {&musterv1.UpstreamTls{ClientCert: cert, ClientKey: other}, "upstream.tls.client_key conflict: the private key is not that of the certificate"},
		"both":          {&musterv1.UpstreamTls{ClientCert: cert, ClientKey: private, ClientCertId: "x"}, "upstream.tls.client_cert_id conflict: client_cert_id excludes client_cert and client_key"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: "s", Upstream: &musterv1.Upstream{Scheme: "https", Tls: test.tls}}}}
			if got := describe(resource.Validator{Now: now}.Resource(r)); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
		})
	}
}
