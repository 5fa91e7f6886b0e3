package control

import (
	"net"
	"path/filepath"
	"strconv"

	"github.com/musterhq/muster/test/e2e/ports"
)

// Relay is a running `muster relay` or `muster agent`. Start and Kill must not run
// at the same time.
type Relay struct {
	*Process
	ID, XDSAddr, Dir string

	binary string
	args   []string
}

// StartRelay runs a relay of every group below the addresses, unless the flags
// say of which. It returns before the relay serves anything.
func StartRelay(binary, dir, id string, upstream string, flags ...string) (*Relay, error) {
	return startRelay(binary, dir, id, func(addr, data string) []string {
		args := []string{"relay", "--insecure", "--relay-id", id, "--upstream", upstream, "--xds-addr", addr, "--data-dir", data}
		return append(args, flags...)
	})
}

// StartAgent runs an agent of a group for one data plane.
func StartAgent(binary, dir, group, nodeID string, servers string, flags ...string) (*Relay, error) {
	return startRelay(binary, dir, nodeID, func(addr, data string) []string {
		args := []string{"agent", "--group", group, "--node-id", nodeID, "--servers", servers, "--addr", addr, "--data-dir", data}
		return append(args, flags...)
	})
}

func startRelay(binary, dir, id string, args func(addr, data string) []string) (*Relay, error) {
	port, err := ports.Free()
	if err != nil {
		return nil, err
	}
	r := &Relay{ID: id, XDSAddr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), Dir: filepath.Join(dir, id), binary: binary}
	r.args = append(args(r.XDSAddr, r.Dir), "--log-level", "warn")
	return r, r.Start()
}

// Start runs the relay again, at the same address and with the same disk.
func (r *Relay) Start() (err error) {
	r.Process, err = startProcess(r.binary, []string{"XDG_CONFIG_HOME=" + r.Dir}, r.args...)
	return err
}
