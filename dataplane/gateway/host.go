package gateway

import (
	"net"
	"strconv"
	"sync/atomic"
	"time"
)

// hostKey identifies an endpoint of a cluster across changes of the cluster.
type hostKey struct {
	address  string // host:port
	hostname string
}

// host is the lasting state of one endpoint. It survives changes of the cluster
// and of its list of endpoints. All of it is safe for concurrent use.
type host struct {
	hostKey
	requests atomic.Int64 // in flight

	failed  atomic.Bool // the active check says so
	checked atomic.Bool // the active check has said something
	ejected atomic.Bool // by outlier detection

	consecutive5xx, consecutiveGateway, consecutiveLocal atomic.Uint32
	ejections                                            atomic.Uint32
	ejectedUntil                                         atomic.Int64 // Unix nanoseconds
}

// endpoint is one endpoint as an assignment lists it.
type endpoint struct {
	hostKey
	weight     uint32
	priority   uint32
	unhealthy  bool // the assignment says so
	checkPort  uint32
	checkHost  string // the Host of an active check
	resolvable string // a DNS name to resolve instead of an address
	port       uint32
}

// checkAddress returns where the active check goes.
func (e *endpoint) checkAddress() string {
	ip, _, err := net.SplitHostPort(e.address)
	if e.checkPort == 0 || err != nil {
		return e.address
	}
	return net.JoinHostPort(ip, strconv.FormatUint(uint64(e.checkPort), 10))
}

// healthy reports whether requests may go to the host.
func (h *host) healthy() bool { return !h.failed.Load() && !h.ejected.Load() }

// pending reports whether an active check has yet to tell.
func (h *host) pending() bool { return !h.checked.Load() }

// eject takes the host out for a while.
func (h *host) eject(until time.Time) {
	h.ejections.Add(1)
	h.ejectedUntil.Store(until.UnixNano())
	h.ejected.Store(true)
}
