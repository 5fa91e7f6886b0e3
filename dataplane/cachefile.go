package dataplane

import (
	"bufio"
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// A cache file is the magic, then frames. Each frame is its length (4 bytes,
// big-endian, of the payload), the payload, and SHA-256(index, payload). The
// first frame is the header in JSON; with a key, the payload of the others is a
// nonce and the AES-256-GCM ciphertext, bound to the header and to the frame's
// place in the file.
//
// A file says the format that it was written in and the least that its reader must
// know. A change that older readers may ignore raises the first alone; any other
// raises both, and readers go on to read what was written before
// (testdata/format1 and its test).
const (
	cacheMagic    = "MUSTERLK"
	cacheFormat   = 1 // as written, and the newest that is read
	oldestFormat  = 1 // that is read
	maxCacheFrame = 1 << 30
)

// cacheHeader is the first frame of a file.
type cacheHeader struct {
	Format     int    `json:"format"`
	Requires   int    `json:"requires,omitempty"` // the least format a reader must know; absent: Format
	Kind       string `json:"kind"`               // "base" or "journal"
	Group      string `json:"group"`
	Epoch      uint64 `json:"epoch"`
	Revision   uint64 `json:"revision"`
	Generation uint64 `json:"generation"`
	Encrypted  bool   `json:"encrypted"`
}

func (h *cacheHeader) needs() int {
	if h.Requires > 0 {
		return h.Requires
	}
	return h.Format
}

// Reasons to refuse a file.
var (
	errNotCache     = errors.New("it is not a cache file")
	errCacheFormat  = errors.New("its format is of another version of this program")
	errTruncated    = errors.New("it is truncated")
	errChecksum     = errors.New("a checksum is wrong")
	errForeignGroup = errors.New("it belongs to another group")
	errOlderEpoch   = errors.New("its epoch is older than one seen before")
	errNoKey        = errors.New("it is encrypted and no key is configured")
	errWrongKey     = errors.New("it was encrypted with another key, or changed")
	errPlain        = errors.New("it is not encrypted although a key is configured")
)

// cacheAEAD derives the cipher from key material; nil without a key.
func cacheAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) == 0 {
		return nil, nil
	}
	derived, err := hkdf.Key(sha256.New, key, nil, "muster dataplane cache v1", 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// frameWriter writes a cache file.
type frameWriter struct {
	w      io.Writer
	aead   cipher.AEAD
	header []byte
	index  uint64
	n      int
}

func newFrameWriter(w io.Writer, h cacheHeader, aead cipher.AEAD) (*frameWriter, error) {
	h.Format, h.Encrypted = cacheFormat, aead != nil
	header, err := json.Marshal(h)
	if err != nil {
		return nil, err
	}
	fw := &frameWriter{w: w, aead: aead, header: header}
	if _, err := io.WriteString(w, cacheMagic); err != nil {
		return nil, err
	}
	fw.n = len(cacheMagic)
	return fw, fw.raw(header)
}

// write appends a frame, sealed if the file is encrypted.
func (fw *frameWriter) write(payload []byte) error {
	if fw.aead != nil {
		nonce := make([]byte, fw.aead.NonceSize(), fw.aead.NonceSize()+len(payload)+fw.aead.Overhead())
		if _, err := rand.Read(nonce); err != nil {
			return err
		}
		payload = fw.aead.Seal(nonce, nonce, payload, frameContext(fw.header, fw.index))
	}
	return fw.raw(payload)
}

func (fw *frameWriter) raw(payload []byte) error {
	frame := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(payload)+sha256.Size), uint32(len(payload)))
	frame = append(frame, payload...)
	sum := frameSum(fw.index, payload)
	frame = append(frame, sum[:]...)
	fw.index++
	n, err := fw.w.Write(frame)
	fw.n += n
	return err
}

// frameReader reads a cache file.
type frameReader struct {
	r      *bufio.Reader
	aead   cipher.AEAD
	header []byte
	index  uint64
}

// newFrameReader reads the header and checks that the file may be used at all.
func newFrameReader(r io.Reader, group string, aead cipher.AEAD) (*frameReader, cacheHeader, error) {
	var h cacheHeader
	fr := &frameReader{r: bufio.NewReaderSize(r, 1<<16), aead: aead}
	magic := make([]byte, len(cacheMagic))
	if _, err := io.ReadFull(fr.r, magic); err != nil || string(magic) != cacheMagic {
		return nil, h, errNotCache
	}
	header, err := fr.raw()
	if err != nil {
		return nil, h, noEOF(err)
	}
	if err := json.Unmarshal(header, &h); err != nil {
		return nil, h, fmt.Errorf("%w: %w", errNotCache, err)
	}
	fr.header = bytes.Clone(header)
	switch {
	case h.needs() > cacheFormat || h.Format < oldestFormat:
		return nil, h, fmt.Errorf("%w: it is %d and needs a reader of %d, this program reads %d to %d", errCacheFormat,
			h.Format, h.needs(), oldestFormat, cacheFormat)
	case h.Group != group:
		return nil, h, fmt.Errorf("%w: %q", errForeignGroup, h.Group)
	case h.Encrypted && aead == nil:
		return nil, h, errNoKey
	case !h.Encrypted && aead != nil:
		return nil, h, errPlain
	}
	return fr, h, nil
}

// read returns the next frame, io.EOF at the end of the file.
func (fr *frameReader) read() ([]byte, error) {
	index := fr.index
	payload, err := fr.raw()
	if err != nil || fr.aead == nil {
		return payload, err
	}
	if len(payload) < fr.aead.NonceSize() {
		return nil, errTruncated
	}
	nonce, sealed := payload[:fr.aead.NonceSize()], payload[fr.aead.NonceSize():]
	out, err := fr.aead.Open(nil, nonce, sealed, frameContext(fr.header, index))
	if err != nil {
		return nil, errWrongKey
	}
	return out, nil
}

func (fr *frameReader) raw() ([]byte, error) {
	var length [4]byte
	if _, err := io.ReadFull(fr.r, length[:]); err != nil {
		if errors.Is(err, io.EOF) {
			return nil, io.EOF
		}
		return nil, errTruncated
	}
	n := binary.BigEndian.Uint32(length[:])
	if n > maxCacheFrame {
		return nil, errChecksum
	}
	// Read through a buffer that grows: a wrong length must not allocate it all.
	var buf bytes.Buffer
	if _, err := io.CopyN(&buf, fr.r, int64(n)+sha256.Size); err != nil {
		return nil, errTruncated
	}
	payload, sum := buf.Bytes()[:n:n], buf.Bytes()[n:]
	want := frameSum(fr.index, payload)
	if !bytes.Equal(sum, want[:]) {
		return nil, errChecksum
	}
	fr.index++
	return payload, nil
}

func frameSum(index uint64, payload []byte) [sha256.Size]byte {
	h := sha256.New()
	_, _ = h.Write(binary.BigEndian.AppendUint64(nil, index)) // a hash never fails
	_, _ = h.Write(payload)
	return [sha256.Size]byte(h.Sum(nil))
}

// frameContext binds a sealed frame to its file and place.
func frameContext(header []byte, index uint64) []byte {
	sum := sha256.Sum256(header)
	return binary.BigEndian.AppendUint64(sum[:], index)
}

// noEOF turns the end of a file into the fault that it is in the middle of one.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return errTruncated
	}
	return err
}
