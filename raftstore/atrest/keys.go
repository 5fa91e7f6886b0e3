package atrest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"

	"filippo.io/age"
)

// ErrKey says that none of the keys at hand decrypts something.
var ErrKey = errors.New("none of the keys at hand decrypts it")

// Keys are the keys of a key file. They are safe for concurrent use.
type Keys struct {
	identities []age.Identity
	recipient  age.Recipient // of the first
}

// Load reads a key file. It must be readable by its owner alone.
func Load(path string) (*Keys, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("key file %s has mode %#o and can be read by others; chmod 600 it", path, info.Mode().Perm())
	}
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	keys, err := Parse(text)
	if err != nil {
		return nil, fmt.Errorf("key file %s: %w", path, err)
	}
	return keys, nil
}

// Parse reads the content of a key file: a line for each identity, and comments
// that begin with #. Errors do not repeat what it says.
func Parse(text []byte) (*Keys, error) {
	identities, err := age.ParseIdentities(bytes.NewReader(text))
	if err != nil {
		// The parser's own words may hold a part of a key.
		return nil, errors.New("it is not a file of age identities, a line each that begins with AGE-SECRET-KEY-")
	}
	k := &Keys{identities: identities}
	switch first := identities[0].(type) {
	case *age.X25519Identity:
		k.recipient = first.Recipient()
	case *age.HybridIdentity:
		k.recipient = first.Recipient()
	default:
		return nil, fmt.Errorf("its first identity is a %T, which cannot encrypt", first)
	}
	return k, nil
}

// Generate returns the content of a new key file.
func Generate() ([]byte, error) {
	id, err := age.GenerateX25519Identity()
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	return fmt.Appendf(nil, "# public key: %s\n%s\n", id.Recipient(), id), nil
}

// streamMagic is how every age file begins.
const streamMagic = "age-encryption.org/v1\n"

// MagicSize is how many bytes IsStream looks at.
const MagicSize = len(streamMagic)

// IsStream tells by its first bytes whether something is encrypted.
func IsStream(head []byte) bool { return bytes.HasPrefix(head, []byte(streamMagic)) }

// Encrypt returns a writer that encrypts to w. What was written is whole only
// after its Close, which does not close w.
func (k *Keys) Encrypt(w io.Writer) (io.WriteCloser, error) { return age.Encrypt(w, k.recipient) }

// Decrypt returns a reader of what is encrypted in r. It gives out nothing that is
// not authentic; the error is ErrKey when it is for another key.
func (k *Keys) Decrypt(r io.Reader) (io.Reader, error) {
	out, err := age.Decrypt(r, k.identities...)
	return out, keyError(err)
}

// PlainSize is the size, in bytes, of what is encrypted in a file of some size.
func (k *Keys) PlainSize(r io.ReaderAt, size int64) (int64, error) {
	_, plain, err := age.DecryptReaderAt(r, size, k.identities...)
	return plain, keyError(err)
}

func keyError(err error) error {
	var other *age.NoIdentityMatchError
	if errors.As(err, &other) {
		return ErrKey
	}
	return err
}

// only are the keys that would be left without those of before.
func (k *Keys) only() *Keys { return &Keys{k.identities[:1], k.recipient} }
