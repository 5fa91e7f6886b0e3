//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/upstream"
)

// refused is a cluster that is well formed and that no Envoy takes: clusters of
// type ORIGINAL_DST do not balance by ROUND_ROBIN.
func refused(id string) *musterv1.Change {
	return rawCluster(&clusterv3.Cluster{
		Name:                 id,
		ConnectTimeout:       durationpb.New(time.Second),
		ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST},
		LbPolicy:             clusterv3.Cluster_ROUND_ROBIN,
	})
}

func rawCluster(c *clusterv3.Cluster) *musterv1.Change {
	body, err := anypb.New(c)
	if err != nil {
		panic(err)
	}
	return put(&musterv1.Resource{Kind: &musterv1.Resource_XdsResource{
		XdsResource: &musterv1.XdsResource{Id: c.Name, Name: c.Name, Resource: body},
	}})
}

// TestARefusedResourceHoldsBackNothingElse commits a raw xDS resource that Envoy
// refuses together with good changes.
func TestARefusedResourceHoldsBackNothingElse(t *testing.T) {
	a := startBackend(t, "a")
	s := newSite(t, 0)
	s.group(t, "team")
	s.group(t, "other")
	var planes []*plane
	for _, binary := range envoys {
		planes = append(planes, s.startEnvoy(t, "team", binary))
	}
	bystander := s.startEnvoy(t, "other", envoys[0])
	ctx := t.Context()

	// A first good revision, so that there is something to keep serving.
	rev, err := s.commit(ctx, "team", serviceOn("first", "api.example.com", "/first", a), routeOf("first", "/*"))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.wait(ctx, "team", rev, len(planes)); err != nil {
		t.Fatal(err)
	}

	// Good, bad and good in one transaction, with more clusters beside the bad
	// one, so that they share its response.
	bad, err := s.Admin.Commit(ctx, &musterv1.CommitRequest{Group: "team", Message: "one of these is wrong", Changes: []*musterv1.Change{
		serviceOn("second", "api.example.com", "/second", a), routeOf("second", "/*"),
		refused("broken"),
		serviceOn("third", "other.example.com", "", a), routeOf("third", "/third"),
	}})
	if err != nil {
		t.Fatal(err)
	}

	t.Run("the good changes arrive", func(t *testing.T) {
		for _, p := range planes {
			for _, url := range []string{"api.example.com/first/x", "api.example.com/second/x", "other.example.com/third"} {
				if err := eventually(ctx, 20*time.Second, func() error { return p.answers(ctx, url, http.StatusOK) }); err != nil {
					t.Errorf("%s: %v", p.name, err)
				}
			}
		}
	})

	t.Run("the refusal is told with object, author and revision", func(t *testing.T) {
		for _, p := range planes {
			err := eventually(ctx, 20*time.Second, func() error {
				dp, err := s.status(ctx, "team", p.id)
				if err != nil {
					return err
				}
				if dp.State != musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED {
					return fmt.Errorf("state is %v, want NACKED", dp.State)
				}
				if len(dp.Refusals) != 1 {
					return fmt.Errorf("%d refusals, want 1: %v", len(dp.Refusals), dp.Refusals)
				}
				r := dp.Refusals[0]
				if len(r.Objects) == 0 || r.Objects[0].Kind != musterv1.Kind_KIND_XDS_RESOURCE || r.Objects[0].Id != "broken" {
					return fmt.Errorf("attributed to %v, want xds_resource/broken", r.Objects)
				}
				if r.ResourceName != "broken" || r.Revision != bad.Revision || r.Author == "" || r.Detail == "" {
					return fmt.Errorf("incomplete: %v", r)
				}
				if dp.Revision != bad.Revision {
					return fmt.Errorf("revision %d is acknowledged, want %d, the refused resource apart", dp.Revision, bad.Revision)
				}
				return nil
			})
			if err != nil {
				t.Errorf("%s: %v", p.name, err)
			}
		}
	})

	t.Run("dp status shows it", func(t *testing.T) {
		out, err := s.CLI(ctx, "", "dp", "status", "--group", "team")
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{planes[0].id, "NACKED", "xds_resource/broken"} {
			if !strings.Contains(out, want) {
				t.Errorf("dp status lacks %q:\n%s", want, out)
			}
		}
		out, err = s.CLI(ctx, "", "dp", "status", "--group", "team", "-o", "json")
		if err != nil {
			t.Fatal(err)
		}
		var rows []struct {
			ID, Group, State string
			Revision         json.RawMessage
		}
		if err := json.Unmarshal([]byte(out), &rows); err != nil {
			t.Fatalf("dp status -o json is no array of objects: %v\n%s", err, out)
		}
		if len(rows) != len(planes) || rows[0].Group != "team" || rows[0].State != "NACKED" || rows[0].ID == "" || rows[0].Revision == nil {
			t.Errorf("dp status -o json: %s", out)
		}
	})

	t.Run("later changes and other groups go on", func(t *testing.T) {
		if _, err := s.commit(ctx, "team", serviceOn("fourth", "api.example.com", "/fourth", a), routeOf("fourth", "/*")); err != nil {
			t.Fatal(err)
		}
		for _, p := range planes {
			if err := eventually(ctx, 20*time.Second, func() error { return p.answers(ctx, "api.example.com/fourth/x", http.StatusOK) }); err != nil {
				t.Errorf("%s: %v", p.name, err)
			}
		}
		rev, err := s.commit(ctx, "other", serviceOn("own", "own.example.com", "", a), routeOf("own", "/own"))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.wait(ctx, "other", rev, 1); err != nil {
			t.Error(err)
		}
		if err := eventually(ctx, 10*time.Second, func() error { return bystander.answers(ctx, "own.example.com/own", http.StatusOK) }); err != nil {
			t.Error(err)
		}
		if err := bystander.answers(ctx, "api.example.com/first/x", http.StatusNotFound); err != nil {
			t.Errorf("the group other serves what belongs to team: %v", err)
		}
	})

	t.Run("the refused content is not sent again and again", func(t *testing.T) {
		for _, p := range planes {
			before, err := p.envoy.Sum(ctx, `^cluster_manager\.cds\.update_rejected$`)
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(2 * time.Second)
			after, err := p.envoy.Sum(ctx, `^cluster_manager\.cds\.update_rejected$`)
			if err != nil {
				t.Fatal(err)
			}
			if before == 0 || after != before {
				t.Errorf("%s: %d refusals, then %d", p.name, before, after)
			}
		}
	})

	t.Run("the next good revision clears it", func(t *testing.T) {
		rev, err := s.commit(ctx, "team", rawCluster(&clusterv3.Cluster{Name: "broken", ConnectTimeout: durationpb.New(time.Second)}))
		if err != nil {
			t.Fatal(err)
		}
		if err := s.wait(ctx, "team", rev, len(planes)); err != nil {
			t.Error(err)
		}
		for _, p := range planes {
			dp, err := s.status(ctx, "team", p.id)
			if err != nil {
				t.Fatal(err)
			}
			if dp.State != musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED || len(dp.Refusals) != 0 {
				t.Errorf("%s: %v, %v", p.name, dp.State, dp.Refusals)
			}
		}
	})
}

// status returns what the server knows of one data plane.
func (s *site) status(ctx context.Context, group, id string) (*musterv1.DataPlane, error) {
	resp, err := s.Fleet.ListDataPlanes(ctx, &musterv1.ListDataPlanesRequest{Group: group, Types: true, Ids: []string{id}})
	if err != nil {
		return nil, err
	}
	if len(resp.DataPlanes) != 1 {
		return nil, fmt.Errorf("%d data planes named %s", len(resp.DataPlanes), id)
	}
	return resp.DataPlanes[0], nil
}

func startBackend(t *testing.T, name string) *upstream.Backend {
	t.Helper()
	b, err := upstream.Start(upstream.Config{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}
