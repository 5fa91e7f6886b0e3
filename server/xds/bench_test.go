package xds

import (
	"fmt"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

func benchSnapshot(n int) *snapshot.Snapshot {
	var up []snapshot.Upsert
	for i := range n {
		up = append(up, testResource(compile.VirtualHostType, fmt.Sprint("muster/api.example.com/s", i), fmt.Sprint(i)))
	}
	return snapshot.Empty("g", 1).Apply(snapshot.Version{Epoch: 1, Revision: 1}, up, nil)
}

func benchSession(snap *snapshot.Snapshot) *session {
	cfg := &sessionConfig{encoder: snapshot.NewEncoder(snapshot.EncoderConfig{}), limits: Limits{}.withDefaults(), timing: Timing{}.withDefaults()}
	c := client{family: envoyClient}
	c.view.Client = compile.ViewDelta
	return newSession(cfg, time.Now(), c, true, "", snap)
}

func deltaRequest(b *testing.B, m *discoveryv3.DeltaDiscoveryRequest) request {
	raw, err := proto.Marshal(m)
	if err != nil {
		b.Fatal(err)
	}
	r, err := parseDelta(raw)
	if err != nil {
		b.Fatal(err)
	}
	return r
}

// BenchmarkPushAndAck is what a session of a group of 10,000 resources costs per
// push: a wake-up, a shared response, its acknowledgement. No I/O.
func BenchmarkPushAndAck(b *testing.B) {
	snap := benchSnapshot(10000)
	s := benchSession(snap)
	first := deltaRequest(b, &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.VirtualHostType})
	now := time.Now()
	if err := s.request(now, &first); err != nil {
		b.Fatal(err)
	}
	next := snap.Apply(snapshot.Version{Epoch: 1, Revision: 2}, []snapshot.Upsert{testResource(compile.VirtualHostType, "muster/api.example.com/s1", "x")}, nil)
	b.ReportAllocs()
	turn := false
	for b.Loop() {
		raw := append([]byte{0x12, byte(len(compile.VirtualHostType))}, compile.VirtualHostType...)
		raw = append(raw, 0x32, 0)
		at := len(raw)
		raw = appendNonce(raw, s.nonce)
		raw[at-1] = byte(len(raw) - at)
		ack, _ := parseDelta(raw)
		if err := s.request(now, &ack); err != nil {
			b.Fatal(err)
		}
		s.effects = nil
		// Back and forth between two snapshots of one lineage.
		to := next
		if turn {
			to = snap
			for _, t := range s.tracks { // as if it had never been
				t.held, t.at, t.least = snap.Set(t.typeURL, s.client.view), snap, snap
			}
			s.newest = snap
			turn = false
			continue
		}
		turn = true
		if err := s.feed(now, to); err != nil {
			b.Fatal(err)
		}
		s.effects = nil
	}
}

// BenchmarkReconnect is what a client costs that comes back and holds everything,
// or everything but one.
func BenchmarkReconnect(b *testing.B) {
	snap := benchSnapshot(10000)
	for _, changed := range []int{0, 1} {
		b.Run(fmt.Sprint("changed=", changed), func(b *testing.B) {
			m := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: compile.VirtualHostType, InitialResourceVersions: map[string]string{}}
			view := snapshot.View{Client: compile.ViewDelta}
			for r := range snap.Set(compile.VirtualHostType, view).All() {
				m.InitialResourceVersions[r.Name] = r.Version
			}
			now := snap
			for i := range changed {
				now = snap.Apply(snapshot.Version{Epoch: 1, Revision: uint64(i + 2)}, []snapshot.Upsert{testResource(compile.VirtualHostType, "muster/api.example.com/s1", "x")}, nil)
			}
			raw, err := proto.Marshal(m)
			if err != nil {
				b.Fatal(err)
			}
			at := time.Now()
			b.ReportAllocs()
			for b.Loop() {
				s := benchSession(now)
				r, err := parseDelta(raw)
				if err != nil {
					b.Fatal(err)
				}
				if err := s.request(at, &r); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
