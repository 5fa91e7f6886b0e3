package auth

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
)

// KeyPrefix begins every generated key, so that a leaked one can be recognised.
const KeyPrefix = "mst-"

// maxKeyName bounds the name of a key, in bytes: it is kept with each revision.
const maxKeyName = 128

// ErrKeyFileMode says that others than the owner may read or write a key file.
var ErrKeyFileMode = errors.New("the key file is accessible to others; use mode 0600")

// GenerateKey returns a new key of 192 random bits.
func GenerateKey() string {
	var b [24]byte
	// crypto/rand.Read never fails since Go 1.24.
	_, _ = rand.Read(b[:])
	return KeyPrefix + base64.RawURLEncoding.EncodeToString(b[:])
}

// Key is one API key at rest.
type Key struct {
	Name string
	Role Role
	// Hash is the SHA-256 of the key. Keys carry 192 random bits, so a slow
	// hash would add cost for callers and nothing against guessing.
	Hash [sha256.Size]byte
}

// NewKey returns the key at rest for a secret.
func NewKey(name string, role Role, secret string) Key {
	return Key{Name: name, Role: role, Hash: sha256.Sum256([]byte(secret))}
}

// Keys is a set of API keys. Its methods may be called concurrently.
type Keys struct {
	set atomic.Pointer[[]Key]
}

// NewKeys returns a set of the given keys.
func NewKeys(keys ...Key) *Keys {
	k := &Keys{}
	k.Replace(keys)
	return k
}

// Replace swaps the whole set; requests under way keep the identity they have.
func (k *Keys) Replace(keys []Key) {
	set := slices.Clone(keys)
	k.set.Store(&set)
}

// Authenticate returns who a secret belongs to. It compares with every key, in
// constant time, so that its duration tells nothing about the keys.
func (k *Keys) Authenticate(secret string) (Identity, bool) {
	hash := sha256.Sum256([]byte(secret))
	var id Identity
	found := false
	for _, key := range *k.set.Load() {
		if subtle.ConstantTimeCompare(hash[:], key.Hash[:]) == 1 {
			id, found = Identity{Name: key.Name, Role: key.Role}, true
		}
	}
	return id, found
}

// Len returns the number of keys.
func (k *Keys) Len() int { return len(*k.set.Load()) }

type fileKey struct {
	Name   string `json:"name"`
	Role   string `json:"role"`
	SHA256 string `json:"sha256"`
}

// ReadKeys reads a key file: a JSON array of objects with name, role and
// sha256. It returns [ErrKeyFileMode] when others may access the file, and an
// error that is [fs.ErrNotExist] when there is none.
func ReadKeys(path string) ([]Key, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read API keys: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read API keys: %w", err)
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("read API keys: %s has mode %04o: %w", path, info.Mode().Perm(), ErrKeyFileMode)
	}
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	var raw []fileKey
	if err := dec.Decode(&raw); err != nil {
		return nil, fmt.Errorf("read API keys: %s: %w", path, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read API keys: %s: there is more text after the list", path)
	}
	keys := make([]Key, 0, len(raw))
	for i, r := range raw {
		key, err := r.key()
		if err == nil {
			if j := slices.IndexFunc(keys, func(k Key) bool { return k.Hash == key.Hash }); j >= 0 {
				err = fmt.Errorf("it is the same key as key %d, %q", j, keys[j].Name)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("read API keys: %s: key %d: %w", path, i, err)
		}
		keys = append(keys, key)
	}
	return keys, nil
}

func (r fileKey) key() (Key, error) {
	if strings.TrimSpace(r.Name) == "" {
		return Key{}, errors.New("name is missing")
	}
	if len(r.Name) > maxKeyName || strings.ContainsFunc(r.Name, unicode.IsControl) {
		return Key{}, fmt.Errorf("name is longer than %d bytes or holds a control character", maxKeyName)
	}
	role, err := ParseRole(r.Role)
	if err != nil {
		return Key{}, err
	}
	hash, err := hex.DecodeString(r.SHA256)
	if err != nil || len(hash) != sha256.Size {
		return Key{}, errors.New("sha256 is not 64 hexadecimal digits")
	}
	return Key{Name: r.Name, Role: role, Hash: [sha256.Size]byte(hash)}, nil
}

// WriteKeys replaces a key file atomically, with mode 0600.
func WriteKeys(path string, keys []Key) error {
	raw := make([]fileKey, 0, len(keys))
	for _, k := range keys {
		raw = append(raw, fileKey{Name: k.Name, Role: k.Role.String(), SHA256: hex.EncodeToString(k.Hash[:])})
	}
	data, err := json.MarshalIndent(raw, "", "  ")
	if err != nil {
		return fmt.Errorf("write API keys: %w", err)
	}
	// CreateTemp makes the file with mode 0600 before a byte is in it.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".keys-*")
	if err != nil {
		return fmt.Errorf("write API keys: %w", err)
	}
	defer os.Remove(tmp.Name())
	if _, err = tmp.Write(append(data, '\n')); err == nil {
		err = tmp.Sync()
	}
	if cerr := tmp.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write API keys: %w", err)
	}
	return nil
}

// LoadOrCreateKeys reads a key file, or makes one with a single admin key
// when there is none. The new key's secret is returned once; it is not kept.
func LoadOrCreateKeys(path string) (keys *Keys, secret string, err error) {
	list, err := ReadKeys(path)
	if err == nil {
		return NewKeys(list...), "", nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	}
	secret = GenerateKey()
	list = []Key{NewKey("admin", RoleAdmin, secret)}
	if err := WriteKeys(path, list); err != nil {
		return nil, "", err
	}
	return NewKeys(list...), secret, nil
}

// Follow rereads a key file whenever it changed, every interval until ctx ends:
// a key that is taken out stops working without a restart. A file that cannot be
// read, or holds no key, is logged and the last good keys stay.
func (k *Keys) Follow(ctx context.Context, path string, interval time.Duration, logger *slog.Logger) error {
	var last fileStamp // zero, so that a change before the call is taken too
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		if now := stampOf(path); now != last {
			k.reread(path, logger)
			last = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

func (k *Keys) reread(path string, logger *slog.Logger) {
	list, err := ReadKeys(path)
	if err == nil && len(list) == 0 {
		err = errors.New("it holds no key")
	}
	if err != nil {
		logger.Error("the API keys changed but cannot be used; keeping the last good ones", "file", path, "error", err)
		return
	}
	k.Replace(list)
	logger.Info("API keys loaded", "file", path, "keys", len(list))
}
