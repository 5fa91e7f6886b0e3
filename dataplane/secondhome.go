package dataplane

import (
	"bytes"
	"cmp"
	"context"
	"crypto/cipher"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// ObjectStore is what a second home needs of a bucket: named contents that are
// written whole or not at all. An implementation must be safe for concurrent use
// and end what it does with ctx. Package bucket has one for S3.
type ObjectStore interface {
	// List returns the objects whose names begin with prefix, in any order.
	List(ctx context.Context, prefix string) ([]Object, error)
	// Get returns a content, or ErrNoObject.
	Get(ctx context.Context, name string) ([]byte, error)
	// Put writes or replaces a content.
	Put(ctx context.Context, name string, content []byte) error
	// Delete removes an object; one that is not there is no error.
	Delete(ctx context.Context, name string) error
}

// Object is an object in an ObjectStore.
type Object struct {
	Name     string
	Size     int64 // in bytes
	Modified time.Time
}

// ErrNoObject is what ObjectStore.Get returns for a name that is not there.
var ErrNoObject = errors.New("there is no such object")

// SecondHomeConfig configures a SecondHome. Store is required.
type SecondHomeConfig struct {
	Store ObjectStore
	// Key, when set, encrypts what is written, and nothing else is accepted. It is
	// key material of at least 16 bytes, the same for those who write and who read.
	// Snapshots hold private keys: without it the store must be kept secret.
	Key []byte
	// ManifestKeys, when set, are the keys of which one must have signed the Manifest
	// of what is read.
	ManifestKeys []ed25519.PublicKey
	// Keep is how many revisions of a group are kept. Default: 5.
	Keep int
	// Interval is the shortest time between two writes of a group. Default: 10 s.
	Interval time.Duration
	// Timeout bounds each reading and each writing. Default: 30 s.
	Timeout time.Duration
}

// SecondHome keeps the last configurations of groups away from this machine, for
// data planes that find neither a server nor a file of their own. Every revision
// is an object of its own, in the format of the cache: an older one never takes
// the place of a newer one. It is safe for concurrent use, and for many processes.
type SecondHome struct {
	cfg  SecondHomeConfig
	aead cipher.AEAD
	// variant tells apart what belongs to the same groups and is for other readers.
	variant string
	writing chan struct{} // bounds the writes at once
}

// writesAtOnce bounds what a process with many groups does to a bucket.
const writesAtOnce = 2

// NewSecondHome returns a second home. Nothing is read or written yet.
func NewSecondHome(cfg SecondHomeConfig) (*SecondHome, error) {
	if cfg.Store == nil {
		return nil, errors.New("dataplane: a second home without a store")
	}
	if len(cfg.Key) > 0 && len(cfg.Key) < minCacheKey {
		return nil, ErrCacheKey
	}
	if cfg.Keep <= 0 {
		cfg.Keep = 5
	}
	orDefault(&cfg.Interval, 10*time.Second)
	orDefault(&cfg.Timeout, 30*time.Second)
	aead, err := cacheAEAD(cfg.Key)
	if err != nil {
		return nil, fmt.Errorf("dataplane: key of the second home: %w", err)
	}
	return &SecondHome{cfg: cfg, aead: aead, writing: make(chan struct{}, writesAtOnce)}, nil
}

// Variant returns the second home of another view of the same groups, which
// shares nothing with h but the store.
func (h *SecondHome) Variant(name string) *SecondHome {
	c := *h
	c.variant = "-" + name
	return &c
}

// KeptSnapshot is a snapshot in a second home, as its name tells.
type KeptSnapshot struct {
	Object
	// Group is the group's id.
	Group           string
	Epoch, Revision uint64
	// Relay tells that a relay wrote it: it is for relays and for data planes alike,
	// and has the Manifest that the server signed. Others are for data planes alone.
	Relay bool
}

func (k KeptSnapshot) version() version { return version{k.Epoch, k.Revision} }

// Kinds of snapshots: what a relay holds, and what a data plane holds.
const (
	kindRelay   = "relay"
	kindGateway = "gateway"
)

func kindOf(types []string) string {
	if slices.Contains(types, RelayType) {
		return kindRelay
	}
	return kindGateway
}

// objectName is the name of a snapshot. Names sort by version.
func (h *SecondHome) objectName(group, kind string, v version) string {
	return fmt.Sprintf("%s%010d.%020d.%s%s", groupPrefix(group), v.Epoch, v.Revision, kind, h.variant)
}

func groupPrefix(group string) string { return "groups/" + escapeName(group) + "/" }

func aliasName(word string) string { return "names/" + escapeName(word) }

// parseObject reads what a name tells; ok is false for names of others.
func (h *SecondHome) parseObject(group string, o Object) (k KeptSnapshot, ok bool) {
	parts := strings.Split(strings.TrimPrefix(o.Name, groupPrefix(group)), ".")
	if len(parts) != 3 {
		return k, false
	}
	k = KeptSnapshot{Object: o, Group: group, Relay: parts[2] == kindRelay+h.variant}
	var err1, err2 error
	k.Epoch, err1 = strconv.ParseUint(parts[0], 10, 64)
	k.Revision, err2 = strconv.ParseUint(parts[1], 10, 64)
	return k, err1 == nil && err2 == nil && (k.Relay || parts[2] == kindGateway+h.variant)
}

// Snapshots returns what there is of a group, by id or name: the newest first, and
// of one version first what a relay wrote.
func (h *SecondHome) Snapshots(ctx context.Context, group string) ([]KeptSnapshot, error) {
	id, err := h.Find(ctx, group)
	if err != nil {
		return nil, err
	}
	return h.list(ctx, id)
}

func (h *SecondHome) list(ctx context.Context, id string) ([]KeptSnapshot, error) {
	objects, err := h.cfg.Store.List(ctx, groupPrefix(id))
	if err != nil {
		return nil, fmt.Errorf("list the second home: %w", err)
	}
	var out []KeptSnapshot
	for _, o := range objects {
		if k, ok := h.parseObject(id, o); ok {
			out = append(out, k)
		}
	}
	slices.SortFunc(out, func(a, b KeptSnapshot) int {
		return cmp.Or(cmp.Compare(b.Epoch, a.Epoch), cmp.Compare(b.Revision, a.Revision), compareBool(b.Relay, a.Relay))
	})
	return out, nil
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// Find returns the id of a group that is named by id or by name. What it returns
// for a name that nobody wrote is the name.
func (h *SecondHome) Find(ctx context.Context, word string) (id string, err error) {
	b, err := h.cfg.Store.Get(ctx, aliasName(word))
	if errors.Is(err, ErrNoObject) {
		return word, nil
	}
	if err != nil {
		return "", fmt.Errorf("read the second home: %w", err)
	}
	fr, header, err := newFrameReader(bytes.NewReader(b), word, h.aead)
	if err == nil && header.Kind != "name" {
		err = errNotCache
	}
	var payload []byte
	if err == nil {
		payload, err = fr.read()
	}
	var a alias
	if err == nil {
		err = json.Unmarshal(payload, &a)
	}
	if err != nil {
		return "", fmt.Errorf("the name %q in the second home is refused: %w", word, noEOF(err))
	}
	return a.ID, nil
}

// alias is what stands under a group's name.
type alias struct {
	ID string `json:"id"`
}

func (h *SecondHome) writeAlias(ctx context.Context, word, id string) error {
	payload, err := json.Marshal(alias{id})
	if err != nil {
		return err
	}
	var b bytes.Buffer
	fw, err := newFrameWriter(&b, cacheHeader{Kind: "name", Group: word}, h.aead)
	if err != nil {
		return err
	}
	if err := fw.write(payload); err != nil {
		return err
	}
	return h.cfg.Store.Put(ctx, aliasName(word), b.Bytes())
}

// Reasons to refuse a snapshot of the second home.
var (
	errVersionName = errors.New("it is of another version than its name says")
	errContent     = errors.New("a resource is not what its version says")
	errOtherView   = errors.New("it was not written by a relay")
)

// Read returns a snapshot with the resources of the types; DefaultTypes when there
// are none. Its checksums, its group, its version, its Manifest and, with
// ManifestKeys, its signature must hold.
func (h *SecondHome) Read(ctx context.Context, k KeptSnapshot, types []string) (*State, error) {
	if len(types) == 0 {
		types = DefaultTypes()
	}
	if kindOf(types) == kindRelay && !k.Relay {
		return nil, errOtherView
	}
	b, err := h.cfg.Store.Get(ctx, k.Name)
	if err != nil {
		return nil, err
	}
	s, header, err := readBase(bytes.NewReader(b), k.Group, h.aead)
	if err != nil {
		return nil, err
	}
	if (version{header.Epoch, header.Revision}) != k.version() {
		return nil, fmt.Errorf("%w: %d.%d", errVersionName, header.Epoch, header.Revision)
	}
	if s, err = s.decodeManifest(); err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", errNotCache, err)
	}
	if !k.Relay {
		return s.only(types), s.verify(k.Group, types, h.cfg.ManifestKeys)
	}
	if s.Manifest() == nil {
		return nil, errNoManifest
	}
	if err := s.verify(k.Group, []string{RelayType}, h.cfg.ManifestKeys); err != nil {
		return nil, err
	}
	if kindOf(types) == kindRelay {
		return s, nil
	}
	return s.fromRelay(types), nil
}

// newest returns the newest snapshot of a group that can be trusted and is above a
// version; nil when there is none. What is refused is told to refuse.
func (h *SecondHome) newest(ctx context.Context, group string, types []string, above version, refuse func(KeptSnapshot, error)) (*State, error) {
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	kept, err := h.Snapshots(ctx, group)
	if err != nil {
		return nil, err
	}
	for _, k := range kept {
		if !above.below(k.version()) {
			break
		}
		if kindOf(types) == kindRelay && !k.Relay {
			continue
		}
		s, err := h.Read(ctx, k, types)
		if err == nil {
			return s, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		refuse(k, err)
	}
	return nil, nil
}

// kept is what a write did.
type kept struct {
	bytes int
	there bool   // it was there already
	newer string // the name of a newer one that is there
}

// keep writes a state as a snapshot of its version, unless that or a newer one is
// there, and removes those that are too many.
func (h *SecondHome) keep(ctx context.Context, group string, s *State, types []string) (kept, error) {
	select {
	case h.writing <- struct{}{}:
		defer func() { <-h.writing }()
	case <-ctx.Done():
		return kept{}, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(ctx, h.cfg.Timeout)
	defer cancel()
	kind, at := kindOf(types), version{s.Epoch(), s.Revision()}
	all, err := h.list(ctx, group)
	if err != nil {
		return kept{}, err
	}
	all = slices.DeleteFunc(all, func(k KeptSnapshot) bool { return k.Relay != (kind == kindRelay) })
	if len(all) > 0 && !all[0].version().below(at) {
		if at.below(all[0].version()) {
			return kept{newer: all[0].Name}, nil
		}
		return kept{there: true}, nil
	}
	var b bytes.Buffer
	if _, err := writeBase(&b, cacheHeader{Kind: "base", Group: group, Epoch: at.Epoch, Revision: at.Revision}, s, h.aead); err != nil {
		return kept{}, err
	}
	if err := h.cfg.Store.Put(ctx, h.objectName(group, kind, at), b.Bytes()); err != nil {
		return kept{}, fmt.Errorf("write to the second home: %w", err)
	}
	done := kept{bytes: b.Len()}
	for i, k := range all {
		if i+1 < h.cfg.Keep { // with the one just written
			continue
		}
		if err := h.cfg.Store.Delete(ctx, k.Name); err != nil {
			return done, fmt.Errorf("remove an old snapshot from the second home: %w", err)
		}
	}
	return done, nil
}
