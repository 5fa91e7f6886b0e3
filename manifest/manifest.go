package manifest

import (
	"cmp"
	"crypto/ed25519"
	"crypto/x509"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Reasons not to trust a Manifest.
var (
	ErrUnsigned  = errors.New("the manifest is not signed")
	ErrSignature = errors.New("the manifest's signature is of no trusted key")
)

// Sign sets the Manifest's signature.
func Sign(m *musterv1.Manifest, key ed25519.PrivateKey) {
	m.Signature = ed25519.Sign(key, statement(m))
}

// Verify returns nil when the Manifest was signed with one of the keys.
func Verify(m *musterv1.Manifest, keys []ed25519.PublicKey) error {
	if len(m.GetSignature()) == 0 {
		return ErrUnsigned
	}
	said := statement(m)
	for _, key := range keys {
		if ed25519.Verify(key, said, m.GetSignature()) {
			return nil
		}
	}
	return ErrSignature
}

// statement is what is signed: every field in a fixed order, each with its length.
func statement(m *musterv1.Manifest) []byte {
	b := []byte("muster.v1.Manifest\x00")
	field := func(v []byte) {
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	field([]byte(m.GetGroup()))
	b = binary.BigEndian.AppendUint64(b, m.GetEpoch())
	b = binary.BigEndian.AppendUint64(b, m.GetRevision())
	types := slices.Clone(m.GetTypes())
	slices.SortStableFunc(types, func(a, b *musterv1.TypeDigest) int { return cmp.Compare(a.GetTypeUrl(), b.GetTypeUrl()) })
	for _, t := range types {
		field([]byte(t.GetTypeUrl()))
		b = binary.BigEndian.AppendUint64(b, t.GetCount())
		field(t.GetDigest())
	}
	return b
}

// ParsePrivateKey reads an Ed25519 key in PEM (PKCS #8), as
// `openssl genpkey -algorithm ed25519` writes it.
func ParsePrivateKey(text []byte) (ed25519.PrivateKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("no PEM block PRIVATE KEY: want an Ed25519 key in PKCS #8")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("a key of type %T: want Ed25519", parsed)
	}
	return key, nil
}

// ParsePublicKeys reads one or more Ed25519 public keys in PEM, as
// `openssl pkey -pubout` writes them. Several allow a change of the key.
func ParsePublicKeys(text []byte) ([]ed25519.PublicKey, error) {
	var keys []ed25519.PublicKey
	for {
		block, rest := pem.Decode(text)
		if block == nil {
			break
		}
		text = rest
		if block.Type != "PUBLIC KEY" {
			return nil, fmt.Errorf("a PEM block %s: want PUBLIC KEY only", block.Type)
		}
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, err
		}
		key, ok := parsed.(ed25519.PublicKey)
		if !ok {
			return nil, fmt.Errorf("a key of type %T: want Ed25519", parsed)
		}
		keys = append(keys, key)
	}
	if len(keys) == 0 {
		return nil, errors.New("no PEM block PUBLIC KEY")
	}
	return keys, nil
}
