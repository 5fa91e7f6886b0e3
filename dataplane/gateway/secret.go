package gateway

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// secret is a compiled Secret: a certificate, or how to check the peer's.
type secret struct {
	certificate *tls.Certificate
	validation  *validation
}

// validation says which certificates of a peer are good.
type validation struct {
	roots    *x509.CertPool
	sans     []sanMatch // any of them; none means any name
	maxDepth int        // intermediates allowed; negative is no limit
}

type sanMatch struct {
	kind  tlsv3.SubjectAltNameMatcher_SanType
	match stringMatch
}

// systemRootsFile is where Envoy reads the system's roots; the gateway takes it for
// them, wherever they are.
const systemRootsFile = "/etc/ssl/certs/ca-certificates.crt"

func (g *Gateway) decodeSecret(body *anypb.Any) (*secret, error) {
	m := &tlsv3.Secret{}
	if err := g.checker.decode(body, m); err != nil {
		return nil, err
	}
	s := &secret{}
	var err error
	switch t := m.GetType().(type) {
	case *tlsv3.Secret_TlsCertificate:
		s.certificate, err = newCertificate(t.TlsCertificate)
	case *tlsv3.Secret_ValidationContext:
		s.validation, err = newValidation(t.ValidationContext)
	default:
		err = errors.New("it holds neither a certificate nor a validation context")
	}
	return s, err
}

func newCertificate(m *tlsv3.TlsCertificate) (*tls.Certificate, error) {
	if m.GetCertificateChain().GetFilename() != "" || m.GetPrivateKey().GetFilename() != "" {
		return nil, errors.New("certificate: files are not supported")
	}
	chain, key := dataOf(m.GetCertificateChain()), dataOf(m.GetPrivateKey())
	cert, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil {
		return nil, fmt.Errorf("certificate: %w", err) // the error never holds the key
	}
	return &cert, nil
}

func newValidation(m *tlsv3.CertificateValidationContext) (*validation, error) {
	v := &validation{maxDepth: -1}
	if m.GetMaxVerifyDepth() != nil {
		v.maxDepth = int(m.GetMaxVerifyDepth().GetValue())
	}
	switch {
	case m.GetTrustedCa().GetFilename() == systemRootsFile:
		roots, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("the system's roots: %w", err)
		}
		v.roots = roots
	case m.GetTrustedCa().GetFilename() != "":
		return nil, fmt.Errorf("trusted_ca: of files only %s is supported", systemRootsFile)
	case m.GetTrustedCa() != nil:
		v.roots = x509.NewCertPool()
		if !v.roots.AppendCertsFromPEM([]byte(dataOf(m.GetTrustedCa()))) {
			return nil, errors.New("trusted_ca holds no certificate")
		}
	}
	for _, s := range m.GetMatchTypedSubjectAltNames() {
		match, err := newStringMatch(s.GetMatcher())
		if err != nil {
			return nil, fmt.Errorf("match_typed_subject_alt_names: %w", err)
		}
		v.sans = append(v.sans, sanMatch{kind: s.GetSanType(), match: match})
	}
	return v, nil
}

var errPeerCertificate = errors.New("the peer's certificate is not accepted")

// verify checks a peer's certificates for a use. Without roots every certificate is
// good, as in Envoy.
func (v *validation) verify(certs []*x509.Certificate, use x509.ExtKeyUsage) error {
	if v == nil || v.roots == nil {
		return nil
	}
	if len(certs) == 0 {
		return fmt.Errorf("%w: there is none", errPeerCertificate)
	}
	opts := x509.VerifyOptions{
		Roots: v.roots, Intermediates: x509.NewCertPool(), KeyUsages: []x509.ExtKeyUsage{use},
	}
	for _, c := range certs[1:] {
		opts.Intermediates.AddCert(c)
	}
	chains, err := certs[0].Verify(opts)
	if err != nil {
		return fmt.Errorf("%w: %w", errPeerCertificate, err)
	}
	if v.maxDepth >= 0 {
		short := false
		for _, chain := range chains {
			short = short || len(chain)-2 <= v.maxDepth // neither the leaf nor the root count
		}
		if !short {
			return fmt.Errorf("%w: its chain is longer than %d", errPeerCertificate, v.maxDepth)
		}
	}
	if len(v.sans) > 0 && !v.matchesName(certs[0]) {
		return fmt.Errorf("%w: no name matches", errPeerCertificate)
	}
	return nil
}

func (v *validation) matchesName(c *x509.Certificate) bool {
	for _, s := range v.sans {
		for _, name := range namesOf(c, s.kind) {
			if s.match(name) {
				return true
			}
		}
	}
	return false
}

func namesOf(c *x509.Certificate, kind tlsv3.SubjectAltNameMatcher_SanType) []string {
	var out []string
	switch kind {
	case tlsv3.SubjectAltNameMatcher_DNS:
		out = c.DNSNames
	case tlsv3.SubjectAltNameMatcher_EMAIL:
		out = c.EmailAddresses
	case tlsv3.SubjectAltNameMatcher_URI:
		for _, u := range c.URIs {
			out = append(out, u.String())
		}
	case tlsv3.SubjectAltNameMatcher_IP_ADDRESS:
		for _, ip := range c.IPAddresses {
			out = append(out, ip.String())
		}
	}
	return out
}

// tlsNeeds is a compiled CommonTlsContext. Secrets are looked up when a connection
// is made, so that a rotated one needs nothing else.
type tlsNeeds struct {
	minVersion, maxVersion uint16
	alpn                   []string
	certificates           []*tls.Certificate // inline
	certificateSecrets     []string
	validation             *validation // inline
	validationSecret       string
}

func newTLSNeeds(m *tlsv3.CommonTlsContext) (*tlsNeeds, error) {
	n := &tlsNeeds{alpn: m.GetAlpnProtocols()}
	var err error
	if n.minVersion, err = tlsVersion(m.GetTlsParams().GetTlsMinimumProtocolVersion(), tls.VersionTLS12); err != nil {
		return nil, err
	}
	if n.maxVersion, err = tlsVersion(m.GetTlsParams().GetTlsMaximumProtocolVersion(), tls.VersionTLS13); err != nil {
		return nil, err
	}
	for _, c := range m.GetTlsCertificates() {
		cert, err := newCertificate(c)
		if err != nil {
			return nil, err
		}
		n.certificates = append(n.certificates, cert)
	}
	for _, s := range m.GetTlsCertificateSdsSecretConfigs() {
		n.certificateSecrets = append(n.certificateSecrets, s.GetName())
	}
	switch v := m.GetValidationContextType().(type) {
	case nil:
	case *tlsv3.CommonTlsContext_ValidationContext:
		n.validation, err = newValidation(v.ValidationContext)
	case *tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig:
		n.validationSecret = v.ValidationContextSdsSecretConfig.GetName()
	default:
		err = fmt.Errorf("validation context %T is not supported", v)
	}
	return n, err
}

func tlsVersion(v tlsv3.TlsParameters_TlsProtocol, auto uint16) (uint16, error) {
	switch v {
	case tlsv3.TlsParameters_TLS_AUTO:
		return auto, nil
	case tlsv3.TlsParameters_TLSv1_0:
		return tls.VersionTLS10, nil
	case tlsv3.TlsParameters_TLSv1_1:
		return tls.VersionTLS11, nil
	case tlsv3.TlsParameters_TLSv1_2:
		return tls.VersionTLS12, nil
	case tlsv3.TlsParameters_TLSv1_3:
		return tls.VersionTLS13, nil
	}
	return 0, fmt.Errorf("tls version %s is not supported", v)
}

// certificatesIn returns the certificates as they stand in a table.
func (n *tlsNeeds) certificatesIn(t *table) ([]tls.Certificate, error) {
	var out []tls.Certificate
	for _, c := range n.certificates {
		out = append(out, *c)
	}
	for _, name := range n.certificateSecrets {
		s, ok := t.secrets.Get([]byte(name))
		if !ok || s.certificate == nil {
			return nil, fmt.Errorf("secret %q: there is no such certificate", name)
		}
		out = append(out, *s.certificate)
	}
	return out, nil
}

// validationIn returns how the peer is checked as it stands in a table; nil when it
// is not.
func (n *tlsNeeds) validationIn(t *table) (*validation, error) {
	if n.validationSecret == "" {
		return n.validation, nil
	}
	s, ok := t.secrets.Get([]byte(n.validationSecret))
	if !ok || s.validation == nil {
		return nil, fmt.Errorf("secret %q: there is no such validation context", n.validationSecret)
	}
	return s.validation, nil
}

// serverNameOf returns a host in the form of an SNI: empty for an IP address.
func serverNameOf(host string) string {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	if net.ParseIP(strings.Trim(host, "[]")) != nil {
		return ""
	}
	return host
}
