package snapshot

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"math/bits"
)

// Digest is a sum modulo 2^256, least significant limb first. It identifies the
// content of a set, whatever the order of its resources.
type Digest [4]uint64

// digestOf is SHA-256(name, 0, content) as a number.
func digestOf(name, content string) Digest {
	buf := make([]byte, 0, 160)
	buf = append(buf, name...)
	buf = append(buf, 0)
	buf = append(buf, content...)
	sum := sha256.Sum256(buf)
	var d Digest
	for i := range d {
		d[i] = binary.BigEndian.Uint64(sum[24-8*i:])
	}
	return d
}

func (d *Digest) add(o Digest) {
	var carry uint64
	for i := range d {
		d[i], carry = bits.Add64(d[i], o[i], carry)
	}
}

func (d *Digest) sub(o Digest) {
	var borrow uint64
	for i := range d {
		d[i], borrow = bits.Sub64(d[i], o[i], borrow)
	}
}

// Bytes returns the sum as 32 big-endian bytes.
func (d Digest) Bytes() []byte {
	out := make([]byte, 32)
	for i := range d {
		binary.BigEndian.PutUint64(out[24-8*i:], d[i])
	}
	return out
}

// fingerprint is what Digest is, but cheap and of this process only: a client's
// whole map of versions is compared with a set by one addition per entry.
type fingerprint uint64

// seed makes fingerprints unpredictable to clients; it never changes.
var seed = maphash.MakeSeed()

// printOf is the fingerprint of a resource, of the hashes of its name and content.
func printOf(name, content uint64) fingerprint {
	return fingerprint(mix(name + 0x9e3779b97f4a7c15*bits.RotateLeft64(content, 31)))
}

func printOfName(name, content string) fingerprint {
	return printOf(maphash.String(seed, name), contentPrint(content))
}

// contentPrint is the hash of a content; the usual one is a hash already.
func contentPrint[T string | []byte](content T) uint64 {
	if len(content) != contentLen {
		return maphash.Bytes(seed, []byte(content))
	}
	// One load, and no bounds checked but this.
	_ = content[7]
	return uint64(content[0])<<56 | uint64(content[1])<<48 | uint64(content[2])<<40 | uint64(content[3])<<32 |
		uint64(content[4])<<24 | uint64(content[5])<<16 | uint64(content[6])<<8 | uint64(content[7])
}

// namePrint is the fingerprint of a name, of its hash.
func namePrint(name uint64) fingerprint { return fingerprint(mix(name)) }

func namePrintOf(name string) fingerprint { return namePrint(maphash.String(seed, name)) }

// mix spreads a hash over all bits, so that sums of mixed hashes are equal only
// where the summands are.
func mix(x uint64) uint64 {
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	x ^= x >> 32
	x *= 0xd6e8feb86659fd93
	return x ^ x>>32
}

// Tally sums up what a client says it holds, for comparison with sets. What is
// added must not change as long as the Tally is used.
type Tally struct {
	n     int
	print fingerprint
	names fingerprint

	// The last version and its bytes up to the content: the next is usually of the
	// same revision.
	last   Version
	prefix []byte
}

// Add counts a resource of the client's, by its name and version, and returns the
// version, where it is one of muster's.
func (t *Tally) Add(name, version []byte) (Version, bool) {
	var v Version
	var content []byte
	ok := len(t.prefix) > 0 && len(version) == len(t.prefix)+contentLen && bytes.HasPrefix(version, t.prefix)
	if ok {
		v, content = t.last, version[len(t.prefix):]
	} else if v, content, ok = ParseVersion(version); ok {
		t.last, t.prefix = v, version[:len(version)-len(content)]
	}
	h := maphash.Bytes(seed, name)
	t.n++
	t.print += printOf(h, contentPrint(content))
	t.names += namePrint(h)
	return v, ok
}

// Names sums up a set of names, for comparison with the names of a Set.
type Names struct {
	n   int
	sum fingerprint
}

// Add counts a name in; it must not be counted already.
func (n *Names) Add(name []byte) { n.n, n.sum = n.n+1, n.sum+namePrint(maphash.Bytes(seed, name)) }

// Remove counts a name out that was counted in.
func (n *Names) Remove(name []byte) { n.n, n.sum = n.n-1, n.sum-namePrint(maphash.Bytes(seed, name)) }

// Len returns the number of names.
func (n Names) Len() int { return n.n }

// Names returns the names that were tallied.
func (t Tally) Names() Names { return Names{t.n, t.names} }

// Names returns the names of the set.
func (t *Set) Names() Names { return Names{t.Len(), t.names} }
