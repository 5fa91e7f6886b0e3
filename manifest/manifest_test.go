package manifest

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

func example() *musterv1.Manifest {
	return &musterv1.Manifest{Epoch: 2, Revision: 7, Group: "edge", Types: []*musterv1.TypeDigest{
		{TypeUrl: "a", Count: 1, Digest: []byte{1}}, {TypeUrl: "b", Count: 2, Digest: []byte{2}},
	}}
}

func TestAChangedManifestIsNotTrusted(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	signed := example()
	Sign(signed, key)
	if err := Verify(signed, []ed25519.PublicKey{other, pub}); err != nil {
		t.Fatalf("a signed manifest: %v", err)
	}
	if err := Verify(signed, []ed25519.PublicKey{other}); !errors.Is(err, ErrSignature) {
		t.Errorf("with another key: %v", err)
	}
	if err := Verify(example(), []ed25519.PublicKey{pub}); !errors.Is(err, ErrUnsigned) {
		t.Errorf("without a signature: %v", err)
	}
	for name, change := range map[string]func(*musterv1.Manifest){
		"epoch":           func(m *musterv1.Manifest) { m.Epoch++ },
		"revision":        func(m *musterv1.Manifest) { m.Revision-- },
		"group":           func(m *musterv1.Manifest) { m.Group = "edg" },
		"type":            func(m *musterv1.Manifest) { m.Types[0].TypeUrl = "c" },
		"count":           func(m *musterv1.Manifest) { m.Types[1].Count++ },
		"digest":          func(m *musterv1.Manifest) { m.Types[1].Digest = []byte{3} },
		"a type dropped":  func(m *musterv1.Manifest) { m.Types = m.Types[:1] },
		"moved boundary":  func(m *musterv1.Manifest) { m.Types[0].TypeUrl, m.Types[0].Digest = "", []byte{1, 'a'} },
		"the signature":   func(m *musterv1.Manifest) { m.Signature[3] ^= 1 },
		"signature short": func(m *musterv1.Manifest) { m.Signature = m.Signature[:10] },
	} {
		m := proto.CloneOf(signed)
		change(m)
		if err := Verify(m, []ed25519.PublicKey{pub}); !errors.Is(err, ErrSignature) {
			t.Errorf("%s changed: %v", name, err)
		}
	}
	swapped := proto.CloneOf(signed)
	swapped.Types[0], swapped.Types[1] = swapped.Types[1], swapped.Types[0]
	if err := Verify(swapped, []ed25519.PublicKey{pub}); err != nil {
		t.Errorf("in another order: %v", err)
	}
}

func TestKeysAreReadFromPEM(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		t.Fatal(err)
	}
	privatePEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	publicPEM := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})
	if got, err := ParsePrivateKey(privatePEM); err != nil || !got.Equal(key) {
		t.Errorf("private key: %v", err)
	}
	if got, err := ParsePublicKeys(append(publicPEM, publicPEM...)); err != nil || len(got) != 2 || !got[1].Equal(pub) {
		t.Errorf("public keys: %d, %v", len(got), err)
	}
	for _, bad := range [][]byte{nil, []byte("x"), publicPEM} {
		if _, err := ParsePrivateKey(bad); err == nil {
			t.Errorf("%q was taken for a private key", bad)
		}
	}
	if _, err := ParsePublicKeys(privatePEM); err == nil {
		t.Error("a private key was taken for a public one")
	}
}
