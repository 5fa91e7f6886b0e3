package adsclient

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	hcmv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/network/http_connection_manager/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// The types by the short names that Envoy's documentation uses.
const (
	LDS  = "type.googleapis.com/envoy.config.listener.v3.Listener"
	RDS  = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration"
	VHDS = "type.googleapis.com/envoy.config.route.v3.VirtualHost"
	CDS  = "type.googleapis.com/envoy.config.cluster.v3.Cluster"
	EDS  = "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
	SDS  = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
	ECDS = "type.googleapis.com/envoy.config.core.v3.TypedExtensionConfig"
)

// Response is one response as it arrived.
type Response struct {
	TypeURL string
	// Bytes is the encoded message's size, without gRPC's five bytes of framing.
	Bytes int
	// Names are those of the resources that came, Removed of those that went.
	Names, Removed []string
}

// Client is a connected client. Its methods are safe for concurrent use.
type Client struct {
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[discoveryv3.DeltaDiscoveryRequest, discoveryv3.DeltaDiscoveryResponse]
	cancel context.CancelFunc
	done   chan struct{}

	mu         sync.Mutex
	err        error
	responses  []Response
	subscribed map[string]map[string]bool // by type; a present empty map is a wildcard
	versions   map[string]map[string]string
	last       time.Time
}

// Dial connects, asks for clusters and listeners, and follows what they name.
func Dial(ctx context.Context, addr string, node *corev3.Node) (*Client, error) {
	conn, err := grpc.NewClient(addr,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		cancel()
		_ = conn.Close()
		return nil, fmt.Errorf("delta ADS: %w", err)
	}
	c := &Client{
		conn: conn, stream: stream, cancel: cancel,
		done:       make(chan struct{}),
		subscribed: map[string]map[string]bool{},
		versions:   map[string]map[string]string{},
		last:       time.Now(),
	}
	first := &discoveryv3.DeltaDiscoveryRequest{Node: node, TypeUrl: CDS}
	c.subscribed[CDS] = map[string]bool{}
	c.subscribed[LDS] = map[string]bool{}
	err = stream.Send(first)
	if err == nil {
		err = stream.Send(&discoveryv3.DeltaDiscoveryRequest{TypeUrl: LDS})
	}
	if err != nil {
		cancel()
		_ = conn.Close()
		return nil, fmt.Errorf("delta ADS: %w", err)
	}
	go c.receive()
	return c, nil
}

// Close ends the stream and waits for it.
func (c *Client) Close() {
	c.cancel()
	<-c.done
	_ = c.conn.Close()
}

func (c *Client) receive() {
	defer close(c.done)
	for {
		resp, err := c.stream.Recv()
		if err == nil {
			err = c.take(resp)
		}
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
	}
}

// take notes a response, acknowledges it and subscribes to what it names.
func (c *Client) take(resp *discoveryv3.DeltaDiscoveryResponse) error {
	noted := Response{TypeURL: resp.TypeUrl, Bytes: proto.Size(resp), Removed: resp.RemovedResources}
	wanted := map[string][]string{}
	for _, r := range resp.Resources {
		noted.Names = append(noted.Names, r.Name)
		if err := references(r.Resource, wanted); err != nil {
			return fmt.Errorf("%s: %w", r.Name, err)
		}
	}
	c.mu.Lock()
	c.responses = append(c.responses, noted)
	c.last = time.Now()
	held := c.versions[resp.TypeUrl]
	if held == nil {
		held = map[string]string{}
		c.versions[resp.TypeUrl] = held
	}
	for _, r := range resp.Resources {
		held[r.Name] = r.Version
	}
	for _, name := range resp.RemovedResources {
		delete(held, name)
	}
	requests := []*discoveryv3.DeltaDiscoveryRequest{{TypeUrl: resp.TypeUrl, ResponseNonce: resp.Nonce}}
	for _, typeURL := range slices.Sorted(maps.Keys(wanted)) {
		if req := c.subscribe(typeURL, wanted[typeURL]); req != nil {
			requests = append(requests, req)
		}
	}
	c.mu.Unlock()
	for _, req := range requests {
		if err := c.stream.Send(req); err != nil {
			return err
		}
	}
	return nil
}

// subscribe is called with mu held. It returns nil when all is subscribed to.
func (c *Client) subscribe(typeURL string, names []string) *discoveryv3.DeltaDiscoveryRequest {
	have, began := c.subscribed[typeURL]
	if !began {
		have = map[string]bool{}
		c.subscribed[typeURL] = have
	}
	var fresh []string
	for _, name := range names {
		if !have[name] {
			have[name] = true
			fresh = append(fresh, name)
		}
	}
	// Virtual hosts are subscribed to as a wildcard: once, with no names.
	if len(fresh) == 0 && (began || len(names) > 0) {
		return nil
	}
	return &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typeURL, ResourceNamesSubscribe: fresh}
}

// references adds the names by which a resource refers to others, by type.
func references(resource *anypb.Any, wanted map[string][]string) error {
	switch resource.GetTypeUrl() {
	case CDS:
		var cluster clusterv3.Cluster
		if err := resource.UnmarshalTo(&cluster); err != nil {
			return err
		}
		if cluster.GetType() == clusterv3.Cluster_EDS {
			name := cluster.GetEdsClusterConfig().GetServiceName()
			if name == "" {
				name = cluster.Name
			}
			wanted[EDS] = append(wanted[EDS], name)
		}
	case RDS:
		wanted[VHDS] = nil
	case LDS:
		var listener listenerv3.Listener
		if err := resource.UnmarshalTo(&listener); err != nil {
			return err
		}
		for _, chain := range listener.FilterChains {
			for _, filter := range chain.Filters {
				if err := filterReferences(filter.GetTypedConfig(), wanted); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

func filterReferences(config *anypb.Any, wanted map[string][]string) error {
	if !strings.HasSuffix(config.GetTypeUrl(), ".HttpConnectionManager") {
		return nil
	}
	var hcm hcmv3.HttpConnectionManager
	if err := config.UnmarshalTo(&hcm); err != nil {
		return err
	}
	if name := hcm.GetRds().GetRouteConfigName(); name != "" {
		wanted[RDS] = append(wanted[RDS], name)
	}
	for _, f := range hcm.HttpFilters {
		if f.GetConfigDiscovery() != nil {
			wanted[ECDS] = append(wanted[ECDS], f.Name)
		}
		if err := matchedReferences(f.GetTypedConfig(), wanted); err != nil {
			return err
		}
	}
	return nil
}

// matchedReferences finds the filters that a composite hands requests to by name.
func matchedReferences(config *anypb.Any, wanted map[string][]string) error {
	if !strings.HasSuffix(config.GetTypeUrl(), ".ExtensionWithMatcher") {
		return nil
	}
	var m matchingv3.ExtensionWithMatcher
	if err := config.UnmarshalTo(&m); err != nil {
		return err
	}
	for _, next := range m.GetXdsMatcher().GetMatcherTree().GetPrefixMatchMap().GetMap() {
		var a compositev3.ExecuteFilterAction
		if err := next.GetAction().GetTypedConfig().UnmarshalTo(&a); err != nil {
			return err
		}
		if name := a.GetDynamicConfig().GetName(); name != "" {
			wanted[ECDS] = append(wanted[ECDS], name)
		}
	}
	return nil
}

// Quiet returns when nothing has arrived for a while.
func (c *Client) Quiet(ctx context.Context, quiet time.Duration) error {
	for {
		c.mu.Lock()
		err, since := c.err, time.Since(c.last)
		c.mu.Unlock()
		if err != nil {
			return err
		}
		if since >= quiet {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(quiet - since):
		}
	}
}

// Take returns the responses since the last Take.
func (c *Client) Take() []Response {
	c.mu.Lock()
	defer c.mu.Unlock()
	taken := c.responses
	c.responses = nil
	return taken
}

// Held returns the versions the client holds of a type, by name.
func (c *Client) Held(typeURL string) map[string]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return maps.Clone(c.versions[typeURL])
}
