package compile

import (
	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	httpv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/upstreams/http/v3"

	"github.com/musterhq/muster/resource"
)

// SystemRoots is the file from which Envoy reads the certificate authorities it
// trusts; Debian, Ubuntu, Alpine and Envoy's own images have it. The embedded
// gateway takes it for the system's roots.
const SystemRoots = "/etc/ssl/certs/ca-certificates.crt"

const tlsSocket = "envoy.transport_sockets.tls"

// tls sets TLS towards the upstream. The secret, when there is one, is the
// client certificate that the upstream carries itself.
func (u *upstream) tls(cluster *clusterv3.Cluster, options *httpv3.HttpProtocolOptions, sch scheme) *tlsv3.Secret {
	t := u.GetTls()
	if !sch.tls {
		if t.GetClientCert() != "" || t.GetClientCertId() != "" || t.GetVerify() {
			u.problem(resource.CodeConflict, "tls", "the scheme does not use TLS", "set scheme to https or grpcs, or leave tls out")
		}
		return nil
	}
	common := &tlsv3.CommonTlsContext{}
	var secret *tlsv3.Secret
	switch {
	case t.GetClientCertId() != "":
		common.TlsCertificateSdsSecretConfigs = sds(sslSecret(t.GetClientCertId()))
	case t.GetClientCert() != "":
		secret = certificate(u.name+"/tls", t.GetClientCert(), t.GetClientKey())
		common.TlsCertificateSdsSecretConfigs = sds(secret.Name)
	}
	if sch.http2 {
		common.AlpnProtocols = []string{"h2"}
	}
	context := &tlsv3.UpstreamTlsContext{CommonTlsContext: common}
	u.serverName(context, options, sch)
	if t.GetVerify() {
		common.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{ValidationContext: u.validation(options)}
	}
	cluster.TransportSocket = &corev3.TransportSocket{
		Name:       tlsSocket,
		ConfigType: &corev3.TransportSocket_TypedConfig{TypedConfig: packed(context)},
	}
	return secret
}

// serverName sets the SNI to the host that is sent upstream, as API7 does.
func (u *upstream) serverName(context *tlsv3.UpstreamTlsContext, options *httpv3.HttpProtocolOptions, sch scheme) {
	if u.GetPassHost() != "node" {
		// Envoy takes the Host after rewriting, without the port; an IP is not sent.
		options.UpstreamHttpProtocolOptions = &corev3.UpstreamHttpProtocolOptions{AutoSni: true}
		return
	}
	hosts, standard := map[string]bool{}, true
	var name string
	for _, n := range u.GetNodes() {
		if _, ok := ipOf(n); ok {
			continue
		}
		hosts[n.GetHost()], name = true, n.GetHost()
		standard = standard && nodePort(n, sch) == sch.port()
	}
	switch {
	case len(hosts) == 0:
	case len(hosts) == 1:
		context.Sni = name
	case standard:
		context.AutoHostSni = true
	default:
		u.problem(resource.CodeUnsupported, "pass_host", "with TLS, several hosts and a port that is not the scheme's own, Envoy would send the port in the SNI", "use pass_host rewrite, or the port 443, or one upstream for each host")
	}
}

// validation verifies the upstream's certificate against the system's roots, for
// the host that is sent, or with pass_host node for the nodes' names.
func (u *upstream) validation(options *httpv3.HttpProtocolOptions) *tlsv3.CertificateValidationContext {
	v := &tlsv3.CertificateValidationContext{TrustedCa: &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: SystemRoots}}}
	if options.UpstreamHttpProtocolOptions != nil {
		options.UpstreamHttpProtocolOptions.AutoSanValidation = true
		return v
	}
	names := map[string]bool{}
	for _, n := range u.GetNodes() {
		name := unbracketed(n.GetHost())
		if names[name] {
			continue
		}
		names[name] = true
		kind := tlsv3.SubjectAltNameMatcher_DNS
		if _, ok := ipOf(n); ok {
			kind = tlsv3.SubjectAltNameMatcher_IP_ADDRESS
		}
		v.MatchTypedSubjectAltNames = append(v.MatchTypedSubjectAltNames, &tlsv3.SubjectAltNameMatcher{SanType: kind, Matcher: exactly(name)})
	}
	return v
}
