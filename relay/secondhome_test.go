package relay

import (
	"crypto/ed25519"
	"crypto/rand"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/johannesboyne/gofakes3"
	"github.com/johannesboyne/gofakes3/backend/s3mem"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"

	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/dataplane/bucket"
	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server"
)

// s3 is a bucket on an S3 server that others wrote.
func s3(t *testing.T) *bucket.Bucket {
	t.Helper()
	backend := s3mem.New()
	if err := backend.CreateBucket("edge"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(gofakes3.New(backend).Server())
	t.Cleanup(srv.Close)
	b, err := bucket.New(bucket.Config{Name: "edge", Prefix: "prod", Endpoint: srv.URL, Insecure: true, AccessKeyID: "id", SecretAccessKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

func homeAt(t *testing.T, at dataplane.ObjectStore, keys ...ed25519.PublicKey) *dataplane.SecondHome {
	t.Helper()
	h, err := dataplane.NewSecondHome(dataplane.SecondHomeConfig{
		Store: at, Key: []byte("sixteen bytes or more"), ManifestKeys: keys, Interval: 50 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func valueOf(m prometheus.Metric) float64 {
	var out dto.Metric
	if err := m.Write(&out); err != nil {
		panic(err) // a metric of our own
	}
	return out.GetCounter().GetValue() + out.GetGauge().GetValue()
}

const nobody = "127.0.0.1:1"

func TestWhoStartsFromTheSecondHomeHasWhatItWouldHaveAtTheRelay(t *testing.T) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := newCentre(t, func(cfg *server.Config) { cfg.ManifestKey = key })
	if _, err := c.srv.Admin().CreateGroup(c.as(), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: "id-of-edge", Name: "edge"}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"one", "two", "three"} {
		c.service("edge", name, 80)
	}
	c.remove("edge", "two")
	at := s3(t)
	keeping := func(cfg *Config) { cfg.SecondHome, cfg.KeepInSecondHome = homeAt(t, at, pub), true }
	// Two write the same: one does, or both the same object.
	r, other := newRelay(t, "r", []string{c.addr()}, keeping), newRelay(t, "other", []string{c.addr()}, keeping)
	below := newPlane(t, "below", "edge", []string{r.addr()})
	eventually(t, "it has its group", below.at(4))
	for _, each := range []*testRelay{r, other} {
		eventually(t, "what is served is in the second home", func() bool {
			return valueOf(each.metrics.home.revision.WithLabelValues("id-of-edge")) == 4
		})
	}
	want := text(below.State())
	for _, stop := range []*running{r.run, other.run} {
		if err := stop.stop(); err != nil {
			t.Fatal(err)
		}
	}

	away := newLink(t, c.addr())
	away.set(true, false)
	moved := newPlane(t, "moved", "edge", []string{away.addr()}, func(cfg *dataplane.Config) { cfg.SecondHome = homeAt(t, at, pub) })
	eventually(t, "a data plane with nothing has it", moved.at(4))
	if got := text(moved.State()); got != want {
		t.Errorf("it has\n%s\nwant\n%s", got, want)
	}
	away.set(false, false)
	eventually(t, "a server confirms it", func() bool { return moved.Status().Server != "" && !moved.Status().Cached })
	moved.mu.Lock()
	if moved.fetched > 0 {
		t.Errorf("it fetched %d resources that it had", moved.fetched)
	}
	moved.mu.Unlock()

	l := newLink(t, c.addr())
	l.set(true, false)
	agent := newRelay(t, "agent", []string{l.addr()}, func(cfg *Config) {
		cfg.Groups, cfg.SecondHome, cfg.ManifestKeys = []string{"edge"}, homeAt(t, at, pub), []ed25519.PublicKey{pub}
	})
	beside := newPlane(t, "beside", "edge", []string{agent.addr()})
	eventually(t, "an agent with nothing serves it", beside.at(4))
	if got := text(beside.State()); got != want {
		t.Errorf("beside the agent there is\n%s\nwant\n%s", got, want)
	}
	if agent.Ready() != nil {
		t.Error("the agent is not ready")
	}
	l.set(false, false)
	rev := c.service("edge", "four", 80)
	eventually(t, "and goes on with the upstream", beside.at(rev))
	eventually(t, "which knows the group's name", func() bool {
		groups := agent.carriers.all()
		return len(groups) == 1 && groups[0].group.GetId() == "id-of-edge"
	})
	if kept, err := homeAt(t, at).Snapshots(t.Context(), "edge"); err != nil || kept[0].Revision != 4 {
		t.Errorf("an agent has written: %v, %v", kept, err)
	}
}

func TestARelayServesHoweverItsSecondHomeFails(t *testing.T) {
	c := newCentre(t)
	c.group("edge", nil)
	c.service("edge", "one", 80)
	gone, err := bucket.New(bucket.Config{Name: "edge", Endpoint: "http://" + nobody, Insecure: true, AccessKeyID: "id", SecretAccessKey: "secret"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(gone.Close)
	r := newRelay(t, "r", []string{c.addr()}, func(cfg *Config) { cfg.SecondHome, cfg.KeepInSecondHome = homeAt(t, gone), true })
	p := newPlane(t, "p", "edge", []string{r.addr()})
	eventually(t, "it serves", p.at(1))
	eventually(t, "it has tried to write", func() bool {
		return valueOf(r.metrics.home.writes.WithLabelValues("edge", "failed")) > 0
	})
	eventually(t, "and goes on to serve", p.at(c.service("edge", "two", 80)))
}
