package snapshot

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/server/compile"
)

func decode(t *testing.T, f *Frame) *discoveryv3.DeltaDiscoveryResponse {
	t.Helper()
	m := &discoveryv3.DeltaDiscoveryResponse{}
	if err := proto.Unmarshal(f.Bytes, m); err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAResponseIsEncodedOnceForAll(t *testing.T) {
	s1 := Empty("g", 1).Apply(Version{1, 1}, []Upsert{put(clusters, "a", "1"), put(clusters, "b", "1")}, nil)
	s2 := s1.Apply(Version{1, 2}, []Upsert{put(clusters, "a", "2")}, []compile.Key{key(clusters, "b")})
	from, to := s1.Set(clusters, View{}), s2.Set(clusters, View{})
	e := NewEncoder(EncoderConfig{})
	var wg sync.WaitGroup
	frames := make([]*Frame, 50)
	for i := range frames {
		wg.Go(func() { frames[i] = e.Delta(clusters, from, to, PartBoth)[0] })
	}
	wg.Wait()
	for _, f := range frames {
		if f != frames[0] {
			t.Fatal("encoded twice")
		}
	}
	if hits, misses := e.Stats(); misses != 1 || hits != 49 {
		t.Errorf("%d hits, %d misses", hits, misses)
	}
	m := decode(t, frames[0])
	if len(m.GetResources()) != 1 || m.GetResources()[0].GetName() != "a" || fmt.Sprint(m.GetRemovedResources()) != "[b]" ||
		m.GetTypeUrl() != clusters || m.GetNonce() != "" || m.GetSystemVersionInfo() != to.String() {
		t.Errorf("encoded %v", m)
	}
	// Parts apart.
	if m := decode(t, e.Delta(clusters, from, to, PartUpserts)[0]); len(m.GetResources()) != 1 || len(m.GetRemovedResources()) != 0 {
		t.Errorf("upserts %v", m)
	}
	if f := e.Delta(clusters, from, to, PartUpserts)[0]; fmt.Sprint(f.Gone) != "[b]" {
		t.Errorf("gone %v", f.Gone)
	}
	if m := decode(t, e.Delta(clusters, from, to, PartRemovals)[0]); len(m.GetResources()) != 0 || len(m.GetRemovedResources()) != 1 {
		t.Errorf("removals %v", m)
	}
	if m := decode(t, e.Delta(clusters, nil, to, PartBoth)[0]); len(m.GetResources()) != 1 || len(m.GetRemovedResources()) != 0 {
		t.Errorf("from nothing %v", m)
	}
}

func TestTypesWithoutResourcesDoNotShareTheirResponse(t *testing.T) {
	s := Empty("g", 1)
	e := NewEncoder(EncoderConfig{})
	for _, typeURL := range []string{clusters, compile.ListenerType} {
		if m := decode(t, e.Delta(typeURL, nil, s.Set(typeURL, View{}), PartBoth)[0]); m.GetTypeUrl() != typeURL {
			t.Errorf("a response of %s is of %s", typeURL, m.GetTypeUrl())
		}
	}
}

func TestResponsesAreSplitBelowTheLimit(t *testing.T) {
	e := NewEncoder(EncoderConfig{MaxFrame: 1000})
	var up []Upsert
	for i := range 30 {
		up = append(up, put(clusters, fmt.Sprint("c", i), strings.Repeat("x", 100)))
	}
	up = append(up, put(clusters, "large", strings.Repeat("x", 5000)))
	s := Empty("g", 1).Apply(Version{1, 1}, up, nil)
	var removed []string
	for i := range 50 {
		removed = append(removed, fmt.Sprint("a name that is gone ", i))
	}
	var all []*Resource
	for r := range s.Set(clusters, View{}).All() {
		all = append(all, r)
	}
	names, gone := map[string]bool{}, 0
	frames := e.EncodeDelta(clusters, "v", all, removed)
	for i, f := range frames {
		m := decode(t, f)
		if len(f.Bytes) > 1000 && len(m.GetResources()) != 1 {
			t.Errorf("response %d has %d bytes and %d resources", i, len(f.Bytes), len(m.GetResources()))
		}
		if len(m.GetRemovedResources()) > 0 && len(names) > 0 && i > 0 && gone == 0 {
			t.Error("removals come after resources")
		}
		for _, r := range m.GetResources() {
			names[r.GetName()] = true
		}
		gone += len(m.GetRemovedResources())
	}
	if len(names) != 31 || gone != 50 || len(frames) < 6 {
		t.Errorf("%d resources and %d removals in %d responses", len(names), gone, len(frames))
	}
}

func TestTheEncoderKeepsWithinItsBounds(t *testing.T) {
	e := NewEncoder(EncoderConfig{MaxBytes: 20000})
	s := Empty("g", 1)
	for rev := range uint64(100) {
		s = s.Apply(Version{1, rev + 1}, []Upsert{put(clusters, fmt.Sprint("c", rev), strings.Repeat("x", 500))}, nil)
		e.Delta(clusters, nil, s.Set(clusters, View{}), PartBoth)
	}
	if e.bytes > 20000+60000 || e.recent.Len() != len(e.entries) {
		t.Errorf("%d bytes in %d entries, %d listed", e.bytes, len(e.entries), e.recent.Len())
	}
	var sum int64
	for _, el := range e.entries {
		sum += el.Value.(*entry).size
	}
	if sum != e.bytes {
		t.Errorf("%d bytes are counted, %d kept", e.bytes, sum)
	}
}

func TestASotWResponseHoldsEverything(t *testing.T) {
	s := Empty("g", 1).Apply(Version{1, 1}, []Upsert{put(clusters, "a", "1"), put(clusters, "b", "2")}, nil)
	set := s.Set(clusters, View{})
	e := NewEncoder(EncoderConfig{})
	for _, wrapped := range []bool{false, true} {
		f := e.SotW(clusters, set, wrapped)
		m := &discoveryv3.DiscoveryResponse{}
		if err := proto.Unmarshal(f.Bytes, m); err != nil {
			t.Fatal(err)
		}
		if m.GetVersionInfo() != set.String() || m.GetTypeUrl() != clusters || len(m.GetResources()) != 2 {
			t.Errorf("response %v", m)
		}
		for i, a := range m.GetResources() {
			if wrapped {
				r := &discoveryv3.Resource{}
				if err := a.UnmarshalTo(r); err != nil {
					t.Fatal(err)
				}
				if r.GetName() != f.Upserts[i].Name || r.GetVersion() != f.Upserts[i].Version {
					t.Errorf("wrapped as %v", r)
				}
				a = r.GetResource()
			}
			if a.GetTypeUrl() != clusters || string(a.GetValue()) != string(f.Upserts[i].Body) {
				t.Errorf("resource %v", a)
			}
		}
	}
}
