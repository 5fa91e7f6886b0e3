//go:build e2e

package e2e

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"testing"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/adsclient"
)

// TestAChangeCostsBytesOfItsOwnSize puts 2,000 services on one host and counts
// what each data plane is sent for one change: by message, with a client that
// subscribes as Envoy does, and by Envoy's own counters.
func TestAChangeCostsBytesOfItsOwnSize(t *testing.T) {
	const services = 2000
	a := startBackend(t, "a")
	b := startBackend(t, "b")
	s := newSite(t, 0)
	s.group(t, "big")
	ctx := t.Context()

	name := func(i int) string { return fmt.Sprintf("svc-%04d", i) }
	object := func(i int, nodes *musterv1.Upstream) *musterv1.Change {
		return service(&musterv1.Service{
			Id: name(i), Name: name(i), Hosts: []string{"api.example.com"}, PathPrefix: "/" + name(i), Upstream: nodes,
		})
	}
	var changes []*musterv1.Change
	for i := range services {
		changes = append(changes, object(i, upstreamOf(a)))
		r := &musterv1.Route{Id: name(i), Name: name(i), ServiceId: name(i), Uris: []string{"/*"}}
		if i == 0 {
			r.Plugins = keyAuth()
		}
		changes = append(changes, route(r))
	}
	changes = append(changes, consumer("alice"), keyOf("alice", "key-of-alice"))
	var rev uint64
	for chunk := range slices.Chunk(changes, 1000) {
		var err error
		if rev, err = s.commit(ctx, "big", chunk...); err != nil {
			t.Fatal(err)
		}
	}

	p := s.startEnvoy(t, "big", envoys[0])
	node := &corev3.Node{
		Id: "counter", Cluster: "big", UserAgentName: "envoy",
		UserAgentVersionType: &corev3.Node_UserAgentBuildVersion{UserAgentBuildVersion: &corev3.BuildVersion{}},
		Metadata:             plugin(map[string]any{"muster.group": "big"}),
	}
	node.GetUserAgentBuildVersion().Version = envoyVersion(envoys[0].Version)
	counter, err := adsclient.Dial(ctx, s.XDSAddr(), node)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(counter.Close)
	if err := s.wait(ctx, "big", rev, 2); err != nil {
		t.Fatal(err)
	}
	if err := counter.Quiet(ctx, time.Second); err != nil {
		t.Fatal(err)
	}
	if got := len(counter.Held(adsclient.VHDS)); got < services {
		t.Fatalf("the client holds %d virtual hosts, want one for each of %d services", got, services)
	}
	total := 0
	for _, r := range counter.Take() {
		total += r.Bytes
	}
	t.Logf("the whole group: %d bytes", total)

	for _, change := range []struct {
		name    string
		changes []*musterv1.Change
		typeURL string
		most    int // bytes of the response
		// proof is a request that the change makes a difference to.
		proof func() error
	}{
		{
			name: "one route",
			changes: []*musterv1.Change{route(&musterv1.Route{
				Id: name(1234), Name: name(1234), ServiceId: name(1234), Uris: []string{"/*"}, Methods: []string{"GET"},
			})},
			typeURL: adsclient.VHDS,
			most:    700,
			proof:   func() error { return p.answers(ctx, "api.example.com/svc-1234/x", 200) },
		},
		{
			name:    "a consumer with a key",
			changes: []*musterv1.Change{consumer("bob"), keyOf("bob", "key-of-bob")},
			typeURL: adsclient.ECDS,
			most:    700,
			proof: func() error {
				return p.answers(ctx, "api.example.com/svc-0000/x", 200, "apikey", "key-of-bob")
			},
		},
		{
			name:    "a node",
			changes: []*musterv1.Change{object(777, upstreamOf(b))},
			typeURL: adsclient.EDS,
			most:    300,
			proof: func() error {
				before := b.Requests()
				if err := p.answers(ctx, "api.example.com/svc-0777/x", 200); err != nil {
					return err
				}
				if b.Requests() == before {
					return fmt.Errorf("the new node got no request")
				}
				return nil
			},
		},
	} {
		t.Run(change.name, func(t *testing.T) {
			before := p.updates(ctx, t)
			rev, err := s.commit(ctx, "big", change.changes...)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.wait(ctx, "big", rev, 2); err != nil {
				t.Fatal(err)
			}
			if err := counter.Quiet(ctx, time.Second); err != nil {
				t.Fatal(err)
			}
			responses := counter.Take()
			if len(responses) != 1 {
				t.Fatalf("%d responses, want 1: %v", len(responses), responses)
			}
			r := responses[0]
			t.Logf("%d bytes: %v", r.Bytes, r.Names)
			if r.TypeURL != change.typeURL || len(r.Names) != 1 || len(r.Removed) != 0 {
				t.Errorf("got %v, want one resource of %s", r, change.typeURL)
			}
			if r.Bytes > change.most {
				t.Errorf("%d bytes, want %d at most", r.Bytes, change.most)
			}
			if err := eventually(ctx, 10*time.Second, change.proof); err != nil {
				t.Error(err)
			}
			after := p.updates(ctx, t)
			for typeURL, n := range after.updates {
				want := before.updates[typeURL]
				if typeURL == change.typeURL {
					want++
				}
				if n != want {
					t.Errorf("Envoy counted %d updates of %s, want %d", n, typeURL, want)
				}
			}
			// Frames, headers and acknowledged pings come on top of the message.
			if got := after.received - before.received; got > int64(change.most)+600 {
				t.Errorf("Envoy received %d bytes on the xDS connection", got)
			} else {
				t.Logf("Envoy received %d bytes on the xDS connection", got)
			}
		})
	}
}

// TestAConsumerAmongTenThousand states what one changed consumer costs on the wire
// when there are many. Credentials are spread over shards; a changed key changes the
// shard that it leaves and the one that it comes to.
func TestAConsumerAmongTenThousand(t *testing.T) {
	const consumers, most = 10_000, 18_000
	a := startBackend(t, "a")
	s := newSite(t, 0)
	s.group(t, "many")
	ctx := t.Context()
	closed := routeOf("closed", "/*")
	closed.GetPut().GetRoute().Plugins = keyAuth()
	name := func(i int) string { return fmt.Sprintf("consumer-%05d", i) }
	key := func(i int) string { return fmt.Sprintf("a-key-of-32-characters-no-%06d", i) }
	changes := []*musterv1.Change{serviceOn("closed", "api.example.com", "", a), closed}
	for i := range consumers {
		changes = append(changes, consumer(name(i)), keyOf(name(i), key(i)))
	}
	var rev uint64
	for chunk := range slices.Chunk(changes, 1000) {
		var err error
		if rev, err = s.commit(ctx, "many", chunk...); err != nil {
			t.Fatal(err)
		}
	}
	p := s.startEnvoy(t, "many", envoys[0])
	if err := s.wait(ctx, "many", rev, 1); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, 10*time.Second, func() error {
		return p.answers(ctx, "api.example.com/x", 200, "apikey", key(consumers-1))
	}); err != nil {
		t.Fatal(err)
	}
	before := p.updates(ctx, t)
	if rev, err := s.commit(ctx, "many", keyOf(name(7), "another-key")); err != nil {
		t.Fatal(err)
	} else if err := s.wait(ctx, "many", rev, 1); err != nil {
		t.Fatal(err)
	}
	if err := eventually(ctx, 10*time.Second, func() error {
		return errors.Join(
			p.answers(ctx, "api.example.com/x", 200, "apikey", "another-key"),
			p.answers(ctx, "api.example.com/x", 401, "apikey", key(7)))
	}); err != nil {
		t.Error(err)
	}
	got := p.updates(ctx, t).received - before.received
	t.Logf("one changed consumer of %d: Envoy received %d bytes", consumers, got)
	if got > most {
		t.Errorf("more than %d bytes", most)
	}
}

type counted struct {
	updates  map[string]int64 // applied updates by type
	received int64            // bytes on the connection to the server
}

// What Envoy counts of the updates it applied, and the bytes it received. All
// are read at once: with 2,000 clusters each look at the stats takes long.
var updateStats = map[string]*regexp.Regexp{
	adsclient.LDS:  regexp.MustCompile(`^listener_manager\.lds\.update_success$`),
	adsclient.CDS:  regexp.MustCompile(`^cluster_manager\.cds\.update_success$`),
	adsclient.RDS:  regexp.MustCompile(`\.rds\.muster\.update_success$`),
	adsclient.VHDS: regexp.MustCompile(`\.vhds\.muster\.update_success$`),
	adsclient.ECDS: regexp.MustCompile(`^extension_config_discovery\..*\.config_reload$`),
	adsclient.EDS:  regexp.MustCompile(`^cluster\.service.*\.update_success$`),
	receivedBytes:  regexp.MustCompile(`^cluster\.muster_xds\.upstream_cx_rx_bytes_total$`),
}

const receivedBytes = "bytes"

func (p *plane) updates(ctx context.Context, t *testing.T) counted {
	t.Helper()
	stats, err := p.envoy.Stats(ctx, `(update_success|config_reload|upstream_cx_rx_bytes_total)$`)
	if err != nil {
		t.Fatal(err)
	}
	c := counted{updates: map[string]int64{}}
	for kind, pattern := range updateStats {
		var sum int64
		for name, n := range stats {
			if pattern.MatchString(name) {
				sum += n
			}
		}
		if kind == receivedBytes {
			c.received = sum
		} else {
			c.updates[kind] = sum
		}
	}
	if c.received == 0 {
		t.Fatal("Envoy counted no bytes from the xDS server")
	}
	return c
}
