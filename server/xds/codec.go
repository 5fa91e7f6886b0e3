package xds

import (
	"sync"

	"google.golang.org/grpc/encoding"
	_ "google.golang.org/grpc/encoding/gzip"  // for clients that ask for it: relays on slow links
	_ "google.golang.org/grpc/encoding/proto" // the codec of everything that is not ours
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/musterhq/muster/server/snapshot"
)

// codec sends responses as shared bytes followed by the stream's nonce, and hands
// out requests as the bytes that came. Other messages go the usual way.
type codec struct {
	proto    encoding.CodecV2
	requests requestPool
}

func newCodec() *codec { return &codec{proto: encoding.GetCodecV2("proto")} }

func (*codec) Name() string { return "proto" }

// incoming is a request as received.
type incoming struct{ buffer mem.Buffer }

// outgoing is a response to send.
type outgoing struct {
	frame []byte
	nonce uint64
}

func (c *codec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(*outgoing)
	if !ok {
		return c.proto.Marshal(v)
	}
	return mem.BufferSlice{mem.SliceBuffer(m.frame), mem.SliceBuffer(nonceField(m.nonce))}, nil
}

// nonceField is the encoded nonce, which is field 5 of both kinds of response.
func nonceField(nonce uint64) []byte {
	b := make([]byte, 0, 16)
	b = protowire.AppendTag(b, snapshot.ResponseNonce, protowire.BytesType)
	b = append(b, 0)
	b = appendNonce(b, nonce)
	b[1] = byte(len(b) - 2)
	return b
}

func (c *codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(*incoming)
	if !ok {
		return c.proto.Unmarshal(data, v)
	}
	m.buffer = data.MaterializeToBuffer(&c.requests)
	return nil
}

// requestPool keeps the buffers of requests that came in more than one piece, which
// are the large ones of clients that come back. grpc's own pool clears a whole
// mebibyte for each of them.
type requestPool struct{ pool sync.Pool }

// maxKept bounds the size of the buffers that are kept.
const maxKept = 2 << 20

// Get implements mem.BufferPool.
func (p *requestPool) Get(n int) *[]byte {
	if b, ok := p.pool.Get().(*[]byte); ok && cap(*b) >= n {
		*b = (*b)[:n]
		return b
	}
	b := make([]byte, n, max(n, 32<<10))
	return &b
}

// Put implements mem.BufferPool.
func (p *requestPool) Put(b *[]byte) {
	if cap(*b) <= maxKept {
		p.pool.Put(b)
	}
}
