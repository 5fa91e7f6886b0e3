package dataplane

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"strconv"
	"strings"
)

// digest is a sum modulo 2^256 of SHA-256 values, least significant limb first.
// Sums do not depend on the order of the summands and take one addition per
// changed resource to keep.
type digest [4]uint64

// resourceDigest is SHA-256(name, 0, content) as a number, where content is the
// content part of the version.
func resourceDigest(name, version string) digest {
	buf := make([]byte, 0, 128)
	buf = append(buf, name...)
	buf = append(buf, 0)
	buf = append(buf, contentOf(version)...)
	sum := sha256.Sum256(buf)
	return digestOf(sum[:])
}

// contentOf returns the part of a version `<epoch>.<revision>.<content>` that
// stands for the content: servers that started at different revisions number one
// content differently. Of a version of another form it returns all of it.
func contentOf(version string) string {
	const minContent = 8
	epoch, rest, ok := strings.Cut(version, ".")
	revision, content, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 || len(content) < minContent || strings.Contains(content, ".") {
		return version
	}
	for _, number := range []string{epoch, revision} {
		if _, err := strconv.ParseUint(number, 10, 64); err != nil {
			return version
		}
	}
	return content
}

func digestOf(bigEndian []byte) digest {
	var d digest
	for i := range d {
		d[i] = binary.BigEndian.Uint64(bigEndian[24-8*i:])
	}
	return d
}

func (d *digest) add(o digest) {
	var carry uint64
	for i := range d {
		d[i], carry = bits.Add64(d[i], o[i], carry)
	}
}

func (d *digest) sub(o digest) {
	var borrow uint64
	for i := range d {
		d[i], borrow = bits.Sub64(d[i], o[i], borrow)
	}
}

// bytes returns the sum as 32 big-endian bytes.
func (d digest) bytes() []byte {
	out := make([]byte, 32)
	for i := range d {
		binary.BigEndian.PutUint64(out[24-8*i:], d[i])
	}
	return out
}
