package dataplane

import (
	"bufio"
	"crypto/cipher"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
)

// cache keeps the last known good configuration of one group on disk: a base file
// with all of it and a journal of the changes since, per generation. The
// generation before is kept, in case the newest base is damaged: its journal leads
// to where the newest base begins. A floor file remembers the highest epoch.
//
// It is used from the goroutine of Client.Run.
type cache struct {
	dir, prefix, group string
	aead               cipher.AEAD
	log                *slog.Logger
	lock               *os.File

	// Of a write-ahead cache: what a state must satisfy, and that the floor is
	// written with each state.
	check  func(*State) error
	strict bool

	floor      version  // of the newest that was written
	floorLost  bool     // it could not be read
	floorSlot  *os.File // the floor's file once this process has written it
	loaded     uint64   // the generation that was loaded; kept until there are two newer ones
	generation uint64   // the newest, readable or not
	journal    *os.File
	frames     *frameWriter
	baseBytes  int
}

// journalMin is the size below which a journal is never folded into a new base.
const journalMin = 1 << 20

// ErrCacheInUse is returned by Run when another process uses the same group's
// files in CacheDir.
var ErrCacheInUse = errors.New("dataplane: the cache is in use by another process")

func openCache(dir, group string, key []byte, log *slog.Logger) (*cache, error) {
	aead, err := cacheAEAD(key)
	if err != nil {
		return nil, fmt.Errorf("dataplane: cache key: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("dataplane: cache: %w", err)
	}
	c := &cache{dir: dir, prefix: escapeName(group), group: group, aead: aead, log: log}
	c.lock, err = os.OpenFile(c.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("dataplane: cache: %w", err)
	}
	if err := lockFile(c.lock); err != nil {
		_ = c.lock.Close() // nothing was written
		return nil, fmt.Errorf("%w: %s", ErrCacheInUse, c.path("lock"))
	}
	c.removeTemporary()
	return c, nil
}

// escapeName makes a group's name a file's: none is outside, hidden or has a dot.
func escapeName(group string) string { return strings.ReplaceAll(url.PathEscape(group), ".", "%2E") }

// removeTemporary removes what a process left that died while it wrote.
func (c *cache) removeTemporary() {
	left, err := filepath.Glob(filepath.Join(escapeGlob(c.dir), escapeGlob(c.prefix)+".*.tmp*"))
	if err != nil {
		c.log.Warn("temporary cache files not found", "error", err)
	}
	for _, path := range left {
		if err := os.Remove(path); err != nil {
			c.log.Warn("temporary cache file not removed", "file", path, "error", err)
		}
	}
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(s)
}

func (c *cache) close() error {
	var err error
	if c.journal != nil {
		err = c.journal.Close()
		c.journal = nil
	}
	c.closeFloor()
	return errors.Join(err, c.lock.Close())
}

func (c *cache) path(suffix string) string { return filepath.Join(c.dir, c.prefix+"."+suffix) }

func (c *cache) basePath(generation uint64) string {
	return c.path(strconv.FormatUint(generation, 10) + ".base")
}

func (c *cache) journalPath(generation uint64) string {
	return c.path(strconv.FormatUint(generation, 10) + ".journal")
}

// load returns the newest configuration on disk that can be trusted.
func (c *cache) load() (*State, bool) {
	c.readFloor()
	for _, generation := range c.generations() {
		c.generation = max(c.generation, generation)
		s, err := c.loadGeneration(generation)
		if err != nil {
			c.log.Error("cached configuration refused", "file", c.basePath(generation), "reason", err)
			continue
		}
		if s.Epoch() == c.floor.Epoch && s.Revision() < c.floor.Revision {
			c.log.Warn("cached configuration is older than the newest that was written",
				"file", c.basePath(generation), "revision", s.Revision(), "newest", c.floor.Revision)
		}
		c.loaded = generation
		return s, true
	}
	return nil, false
}

// generations returns those on disk, newest first.
func (c *cache) generations() []uint64 {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		c.log.Error("cache directory cannot be read", "dir", c.dir, "error", err)
		return nil
	}
	var out []uint64
	for _, e := range entries {
		middle, ok := strings.CutPrefix(e.Name(), c.prefix+".")
		if !ok {
			continue
		}
		if number, ok := strings.CutSuffix(middle, ".base"); ok {
			if g, err := strconv.ParseUint(number, 10, 64); err == nil {
				out = append(out, g)
			}
		}
	}
	slices.Sort(out)
	slices.Reverse(out)
	return out
}

func (c *cache) loadGeneration(generation uint64) (*State, error) {
	f, err := os.Open(c.basePath(generation))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	s, h, err := readBase(f, c.group, c.aead)
	switch {
	case err != nil:
		return nil, err
	case h.Generation != generation:
		return nil, fmt.Errorf("%w: generation %d under the name of %d", errNotCache, h.Generation, generation)
	}
	if s, err = c.replay(generation, s).decodeManifest(); err != nil {
		return nil, fmt.Errorf("%w: its manifest: %w", errNotCache, err)
	}
	if c.check != nil {
		if err := c.check(s); err != nil {
			return nil, err
		}
	}
	if s.Epoch() < c.floor.Epoch {
		return nil, fmt.Errorf("%w: %d, seen %d", errOlderEpoch, s.Epoch(), c.floor.Epoch)
	}
	return s, nil
}

// replay applies the journal of a generation as far as it is whole. A record that
// was being written when the process died is no fault.
func (c *cache) replay(generation uint64, s *State) *State {
	path := c.journalPath(generation)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return s
	}
	refuse := func(reason error) {
		c.log.Error("rest of the cached changes refused", "file", path, "reason", reason, "revision", s.Revision())
	}
	if err != nil {
		refuse(err)
		return s
	}
	defer f.Close()
	fr, h, err := newFrameReader(f, c.group, c.aead)
	if err == nil && (h.Kind != "journal" || h.Generation != generation || h.Epoch != s.Epoch() || h.Revision != s.Revision()) {
		err = fmt.Errorf("%w: it does not continue the base", errNotCache)
	}
	for err == nil {
		var payload []byte
		if payload, err = fr.read(); err != nil {
			break
		}
		var rec cacheRecord
		if rec, err = decodeRecord(payload); err != nil {
			break
		}
		for _, change := range rec.Changes {
			s = applyChange(s, change)
		}
		s = s.at(rec.Epoch, rec.Revision)
	}
	if !errors.Is(err, io.EOF) {
		refuse(err)
	}
	return s
}

// write makes the step from before to after durable.
func (c *cache) write(before, after *State, u *Update) CacheWritten {
	started := time.Now()
	var w CacheWritten
	if c.frames == nil || c.frames.n > max(journalMin, c.baseBytes) {
		w.Full = true
		w.Bytes, w.Err = c.rotate(after)
	} else {
		w.Bytes, w.Err = c.append(before, after, u)
	}
	if w.Err != nil {
		// The journal may end in half a record: continue in a new generation.
		c.dropJournal()
	}
	w.Took = time.Since(started)
	return w
}

// append writes one record.
func (c *cache) append(before, after *State, u *Update) (int, error) {
	rec := cacheRecord{Epoch: after.Epoch(), Revision: after.Revision()}
	for typeURL, t := range u.Types {
		change := &discoveryv3.DeltaDiscoveryResponse{TypeUrl: typeURL, RemovedResources: t.Remove}
		for name := range t.Upsert {
			// A refused resource stands at its last good version.
			now, ok := after.Get(typeURL, name)
			if was, had := before.Get(typeURL, name); ok && !(had && was == now) {
				change.Resources = append(change.Resources, wireResource(now))
			}
		}
		rec.Changes = append(rec.Changes, change)
	}
	if m, ok := after.Get(ManifestType, manifestResource); ok && after.Manifest() != before.Manifest() {
		rec.Changes = append(rec.Changes, &discoveryv3.DeltaDiscoveryResponse{
			TypeUrl: ManifestType, Resources: []*discoveryv3.Resource{wireResource(m)},
		})
	}
	payload, err := rec.encode()
	if err != nil {
		return 0, err
	}
	if rec.Epoch > c.floor.Epoch {
		if err := c.writeFloor(rec.Epoch, rec.Revision); err != nil {
			return 0, err
		}
	}
	size := c.frames.n
	if err := c.frames.write(payload); err != nil {
		return c.frames.n - size, err
	}
	err = syncData(c.journal)
	if err == nil && c.strict {
		err = c.writeFloor(rec.Epoch, rec.Revision)
	}
	return c.frames.n - size, err
}

// rotate begins a new generation with a base file of its own.
func (c *cache) rotate(s *State) (int, error) {
	c.dropJournal()
	keep := c.loaded
	generation := c.generation + 1
	h := cacheHeader{Kind: "base", Group: c.group, Epoch: s.Epoch(), Revision: s.Revision(), Generation: generation}
	n, err := writeAtomically(c.basePath(generation), func(w io.Writer) (int, error) {
		return writeBase(w, h, s, c.aead)
	})
	if err != nil {
		return n, err
	}
	c.baseBytes = n
	if err := c.writeFloor(s.Epoch(), s.Revision()); err != nil {
		return n, err
	}
	c.generation, c.loaded = generation, generation
	h.Kind = "journal"
	c.journal, err = os.OpenFile(c.journalPath(generation), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return n, err
	}
	if c.frames, err = newFrameWriter(c.journal, h, c.aead); err != nil {
		return n, err
	}
	if err := c.journal.Sync(); err != nil {
		return n, err
	}
	if err := syncDir(c.dir); err != nil {
		return n, err
	}
	c.prune(keep)
	return n, nil
}

func (c *cache) dropJournal() {
	if c.journal != nil {
		_ = c.journal.Close() // every record was synced
	}
	c.journal, c.frames = nil, nil
}

// prune removes all generations but the newest and the one it was made from.
func (c *cache) prune(keep uint64) {
	for _, g := range c.generations() {
		if g == c.generation || g == keep {
			continue
		}
		for _, path := range []string{c.basePath(g), c.journalPath(g)} {
			if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				c.log.Warn("old cached configuration not removed", "file", path, "error", err)
			}
		}
	}
}

// writeAtomically writes a file that is there whole, or not at all, with mode 0600.
func writeAtomically(path string, write func(io.Writer) (int, error)) (n int, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".tmp*") // mode 0600
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name()) // the write's error is the one that matters
		}
	}()
	w := bufio.NewWriterSize(f, 1<<18)
	n, err = write(w)
	if err == nil {
		err = w.Flush()
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	return n, err
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	err = d.Sync()
	if cerr := d.Close(); err == nil {
		err = cerr
	}
	return err
}

// persist makes a change of the state in service durable. A failure is logged and
// tried again with the next change; serving goes on.
func (c *Client) persist(before, after *State, u *Update) {
	if c.cache == nil {
		return
	}
	w := c.cache.write(before, after, u)
	if w.Err != nil {
		c.log.Error("configuration not kept on disk", "error", w.Err)
	}
	c.cfg.Hooks.cacheWritten(w)
}

func (c *Client) closeCache() {
	if err := c.cache.close(); err != nil {
		c.log.Warn("cache not closed", "error", err)
	}
}
