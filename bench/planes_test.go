package main

import (
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

func responseOf(t *testing.T, at string, resources ...*discoveryv3.Resource) []byte {
	t.Helper()
	b, err := proto.Marshal(&discoveryv3.DeltaDiscoveryResponse{SystemVersionInfo: at, Nonce: "n", Resources: resources})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func resourceOf(i int, version string, stamp time.Time) *discoveryv3.Resource {
	return &discoveryv3.Resource{Name: resourceName(i), Version: version, Resource: &anypb.Any{TypeUrl: typeURL, Value: virtualHostBytes(i, stamp)}}
}

func TestADataPlaneThatIsMovedBackwardsIsCounted(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for name, c := range map[string]struct {
		then      []byte
		backwards int64
	}{
		"forwards":                 {responseOf(t, "1.8", resourceOf(0, "1.8.b", now.Add(time.Second))), 0},
		"the same again":           {responseOf(t, "1.7", resourceOf(0, "1.7.a", now)), 0},
		"a later epoch":            {responseOf(t, "2.1", resourceOf(0, "2.1.b", now.Add(time.Second))), 0},
		"an earlier revision":      {responseOf(t, "1.6"), 1},
		"an earlier content":       {responseOf(t, "1.8", resourceOf(0, "1.8.b", now.Add(-time.Second))), 1},
		"an earlier epoch by name": {responseOf(t, "0.9"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPlanes([]string{"nowhere"}, 1, 1)
			for _, m := range [][]byte{responseOf(t, "1.7", resourceOf(0, "1.7.a", now)), c.then} {
				if _, _, err := p.apply(p.all[0], m); err != nil {
					t.Fatal(err)
				}
			}
			if got := p.backwards.Load(); got != c.backwards {
				t.Errorf("counted %d times, want %d", got, c.backwards)
			}
		})
	}
}

func TestAVersionStandsForOneContent(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	p := newPlanes([]string{"nowhere"}, 2, 1)
	if _, stamps, err := p.apply(p.all[0], responseOf(t, "1.1", resourceOf(0, "1.1.a", now))); err != nil || len(stamps) != 1 || !stamps[0].Equal(now) {
		t.Fatalf("stamps %v, %v", stamps, err)
	}
	if !p.all[0].full.Load() || p.all[1].full.Load() {
		t.Error("who holds everything is not told right")
	}
	if _, err := p.digest(); err == nil {
		t.Error("two data planes that hold different things pass for alike")
	}
	if _, _, err := p.apply(p.all[1], responseOf(t, "1.1", resourceOf(0, "1.1.a", now.Add(time.Second)))); err == nil {
		t.Error("another content under the same version was taken")
	}
}

func TestTheLongestGapIsThatAfterTheKill(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(0, int64(ms)*1e6) }
	ch := &churner{done: []time.Time{at(0), at(900), at(910), at(1700), at(920), at(1710), at(3000)}}
	if got := ch.gap(at(950), at(2000)); got != 780*time.Millisecond {
		t.Errorf("gap = %s, want 780ms", got)
	}
}
