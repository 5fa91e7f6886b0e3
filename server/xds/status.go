package xds

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	adminv3 "github.com/envoyproxy/go-control-plane/envoy/admin/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	statusv3 "github.com/envoyproxy/go-control-plane/envoy/service/status/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// RegisterStatus adds the client status discovery service (CSDS), which tells
// tools what each connected data plane was sent and acknowledged. It shows every
// group, so it belongs on a port for operators only; authorize decides on each
// call and stream. Bodies of secrets and of filters that may hold credentials are
// never shown.
func (s *Server) RegisterStatus(r grpc.ServiceRegistrar, authorize func(context.Context) error) {
	statusv3.RegisterClientStatusDiscoveryServiceServer(r, &statusServer{srv: s, authorize: authorize})
}

type statusServer struct {
	statusv3.UnimplementedClientStatusDiscoveryServiceServer
	srv       *Server
	authorize func(context.Context) error
}

// maxStatus bounds the resources of one answer.
const maxStatus = 50000

// FetchClientStatus answers for the data planes that the matchers select; without
// matchers for all.
func (s *statusServer) FetchClientStatus(ctx context.Context, req *statusv3.ClientStatusRequest) (*statusv3.ClientStatusResponse, error) {
	if err := s.authorize(ctx); err != nil {
		return nil, err
	}
	return s.answer(req)
}

// StreamClientStatus answers each request of the stream like FetchClientStatus.
func (s *statusServer) StreamClientStatus(stream grpc.BidiStreamingServer[statusv3.ClientStatusRequest, statusv3.ClientStatusResponse]) error {
	if err := s.authorize(stream.Context()); err != nil {
		return err
	}
	for {
		req, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		resp, err := s.answer(req)
		if err != nil {
			return err
		}
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (s *statusServer) answer(req *statusv3.ClientStatusRequest) (*statusv3.ClientStatusResponse, error) {
	for _, m := range req.GetNodeMatchers() {
		if len(m.GetNodeMetadatas()) > 0 {
			return nil, status.Error(codes.InvalidArgument, "node matchers by metadata are not supported: match by node_id")
		}
	}
	resp := &statusv3.ClientStatusResponse{}
	total := 0
	for _, st := range s.srv.live() {
		c, ok := st.status(req)
		if !ok {
			continue
		}
		if total += len(c.GetGenericXdsConfigs()); total > maxStatus {
			return nil, status.Errorf(codes.ResourceExhausted, "more than %d resources to report: match fewer data planes by node_id", maxStatus)
		}
		resp.Config = append(resp.Config, c)
	}
	return resp, nil
}

// live returns the streams whose first request was accepted, by group and node.
func (s *Server) live() []*stream {
	s.mu.Lock()
	all := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		if st.about.Load() != nil {
			all = append(all, st)
		}
	}
	s.mu.Unlock()
	slices.SortFunc(all, func(a, b *stream) int {
		x, y := a.about.Load(), b.about.Load()
		return strings.Compare(x.Group+"\x00"+x.Node+"\x00"+x.TypeURL, y.Group+"\x00"+y.Node+"\x00"+y.TypeURL)
	})
	return all
}

// statusPatience is how long a stream that is at work is waited for: one that
// waits for its data plane may be for long.
const statusPatience = 50 * time.Millisecond

// status reports what the stream's client was sent and acknowledged; false when
// the request does not select it, or it has ended.
func (st *stream) status(req *statusv3.ClientStatusRequest) (*statusv3.ClientConfig, bool) {
	about := st.about.Load()
	if !selects(req.GetNodeMatchers(), about.Node) {
		return nil, false
	}
	c := &statusv3.ClientConfig{Node: &corev3.Node{Id: about.Node, Cluster: about.Group, UserAgentName: about.UserAgent}}
	for range 50 {
		if st.mu.TryLock() {
			defer st.release()
			if st.sess == nil {
				return nil, false
			}
			c.GenericXdsConfigs = st.sess.status(!req.GetExcludeResourceContents())
			return c, true
		}
		time.Sleep(statusPatience / 50)
	}
	return c, true // connected, and nothing is known of its resources right now
}

func selects(matchers []*matcherv3.NodeMatcher, node string) bool {
	if len(matchers) == 0 {
		return true
	}
	return slices.ContainsFunc(matchers, func(m *matcherv3.NodeMatcher) bool {
		id := m.GetNodeId()
		if id == nil {
			return true
		}
		want, got := "", node
		if id.GetIgnoreCase() {
			got = strings.ToLower(got)
		}
		fold := func(s string) string {
			if id.GetIgnoreCase() {
				return strings.ToLower(s)
			}
			return s
		}
		switch p := id.GetMatchPattern().(type) {
		case *matcherv3.StringMatcher_Exact:
			want = fold(p.Exact)
			return got == want
		case *matcherv3.StringMatcher_Prefix:
			return strings.HasPrefix(got, fold(p.Prefix))
		case *matcherv3.StringMatcher_Suffix:
			return strings.HasSuffix(got, fold(p.Suffix))
		case *matcherv3.StringMatcher_Contains:
			return strings.Contains(got, fold(p.Contains))
		}
		return false
	})
}

// status reports each resource that the client subscribes to.
func (s *session) status(bodies bool) []*statusv3.ClientConfig_GenericXdsConfig {
	var out []*statusv3.ClientConfig_GenericXdsConfig
	for _, t := range s.tracks {
		set := s.newest.Set(t.typeURL, s.client.view)
		named := t.names.all()
		add := func(name string, r *snapshot.Resource) {
			out = append(out, s.statusOf(t, name, r, bodies))
		}
		if t.wildcard || len(t.globs) > 0 {
			for r := range set.All() {
				if t.wants(r.Name) {
					add(r.Name, r)
				}
			}
			for name := range named {
				if !hasName(set, name) {
					add(name, nil)
				}
			}
			continue
		}
		for name := range named {
			r, _ := set.Get(name)
			add(name, r)
		}
	}
	return out
}

// statusOf reports one resource; r is its newest content, nil where it has none.
func (s *session) statusOf(t *track, name string, r *snapshot.Resource, bodies bool) *statusv3.ClientConfig_GenericXdsConfig {
	c := &statusv3.ClientConfig_GenericXdsConfig{TypeUrl: t.typeURL, Name: name}
	var serving *snapshot.Resource
	if t.held != nil {
		serving, _ = t.held.Get(name)
	}
	if p, ok := t.old[name]; ok {
		serving = p.resource
	}
	f := t.refused[name]
	switch {
	case f != nil:
		c.ConfigStatus, c.ClientStatus = statusv3.ConfigStatus_ERROR, adminv3.ClientResourceStatus_NACKED
		c.ErrorState = &adminv3.UpdateFailureState{
			LastUpdateAttempt: timestamppb.New(f.at), Details: f.detail, VersionInfo: f.resource.Version,
			FailedConfiguration: shown(f.resource, bodies),
		}
		serving = f.good
	case r == nil:
		c.ConfigStatus, c.ClientStatus = statusv3.ConfigStatus_NOT_SENT, adminv3.ClientResourceStatus_DOES_NOT_EXIST
		return c
	case r.SameContent(serving):
		c.ConfigStatus, c.ClientStatus = statusv3.ConfigStatus_SYNCED, adminv3.ClientResourceStatus_ACKED
	case serving == nil:
		c.ConfigStatus, c.ClientStatus = statusv3.ConfigStatus_STALE, adminv3.ClientResourceStatus_REQUESTED
	default: // newer content is on its way
		c.ConfigStatus, c.ClientStatus = statusv3.ConfigStatus_STALE, adminv3.ClientResourceStatus_ACKED
	}
	if serving != nil {
		c.VersionInfo, c.XdsConfig = serving.Version, shown(serving, bodies)
	}
	return c
}

// shown returns the body of a resource for people to see, nil where it may hold a
// secret.
func shown(r *snapshot.Resource, bodies bool) *anypb.Any {
	if !bodies || r.TypeURL == compile.SecretType || r.TypeURL == compile.ExtensionConfigType {
		return nil
	}
	return &anypb.Any{TypeUrl: r.TypeURL, Value: r.Body}
}
