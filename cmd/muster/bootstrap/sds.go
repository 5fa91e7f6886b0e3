package bootstrap

import (
	"errors"
	"fmt"
	"path/filepath"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// What an Envoy is told about its certificate by files of their own. Files that a
// bootstrap names itself Envoy reads once; those that a secret names it follows.
const (
	certificateSecret = "muster_certificate"
	authoritySecret   = "muster_authority"
	certificateFile   = "muster-certificate.yaml"
	authorityFile     = "muster-authority.yaml"
)

// SDSFiles returns the files that belong into TLS.SDSDir, by name; none without it.
// They hold names of files, and nothing secret.
func (e Envoy) SDSFiles() (map[string][]byte, error) {
	if e.TLS == nil || e.TLS.SDSDir == "" {
		return nil, nil
	}
	if err := e.TLS.check(); err != nil {
		return nil, err
	}
	files := map[string][]byte{}
	for name, secret := range map[string]*tlsv3.Secret{
		certificateFile: {Name: certificateSecret, Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
			CertificateChain: fileSource(e.TLS.CertFile), PrivateKey: fileSource(e.TLS.KeyFile), WatchedDirectory: watched(e.TLS.CertFile),
		}}},
		authorityFile: {Name: authoritySecret, Type: &tlsv3.Secret_ValidationContext{ValidationContext: &tlsv3.CertificateValidationContext{
			TrustedCa: fileSource(e.TLS.CAFile), WatchedDirectory: watched(e.TLS.CAFile),
		}}},
	} {
		body, err := anypb.New(secret)
		if err != nil {
			return nil, fmt.Errorf("envoy bootstrap: %w", err)
		}
		if files[name], err = toYAML(&discoveryv3.DiscoveryResponse{Resources: []*anypb.Any{body}}); err != nil {
			return nil, err
		}
	}
	return files, nil
}

func (t *TLS) check() error {
	if t.CAFile == "" || t.CertFile == "" || t.KeyFile == "" {
		return errors.New("envoy bootstrap: TLS needs a CA, a certificate and a key file")
	}
	return nil
}

// secrets puts the certificate and the authority into a context. names are whom the
// server must be.
func (t *TLS) secrets(c *tlsv3.CommonTlsContext, names []*tlsv3.SubjectAltNameMatcher) {
	if t.SDSDir == "" {
		c.TlsCertificates = []*tlsv3.TlsCertificate{{CertificateChain: fileSource(t.CertFile), PrivateKey: fileSource(t.KeyFile)}}
		c.ValidationContextType = &tlsv3.CommonTlsContext_ValidationContext{
			ValidationContext: &tlsv3.CertificateValidationContext{TrustedCa: fileSource(t.CAFile), MatchTypedSubjectAltNames: names},
		}
		return
	}
	c.TlsCertificateSdsSecretConfigs = []*tlsv3.SdsSecretConfig{t.secret(certificateSecret, certificateFile)}
	c.ValidationContextType = &tlsv3.CommonTlsContext_CombinedValidationContext{
		CombinedValidationContext: &tlsv3.CommonTlsContext_CombinedCertificateValidationContext{
			DefaultValidationContext:         &tlsv3.CertificateValidationContext{MatchTypedSubjectAltNames: names},
			ValidationContextSdsSecretConfig: t.secret(authoritySecret, authorityFile),
		},
	}
}

func (t *TLS) secret(name, file string) *tlsv3.SdsSecretConfig {
	return &tlsv3.SdsSecretConfig{Name: name, SdsConfig: &corev3.ConfigSource{
		ResourceApiVersion: corev3.ApiVersion_V3,
		ConfigSourceSpecifier: &corev3.ConfigSource_PathConfigSource{
			PathConfigSource: &corev3.PathConfigSource{Path: filepath.Join(t.SDSDir, file)},
		},
	}}
}

func fileSource(name string) *corev3.DataSource {
	return &corev3.DataSource{Specifier: &corev3.DataSource_Filename{Filename: name}}
}

// watched is the directory of a file: Envoy reads again when something is renamed
// into it.
func watched(file string) *corev3.WatchedDirectory {
	return &corev3.WatchedDirectory{Path: filepath.Dir(file)}
}

// toYAML returns a message as YAML, the same for the same message.
func toYAML(m proto.Message) ([]byte, error) {
	raw, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	out, err := yaml.JSONToYAML(raw)
	if err != nil {
		return nil, fmt.Errorf("envoy bootstrap: %w", err)
	}
	return out, nil
}
