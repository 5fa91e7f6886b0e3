package atrest

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"

	"golang.org/x/crypto/chacha20poly1305"
)

// Sealer encrypts records one by one, with XChaCha20-Poly1305 under one key and
// random nonces, of which there are enough for all records that are ever written. It
// is safe for concurrent use.
type Sealer struct{ aead cipher.AEAD }

// sealedMagic begins each sealed record; the last byte is the format.
var sealedMagic = []byte{'m', 'e', 1}

// Overhead is by how many bytes a sealed record is longer.
const Overhead = 3 + chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead

// NewSealer makes a data key. It returns its Sealer and the key, encrypted.
func (k *Keys) NewSealer() (*Sealer, []byte, error) {
	key := make([]byte, chacha20poly1305.KeySize)
	_, _ = rand.Read(key) // which never fails
	wrapped, err := k.wrap(key)
	if err != nil {
		return nil, nil, err
	}
	s, err := newSealer(key)
	return s, wrapped, err
}

// OpenSealer returns the Sealer of an encrypted data key. When it was encrypted for
// another than the first of the keys, it is returned encrypted anew; else nil.
func (k *Keys) OpenSealer(wrapped []byte) (_ *Sealer, rewrapped []byte, err error) {
	key, err := k.unwrap(wrapped)
	if err != nil {
		return nil, nil, err
	}
	if _, err := k.only().unwrap(wrapped); errors.Is(err, ErrKey) {
		if rewrapped, err = k.wrap(key); err != nil {
			return nil, nil, err
		}
	}
	s, err := newSealer(key)
	return s, rewrapped, err
}

func newSealer(key []byte) (*Sealer, error) {
	aead, err := chacha20poly1305.NewX(key)
	if err != nil {
		return nil, fmt.Errorf("data key: %w", err)
	}
	return &Sealer{aead}, nil
}

func (k *Keys) wrap(key []byte) ([]byte, error) {
	var out bytes.Buffer
	w, err := k.Encrypt(&out)
	if err == nil {
		_, err = w.Write(key)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("encrypt the data key: %w", err)
	}
	return out.Bytes(), nil
}

func (k *Keys) unwrap(wrapped []byte) ([]byte, error) {
	r, err := k.Decrypt(bytes.NewReader(wrapped))
	if err != nil {
		return nil, fmt.Errorf("decrypt the data key: %w", err)
	}
	key, err := io.ReadAll(io.LimitReader(r, 1<<10))
	if err != nil {
		return nil, fmt.Errorf("decrypt the data key: %w", err)
	}
	return key, nil
}

// Seal encrypts a record and binds it to its place.
func (s *Sealer) Seal(record, place []byte) []byte {
	out := make([]byte, len(sealedMagic)+chacha20poly1305.NonceSizeX, Overhead+len(record))
	copy(out, sealedMagic)
	nonce := out[len(sealedMagic):]
	_, _ = rand.Read(nonce) // which never fails
	return s.aead.Seal(out, nonce, record, place)
}

// Sealed tells whether a record is sealed. Records that never begin like one may
// stand beside them.
func Sealed(record []byte) bool { return bytes.HasPrefix(record, sealedMagic) }

// errForged says that a sealed record is not what was written, or not in its place.
var errForged = errors.New("it is encrypted, and is not what was written there")

// Open decrypts a sealed record.
func (s *Sealer) Open(record, place []byte) ([]byte, error) {
	if len(record) < Overhead || !Sealed(record) {
		return nil, errForged
	}
	nonce, sealed := record[len(sealedMagic):][:chacha20poly1305.NonceSizeX], record[len(sealedMagic)+chacha20poly1305.NonceSizeX:]
	out, err := s.aead.Open(nil, nonce, sealed, place)
	if err != nil {
		return nil, errForged
	}
	return out, nil
}
