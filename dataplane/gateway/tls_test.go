package gateway

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	tlsinspectorv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/listener/tls_inspector/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	setfilterstatev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/set_filter_state/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{}
	a.cert, a.key, a.pem, _ = issue(t, nil, name, nil)
	return a
}

// issue makes a certificate, self-signed without an authority.
func issue(t *testing.T, by *authority, name string, hosts []string) (*x509.Certificate, *ecdsa.PrivateKey, string, string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, h)
		}
	}
	parent, signer := template, key
	if by == nil {
		template.IsCA, template.BasicConstraintsValid = true, true
		template.KeyUsage, template.ExtKeyUsage = x509.KeyUsageCertSign, nil
	} else {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return cert, key, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}))
}

func inline(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

// certificate returns the secret of a new certificate.
func (a *authority) certificate(t *testing.T, secret, subject string, hosts ...string) named {
	t.Helper()
	_, _, chain, key := issue(t, a, subject, hosts)
	return res(secret, &tlsv3.Secret{Name: secret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain), PrivateKey: inline(key),
	}}})
}

func (a *authority) validation(secret string) named {
	return res(secret, &tlsv3.Secret{Name: secret, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
		TrustedCa: inline(a.pem),
	}}})
}

func (a *authority) pair(t *testing.T, subject string, hosts ...string) tls.Certificate {
	t.Helper()
	_, _, chain, key := issue(t, a, subject, hosts)
	cert, err := tls.X509KeyPair([]byte(chain), []byte(key))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// chain returns the filter chain of an ssl: a secret for server names, and with ca a
// secret that clients are checked by.
func chain(secret, ca string, names ...string) *listenerv3.FilterChain {
	sds := func(name string) *tlsv3.SdsSecretConfig { return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: ads()} }
	d := &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		TlsCertificateSdsSecretConfigs: []*tlsv3.SdsSecretConfig{sds(secret)}, AlpnProtocols: []string{"h2", "http/1.1"},
	}}
	if ca != "" {
		d.RequireClientCertificate = wrapperspb.Bool(true)
		d.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{ValidationContextSdsSecretConfig: sds(ca)}
	}
	return &listenerv3.FilterChain{
		FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: names}, Filters: networkFilters(),
		TransportSocket: &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(d)}},
	}
}

func httpsListener(chains ...*listenerv3.FilterChain) named {
	return res("https", &listenerv3.Listener{
		Name: "https", Address: address("0.0.0.0", 9443), FilterChains: chains,
		ListenerFilters: []*listenerv3.ListenerFilter{{Name: "tls", ConfigType: &listenerv3.ListenerFilter_TypedConfig{TypedConfig: pack(&tlsinspectorv3.TlsInspector{})}}},
	})
}

// dialTLS connects to the listener `https`.
func (l *lab) dialTLS(cfg *tls.Config) (*tls.Conn, error) {
	l.Helper()
	return tls.Dial("tcp", l.gw.Addr("https").String(), cfg)
}

// subject returns the subject of the certificate that an SNI gets; "" when there is
// no handshake.
func (l *lab) subject(sni string, ca *authority) string {
	l.Helper()
	conn, err := l.dialTLS(&tls.Config{ServerName: sni, RootCAs: ca.pool(), InsecureSkipVerify: sni == ""})
	if err != nil {
		return ""
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].Subject.CommonName
}

func TestCertificatesAreChosenBySNI(t *testing.T) {
	ca := newAuthority(t, "ca")
	l := newLab(t,
		ca.certificate(t, "ssl/exact", "exact", "api.example.com"), ca.certificate(t, "ssl/wild", "wild", "*.example.com", "x.y.example.com"), ca.certificate(t, "ssl/deep", "deep", "*.a.example.com"),
		httpsListener(chain("ssl/exact", "", "api.example.com"), chain("ssl/wild", "", "*.example.com"), chain("ssl/deep", "", "*.a.example.com"), chain("ssl/absent", "", "absent.test")),
		catchAll(tag("it", `{"prefix":"/"}`)))
	for sni, want := range map[string]string{
		"api.example.com": "exact", "API.example.com": "exact", "x.example.com": "wild", "x.y.example.com": "wild", "x.a.example.com": "deep", "example.com": "", "other.test": "", "absent.test": "", "": "",
	} {
		if got := l.subject(sni, ca); got != want {
			t.Errorf("%q: %q, want %q", sni, got, want)
		}
	}
	t.Run("and rotated without the listener", func(t *testing.T) {
		before := l.gw.table.Load().listeners["https"]
		l.apply(ca.certificate(t, "ssl/exact", "rotated", "api.example.com"), ca.certificate(t, "ssl/absent", "late", "absent.test"))
		if l.gw.table.Load().listeners["https"] != before {
			t.Error("the listener changed")
		}
		for sni, want := range map[string]string{"api.example.com": "rotated", "absent.test": "late", "x.example.com": "wild"} {
			if got := l.subject(sni, ca); got != want {
				t.Errorf("%q: %q, want %q", sni, got, want)
			}
		}
	})
}

func TestAnotherCertificateLeavesConnectionsAlone(t *testing.T) {
	ca := newAuthority(t, "ca")
	l := newLab(t, ca.certificate(t, "ssl/1", "one", "one.test"), httpsListener(chain("ssl/1", "", "one.test")), catchAll(tag("it", `{"prefix":"/"}`)))
	conn, err := l.dialTLS(&tls.Config{ServerName: "one.test", RootCAs: ca.pool(), NextProtos: []string{"http/1.1"}})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	r := bufio.NewReader(conn)
	ask := func() string {
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: one.test\r\n\r\n"); err != nil {
			return err.Error()
		}
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, resp.Body)
		return resp.Header.Get("X-Route")
	}
	if got := ask(); got != "it" {
		t.Fatal(got)
	}
	l.apply(ca.certificate(t, "ssl/2", "two", "two.test"), httpsListener(chain("ssl/1", "", "one.test"), chain("ssl/2", "", "two.test")))
	if got := ask(); got != "it" {
		t.Errorf("on the connection from before: %s", got)
	}
	if got := l.subject("two.test", ca); got != "two" {
		t.Errorf("the new one: %q", got)
	}
}

func TestClientCertificatesAreRequiredWhereTheChainSaysSo(t *testing.T) {
	ca, clients, strangers := newAuthority(t, "ca"), newAuthority(t, "clients"), newAuthority(t, "strangers")
	l := newLab(t, ca.certificate(t, "ssl/m", "m", "m.test"), ca.certificate(t, "ssl/o", "o", "o.test"), clients.validation("ssl/m/ca"),
		httpsListener(chain("ssl/m", "ssl/m/ca", "m.test"), chain("ssl/o", "", "o.test"), chain("ssl/o", "ssl/absent/ca", "absent.test")), catchAll(tag("it", `{"prefix":"/"}`)))
	try := func(sni string, certs ...tls.Certificate) error {
		conn, err := l.dialTLS(&tls.Config{ServerName: sni, RootCAs: ca.pool(), Certificates: certs})
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: m.test\r\nConnection: close\r\n\r\n"); err != nil {
			return err
		}
		_, err = http.ReadResponse(bufio.NewReader(conn), nil) // TLS 1.3 tells a refusal on the first read
		return err
	}
	if err := try("m.test", clients.pair(t, "client")); err != nil {
		t.Errorf("a good certificate: %v", err)
	}
	if err := try("m.test"); err == nil {
		t.Error("no certificate is accepted")
	}
	if err := try("m.test", strangers.pair(t, "client")); err == nil {
		t.Error("a stranger's certificate is accepted")
	}
	if err := try("o.test"); err != nil {
		t.Errorf("another name: %v", err)
	}
	// The server's certificate is for another name: what counts is that no handshake ends.
	conn, err := l.dialTLS(&tls.Config{ServerName: "absent.test", InsecureSkipVerify: true, Certificates: []tls.Certificate{clients.pair(t, "client")}})
	if err == nil {
		_, _ = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: m.test\r\nConnection: close\r\n\r\n")
		_, err = http.ReadResponse(bufio.NewReader(conn), nil)
		_ = conn.Close()
	}
	if err == nil {
		t.Error("without the CA to check it by a certificate is accepted")
	}
}

func TestAChainMayHaveAsManyIntermediatesAsItSays(t *testing.T) {
	root := newAuthority(t, "root")
	middle := &authority{}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "middle"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	var err error
	if middle.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, root.cert, &middle.key.PublicKey, root.key)
	if err != nil {
		t.Fatal(err)
	}
	if middle.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	direct, _, _, _ := issue(t, root, "direct", []string{"a.test"})
	through, _, _, _ := issue(t, middle, "through", []string{"a.test"})
	for depth, want := range map[int][2]bool{-1: {true, true}, 0: {true, false}, 1: {true, true}} {
		v := &validation{roots: root.pool(), maxDepth: depth}
		got := [2]bool{
			v.verify([]*x509.Certificate{direct}, x509.ExtKeyUsageClientAuth) == nil,
			v.verify([]*x509.Certificate{through, middle.cert}, x509.ExtKeyUsageClientAuth) == nil,
		}
		if got != want {
			t.Errorf("depth %d: %v, want %v", depth, got, want)
		}
	}
}

// guarded names a chain and puts the filter before its others that looks at which chain
// a request for a host came through.
func guarded(name, rules string, c *listenerv3.FilterChain) *listenerv3.FilterChain {
	c.Name = name
	state := fromJSON(&setfilterstatev3.Config{}, `{"onNewConnection":[{"objectKey":"chain","factoryKey":"envoy.string","formatString":{"textFormatSource":{"inlineString":"%FILTER_CHAIN_NAME%"}}}]}`)
	manager := connectionManager()
	manager.HttpFilters = append([]*hcmv3.HttpFilter{{Name: "guard", ConfigType: &hcmv3.HttpFilter_TypedConfig{TypedConfig: pack(fromJSON(&rbacv3.RBAC{}, rules))}}}, manager.HttpFilters...)
	c.Filters = []*listenerv3.Filter{
		{Name: "state", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(state)}},
		{Name: "hcm", ConfigType: &listenerv3.Filter_TypedConfig{TypedConfig: pack(manager)}},
	}
	return c
}

func TestAHostIsReachedThroughItsOwnHandshakeOnly(t *testing.T) {
	ca, clients := newAuthority(t, "ca"), newAuthority(t, "clients")
	host := func(kind, text string) string {
		return `{"header":{"name":":authority","stringMatch":{"` + kind + `":"` + text + `","ignoreCase":true}}}`
	}
	rules := `{"rules":{"action":"DENY","policies":{"m":{"permissions":[` + host("exact", "m.test") + `,{"andRules":{"rules":[` + host("suffix", ".w.test") +
		`,{"notRule":{"orRules":{"rules":[` + host("exact", "own.w.test") + `]}}}]}}],
		"principals":[{"notId":{"filterState":{"key":"chain","stringMatch":{"exact":"ssl/m"}}}}]}}}}`
	l := newLab(t, ca.certificate(t, "ssl/m", "m", "m.test", "*.w.test"), ca.certificate(t, "ssl/o", "o", "o.test"), clients.validation("ssl/m/ca"),
		httpsListener(guarded("ssl/m", rules, chain("ssl/m", "ssl/m/ca", "m.test", "*.w.test")), guarded("ssl/o", rules, chain("ssl/o", "", "o.test"))),
		catchAll(tag("it", `{"prefix":"/"}`)))
	for _, test := range []struct {
		sni, host string
		want      int
	}{
		{"m.test", "m.test", 200}, {"m.test", "a.w.test", 200}, {"m.test", "o.test", 200}, {"a.w.test", "M.test:443", 200},
		{"o.test", "o.test", 200}, {"o.test", "m.test", 403}, {"o.test", "M.Test:8443", 403}, {"o.test", "a.w.test", 403}, {"o.test", "own.w.test", 200}, {"o.test", "w.test", 200},
	} {
		conn, err := l.dialTLS(&tls.Config{ServerName: test.sni, RootCAs: ca.pool(), Certificates: []tls.Certificate{clients.pair(t, "client")}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: "+test.host+"\r\nConnection: close\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || resp.StatusCode != test.want {
			t.Errorf("%s through %s: %v %v, want %d", test.host, test.sni, resp, err, test.want)
		}
		_ = conn.Close()
	}
}

func TestHTTP2IsAgreedOnByALPN(t *testing.T) {
	ca := newAuthority(t, "ca")
	l := newLab(t, ca.certificate(t, "ssl/1", "one", "one.test"), httpsListener(chain("ssl/1", "", "one.test")), catchAll(tag("it", `{"prefix":"/"}`)))
	rt := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: ca.pool()}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, network, l.gw.Addr("https").String())
		},
	}
	defer rt.CloseIdleConnections()
	req, err := http.NewRequestWithContext(t.Context(), "GET", "https://one.test/", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := rt.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 || resp.Header.Get("X-Route") != "it" {
		t.Errorf("%s %v", resp.Proto, resp.Header)
	}
}

// tlsEcho starts an echo upstream that speaks TLS and asks for client certificates.
func tlsEcho(t *testing.T, cert tls.Certificate, clients *authority, h2 bool) string {
	t.Helper()
	s := httptest.NewUnstartedServer(echoHandler("tls"))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	if clients != nil {
		s.TLS.ClientAuth, s.TLS.ClientCAs = tls.RequireAndVerifyClientCert, clients.pool()
	}
	s.EnableHTTP2 = h2
	s.Config.ErrorLog = discardLog
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL
}

// tlsTo sets TLS towards the upstream from the JSON of an UpstreamTlsContext.
func tlsTo(json string) func(*cfg, *opts) {
	return func(c *cfg, _ *opts) {
		c.TransportSocket = &corev3.TransportSocket{Name: "tls", ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: pack(fromJSON(&tlsv3.UpstreamTlsContext{}, json))}}
	}
}

func TestTLSToUpstreams(t *testing.T) {
	ca, strangers := newAuthority(t, "ca"), newAuthority(t, "strangers")
	good := tlsEcho(t, ca.pair(t, "up", "up.test", "127.0.0.1"), nil, false)
	secured := tlsEcho(t, ca.pair(t, "up", "up.test"), ca, false)
	h2 := tlsEcho(t, ca.pair(t, "up", "up.test"), nil, true)
	trust := func(a *authority) string {
		return `"validationContext":{"trustedCa":{"inlineString":` + quote(a.pem) + `}`
	}
	auto := options(`{"upstreamHttpProtocolOptions":{"autoSni":true}}`)
	verified := options(`{"upstreamHttpProtocolOptions":{"autoSni":true,"autoSanValidation":true}}`)
	for name, test := range map[string]struct {
		addr  string
		edit  []func(*cfg, *opts)
		host  string
		want  string // status, SNI, client
		proto string
	}{
		"no verification":                    {good, []func(*cfg, *opts){tlsTo(`{}`), auto}, "any.test", `200 "any.test" ""`, "HTTP/1.1"},
		"an IP address is no SNI":            {good, []func(*cfg, *opts){tlsTo(`{}`), auto}, "127.0.0.1", `200 "" ""`, "HTTP/1.1"},
		"a fixed SNI":                        {good, []func(*cfg, *opts){tlsTo(`{"sni":"fixed.test"}`)}, "any.test", `200 "fixed.test" ""`, "HTTP/1.1"},
		"a trusted certificate for the host": {good, []func(*cfg, *opts){tlsTo(`{"commonTlsContext":{` + trust(ca) + `}}}`), verified}, "up.test", `200 "up.test" ""`, "HTTP/1.1"},
		"for another host":                   {good, []func(*cfg, *opts){tlsTo(`{"commonTlsContext":{` + trust(ca) + `}}}`), verified}, "other.test", `503`, ""},
		"a stranger's":                       {good, []func(*cfg, *opts){tlsTo(`{"commonTlsContext":{` + trust(strangers) + `}}}`), auto}, "up.test", `503`, ""},
		"by its name":                        {good, []func(*cfg, *opts){tlsTo(`{"commonTlsContext":{` + trust(ca) + `,"matchTypedSubjectAltNames":[{"sanType":"DNS","matcher":{"exact":"up.test"}}]}}}`)}, "x.test", `200 "" ""`, "HTTP/1.1"},
		"by its address":                     {good, []func(*cfg, *opts){tlsTo(`{"commonTlsContext":{` + trust(ca) + `,"matchTypedSubjectAltNames":[{"sanType":"IP_ADDRESS","matcher":{"exact":"127.0.0.1"}}]}}}`)}, "x.test", `200 "" ""`, "HTTP/1.1"},
		"not by another name":                {good, []func(*cfg, *opts){tlsTo(`{"commonTlsContext":{` + trust(ca) + `,"matchTypedSubjectAltNames":[{"sanType":"DNS","matcher":{"exact":"down.test"}}]}}}`)}, "x.test", `503`, ""},
		"with a client certificate":          {secured, []func(*cfg, *opts){tlsTo(`{"commonTlsContext":{"tlsCertificateSdsSecretConfigs":[{"name":"c/tls","sdsConfig":{"ads":{},"resourceApiVersion":"V3"}}]}}`), auto}, "up.test", `200 "up.test" "gateway"`, "HTTP/1.1"},
		"without the one it wants":           {secured, []func(*cfg, *opts){tlsTo(`{}`), auto}, "up.test", `503`, ""},
		"HTTP/2": {h2, []func(*cfg, *opts){tlsTo(`{"commonTlsContext":{"alpnProtocols":["h2"]}}`), auto,
			options(`{"explicitHttpConfig":{"http2ProtocolOptions":{}}}`)}, "up.test", `200 "up.test" ""`, "HTTP/2.0"},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, res("c", clusterOf("c", test.edit...)), assignmentOf("c", test.addr), ca.certificate(t, "c/tls", "gateway"), catchAll(to("/", "c")))
			a := l.do("GET", "/", hostIs(test.host))
			got, proto := fmt.Sprint(a.status), ""
			if a.seen != nil {
				got, proto = fmt.Sprintf("%d %q %q", a.status, a.seen.SNI, a.seen.Peer), a.seen.Proto
			}
			if got != test.want || proto != test.proto {
				t.Errorf("%s %s, want %s %s", got, proto, test.want, test.proto)
			}
		})
	}
}

func TestConnectionsOfOneAddressAreKeptApartBySNI(t *testing.T) {
	ca := newAuthority(t, "ca")
	up := tlsEcho(t, ca.pair(t, "up"), nil, false)
	l := newLab(t, res("c", clusterOf("c", tlsTo(`{}`), options(`{"upstreamHttpProtocolOptions":{"autoSni":true}}`))), assignmentOf("c", up), catchAll(to("/", "c")))
	for range 2 {
		for _, h := range []string{"one.test", "two.test"} {
			if s := l.do("GET", "/", hostIs(h)).seen; s.SNI != h || s.Host != h {
				t.Errorf("%s: SNI %q, Host %q", h, s.SNI, s.Host)
			}
		}
	}
}

func quote(s string) string { return `"` + strings.ReplaceAll(s, "\n", `\n`) + `"` }
