package admin

import (
	"slices"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	tlsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/transport_sockets/tls/v3"
	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func sslOf(cert, key string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: "s", Snis: []string{"a.example"}, Cert: cert, Key: key}}}
}

func credential(t *testing.T, plugin string, config map[string]any) *musterv1.Resource {
	t.Helper()
	s, err := structpb.NewStruct(config)
	if err != nil {
		t.Fatal(err)
	}
	return &musterv1.Resource{Kind: &musterv1.Resource_Credential{Credential: &musterv1.Credential{
		Id: "k", Consumer: "ann", Plugins: map[string]*structpb.Struct{plugin: s},
	}}}
}

func rawSecret(t *testing.T, key string) *musterv1.Resource {
	t.Helper()
	packed, err := anypb.New(&tlsv3.Secret{Name: "raw", Type: &tlsv3.Secret_TlsCertificate{TlsCertificate: &tlsv3.TlsCertificate{
		PrivateKey: &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: key}},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	return &musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{Id: "x", Resource: packed}}}
}

func TestWhatWasReadMaskedCanBeWrittenBackUnchanged(t *testing.T) {
	for name, stored := range map[string]*musterv1.Resource{
		"a private key": sslOf("CERT", "KEY"),
		"a key":         credential(t, "key-auth", map[string]any{"key": "k-123"}),
		"names with dots": credential(t, "hmac-auth", map[string]any{
			"a.b": "one", "a": map[string]any{"b": "two", "c[0]": "three", "c": []any{"four"}}, `a"`: map[string]any{"": "five"},
		}),
		"a nested number":      credential(t, "hmac-auth", map[string]any{"secret_key": 42, "list": []any{"a", 1}}),
		"a raw message's key":  rawSecret(t, "KEY"),
		"several private keys": {Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: "s", Cert: "C", Key: "K", Certs: []string{"C2"}, Keys: []string{"K2"}}}},
	} {
		t.Run(name, func(t *testing.T) {
			put := resource.Redact(stored)
			if proto.Equal(put, stored) {
				t.Fatal("nothing was masked")
			}
			restored, unresolved := unmask(put, stored)
			if !restored || len(unresolved) != 0 {
				t.Fatalf("restored %v, unresolved %v", restored, unresolved)
			}
			if diff := cmp.Diff(stored, put, protocmp.Transform()); diff != "" {
				t.Fatalf("not what is stored (-stored +put):\n%s", diff)
			}
		})
	}
}

func TestAMaskKeepsOneSecretWhileAnotherIsReplaced(t *testing.T) {
	stored := credential(t, "jwt-auth", map[string]any{"key": "name", "secret": "old"})
	put := credential(t, "jwt-auth", map[string]any{"key": mask, "secret": "new"})
	if restored, unresolved := unmask(put, stored); !restored || len(unresolved) > 0 {
		t.Fatalf("restored %v, unresolved %v", restored, unresolved)
	}
	want := credential(t, "jwt-auth", map[string]any{"key": "name", "secret": "new"})
	if diff := cmp.Diff(want, put, protocmp.Transform()); diff != "" {
		t.Fatal(diff)
	}
}

func TestAMaskThatStandsForNothingIsTold(t *testing.T) {
	for name, c := range map[string]struct {
		put, stored *musterv1.Resource
		want        []string
	}{
		"nothing stored":        {sslOf("CERT", mask), nil, []string{"key"}},
		"another plugin stored": {credential(t, "key-auth", map[string]any{"key": mask}), credential(t, "basic-auth", map[string]any{"password": "p"}), []string{"plugins.key-auth.key"}},
	} {
		t.Run(name, func(t *testing.T) {
			if restored, unresolved := unmask(c.put, c.stored); restored || !slices.Equal(unresolved, c.want) {
				t.Fatalf("restored %v, unresolved %v, want %v", restored, unresolved, c.want)
			}
		})
	}
}

func TestTheMaskIsAnOrdinaryTextWhereNoSecretStands(t *testing.T) {
	put := sslOf("CERT", "KEY")
	put.GetSsl().Desc = mask
	if restored, unresolved := unmask(put, nil); restored || len(unresolved) > 0 || put.GetSsl().GetDesc() != mask {
		t.Fatalf("restored %v, unresolved %v", restored, unresolved)
	}
}

func TestADiffShowsThatASecretChangedButNotWhatItIs(t *testing.T) {
	before, after := sslOf("CERT", "KEY"), sslOf("CERT2", "KEY2")
	b, a := redactChange(before, after)
	if b.GetSsl().GetKey() != mask || a.GetSsl().GetKey() != maskChanged || a.GetSsl().GetCert() != "CERT2" {
		t.Fatalf("before %v, after %v", b, a)
	}
	if _, a := redactChange(before, sslOf("CERT2", "KEY")); a.GetSsl().GetKey() != mask {
		t.Fatalf("an unchanged key reads %q", a.GetSsl().GetKey())
	}
	if before.GetSsl().GetKey() != "KEY" || after.GetSsl().GetKey() != "KEY2" {
		t.Fatal("the stored objects were changed")
	}
	if b, a := redactChange(nil, after); b != nil || a.GetSsl().GetKey() != mask {
		t.Fatalf("created: before %v, after %v", b, a)
	}
}
