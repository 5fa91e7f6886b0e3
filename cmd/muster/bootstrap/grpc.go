package bootstrap

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"github.com/musterhq/muster/server/compile"
)

// GRPC describes one process with proxyless gRPC clients or servers.
type GRPC struct {
	// Group is the group's id or name. Required.
	Group string
	// NodeID names the process among the group's data planes. Required.
	NodeID string
	// Servers are the host:port of the xDS ports of muster's servers or relays, in
	// order of preference. At least one. grpc-js uses the first only; grpc-go does
	// not hear of changes any more once it went back to an earlier one. One DNS name
	// of all servers serves every client.
	Servers []string
	// Region, Zone and SubZone say where the process runs; all may be empty.
	Region, Zone, SubZone string
	// TLS, when set, is how the process proves itself to the servers.
	TLS *TLS
}

// grpcBootstrap is the file that GRPC_XDS_BOOTSTRAP names, as gRPC A27 defines it.
type grpcBootstrap struct {
	Servers  []grpcServer `json:"xds_servers"`
	Node     grpcNode     `json:"node"`
	Template string       `json:"server_listener_resource_name_template"`
}

type grpcServer struct {
	URI      string      `json:"server_uri"`
	Creds    []grpcCreds `json:"channel_creds"`
	Features []string    `json:"server_features"`
}

type grpcCreds struct {
	Type   string            `json:"type"`
	Config map[string]string `json:"config,omitempty"`
}

type grpcNode struct {
	ID       string            `json:"id"`
	Cluster  string            `json:"cluster"`
	Metadata map[string]string `json:"metadata"`
	Locality map[string]string `json:"locality"` // grpc-js refuses a node without one
}

// JSON returns the bootstrap. It is the same for the same configuration.
func (g GRPC) JSON() ([]byte, error) {
	if g.Group == "" || g.NodeID == "" {
		return nil, errors.New("gRPC bootstrap: group and node id are required")
	}
	if len(g.Servers) == 0 {
		return nil, errors.New("gRPC bootstrap: no xDS server")
	}
	creds, err := g.creds()
	if err != nil {
		return nil, err
	}
	b := grpcBootstrap{
		Node:     grpcNode{ID: g.NodeID, Cluster: g.Group, Metadata: map[string]string{MetadataGroup: g.Group}, Locality: g.locality()},
		Template: compile.ServerListenerPrefix + "%s",
	}
	for _, s := range g.Servers {
		uri, err := serverURI(s)
		if err != nil {
			return nil, err
		}
		b.Servers = append(b.Servers, grpcServer{URI: uri, Creds: creds, Features: []string{"xds_v3"}})
	}
	out, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("gRPC bootstrap: %w", err)
	}
	return append(out, '\n'), nil
}

// serverURI is a target that every gRPC client resolves.
func serverURI(server string) (string, error) {
	host, port, err := net.SplitHostPort(server)
	if n, perr := strconv.ParseUint(port, 10, 16); err != nil || perr != nil || n == 0 || host == "" {
		return "", fmt.Errorf("gRPC bootstrap: xDS server %q is not of the form host:port", server)
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Is6() {
		return "dns:///[" + a.String() + "]:" + port, nil
	}
	return "dns:///" + server, nil
}

func (g GRPC) locality() map[string]string {
	all := map[string]string{"region": g.Region, "zone": g.Zone, "sub_zone": g.SubZone}
	for name, value := range all {
		if value == "" {
			delete(all, name)
		}
	}
	return all
}

// creds are the kinds of credentials, of which a client takes the first that it
// knows. Without TLS files the connection is plaintext, which a server allows on
// loopback only, or when it was told so.
func (g GRPC) creds() ([]grpcCreds, error) {
	t := g.TLS
	if t == nil {
		return []grpcCreds{{Type: "insecure"}}, nil
	}
	if (t.CertFile == "") != (t.KeyFile == "") {
		return nil, errors.New("gRPC bootstrap: a certificate and its key file go together")
	}
	config := map[string]string{}
	for name, file := range map[string]string{"ca_certificate_file": t.CAFile, "certificate_file": t.CertFile, "private_key_file": t.KeyFile} {
		if file != "" {
			config[name] = file
		}
	}
	return []grpcCreds{{Type: "tls", Config: config}}, nil
}
