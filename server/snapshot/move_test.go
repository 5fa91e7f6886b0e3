package snapshot

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/musterhq/muster/server/compile"
)

// TestVersionsBelowARelayAreThoseOfTheServer follows long histories with many
// removals through a relay that sometimes skips: a data plane that moves, with all
// resources or with some, is known by the versions that it has.
func TestVersionsBelowARelayAreThoseOfTheServer(t *testing.T) {
	types := []string{compile.ClusterType, compile.VirtualHostType, compile.ListenerType}
	resources := 0
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		s, below := Empty("g", 1), Empty("g", 1)
		firstAsked := uint64(1 + rnd.IntN(10))
		var set *Set
		for rev := uint64(1); rev <= 60; rev++ {
			var d compile.Delta
			seen := map[compile.Key]bool{}
			for range 1 + rnd.IntN(3) {
				k := relayKey(types[rnd.IntN(len(types))], fmt.Sprintf("n%02d", rnd.IntN(30)))
				if seen[k] {
					continue
				}
				seen[k] = true
				if rnd.IntN(3) == 0 {
					d.Remove = append(d.Remove, k)
					continue
				}
				view := compile.ViewAll
				switch {
				case k.TypeURL == compile.VirtualHostType:
					view = compile.ViewDelta
				case k.TypeURL == compile.ListenerType && k.Name < "n15":
					view = compile.ViewSotW
				}
				d.Upsert = append(d.Upsert, compile.Resource{Key: k, View: view, Body: fmt.Appendf(nil, "%d", rnd.Int())})
			}
			v := Version{1, rev}
			s = s.Next(v, d)
			if rev < firstAsked || rnd.IntN(4) == 0 {
				continue
			}
			below, set = follow(below, s.Set(RelayType, relayView), set, v)
			for _, view := range []compile.View{compile.ViewDelta, compile.ViewSotW, compile.ViewGRPC} {
				for _, typeURL := range types {
					a, b := s.Set(typeURL, View{Client: view}), below.Set(typeURL, View{Client: view})
					var tally Tally
					for r := range a.All() {
						resources++
						other, ok := b.Get(r.Name)
						if !ok || other.Version != r.Version {
							t.Fatalf("seed %d, revision %d, view %d: %s %s has version %s, and below the relay %v", seed, rev, view, typeURL, r.Name, r.Version, other)
						}
						tally.Add([]byte(r.Name), []byte(r.Version))
					}
					if at, ok := b.Holds(tally); !ok || at != b.version.Revision {
						t.Fatalf("seed %d, revision %d, view %d: who comes from the server with all of %s is not known", seed, rev, view, typeURL)
					}
				}
			}
		}
	}
	if resources < 10_000 {
		t.Errorf("only %d resources were compared", resources)
	}
}
