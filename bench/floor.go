package main

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"sync"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// floor streams pre-encoded responses and does nothing else: no versions, no
// subscriptions, no state per stream but a wake-up. It is what grpc-go costs.
type floor struct {
	mu      sync.Mutex
	initial [][]byte
	bodies  [][]byte
	newest  []byte
	streams map[chan []byte]struct{}
}

func newFloor() *floor { return &floor{streams: map[chan []byte]struct{}{}} }

func (f *floor) options() []grpc.ServerOption {
	return []grpc.ServerOption{grpc.ForceServerCodecV2(rawCodec{}), grpc.MaxRecvMsgSize(16 << 20)}
}

func (f *floor) register(s *grpc.Server) {
	s.RegisterService(&grpc.ServiceDesc{
		ServiceName: "envoy.service.discovery.v3.AggregatedDiscoveryService",
		HandlerType: (*any)(nil),
		Streams: []grpc.StreamDesc{{
			StreamName: "DeltaAggregatedResources", ServerStreams: true, ClientStreams: true,
			Handler: func(_ any, ss grpc.ServerStream) error { return f.stream(ss) },
		}},
	}, f)
}

func (f *floor) load(n int) {
	f.bodies = make([][]byte, n)
	for i := range n {
		f.bodies[i] = floorResource(i, time.Time{})
	}
	f.initial = floorResponses(f.bodies)
}

func (f *floor) change(stamp time.Time, indices ...int) {
	changed := make([][]byte, 0, len(indices))
	for _, i := range indices {
		f.bodies[i] = floorResource(i, stamp)
		changed = append(changed, f.bodies[i])
	}
	response := floorResponses(changed)[0]
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.streams {
		select {
		case c <- response:
		default: // the stream has fallen behind by a whole queue; the oracle will say so
		}
	}
}

func (f *floor) stream(ss grpc.ServerStream) error {
	pushes := make(chan []byte, 4096)
	var first []byte
	if err := ss.RecvMsg(&first); err != nil {
		return err
	}
	f.mu.Lock()
	f.streams[pushes] = struct{}{}
	initial := f.initial
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		delete(f.streams, pushes)
		f.mu.Unlock()
	}()
	ctx, cancel := context.WithCancel(ss.Context())
	defer cancel()
	acks := make(chan error, 1)
	go func() { // ends when the stream does
		for {
			var m []byte
			if err := ss.RecvMsg(&m); err != nil {
				acks <- err
				cancel()
				return
			}
		}
	}()
	nonce := uint64(0)
	send := func(b []byte) error {
		nonce++
		return ss.SendMsg(withNonce(b, nonce))
	}
	for _, b := range initial {
		if err := send(b); err != nil {
			return err
		}
	}
	for {
		select {
		case b := <-pushes:
			if err := send(b); err != nil {
				return err
			}
		case <-ctx.Done():
			err := <-acks
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
	}
}

func floorResource(i int, stamp time.Time) []byte {
	var version [8]byte
	body := virtualHostBytes(i, stamp)
	binary.BigEndian.PutUint64(version[:], bodyHash(body))
	b, err := proto.Marshal(&discoveryv3.Resource{
		Name: resourceName(i), Version: "1.1." + string(appendHex(nil, version[:4])),
		Resource: &anypb.Any{TypeUrl: typeURL, Value: body},
	})
	if err != nil {
		panic(err)
	}
	return b
}

func appendHex(dst, src []byte) []byte {
	const digits = "0123456789abcdef"
	for _, c := range src {
		dst = append(dst, digits[c>>4], digits[c&15])
	}
	return dst
}

// floorResponses encodes resources as responses of less than 4 MiB each.
func floorResponses(resources [][]byte) [][]byte {
	const limit = 3 << 20
	var out [][]byte
	var b []byte
	for _, r := range resources {
		if len(b)+len(r) > limit {
			out = append(out, b)
			b = nil
		}
		if b == nil {
			b = protowire.AppendTag(b, 4, protowire.BytesType)
			b = protowire.AppendString(b, typeURL)
		}
		b = protowire.AppendTag(b, 2, protowire.BytesType)
		b = protowire.AppendBytes(b, r)
	}
	return append(out, b)
}

// withNonce is a shared response followed by the stream's own nonce.
func withNonce(shared []byte, nonce uint64) mem.BufferSlice {
	tail := protowire.AppendTag(nil, 5, protowire.BytesType)
	tail = protowire.AppendBytes(tail, binary.AppendUvarint(nil, nonce))
	return mem.BufferSlice{mem.SliceBuffer(shared), mem.SliceBuffer(tail)}
}

// rawCodec passes bytes through: []byte pointers in, BufferSlices out.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	switch m := v.(type) {
	case mem.BufferSlice:
		return m, nil
	case []byte:
		return mem.BufferSlice{mem.SliceBuffer(m)}, nil
	}
	return nil, errors.New("rawCodec marshals bytes only")
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	p, ok := v.(*[]byte)
	if !ok {
		return errors.New("rawCodec unmarshals into *[]byte only")
	}
	*p = data.Materialize()
	return nil
}
