package xds

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// family is the implementation of a client, as far as it matters here.
type family uint8

const (
	// otherClient is treated like an Envoy.
	otherClient family = iota
	envoyClient
	// grpcClient orders what it asks for by itself and takes names only.
	grpcClient
	// musterClient applies revisions whole, by their manifest.
	musterClient
)

// client is what a stream's first request tells about the client.
type client struct {
	family family
	agent  string // name/version
	view   snapshot.View
	// ttl and wrapped tell that the client takes resources that expire, and in
	// the state-of-the-world protocol resources with a name and version.
	ttl, wrapped bool
}

// The oldest Envoy that has what the compiled resources need: vhost_header and
// virtual hosts over ADS.
const oldestMajor, oldestMinor = 1, 37

// RelayAgent is the user agent name of relays.
const RelayAgent = "muster-relay"

func clientOf(node *corev3.Node, delta bool) (client, error) {
	c := client{agent: agentOf(node)}
	switch name := node.GetUserAgentName(); {
	case name == "envoy":
		c.family = envoyClient
		if v := node.GetUserAgentBuildVersion().GetVersion(); v != nil &&
			(v.GetMajorNumber() < oldestMajor || v.GetMajorNumber() == oldestMajor && v.GetMinorNumber() < oldestMinor) {
			return client{}, status.Errorf(codes.FailedPrecondition,
				"Envoy %d.%d is too old: the configuration of this gateway group needs %d.%d or newer",
				v.GetMajorNumber(), v.GetMinorNumber(), oldestMajor, oldestMinor)
		}
	case name == RelayAgent:
		// It passes every view on, and says nothing of where it listens.
		c.family, c.view.Relay = musterClient, true
		return c, nil
	case Proxyless(node):
		c.family = grpcClient
	case strings.HasPrefix(name, "muster"):
		c.family = musterClient
	}
	switch {
	case c.family == grpcClient:
		c.view.Client = compile.ViewGRPC
	case delta:
		c.view.Client = compile.ViewDelta
	default:
		c.view.Client = compile.ViewSotW
	}
	features := node.GetClientFeatures()
	c.ttl = slices.Contains(features, "xds.config.supports-resource-ttl")
	c.wrapped = slices.Contains(features, "xds.config.resource-in-sotw")
	var err error
	if c.view.Listen, err = listenOf(node); err != nil {
		return c, err
	}
	c.view.Sources, err = sourcesOf(node, delta)
	return c, err
}

// maxClusterName bounds node.metadata["muster.xds_cluster"], in bytes.
const maxClusterName = 128

// sourcesOf reads node.metadata["muster.xds_cluster"]: the cluster of the
// bootstrap that a data plane without ADS asks for everything.
func sourcesOf(node *corev3.Node, delta bool) (compile.Sources, error) {
	value, ok := node.GetMetadata().GetFields()["muster.xds_cluster"]
	if !ok {
		return compile.Sources{}, nil
	}
	name := value.GetStringValue()
	if name == "" || len(name) > maxClusterName {
		return compile.Sources{}, status.Errorf(codes.InvalidArgument,
			"node metadata muster.xds_cluster must be the name of a cluster, of %d bytes at most", maxClusterName)
	}
	return compile.Sources{Cluster: name, SotW: !delta}, nil
}

// listenOf reads node.metadata["muster.listen"]: where the data plane listens.
func listenOf(node *corev3.Node) (compile.ListenOptions, error) {
	var out compile.ListenOptions
	for key, value := range node.GetMetadata().GetFields()["muster.listen"].GetStructValue().GetFields() {
		switch key {
		case "address":
			if _, err := netip.ParseAddr(value.GetStringValue()); err != nil {
				return out, status.Errorf(codes.InvalidArgument, "node metadata muster.listen: address %q is not an IP address", value.GetStringValue())
			}
			out.Address = value.GetStringValue()
		case "http_port", "https_port":
			n := value.GetNumberValue()
			if n != float64(uint16(n)) || n == 0 {
				return out, status.Errorf(codes.InvalidArgument, "node metadata muster.listen: %s must be 1 to 65535", key)
			}
			if key == "http_port" {
				out.HTTPPort = uint32(n)
			} else {
				out.HTTPSPort = uint32(n)
			}
		default:
			return out, status.Errorf(codes.InvalidArgument, "node metadata muster.listen: unknown field %q: want address, http_port, https_port", key)
		}
	}
	return out, nil
}

// RelayedClients is the key in a relay's node metadata that says for which clients
// the stream is; RelayedGRPC is its value for gRPC's own. Without it, all others.
const RelayedClients, RelayedGRPC = "muster.relay.clients", "grpc"

// Proxyless reports whether a node is one of gRPC's own xDS clients, or a relay's
// stream for those.
func Proxyless(node *corev3.Node) bool {
	return strings.HasPrefix(node.GetUserAgentName(), "gRPC") ||
		node.GetUserAgentName() == RelayAgent && node.GetMetadata().GetFields()[RelayedClients].GetStringValue() == RelayedGRPC
}

func agentOf(node *corev3.Node) string {
	name, version := node.GetUserAgentName(), node.GetUserAgentVersion()
	if v := node.GetUserAgentBuildVersion().GetVersion(); v != nil {
		version = fmt.Sprintf("%d.%d.%d", v.GetMajorNumber(), v.GetMinorNumber(), v.GetPatch())
	}
	if version == "" {
		return name
	}
	return name + "/" + version
}
