package compile

import (
	"slices"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// Names of secrets. An ssl's further certificates count from 2.
func sslSecret(id string) string { return "ssl/" + id }

// sds names secrets that are discovered.
func sds(names ...string) []*tlsv3.SdsSecretConfig {
	out := make([]*tlsv3.SdsSecretConfig, len(names))
	for i, n := range names {
		out[i] = &tlsv3.SdsSecretConfig{Name: n, SdsConfig: ads()}
	}
	return out
}

func inline(s string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: s}}
}

func certificate(name, chain, key string) *tlsv3.Secret {
	return &tlsv3.Secret{Name: name, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		CertificateChain: inline(chain),
		PrivateKey:       inline(key),
	}}}
}

// secretsOf lists the secrets of an ssl: its certificates, then its client CA.
func secretsOf(s *musterv1.Ssl) []*tlsv3.Secret {
	id := s.GetId()
	secrets := []*tlsv3.Secret{certificate(sslSecret(id), s.GetCert(), s.GetKey())}
	for i, cert := range s.GetCerts() {
		if i < len(s.GetKeys()) {
			secrets = append(secrets, certificate(extraSecret(id, i), cert, s.GetKeys()[i]))
		}
	}
	if ca := s.GetClient().GetCa(); ca != "" {
		v := &tlsv3.CertificateValidationContext{TrustedCa: inline(ca)}
		if s.GetClient().Depth != nil {
			v.MaxVerifyDepth = wrapperspb.UInt32(uint32(max(0, s.GetClient().GetDepth())))
		}
		secrets = append(secrets, &tlsv3.Secret{Name: caSecret(id), Type: &tlsv3.Secret_ValidationContext{ValidationContext: v}})
	}
	return secrets
}

func extraSecret(id string, i int) string { return sslSecret(id) + "/" + strconv.Itoa(i+2) }
func caSecret(id string) string           { return sslSecret(id) + "/ca" }

// enabled tells whether a status of API7 means on.
func enabled(status *int32) bool { return status == nil || *status != 0 }

// serves tells whether an ssl has a filter chain.
func serves(s *musterv1.Ssl) bool { return s.GetType() != "client" && enabled(s.Status) }

// snisOf lists the names of an ssl as Envoy compares them.
func snisOf(s *musterv1.Ssl) []string {
	names := make([]string, len(s.GetSnis()))
	for i, n := range s.GetSnis() {
		names[i] = lower(n)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// refuseSsl reports what Envoy cannot do.
func refuseSsl(s *musterv1.Ssl) resource.Problems {
	var problems resource.Problems
	if len(s.GetClient().GetSkipMtlsUriRegex()) > 0 {
		problems = append(problems, resource.Problem{
			Path: "client.skip_mtls_uri_regex", Code: resource.CodeUnsupported,
			Message: "Envoy demands a client certificate before it knows the path",
			Hint:    "serve those paths under another SNI",
		})
	}
	for i, n := range s.GetSnis() {
		if n == "*" {
			problems = append(problems, resource.Problem{
				Path: "snis[" + strconv.Itoa(i) + "]", Code: resource.CodeUnsupported,
				Message: "a certificate for every name cannot be honoured", Hint: "name a domain, *.example.com",
			})
		}
	}
	return problems
}

// tlsVersions are the protocol versions that an ssl asks for, nil for Envoy's
// own, which are TLS 1.2 and 1.3.
func tlsVersions(protocols []string) *tlsv3.TlsParameters {
	has12, has13 := slices.Contains(protocols, "TLSv1.2"), slices.Contains(protocols, "TLSv1.3")
	switch {
	case has12 && !has13:
		return &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_2,
		}
	case has13 && !has12:
		return &tlsv3.TlsParameters{
			TlsMinimumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
			TlsMaximumProtocolVersion: tlsv3.TlsParameters_TLSv1_3,
		}
	}
	return nil
}

// chainOf is the filter chain of an ssl for those of its names that are its own.
func chainOf(s *musterv1.Ssl, snis []string) *listenerv3.FilterChain {
	names := []string{sslSecret(s.GetId())}
	for i := range min(len(s.GetCerts()), len(s.GetKeys())) {
		names = append(names, extraSecret(s.GetId(), i))
	}
	context := &tlsv3.DownstreamTlsContext{CommonTlsContext: &tlsv3.CommonTlsContext{
		AlpnProtocols:                  []string{"h2", "http/1.1"},
		TlsParams:                      tlsVersions(s.GetSslProtocols()),
		TlsCertificateSdsSecretConfigs: sds(names...),
	}}
	if s.GetClient().GetCa() != "" {
		context.RequireClientCertificate = wrapperspb.Bool(true)
		context.CommonTlsContext.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContextSdsSecretConfig{
			ValidationContextSdsSecretConfig: sds(caSecret(s.GetId()))[0],
		}
	}
	return &listenerv3.FilterChain{
		Name:             sslSecret(s.GetId()),
		FilterChainMatch: &listenerv3.FilterChainMatch{ServerNames: snis},
		TransportSocket: &corev3.TransportSocket{
			Name:       tlsSocket,
			ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(context)},
		},
	}
}
