package main

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/server/compile"
)

// fleet is a set of delta ADS streams, each on a connection of its own, that
// acknowledge what they receive and remember a hash of every resource.
type fleet struct {
	id, agent string   // of the nodes: before each stream's number, the user agent
	addrs     []string // the streams are spread over them
	resources int
	creds     credentials.TransportCredentials
	streams   []*clientStream
	bytes     atomic.Int64 // of resources received
	// initial resource versions of a reconnect, encoded; nil on a first connect.
	known []byte
	// stalled streams never read after their first request.
	stalled int
	failed  atomic.Pointer[error]
	wg      sync.WaitGroup
	stale   staleness
}

type clientStream struct {
	conn     *grpc.ClientConn
	cancel   context.CancelFunc
	hashes   []uint64 // by resource index; 0 is absent
	held     atomic.Int64
	versions [][]byte // of stream 0 only
}

func newFleet(id, agent, addr string, streams, resources int, clientTLS *tls.Config) *fleet {
	f := &fleet{id: id, agent: agent, addrs: strings.Split(addr, ","), resources: resources, creds: insecure.NewCredentials()}
	if clientTLS != nil {
		f.creds = credentials.NewTLS(clientTLS)
	}
	f.streams = make([]*clientStream, streams)
	for i := range f.streams {
		f.streams[i] = &clientStream{hashes: make([]uint64, resources)}
	}
	f.streams[0].versions = make([][]byte, resources)
	return f
}

// connect opens every stream, at most 200 dials at a time.
func (f *fleet) connect(ctx context.Context) error {
	gate := make(chan struct{}, 200)
	errs := make(chan error, len(f.streams))
	for i := range f.streams {
		gate <- struct{}{}
		go func() {
			defer func() { <-gate }()
			errs <- f.open(ctx, i)
		}()
	}
	var all error
	for range f.streams {
		all = errors.Join(all, <-errs)
	}
	return all
}

func (f *fleet) open(ctx context.Context, i int) error {
	cs := f.streams[i]
	conn, err := grpc.NewClient("passthrough:///"+f.addrs[i%len(f.addrs)], grpc.WithTransportCredentials(f.creds),
		grpc.WithDefaultCallOptions(grpc.ForceCodecV2(rawCodec{}), grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return err
	}
	sctx, cancel := context.WithCancel(ctx)
	stream, err := conn.NewStream(sctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true},
		"/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources")
	if err != nil {
		cancel()
		_ = conn.Close()
		return err
	}
	cs.conn, cs.cancel = conn, cancel
	meta, _ := structpb.NewStruct(map[string]any{"muster.group": "group"})
	first, err := proto.Marshal(&discoveryv3.DeltaDiscoveryRequest{
		TypeUrl: typeURL,
		Node:    &corev3.Node{Id: fmt.Sprintf("%s-%d", f.id, i), Cluster: "group", Metadata: meta, UserAgentName: f.agent},
	})
	if err != nil {
		cancel()
		return err
	}
	// initial_resource_versions is one more field of the same message.
	if err := stream.SendMsg(append(first, f.known...)); err != nil {
		cancel()
		return err
	}
	if i < f.stalled {
		return nil
	}
	f.wg.Add(1)
	go func() {
		defer f.wg.Done()
		if err := f.read(stream, cs); err != nil && sctx.Err() == nil {
			err = fmt.Errorf("stream %d: %w", i, err)
			f.failed.CompareAndSwap(nil, &err)
		}
	}()
	return nil
}

func (f *fleet) read(stream grpc.ClientStream, cs *clientStream) error {
	ackHead := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), typeURL)
	for {
		var m []byte
		if err := stream.RecvMsg(&m); err != nil {
			return err
		}
		nonce, err := f.apply(m, cs)
		if err != nil {
			return err
		}
		ack := append([]byte(nil), ackHead...)
		ack = protowire.AppendBytes(protowire.AppendTag(ack, 6, protowire.BytesType), nonce)
		if err := stream.SendMsg(ack); err != nil {
			return err
		}
	}
}

// apply takes a response in.
func (f *fleet) apply(m []byte, cs *clientStream) (nonce []byte, err error) {
	now := time.Now()
	_, nonce, err = scanResponse(m, func(resource []byte) error {
		f.bytes.Add(int64(len(resource)))
		return f.keep(resource, cs, now)
	}, func(name []byte) {
		if i := resourceIndex(name); i >= 0 && cs.hashes[i] != 0 {
			cs.hashes[i] = 0
			cs.held.Add(-1)
		}
	})
	return nonce, err
}

// scanResponse takes a DeltaDiscoveryResponse apart without decoding it: version is
// its system_version_info.
func scanResponse(m []byte, resource func([]byte) error, removed func(name []byte)) (version, nonce []byte, err error) {
	err = scanFields(m, func(num protowire.Number, v []byte) (err error) {
		switch num {
		case 1:
			version = v
		case 2:
			err = resource(v)
		case 5:
			nonce = v
		case 6:
			removed(v)
		}
		return err
	})
	if err == nil && len(nonce) == 0 {
		err = errors.New("response without a nonce")
	}
	return version, nonce, err
}

// scanResource takes a Resource apart.
func scanResource(b []byte) (name, version, body []byte, err error) {
	err = scanFields(b, func(num protowire.Number, v []byte) error {
		switch num {
		case 1:
			version = v
		case 2:
			body = anyValue(v)
		case 3:
			name = v
		}
		return nil
	})
	return name, version, body, err
}

// scanFields calls f with each field of a message that has a length.
func scanFields(m []byte, f func(protowire.Number, []byte) error) error {
	for len(m) > 0 {
		num, typ, n := protowire.ConsumeTag(m)
		if n < 0 {
			return protowire.ParseError(n)
		}
		m = m[n:]
		if typ != protowire.BytesType {
			n = protowire.ConsumeFieldValue(num, typ, m)
			if n < 0 {
				return protowire.ParseError(n)
			}
			m = m[n:]
			continue
		}
		v, n := protowire.ConsumeBytes(m)
		if n < 0 {
			return protowire.ParseError(n)
		}
		m = m[n:]
		if err := f(num, v); err != nil {
			return err
		}
	}
	return nil
}

// appendKnown adds an entry of initial_resource_versions to a request.
func appendKnown(b []byte, name string, version []byte) []byte {
	entry := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), name)
	entry = protowire.AppendBytes(protowire.AppendTag(entry, 2, protowire.BytesType), version)
	return protowire.AppendBytes(protowire.AppendTag(b, 5, protowire.BytesType), entry)
}

func (f *fleet) keep(resource []byte, cs *clientStream, now time.Time) error {
	name, version, body, err := scanResource(resource)
	if err != nil {
		return err
	}
	i := resourceIndex(name)
	if string(name) == compile.CatchAll {
		return nil // a whole server has it of its own
	}
	if i < 0 || i >= len(cs.hashes) {
		return fmt.Errorf("unknown resource %q", name)
	}
	if cs.hashes[i] == 0 {
		cs.held.Add(1)
	}
	cs.hashes[i] = bodyHash(body)
	if cs.versions != nil {
		cs.versions[i] = append([]byte(nil), version...)
	}
	if at, ok := stampOf(body); ok {
		f.stale.add(now.Sub(at))
	}
	return nil
}

// anyValue is the value field of an encoded Any.
func anyValue(b []byte) []byte {
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return nil
		}
		b = b[n:]
		v, n := protowire.ConsumeBytes(b)
		if typ != protowire.BytesType || n < 0 {
			return nil
		}
		if num == 2 {
			return v
		}
		b = b[n:]
	}
	return nil
}

// full waits until every reading stream holds every resource.
func (f *fleet) full(ctx context.Context) error {
	return f.wait(ctx, func(cs *clientStream) bool { return cs.held.Load() == int64(f.resources) })
}

func (f *fleet) wait(ctx context.Context, done func(*clientStream) bool) error {
	for {
		if err := f.failed.Load(); err != nil {
			return *err
		}
		missing := 0
		for _, cs := range f.streams[f.stalled:] {
			if !done(cs) {
				missing++
			}
		}
		if missing == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d of %d streams do not hold all resources: %w", missing, len(f.streams), ctx.Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// digest is a hash over all resources, the same on every stream, or an error:
// the oracle. Call it when nothing is in flight.
func (f *fleet) digest() (uint64, error) {
	if err := f.failed.Load(); err != nil {
		return 0, *err
	}
	want := uint64(0)
	for i, cs := range f.streams[f.stalled:] {
		got := digestOf(cs.hashes)
		if i == 0 {
			want = got
		} else if got != want {
			return 0, fmt.Errorf("stream %d ended in another state than the first", i+f.stalled)
		}
	}
	return want, nil
}

func digestOf(hashes []uint64) uint64 {
	var buf [8]byte
	h := uint64(0)
	for i, v := range hashes {
		binary.LittleEndian.PutUint64(buf[:], v+uint64(i)*0x9e3779b97f4a7c15)
		h += bodyHash(buf[:])
	}
	return h
}

// disconnect closes every connection and keeps what stream 0 knows, encoded as
// initial_resource_versions, for the next connect.
func (f *fleet) disconnect() {
	for _, cs := range f.streams {
		if cs.cancel != nil {
			cs.cancel()
			_ = cs.conn.Close()
		}
	}
	f.wg.Wait()
	var b []byte
	for i, v := range f.streams[0].versions {
		if v == nil {
			continue
		}
		b = appendKnown(b, resourceName(i), v)
	}
	f.known = b
	f.failed.Store(nil)
}

// staleness is a histogram of how old a change was when a stream received it,
// in steps of 0.5 ms up to 20 s. Safe for concurrent use.
type staleness struct {
	buckets [40001]atomic.Int64
}

func (s *staleness) add(d time.Duration) {
	i := int(d / (500 * time.Microsecond))
	s.buckets[max(0, min(i, len(s.buckets)-1))].Add(1)
}

func (s *staleness) reset() {
	for i := range s.buckets {
		s.buckets[i].Store(0)
	}
}

// quantile is the duration below which the share q of the samples lies.
func (s *staleness) quantile(q float64) time.Duration {
	total := int64(0)
	for i := range s.buckets {
		total += s.buckets[i].Load()
	}
	if total == 0 {
		return 0
	}
	rank, seen := min(int64(float64(total)*q), total-1), int64(0)
	for i := range s.buckets {
		if seen += s.buckets[i].Load(); seen > rank {
			return time.Duration(i+1) * 500 * time.Microsecond
		}
	}
	return 0
}

func (s *staleness) count() int64 {
	total := int64(0)
	for i := range s.buckets {
		total += s.buckets[i].Load()
	}
	return total
}
