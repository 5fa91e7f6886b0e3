package bootstrap

import (
	"encoding/json"
	"testing"

	bootstrapv3 "github.com/envoyproxy/go-control-plane/envoy/config/bootstrap/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/encoding/protojson"
)

func read(t *testing.T, e Envoy) *bootstrapv3.Bootstrap {
	t.Helper()
	out, err := e.YAML()
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := yaml.Unmarshal(out, &tree); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	raw, err := json.Marshal(tree)
	if err != nil {
		t.Fatal(err)
	}
	var b bootstrapv3.Bootstrap
	if err := protojson.Unmarshal(raw, &b); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	if err := b.ValidateAll(); err != nil {
		t.Errorf("Envoy's own rules: %v", err)
	}
	return &b
}

func TestTheBootstrapIsWhatItsMessageSays(t *testing.T) {
	b := read(t, Envoy{Group: "edge", NodeID: "e1", Servers: []string{"127.0.0.1:7943"}, AdminPort: 9901})
	if b.GetNode().GetId() != "e1" || b.GetNode().GetCluster() != "edge" {
		t.Errorf("node %v", b.GetNode())
	}
	if g := b.GetNode().GetMetadata().GetFields()[MetadataGroup].GetStringValue(); g != "edge" {
		t.Errorf("metadata names group %q", g)
	}
	if b.GetNode().GetMetadata().GetFields()[MetadataListen] != nil {
		t.Error("listen options although none were given")
	}
	if got := b.GetDynamicResources().GetAdsConfig().GetApiType(); got != corev3.ApiConfigSource_DELTA_GRPC {
		t.Errorf("api type %v", got)
	}
	if a := b.GetAdmin().GetAddress().GetSocketAddress(); a.GetAddress() != "127.0.0.1" || a.GetPortValue() != 9901 {
		t.Errorf("admin on %v: it must be on loopback", a)
	}
}

func TestListenOptionsTravelInTheNodesMetadata(t *testing.T) {
	b := read(t, Envoy{Group: "g", NodeID: "n", Servers: []string{"[::1]:7943"}, ListenAddress: "127.0.0.1", HTTPPort: 1, HTTPSPort: 2, SotW: true})
	listen := b.GetNode().GetMetadata().GetFields()[MetadataListen].GetStructValue().GetFields()
	if listen["address"].GetStringValue() != "127.0.0.1" || listen["http_port"].GetNumberValue() != 1 || listen["https_port"].GetNumberValue() != 2 {
		t.Errorf("listen options %v", listen)
	}
	if got := b.GetDynamicResources().GetAdsConfig().GetApiType(); got != corev3.ApiConfigSource_GRPC {
		t.Errorf("state of the world has api type %v", got)
	}
}

// Without ADS each type is asked for by itself, of one server as long as it is there.
func TestAnEnvoyWithoutADSTellsTheServerWhereItAsks(t *testing.T) {
	b := read(t, Envoy{Group: "g", NodeID: "n", Servers: []string{"127.0.0.1:1", "127.0.0.1:2"}, PerType: true})
	if name := b.GetNode().GetMetadata().GetFields()[MetadataCluster].GetStringValue(); name != xdsCluster {
		t.Errorf("the metadata names the cluster %q", name)
	}
	d := b.GetDynamicResources()
	if d.GetAdsConfig() != nil {
		t.Error("there is ADS")
	}
	for name, source := range map[string]*corev3.ConfigSource{"clusters": d.GetCdsConfig(), "listeners": d.GetLdsConfig()} {
		if got := source.GetApiConfigSource().GetApiType(); got != corev3.ApiConfigSource_DELTA_GRPC {
			t.Errorf("%s come by %v", name, got)
		}
	}
	servers := b.GetStaticResources().GetClusters()[0]
	ends := servers.GetLoadAssignment().GetEndpoints()
	if len(ends) != 2 || ends[0].GetPriority() != 0 || ends[1].GetPriority() != 1 || len(servers.GetHealthChecks()) != 1 {
		t.Errorf("the servers are not one behind the other: %v", servers)
	}
}

func TestEnvoyAcceptsOnlyAServerOfTheNameItDialled(t *testing.T) {
	b := read(t, Envoy{
		Group: "g", NodeID: "n", Servers: []string{"a.example.com:7943", "10.0.0.1:7943", "[2001:DB8:0::1]:7943"},
		TLS: &TLS{CAFile: "ca.pem", CertFile: "dp.pem", KeyFile: "dp.key"},
	})
	socket := b.GetStaticResources().GetClusters()[0].GetTransportSocket()
	context, err := socket.GetTypedConfig().UnmarshalNew()
	if err != nil {
		t.Fatal(err)
	}
	raw, err := protojson.Marshal(context)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		CommonTLSContext struct {
			ValidationContext struct {
				MatchTypedSubjectAltNames []struct {
					SanType string
					Matcher struct{ Exact string }
				}
			}
		}
	}
	if err := json.Unmarshal(raw, &got); err != nil {
		t.Fatal(err)
	}
	names := got.CommonTLSContext.ValidationContext.MatchTypedSubjectAltNames
	if len(names) != 3 || names[2].Matcher.Exact != "2001:db8::1" || names[0].SanType != "DNS" || names[0].Matcher.Exact != "a.example.com" || names[1].SanType != "IP_ADDRESS" || names[1].Matcher.Exact != "10.0.0.1" {
		t.Errorf("names %+v in %s", names, raw)
	}
}

func TestWhatIsMissingIsRefused(t *testing.T) {
	ok := Envoy{Group: "g", NodeID: "n", Servers: []string{"a:1"}}
	for name, e := range map[string]Envoy{
		"no group":     {NodeID: ok.NodeID, Servers: ok.Servers},
		"no node id":   {Group: ok.Group, Servers: ok.Servers},
		"no server":    {Group: ok.Group, NodeID: ok.NodeID},
		"no port":      {Group: ok.Group, NodeID: ok.NodeID, Servers: []string{"a"}},
		"port 0":       {Group: ok.Group, NodeID: ok.NodeID, Servers: []string{"a:0"}},
		"no host":      {Group: ok.Group, NodeID: ok.NodeID, Servers: []string{":1"}},
		"half a TLS":   {Group: ok.Group, NodeID: ok.NodeID, Servers: ok.Servers, TLS: &TLS{CAFile: "ca.pem"}},
		"port too big": {Group: ok.Group, NodeID: ok.NodeID, Servers: []string{"a:65536"}},
	} {
		if out, err := e.YAML(); err == nil {
			t.Errorf("%s: accepted as\n%s", name, out)
		}
	}
	if _, err := ok.YAML(); err != nil {
		t.Errorf("the complete one: %v", err)
	}
}
