package control

import (
	"net"
	"strconv"

	"github.com/musterhq/muster/test/e2e/ports"
)

// Gateway is a running `muster gateway`.
type Gateway struct {
	*Process
	NodeID      string
	HTTP, HTTPS string
	// Status is the address that serves /status.
	Status string
}

// StartGateway runs an embedded gateway of a group of the server. It returns
// before the gateway has any configuration.
func (d *Dev) StartGateway(group, nodeID string, extra ...string) (*Gateway, error) {
	var addrs [3]string
	for i := range addrs {
		port, err := ports.Free()
		if err != nil {
			return nil, err
		}
		addrs[i] = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	}
	args := append([]string{
		"gateway",
		"--group", group,
		"--node-id", nodeID,
		"--servers", d.XDSAddr(),
		"--http-addr", addrs[0],
		"--https-addr", addrs[1],
		"--status-addr", addrs[2],
		"--log-level", "warn",
	}, extra...)
	p, err := startProcess(d.Config.Binary, []string{"XDG_CONFIG_HOME=" + d.Config.DataDir}, args...)
	if err != nil {
		return nil, err
	}
	return &Gateway{Process: p, NodeID: nodeID, HTTP: addrs[0], HTTPS: addrs[1], Status: addrs[2]}, nil
}
