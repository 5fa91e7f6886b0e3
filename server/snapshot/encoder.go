package snapshot

import (
	"container/list"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// Frame is an encoded discovery response without its nonce, which each stream
// appends: the order of fields is free. Frames are immutable and shared.
type Frame struct {
	Bytes []byte
	// Upserts and Removed are what the response holds.
	Upserts []*Resource
	Removed []string
	// Gone are the names that were removed where the response holds upserts only;
	// of several responses those of the first.
	Gone []string
}

// Parts says which kinds of change a response holds.
type Parts uint8

// Upserts and removals go in one response or apart.
const (
	PartUpserts Parts = 1 << iota
	PartRemovals
	PartBoth = PartUpserts | PartRemovals
)

// EncoderConfig bounds an Encoder. The zero value means the defaults.
type EncoderConfig struct {
	// MaxBytes bounds what is kept for sharing, in bytes of responses. What is
	// dropped is encoded again when somebody needs it. Default 128 MiB.
	MaxBytes int64
	// MaxFrame is the size above which a response is split, in bytes. A resource
	// larger than that goes alone. Default 4 MiB less 64 KiB: grpc-go clients
	// refuse messages above 4 MiB unless told otherwise.
	MaxFrame int
	// TTL, when set, is how long clients keep each resource that they are not sent
	// again, or reminded of by a heartbeat. Without the Resource around it a
	// state-of-the-world resource has none.
	TTL time.Duration
}

// Encoder encodes each response once for all streams. All methods are safe for
// concurrent use.
type Encoder struct {
	maxBytes int64
	maxFrame int
	ttl      []byte // the encoded field of each Resource; empty for none

	hits, misses atomic.Uint64

	mu      sync.Mutex
	entries map[encodeKey]*list.Element // of *entry
	recent  list.List                   // most recently used first
	bytes   int64
}

// encodeKey names a response. Sets of one lineage and revision are the same, so
// that the revision stands for the set where the response comes from.
type encodeKey struct {
	typeURL string // types without resources share one empty set
	to      *Set
	from    uint64
	fresh   bool // from nothing
	parts   Parts
	form    form
}

type form uint8

const (
	formDelta form = iota
	formSotW
	formSotWWrapped
	formHeartbeat
	formSotWHeartbeat
)

type entry struct {
	key    encodeKey
	once   sync.Once
	frames []*Frame
	size   int64
	done   bool // guarded by Encoder.mu: counted in bytes
}

// maxEntries bounds the number of responses kept, however small they are.
const maxEntries = 4096

// NewEncoder returns an empty Encoder.
func NewEncoder(cfg EncoderConfig) *Encoder {
	if cfg.MaxBytes == 0 {
		cfg.MaxBytes = 128 << 20
	}
	if cfg.MaxFrame == 0 {
		cfg.MaxFrame = 4<<20 - 64<<10
	}
	return &Encoder{maxBytes: cfg.MaxBytes, maxFrame: cfg.MaxFrame, ttl: ttlField(cfg.TTL), entries: map[encodeKey]*list.Element{}}
}

// ttlField encodes Resource.ttl.
func ttlField(ttl time.Duration) []byte {
	if ttl <= 0 {
		return nil
	}
	d := protowire.AppendTag(nil, durationSeconds, protowire.VarintType)
	d = protowire.AppendVarint(d, uint64(ttl/time.Second))
	d = protowire.AppendTag(d, durationNanos, protowire.VarintType)
	d = protowire.AppendVarint(d, uint64(ttl%time.Second))
	b := protowire.AppendTag(nil, resourceTTL, protowire.BytesType)
	return protowire.AppendBytes(b, d)
}

// Field numbers of google.protobuf.Duration, and of the TTL.
const (
	resourceTTL     protowire.Number = 6
	durationSeconds protowire.Number = 1
	durationNanos   protowire.Number = 2
)

// Stats returns how many responses were shared and how many were encoded.
func (e *Encoder) Stats() (hits, misses uint64) { return e.hits.Load(), e.misses.Load() }

// Delta returns the DeltaDiscoveryResponses that lead from one set to another;
// from nil, everything. None is needed where nothing changed.
func (e *Encoder) Delta(typeURL string, from, to *Set, parts Parts) []*Frame {
	if from != nil && !from.ranges(to) {
		return e.delta(typeURL, from, to, parts) // rare: not worth keeping
	}
	key := encodeKey{typeURL: typeURL, to: to, parts: parts, fresh: from == nil}
	if from != nil {
		key.from = from.version.Revision
	}
	return e.get(key, func() []*Frame { return e.delta(typeURL, from, to, parts) })
}

func (e *Encoder) delta(typeURL string, from, to *Set, parts Parts) []*Frame {
	var up []*Resource
	var removed, gone []string
	for name, r := range to.Changes(from) {
		switch {
		case r != nil && parts&PartUpserts != 0:
			up = append(up, r)
		case r == nil && parts&PartRemovals != 0:
			removed = append(removed, name)
		case r == nil:
			gone = append(gone, name)
		}
	}
	frames := e.EncodeDelta(typeURL, to.String(), up, removed)
	frames[0].Gone = gone
	return frames
}

// SotW returns the DiscoveryResponse with every resource of the set, which
// cannot be split. Wrapped puts each resource into a Resource.
func (e *Encoder) SotW(typeURL string, to *Set, wrapped bool) *Frame {
	f := formSotW
	if wrapped {
		f = formSotWWrapped
	}
	return e.get(encodeKey{typeURL: typeURL, to: to, fresh: true, parts: PartBoth, form: f}, func() []*Frame {
		all := make([]*Resource, 0, to.Len())
		for r := range to.All() {
			all = append(all, r)
		}
		return []*Frame{e.EncodeSotW(typeURL, to.String(), all, wrapped)}
	})[0]
}

// Heartbeat returns responses that prolong the life of every resource of the set:
// names and versions without bodies. In the state-of-the-world protocol it is one.
func (e *Encoder) Heartbeat(typeURL string, set *Set, delta bool) []*Frame {
	key := encodeKey{typeURL: typeURL, to: set, fresh: true, form: formSotWHeartbeat}
	if delta {
		key.form = formHeartbeat
	}
	return e.get(key, func() []*Frame {
		all := make([]*Resource, 0, set.Len())
		for r := range set.All() {
			all = append(all, r)
		}
		return e.EncodeHeartbeat(typeURL, set.String(), all, delta)
	})
}

// EncodeHeartbeat is Heartbeat for some resources.
func (e *Encoder) EncodeHeartbeat(typeURL, version string, rs []*Resource, delta bool) []*Frame {
	bare := make([]*Resource, len(rs))
	for i, r := range rs {
		b := appendString(nil, resourceVersion, r.Version)
		b = appendString(b, resourceName, r.Name)
		bare[i] = &Resource{Name: r.Name, Version: r.Version, Encoded: b}
	}
	if delta {
		return e.EncodeDelta(typeURL, version, bare, nil)
	}
	return []*Frame{e.EncodeSotW(typeURL, version, bare, true)}
}

// get returns the frames of a key; one caller makes them, others wait for it.
func (e *Encoder) get(key encodeKey, encode func() []*Frame) []*Frame {
	e.mu.Lock()
	el, ok := e.entries[key]
	if ok {
		e.recent.MoveToFront(el)
	} else {
		el = e.recent.PushFront(&entry{key: key})
		e.entries[key] = el
	}
	e.mu.Unlock()
	en := el.Value.(*entry)
	if ok {
		e.hits.Add(1)
	}
	en.once.Do(func() {
		e.misses.Add(1)
		en.frames = encode()
		for _, f := range en.frames {
			en.size += int64(len(f.Bytes)) + int64(8*len(f.Upserts))
		}
		e.settle(en)
	})
	return en.frames
}

// settle counts a made entry and drops what is over the bounds.
func (e *Encoder) settle(en *entry) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, kept := e.entries[en.key]; !kept {
		return
	}
	en.done = true
	e.bytes += en.size
	for e.recent.Len() > 1 && (e.bytes > e.maxBytes || len(e.entries) > maxEntries) {
		last := e.recent.Remove(e.recent.Back()).(*entry)
		delete(e.entries, last.key)
		if last.done {
			e.bytes -= last.size
		}
	}
}

// Field numbers of DeltaDiscoveryResponse and DiscoveryResponse.
const (
	responseVersion   protowire.Number = 1
	responseResources protowire.Number = 2
	sotwTypeURL       protowire.Number = 4 // and DeltaDiscoveryResponse's
	deltaRemoved      protowire.Number = 6
	// ResponseNonce is the number of the nonce in both responses.
	ResponseNonce protowire.Number = 5
)

// EncodeDelta encodes DeltaDiscoveryResponses of resources and removals, the
// removals first where they do not fit into one. It returns one response at
// least.
func (e *Encoder) EncodeDelta(typeURL, version string, up []*Resource, removed []string) []*Frame {
	var frames []*Frame
	for first := true; first || len(up)+len(removed) > 0; first = false {
		size := sizeOf(responseVersion, len(version)) + sizeOf(sotwTypeURL, len(typeURL))
		fits := func(num protowire.Number, n, count int) bool {
			n = sizeOf(num, n)
			if count > 0 && size+n > e.maxFrame {
				return false
			}
			size += n
			return true
		}
		nr, nu := 0, 0
		for nr < len(removed) && fits(deltaRemoved, len(removed[nr]), nr) {
			nr++
		}
		if nr == len(removed) {
			for nu < len(up) && fits(responseResources, up[nu].size()+len(e.ttl), nr+nu) {
				nu++
			}
		}
		f := &Frame{Upserts: up[:nu:nu], Removed: removed[:nr:nr]}
		b := make([]byte, 0, size)
		b = appendString(b, responseVersion, version)
		b = appendString(b, sotwTypeURL, typeURL)
		for _, r := range f.Upserts {
			b = protowire.AppendTag(b, responseResources, protowire.BytesType)
			b = protowire.AppendVarint(b, uint64(r.size()+len(e.ttl)))
			b = append(r.appendTo(b), e.ttl...)
		}
		for _, name := range f.Removed {
			b = appendString(b, deltaRemoved, name)
		}
		f.Bytes = b
		frames = append(frames, f)
		up, removed = up[nu:], removed[nr:]
	}
	return frames
}

// EncodeSotW encodes a DiscoveryResponse of the resources.
func (e *Encoder) EncodeSotW(typeURL, version string, up []*Resource, wrapped bool) *Frame {
	size := sizeOf(responseVersion, len(version)) + sizeOf(sotwTypeURL, len(typeURL))
	for _, r := range up {
		size += sizeOf(responseResources, r.size()+len(e.ttl)+sizeOf(anyTypeURL, len(wrappedType))+8)
	}
	b := make([]byte, 0, size)
	b = appendString(b, responseVersion, version)
	b = appendString(b, sotwTypeURL, typeURL)
	for _, r := range up {
		b = protowire.AppendTag(b, responseResources, protowire.BytesType)
		if !wrapped {
			b = protowire.AppendBytes(b, r.Any())
			continue
		}
		size := r.size() + len(e.ttl)
		n := sizeOf(anyTypeURL, len(wrappedType)) + sizeOf(anyValue, size)
		b = protowire.AppendVarint(b, uint64(n))
		b = appendString(b, anyTypeURL, wrappedType)
		b = protowire.AppendTag(b, anyValue, protowire.BytesType)
		b = protowire.AppendVarint(b, uint64(size))
		b = append(r.appendTo(b), e.ttl...)
	}
	return &Frame{Bytes: b, Upserts: up}
}

// wrappedType is the type of resources with names and versions in
// state-of-the-world responses.
const wrappedType = "type.googleapis.com/envoy.service.discovery.v3.Resource"

func sizeOf(num protowire.Number, n int) int {
	return protowire.SizeTag(num) + protowire.SizeBytes(n)
}
