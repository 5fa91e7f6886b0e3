package relay

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/grpc"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/manifest"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server"
)

func TestADataPlaneSeesThroughARelayWhatItWouldSeeAtTheServer(t *testing.T) {
	c := newCentre(t)
	c.group("edge", nil)
	for i := range 20 {
		c.service("edge", fmt.Sprintf("s%d", i), 80)
	}
	region := newRelay(t, "region", []string{c.addr()})
	site := newRelay(t, "site", []string{region.addr()})
	direct := newPlane(t, "direct", "edge", []string{c.addr()})
	one := newPlane(t, "one", "edge", []string{region.addr()})
	two := newPlane(t, "two", "edge", []string{site.addr()})
	rev := c.service("edge", "s3", 81)
	c.remove("edge", "s4")
	rev++
	for _, p := range []*plane{direct, one, two} {
		eventually(t, "the data plane is at the newest revision", p.at(rev))
		if got, want := text(p.State()), text(direct.State()); got != want {
			t.Errorf("through a relay (-) and at the server (+):\n%s", cmp.Diff(strings.Split(got, "\n"), strings.Split(want, "\n")))
		}
	}
	if strings.Contains(text(two.State()), "s4.example.com") {
		t.Error("what was removed is still there")
	}
}

func TestTheTreeIsSeenAtTheCentre(t *testing.T) {
	c := newCentre(t)
	c.group("edge", nil)
	c.service("edge", "s", 80)
	region := newRelay(t, "region", []string{c.addr()})
	site := newRelay(t, "site", []string{region.addr()})
	newPlane(t, "direct", "edge", []string{c.addr()})
	newPlane(t, "one", "edge", []string{region.addr()})
	two := newPlane(t, "two", "edge", []string{site.addr()})
	eventually(t, "two has it", two.at(1))

	want := map[string]string{"direct": "", "one": "region", "two": "region site"}
	synced := func(rev uint64) func() bool {
		return func() bool {
			got := c.planes("edge").GetDataPlanes()
			if len(got) != len(want) {
				return false
			}
			for _, dp := range got {
				var hops []string
				for _, h := range dp.GetHops() {
					hops = append(hops, h.GetRelay())
					if h.GetRevision() != rev {
						return false
					}
				}
				if strings.Join(hops, " ") != want[dp.GetId()] || dp.GetState() != musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED ||
					dp.GetRevision() != rev || dp.GetServer() != "centre" {
					return false
				}
				if len(hops) > 0 && dp.GetRelay() != hops[len(hops)-1] {
					t.Errorf("%s hangs on %q", dp.GetId(), dp.GetRelay())
				}
			}
			return true
		}
	}
	eventually(t, "every data plane is seen with its way", synced(1))
	relays := c.planes("edge").GetRelays()
	if len(relays) != 2 || relays[0].GetId() != "region" || relays[1].GetRelay() != "region" || relays[1].GetDataPlanes() != 1 {
		t.Errorf("the relays are %v", relays)
	}

	// A refusal below two relays names the object and its author at the centre.
	two.mu.Lock()
	two.refuse = "service/s"
	two.mu.Unlock()
	rev := c.service("edge", "s", 81)
	var refused *musterv1.DataPlane
	eventually(t, "the refusal is seen", func() bool {
		for _, dp := range c.planes("edge").GetDataPlanes() {
			if dp.GetId() == "two" && len(dp.GetRefusals()) == 1 {
				refused = dp
				return true
			}
		}
		return false
	})
	x := refused.GetRefusals()[0]
	if !strings.Contains(x.GetDetail(), "does not like it") || x.GetAuthor() != "ann" || x.GetRevision() != rev ||
		len(x.GetObjects()) == 0 || x.GetObjects()[0].GetId() != "s" {
		t.Errorf("the refusal is told as %v", x)
	}
	if refused.GetState() != musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED {
		t.Errorf("state %v", refused.GetState())
	}
	for _, r := range c.planes("edge").GetRelays() {
		if r.GetServedRevision() != rev {
			t.Errorf("a refusal below holds relay %s at %d", r.GetId(), r.GetServedRevision())
		}
	}
}

// waitStream takes what a wait tells.
type waitStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (w waitStream) Context() context.Context          { return w.ctx }
func (w waitStream) Send(*musterv1.WaitResponse) error { return nil }

func TestAWaitAtTheCentreHurriesRelaysBelowRelays(t *testing.T) {
	c := newCentre(t)
	c.group("edge", nil)
	c.service("edge", "s", 80)
	region := newRelay(t, "region", []string{c.addr()})
	site := newRelay(t, "site", []string{region.addr()})
	ctx, cancel := context.WithCancel(c.as())
	many := uint32(100)
	wait := make(chan error, 1)
	go func() {
		wait <- c.srv.Admin().Wait(&musterv1.WaitRequest{Group: "edge", Revision: 1, MinDataPlanes: &many}, waitStream{ctx: ctx})
	}()
	eventually(t, "the lower relay hurries", site.fleet.Waiting)
	cancel()
	if err := <-wait; err == nil {
		t.Error("there are no hundred data planes")
	}
	eventually(t, "nobody waits any more", func() bool { return !site.fleet.Waiting() })
}

// TestAGroupThatIsMadeAgainIsSeenWithWhoIsThere deletes a group and makes another of
// its id: the data planes below a relay are seen there, once, with what they hold of it.
func TestAGroupThatIsMadeAgainIsSeenWithWhoIsThere(t *testing.T) {
	c := newCentre(t)
	c.group("edge", nil)
	c.service("edge", "s", 80)
	region := newRelay(t, "region", []string{c.addr()})
	newPlane(t, "p", "edge", []string{region.addr()})
	synced := func(rev uint64) func() bool {
		return func() bool {
			got := c.planes("edge").GetDataPlanes()
			return len(got) == 1 && got[0].GetRelay() == "region" && got[0].GetRevision() == rev &&
				got[0].GetState() == musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED
		}
	}
	eventually(t, "it is seen", synced(1))
	if _, err := c.srv.Admin().DeleteGroup(c.as(), &musterv1.DeleteGroupRequest{Group: "edge", Force: true}); err != nil {
		t.Fatal(err)
	}
	c.group("edge", nil)
	eventually(t, "it is seen in the group that was made again", synced(c.service("edge", "other", 80)))
}

func TestDataPlanesMoveBetweenRelayAndServerWithoutFetching(t *testing.T) {
	c := newCentre(t)
	c.group("edge", nil)
	for i := range 10 {
		c.service("edge", fmt.Sprintf("s%d", i), 80)
	}
	r := newRelay(t, "region", []string{c.addr()})
	l := newLink(t, r.addr())
	p := newPlane(t, "p", "edge", []string{l.addr()})
	eventually(t, "it is there", p.at(10))
	eventually(t, "it is connected", func() bool { return p.Status().Server != "" })
	p.mu.Lock()
	before := p.fetched
	p.mu.Unlock()
	for i, target := range []string{c.addr(), r.addr(), c.addr(), r.addr()} {
		accepted, _, _ := l.counts()
		l.to(target)
		eventually(t, "it came back", func() bool {
			n, _, _ := l.counts()
			return n > accepted && p.Status().Server != ""
		})
		rev := c.service("edge", "s0", int32(90+i))
		eventually(t, "the change came", p.at(rev))
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	// Each change is one resource: the endpoints, or the cluster.
	if got := p.fetched - before; got > 4*2 {
		t.Errorf("moving four times with a change each fetched %d resources", got)
	}
}

func TestOneConnectionCarriesEveryGroup(t *testing.T) {
	c := newCentre(t)
	for i := range 5 {
		c.group(fmt.Sprintf("g%d", i), map[string]string{"env": map[bool]string{true: "prod", false: "test"}[i < 3]})
		c.service(fmt.Sprintf("g%d", i), "s", 80)
	}
	l := newLink(t, c.addr())
	r := newRelay(t, "region", []string{l.addr()}, func(cfg *Config) { cfg.Labels = map[string]string{"env": "prod"} })
	eventually(t, "it is ready", func() bool { return r.Ready() == nil })
	var planes []*plane
	for i := range 3 {
		for j := range 4 {
			planes = append(planes, newPlane(t, fmt.Sprintf("p%d-%d", i, j), fmt.Sprintf("g%d", i), []string{r.addr()}))
		}
	}
	for _, p := range planes {
		eventually(t, "it has its group", p.at(1))
	}
	if n, _, _ := l.counts(); n != 1 {
		t.Errorf("%d connections upstream", n)
	}
	if groups := r.carriers.all(); len(groups) != 3 {
		t.Errorf("the selector selected %d groups", len(groups))
	}
	// A group that gets the label is carried from then on.
	labels := map[string]string{"env": "prod"}
	if _, err := c.srv.Admin().UpdateGroup(c.as(), &musterv1.UpdateGroupRequest{Group: &musterv1.Group{Id: "g4", Name: "g4", Labels: labels}}); err != nil {
		t.Fatal(err)
	}
	late := newPlane(t, "late", "g4", []string{r.addr()})
	eventually(t, "the new group is carried", late.at(1))
}

func TestARelayThatComesBackFetchesOnlyWhatItMissed(t *testing.T) {
	c := newCentre(t)
	c.group("edge", nil)
	for i := range 200 {
		c.service("edge", fmt.Sprintf("s%d", i), 80)
	}
	l := newLink(t, c.addr())
	dir := t.TempDir()
	inDir := func(cfg *Config) { cfg.DataDir = dir }
	r := newRelay(t, "region", []string{l.addr()}, inDir)
	eventually(t, "it is ready", func() bool { return r.Ready() == nil && r.carriers.all()[0].served.Load().Revision == 200 })
	_, cold, _ := l.counts()
	if err := r.run.stop(); err != nil {
		t.Fatal(err)
	}
	rev := uint64(0)
	for i := range 5 {
		rev = c.service("edge", fmt.Sprintf("s%d", i), 81)
	}
	_, down, up := l.counts()
	r = newRelay(t, "region", []string{l.addr()}, inDir)
	eventually(t, "it has caught up", func() bool {
		v := r.carriers.all()
		return len(v) == 1 && v[0].served.Load() != nil && v[0].served.Load().Revision == rev
	})
	_, downAfter, upAfter := l.counts()
	t.Logf("200 services: a cold start took %d bytes; 5 missed changes %d down and %d up", cold, downAfter-down, upAfter-up)
	if downAfter-down > 6000 || upAfter-up > 4000 {
		t.Errorf("coming back took %d bytes down and %d up", downAfter-down, upAfter-up)
	}
}

func TestAGatewayWithoutManifestKeysBelowARelay(t *testing.T) {
	c := newCentre(t)
	c.group("edge", nil)
	c.service("edge", "s", 80)
	r := newRelay(t, "region", []string{c.addr()})
	p := newPlane(t, "p", "edge", []string{r.addr()}, func(cfg *dataplane.Config) { cfg.Manifest = dataplane.ManifestRequired })
	eventually(t, "whole revisions come through a relay", p.at(1))
}

func TestOnlySignedRevisionsAreServed(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	other, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	trusting := func(keys ...ed25519.PublicKey) func(*Config) { return func(c *Config) { c.ManifestKeys = keys } }
	signing := newCentre(t, func(c *server.Config) { c.ManifestKey = key })
	signing.group("edge", nil)
	signing.service("edge", "s", 80)
	region := newRelay(t, "region", []string{signing.addr()}, trusting(other, pub))
	// The signature is the server's: a relay below needs no key of the relay's.
	site := newRelay(t, "site", []string{region.addr()}, trusting(pub))
	p := newPlane(t, "p", "edge", []string{site.addr()})
	eventually(t, "what is signed is served through the chain", p.at(1))

	stranger := newRelay(t, "stranger", []string{signing.addr()}, trusting(other))
	silent := newCentre(t)
	silent.group("edge", nil)
	silent.service("edge", "s", 80)
	unsigned := newRelay(t, "unsigned", []string{silent.addr()}, trusting(pub))
	for r, want := range map[*testRelay]error{stranger: manifest.ErrSignature, unsigned: manifest.ErrUnsigned} {
		eventually(t, "the relay says why", func() bool {
			all := r.carriers.all()
			return len(all) == 1 && errors.Is(all[0].client.Status().LastError, want)
		})
		if r.Ready() == nil {
			t.Errorf("relay %s serves what nobody trusted signed", r.cfg.ID)
		}
	}
}
