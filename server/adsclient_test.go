package server

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	statuspb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/musterhq/muster/server/compile"
)

// wildcardTypes are what a data plane of the tests subscribes to, whole.
var wildcardTypes = []string{compile.ClusterType, compile.EndpointType, compile.ListenerType, compile.RouteConfigurationType, compile.VirtualHostType, compile.SecretType, compile.ExtensionConfigType}

// adsClient is a raw delta ADS client: it keeps what it is sent and acknowledges
// it, unless refuse says no.
type adsClient struct {
	t      *testing.T
	stream discoveryv3.AggregatedDiscoveryService_DeltaAggregatedResourcesClient
	cancel context.CancelFunc
	done   chan struct{}

	mu        sync.Mutex
	refuse    func(typeURL string, r *discoveryv3.Resource) string // a reason, or empty
	resources map[string]map[string]*discoveryv3.Resource
	responses int
	err       error
}

func (n *node) dataPlane(id, group string, change ...func(*adsClient, *corev3.Node)) *adsClient {
	n.t.Helper()
	conn, err := grpc.NewClient(n.srv.XDSAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(n.t.Context()))
	c := &adsClient{t: n.t, cancel: cancel, done: make(chan struct{}), resources: map[string]map[string]*discoveryv3.Resource{}}
	me := &corev3.Node{Id: id, Cluster: group, UserAgentName: "raw-test-client", UserAgentVersionType: &corev3.Node_UserAgentVersion{UserAgentVersion: "1"}}
	for _, f := range change {
		f(c, me)
	}
	c.stream, err = discoveryv3.NewAggregatedDiscoveryServiceClient(conn).DeltaAggregatedResources(ctx)
	if err != nil {
		n.t.Fatal(err)
	}
	for i, typ := range wildcardTypes {
		req := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: typ, ResourceNamesSubscribe: []string{"*"}}
		if i == 0 {
			req.Node = me
		}
		if err := c.stream.Send(req); err != nil {
			break // run tells why
		}
	}
	go c.run()
	n.t.Cleanup(func() {
		c.close()
		conn.Close()
	})
	return c
}

func (c *adsClient) close() {
	c.cancel()
	<-c.done
}

func (c *adsClient) run() {
	defer close(c.done)
	for {
		resp, err := c.stream.Recv()
		if err != nil {
			c.mu.Lock()
			c.err = err
			c.mu.Unlock()
			return
		}
		ack := &discoveryv3.DeltaDiscoveryRequest{TypeUrl: resp.GetTypeUrl(), ResponseNonce: resp.GetNonce()}
		if reason := c.take(resp); reason != "" {
			ack.ErrorDetail = &statuspb.Status{Code: int32(codes.InvalidArgument), Message: reason}
		}
		if err := c.stream.Send(ack); err != nil {
			return
		}
	}
}

// take keeps a response whole, or refuses it whole.
func (c *adsClient) take(resp *discoveryv3.DeltaDiscoveryResponse) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.responses++
	if c.refuse != nil {
		for _, r := range resp.GetResources() {
			if reason := c.refuse(resp.GetTypeUrl(), r); reason != "" {
				return reason
			}
		}
	}
	m := c.resources[resp.GetTypeUrl()]
	if m == nil {
		m = map[string]*discoveryv3.Resource{}
		c.resources[resp.GetTypeUrl()] = m
	}
	for _, r := range resp.GetResources() {
		m[r.GetName()] = r
	}
	for _, name := range resp.GetRemovedResources() {
		delete(m, name)
	}
	return ""
}

// names lists what the client holds of a type.
func (c *adsClient) names(typeURL string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return strings.Join(slices.Sorted(maps.Keys(c.resources[typeURL])), " ")
}

// text is everything that the client holds, as bytes.
func (c *adsClient) text() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, m := range c.resources {
		for name, r := range m {
			b.WriteString(name)
			b.Write(r.GetResource().GetValue())
		}
	}
	return b.String()
}

func (c *adsClient) version(typeURL, name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.resources[typeURL][name].GetVersion()
}

func (c *adsClient) ended() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		return errors.New("the stream ended")
	}
	return c.err
}
