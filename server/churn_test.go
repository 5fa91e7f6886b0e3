package server

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// Groups change and data planes come and go, all at once; when it is over every
// data plane holds exactly its group's snapshot, and the fleet says so.
func TestDataPlanesEndWithTheSnapshotOfTheirGroup(t *testing.T) {
	n := start(t, testConfig(t))
	const groups, commits = 4, 40
	dps := make([][]*adsClient, groups)
	var wg sync.WaitGroup
	for i := range groups {
		name := fmt.Sprintf("g%d", i)
		n.group(name)
		for j := range 3 {
			dps[i] = append(dps[i], n.dataPlane(fmt.Sprintf("dp-%d", j), name))
		}
		rng := rand.New(rand.NewPCG(uint64(i), 7))
		wg.Go(func() {
			for k := range commits {
				id := fmt.Sprintf("s%d", rng.IntN(6))
				var changes []*musterv1.Change
				if _, there := n.service(name, id); there && rng.IntN(3) == 0 {
					changes = append(changes, del(musterv1.Kind_KIND_SERVICE, id))
				} else {
					changes = append(changes, put(serviceOf(id, int32(1000+k))), put(routeOf("r-"+id, id, fmt.Sprintf("/p%d", rng.IntN(4)))))
				}
				if _, err := n.admin.Commit(n.ctx(), &musterv1.CommitRequest{Group: name, Changes: changes}); err != nil {
					t.Error(err)
					return
				}
			}
		})
		wg.Go(func() {
			for range 3 {
				// The first of each group leaves and comes back.
				dps[i][0].close()
				dps[i][0] = n.dataPlane("dp-0", name)
			}
		})
	}
	wg.Wait()
	for i := range groups {
		name := fmt.Sprintf("g%d", i)
		g, _ := n.srv.State().Group(name)
		for j := range dps[i] {
			id := fmt.Sprintf("dp-%d", j)
			eventually(t, fmt.Sprintf("%s of %s is synced at %d", id, name, g.Revision()), func() bool {
				if err := dps[i][j].ended(); err != nil {
					// Before the group was published, or by the stream that it has left
					// and that was heard of later: on a busy machine either may be.
					if c := status.Code(err); c != codes.Unavailable && c != codes.Aborted {
						t.Fatalf("%s of %s was sent away: %v", id, name, err)
					}
					dps[i][j] = n.dataPlane(id, name)
				}
				return slices.ContainsFunc(n.list(name), func(p *musterv1.DataPlane) bool {
					return p.GetId() == id && p.GetState() == synced && p.GetRevision() == g.Revision()
				})
			})
			dp := dps[i][j]
			snap := n.srv.pub.lookup(name).current.Load().snap
			for _, typ := range wildcardTypes {
				want := map[string]string{}
				for r := range snap.Set(typ, snapshot.View{Client: compile.ViewDelta}).All() {
					want[r.Name] = string(r.Body)
				}
				if got := dp.bodies(typ); !maps.Equal(got, want) {
					t.Errorf("%s dp-%d: of %s it holds %v, want %v", name, j, typ, slices.Sorted(maps.Keys(got)), slices.Sorted(maps.Keys(want)))
				}
			}
		}
	}
}

func (n *node) service(group, id string) (*musterv1.Resource, bool) {
	resp, err := n.admin.GetResource(n.ctx(), &musterv1.GetResourceRequest{Group: group, Key: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SERVICE, Id: id}})
	return resp.GetResource().GetResource(), err == nil
}

// bodies are the messages that the client holds of a type, by name.
func (c *adsClient) bodies(typeURL string) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := map[string]string{}
	for name, r := range c.resources[typeURL] {
		m[name] = string(r.GetResource().GetValue())
	}
	return m
}
