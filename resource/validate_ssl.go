package resource

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// maxPEM bounds a certificate chain or key, in bytes, as adc does.
const maxPEM = 64 << 10

func (c *checker) ssl(ssl *musterv1.Ssl) {
	c.id("id", ssl.GetId())
	c.text("desc", ssl.GetDesc())
	c.labels(ssl.GetLabels())
	c.oneOf("type", ssl.GetType(), "server", "client")
	client := ssl.GetType() == "client"
	if !client && len(ssl.GetSnis()) == 0 {
		c.add("snis", CodeRequired, "a server certificate needs the names that it is served for", "for example api.example.com or *.example.com")
	}
	c.hosts("snis", ssl.GetSnis())
	c.pair("cert", ssl.GetCert(), "key", ssl.GetKey())
	if len(ssl.GetCerts()) != len(ssl.GetKeys()) {
		c.add("keys", CodeInvalid, fmt.Sprintf("there are %d further certificates and %d further keys", len(ssl.GetCerts()), len(ssl.GetKeys())), "give each certificate its key, in the same order")
	} else {
		for i, cert := range ssl.GetCerts() {
			c.pair(joinPath("certs", indexSegment(i)), cert, joinPath("keys", indexSegment(i)), ssl.GetKeys()[i])
		}
	}
	if ssl.GetClient() != nil {
		c.sslClient(ssl.GetClient(), client)
	}
	c.status("status", ssl.Status)
	for i, protocol := range ssl.GetSslProtocols() {
		path := joinPath("ssl_protocols", indexSegment(i))
		switch protocol {
		case "TLSv1", "TLSv1.0", "TLSv1.1":
			c.add(path, CodeUnsupported, protocol+" is not supported: it is not secure", "use TLSv1.2 and TLSv1.3")
		case "":
			c.add(path, CodeInvalid, "the protocol is empty", "one of TLSv1.2, TLSv1.3")
		default:
			c.oneOf(path, protocol, "TLSv1.2", "TLSv1.3")
		}
	}
	c.duplicates("ssl_protocols", ssl.GetSslProtocols())
}

// sslClient checks the demand for client certificates.
func (c *checker) sslClient(client *musterv1.SslClient, isClient bool) {
	if isClient {
		c.add("client", CodeConflict, "an ssl of type client demands no client certificates", "remove the field, or use type server")
		return
	}
	if client.GetCa() == "" {
		c.add("client.ca", CodeRequired, "client certificates are verified against a CA", "set client.ca to the CA's certificate in PEM")
	} else if _, err := c.certificates("client.ca", client.GetCa()); err != nil {
		c.add("client.ca", CodeInvalid, err.reason, err.hint)
	}
	if client.Depth != nil {
		c.within("client.depth", float64(client.GetDepth()), 0, 100)
	}
	c.unsupported("client.skip_mtls_uri_regex", len(client.GetSkipMtlsUriRegex()) > 0,
		"skip_mtls_uri_regex is not supported: the client certificate is demanded before the URI is known", "serve these URIs under a name of their own")
}

// pemFault says what is wrong with a PEM text, without its content.
type pemFault struct{ reason, hint string }

// pair checks a certificate chain and its key.
func (c *checker) pair(certPath, cert, keyPath, key string) {
	var chain []*x509.Certificate
	var private crypto.Signer
	if cert == "" {
		c.add(certPath, CodeRequired, "there is no certificate", "set it to a certificate in PEM")
	} else if parsed, fault := c.certificates(certPath, cert); fault != nil {
		c.add(certPath, CodeInvalid, fault.reason, fault.hint)
	} else {
		chain = parsed
	}
	if key == "" {
		c.add(keyPath, CodeRequired, "there is no private key", "set it to the certificate's key in PEM")
	} else if isReference(key) {
		c.add(keyPath, CodeUnsupported, "references to secrets and environment variables are not supported", "write the key itself")
	} else if parsed, fault := privateKey(key); fault != nil {
		c.add(keyPath, CodeInvalid, fault.reason, fault.hint)
	} else {
		private = parsed
	}
	if chain == nil || private == nil {
		return
	}
	public, ok := chain[0].PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(private.Public()) {
		c.add(keyPath, CodeConflict, "the private key is not that of the certificate", "the first certificate of the chain must be the key's own")
	}
}

// certificates parses a chain, and reports those that are not valid now.
func (c *checker) certificates(path, text string) ([]*x509.Certificate, *pemFault) {
	switch {
	case len(text) > maxPEM:
		return nil, &pemFault{fmt.Sprintf("the text has %d bytes; at most %d are allowed", len(text), maxPEM), ""}
	case isReference(text):
		return nil, &pemFault{"references to secrets and environment variables are not supported", "write the certificate itself"}
	}
	var chain []*x509.Certificate
	rest := []byte(text)
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			return nil, &pemFault{"the text holds a private key beside certificates", "the key has a field of its own"}
		}
		if block.Type != "CERTIFICATE" {
			return nil, &pemFault{fmt.Sprintf("the text holds a PEM block of type %s", quote(block.Type)), "only blocks of type CERTIFICATE belong here"}
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, &pemFault{fmt.Sprintf("certificate %d of the chain cannot be parsed", len(chain)+1), ""}
		}
		chain = append(chain, cert)
	}
	if len(chain) == 0 {
		return nil, &pemFault{"this is not a certificate in PEM", "write the content of the file, from -----BEGIN CERTIFICATE-----; a file's name is not read"}
	}
	if strings.TrimSpace(string(rest)) != "" && strings.Contains(string(rest), "-----BEGIN") {
		return nil, &pemFault{fmt.Sprintf("the text after certificate %d cannot be read as PEM", len(chain)), "look for a cut or changed line"}
	}
	for i, cert := range chain {
		c.validNow(path, i, cert)
	}
	return chain, nil
}

// startTolerance is how far in the future a certificate may begin: clocks differ.
const startTolerance = 24 * time.Hour

func (c *checker) validNow(path string, i int, cert *x509.Certificate) {
	now := c.validator.Now
	if now.IsZero() {
		return
	}
	which := "the certificate"
	if i > 0 {
		which = fmt.Sprintf("certificate %d of the chain", i+1)
	}
	switch {
	case now.After(cert.NotAfter):
		c.add(path, CodeInvalid, fmt.Sprintf("%s expired at %s", which, cert.NotAfter.UTC().Format(time.RFC3339)), "renew it")
	case now.Add(startTolerance).Before(cert.NotBefore):
		c.add(path, CodeInvalid, fmt.Sprintf("%s is not valid before %s", which, cert.NotBefore.UTC().Format(time.RFC3339)), "")
	}
}

// privateKey parses a key, and refuses those that data planes refuse.
func privateKey(text string) (crypto.Signer, *pemFault) {
	if len(text) > maxPEM {
		return nil, &pemFault{fmt.Sprintf("the text has %d bytes; at most %d are allowed", len(text), maxPEM), ""}
	}
	var block *pem.Block
	for rest := []byte(text); ; {
		if block, rest = pem.Decode(rest); block == nil {
			return nil, &pemFault{"this is not a private key in PEM", "write the content of the file, from -----BEGIN PRIVATE KEY-----; a file's name is not read"}
		}
		// OpenSSL writes the curve's parameters before a key.
		if block.Type != "EC PARAMETERS" {
			break
		}
	}
	switch {
	case block.Type == "CERTIFICATE":
		return nil, &pemFault{"this is a certificate, not a private key", "the two may have been swapped"}
	case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
		return nil, &pemFault{"the private key is encrypted", "decrypt it, for example with `openssl pkey`"}
	}
	key, err := parsePrivateKey(block.Bytes)
	if err != nil {
		return nil, &pemFault{"the private key cannot be parsed", "PKCS #8, PKCS #1 and SEC 1 keys are read"}
	}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		if key.N.BitLen() < 2048 {
			return nil, &pemFault{fmt.Sprintf("the RSA key has %d bits", key.N.BitLen()), "data planes need at least 2048"}
		}
		return key, nil
	case *ecdsa.PrivateKey:
		if key.Curve == elliptic.P224() {
			return nil, &pemFault{"the curve P-224 is not supported", "use P-256, P-384 or P-521"}
		}
		return key, nil
	}
	return nil, &pemFault{"keys of this type are not supported by data planes", "use RSA or ECDSA"}
}

func parsePrivateKey(der []byte) (any, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	return nil, errors.New("resource: unknown private key")
}

// isReference tells API7's references to secrets from values.
func isReference(text string) bool {
	return strings.HasPrefix(text, "$secret://") || strings.HasPrefix(text, "$env://") || strings.HasPrefix(text, "$ENV://")
}
