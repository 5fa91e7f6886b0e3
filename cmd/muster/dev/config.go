package dev

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"
)

// The ports of `muster dev` at offset 0; those of the server and the data plane
// are the ones muster and API7 are known by.
const (
	adminPort  = 7443
	xdsPort    = 7943
	httpPort   = 9080
	httpsPort  = 9443
	statusPort = 7085
	echoPort   = 7180
	raftPort   = 7100
	relayPort  = 7960
)

// Config says what to run.
type Config struct {
	// DataDir holds everything that is kept. It is made with mode 0700.
	DataDir string
	// APIKey is the key of the admin API. When empty, the one in DataDir/api-key
	// is used, which is made, with mode 0600, when there is none.
	APIKey string
	// AdminAddr, XDSAddr and EchoAddr are host:port on loopback; port 0 picks one.
	AdminAddr, XDSAddr, EchoAddr string
	// Servers, when there are any, are the servers of a cluster, each run in a
	// process of its own, instead of the one in this process. Ports must not be 0.
	Servers []ServerAddrs
	// Console takes the output of those processes, each line with the server's
	// name before it. Default: nowhere.
	Console io.Writer
	// ServerLogLevel is the log level of those processes.
	ServerLogLevel string
	// Program is what is run as them. Default: this program.
	Program string
	// Relays are where the relays to run listen. With any, the gateways hang on them
	// in turn.
	Relays []string
	// Gateways are the embedded gateways to run.
	Gateways []GatewayAddrs
	// FreeHTTPPort and FreeHTTPSPort go into Info as they are.
	FreeHTTPPort, FreeHTTPSPort int
	// Version is what the server and the gateways report.
	Version string
	// Logger takes structured logs.
	Logger *slog.Logger
	// Ready is called once, when everything runs.
	Ready func(Info)
}

// GatewayAddrs says where one gateway listens.
type GatewayAddrs struct{ HTTP, HTTPS, Status string }

// Info says where everything is.
type Info struct {
	DataDir string
	// APIKey is the key; APIKeyFile the file that holds it, empty when it was given.
	APIKey, APIKeyFile string
	// AdminAddrs and XDSAddrs have an entry for each server.
	AdminAddrs, XDSAddrs []string
	EchoAddr             string
	// Relays are the addresses of relay-1 and so on.
	Relays   []string
	Gateways []GatewayInfo
	// Group is the group that the gateways belong to; GroupIsNew says that this
	// run made it.
	Group      string
	GroupIsNew bool
	// Behind says that not every gateway has caught up yet.
	Behind bool
	// FreeHTTPPort and FreeHTTPSPort are the next that no gateway has, for an Envoy
	// beside them; 0 when the addresses do not come from Addresses.
	FreeHTTPPort, FreeHTTPSPort int
}

// GatewayInfo says where one gateway listens. Its addresses are those asked for
// where the listener is not bound yet.
type GatewayInfo struct {
	ID string
	GatewayAddrs
}

// Addresses fills in the known ports, each plus offset. The second gateway gets
// the first's plus one, and so on, as do servers and relays. One server runs in this
// process, more run in processes of their own.
func (c *Config) Addresses(offset, servers, relays, gateways int) error {
	if gateways < 0 || gateways > 100 {
		return errors.New("the number of gateways must be 0 to 100")
	}
	if servers < 1 || servers > 9 {
		return errors.New("the number of servers must be 1 to 9")
	}
	if relays < 0 || relays > 20 {
		return errors.New("the number of relays must be 0 to 20")
	}
	at := func(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+offset)) }
	if offset < 0 || httpsPort+offset+gateways >= 65535 {
		return fmt.Errorf("offset %d takes a port out of range", offset)
	}
	c.AdminAddr, c.XDSAddr, c.EchoAddr = at(adminPort), at(xdsPort), at(echoPort)
	c.FreeHTTPPort, c.FreeHTTPSPort = httpPort+offset+gateways, httpsPort+offset+gateways
	c.Servers, c.Relays, c.Gateways = nil, nil, nil
	for i := range relays {
		c.Relays = append(c.Relays, at(relayPort+i))
	}
	if servers > 1 {
		for i := range servers {
			c.Servers = append(c.Servers, ServerAddrs{Admin: at(adminPort + i), XDS: at(xdsPort + i), Raft: at(raftPort + i)})
		}
	}
	for i := range gateways {
		c.Gateways = append(c.Gateways, GatewayAddrs{HTTP: at(httpPort + i), HTTPS: at(httpsPort + i), Status: at(statusPort + i)})
	}
	return nil
}
