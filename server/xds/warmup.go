package xds

import (
	"slices"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// grpc-go loses calls at the moment when a route switches to a cluster that it
// did not know: it chooses by the new routes before its balancer has heard of the
// cluster ("unknown cluster selected for RPC"), and neither retries nor
// wait-for-ready help. So it is first sent the routes that it has, and the new
// clusters behind a header that nobody sends. It asks for those, and when it has
// had time to take them in, the routes themselves follow.

// isGRPCGo recognises grpc-go's user agent, the only client with the fault.
func isGRPCGo(agent string) bool { return strings.HasPrefix(agent, "gRPC Go") }

// warmHeader is matched by the routes that only make clusters known.
const warmHeader = "x-muster-warm-up"

// warmed puts routes that go to clusters which are new to the client off: before
// them goes what the client has, with the new clusters besides.
func (s *session) warmed(t *track, set *snapshot.Set, chunks []chunk) []chunk {
	if t.typeURL != compile.RouteConfigurationType || !isGRPCGo(s.client.agent) || t.held == nil {
		return chunks
	}
	var out []chunk
	for _, c := range chunks {
		var warm, now, later []*snapshot.Resource
		var clusters []string
		for _, r := range c.test {
			old := t.before(r)
			if old == nil {
				now = append(now, r)
				continue
			}
			if body, fresh := warmUp(old.Body, r.Body); len(fresh) > 0 {
				warm = append(warm, snapshot.NewResource(t.typeURL, r.Name, snapshot.Version{}, body))
				later, clusters = append(later, r), append(clusters, fresh...)
			} else {
				now = append(now, r)
			}
		}
		if len(later) == 0 {
			out = append(out, c)
			continue
		}
		encode := func(rs []*snapshot.Resource) *snapshot.Frame {
			return s.encoder.EncodeSotW(t.typeURL, set.String(), rs, s.client.wrapped)
		}
		out = append(out,
			chunk{kind: warmup, test: now, missing: c.missing, frame: encode(slices.Concat(warm, now))},
			chunk{test: later, frame: encode(later), clusters: clusters})
	}
	return out
}

// warmUp returns the old routes with the clusters that only the new ones use,
// and the names of those.
func warmUp(old, fresh []byte) (body []byte, clusters []string) {
	var before, after routev3.RouteConfiguration
	if proto.Unmarshal(old, &before) != nil || proto.Unmarshal(fresh, &after) != nil {
		return nil, nil // a raw resource, for the client to judge
	}
	known := clustersOf(&before)
	for name := range clustersOf(&after) {
		if !known[name] {
			clusters = append(clusters, name)
		}
	}
	if len(clusters) == 0 || len(before.GetVirtualHosts()) == 0 {
		return nil, nil
	}
	slices.Sort(clusters)
	for _, host := range before.GetVirtualHosts() {
		for _, name := range clusters {
			host.Routes = append(host.Routes, &routev3.Route{
				Match: &routev3.RouteMatch{
					PathSpecifier: &routev3.RouteMatch_Prefix{},
					Headers: []*routev3.HeaderMatcher{{
						Name:                 warmHeader,
						HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
					}},
				},
				Action: &routev3.Route_Route{Route: &routev3.RouteAction{ClusterSpecifier: &routev3.RouteAction_Cluster{Cluster: name}}},
			})
		}
	}
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(&before)
	if err != nil {
		return nil, nil
	}
	return body, clusters
}

func clustersOf(c *routev3.RouteConfiguration) map[string]bool {
	names := map[string]bool{}
	for _, host := range c.GetVirtualHosts() {
		for _, r := range host.GetRoutes() {
			if name := r.GetRoute().GetCluster(); name != "" {
				names[name] = true
			}
			for _, w := range r.GetRoute().GetWeightedClusters().GetClusters() {
				names[w.GetName()] = true
			}
		}
	}
	return names
}

// warming reports whether the next chunk has to wait for the client to take in
// its clusters, and until when at most.
func (s *session) warming(now time.Time, t *track) (until time.Time, wait bool) {
	if len(t.queue) == 0 || len(t.queue[0].clusters) == 0 || len(t.flights) > 0 {
		return time.Time{}, false
	}
	if t.warmBy.IsZero() {
		t.warmBy = now.Add(s.cfg.timing.WarmUp)
	}
	if t.warmAt.IsZero() && s.hasClusters(t.queue[0].clusters) {
		// It acknowledges before it has done everything.
		t.warmAt = now.Add(s.cfg.timing.WarmUp / 10)
	}
	until = t.warmBy
	if !t.warmAt.IsZero() && t.warmAt.Before(until) {
		until = t.warmAt
	}
	return until, now.Before(until)
}

// hasClusters reports whether the client asked for the clusters and their
// endpoints, those that exist, and acknowledged them.
func (s *session) hasClusters(names []string) bool {
	for _, typeURL := range []string{compile.ClusterType, compile.EndpointType} {
		t := s.find(typeURL)
		set := s.newest.Set(typeURL, s.client.view)
		for _, name := range names {
			if _, exists := set.Get(name); !exists {
				continue
			}
			if t == nil || !t.names.has(name) || t.busy() || len(t.answers) > 0 {
				return false
			}
		}
	}
	return true
}
