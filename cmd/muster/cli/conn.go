package cli

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/admin"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// defaultAdminAddr is where `muster dev` and a server on this machine listen.
const defaultAdminAddr = "127.0.0.1:7443"

// maxMessage bounds one answer; a group of 10,000 services is a few megabytes.
const maxMessage = 256 << 20

// endpoint is one admin address.
type endpoint struct {
	hostport string
	tls      bool
}

// parseAddrs reads a list of URLs or host:port. Without a scheme, loopback is
// plaintext, as `muster dev` serves it, and everything else TLS.
func parseAddrs(list string) ([]endpoint, error) {
	var eps []endpoint
	for s := range strings.SplitSeq(list, ",") {
		s = strings.TrimSpace(s)
		if s == "" {
			continue
		}
		ep := endpoint{hostport: s}
		if scheme, _, ok := strings.Cut(s, "://"); ok {
			u, err := url.Parse(s)
			if err != nil || u.Host == "" {
				return nil, usagef("address %q is not a URL", s)
			}
			switch scheme {
			case "http", "grpc":
			case "https", "grpcs":
				ep.tls = true
			default:
				return nil, usagef("address %q: the scheme must be http or https", s)
			}
			if strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
				return nil, usagef("address %q must be only a scheme, a host and a port", s)
			}
			ep.hostport = u.Host
		}
		host, port, err := net.SplitHostPort(ep.hostport)
		if err != nil {
			host, port = strings.Trim(ep.hostport, "[]"), "7443"
			ep.hostport = net.JoinHostPort(host, port)
		}
		if host == "" || port == "" {
			return nil, usagef("address %q has no host", s)
		}
		if !strings.Contains(s, "://") {
			ep.tls = !loopback(host)
		}
		if len(eps) > 0 && eps[0].tls != ep.tls {
			return nil, usagef("addresses %q mix plaintext and TLS", list)
		}
		eps = append(eps, ep)
	}
	if len(eps) == 0 {
		return nil, usagef("no admin address")
	}
	return eps, nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

// target is a server, the key it wants and the group to work on.
type target struct {
	endpoints []endpoint
	apiKey    string
	caFile    string
	certFile  string
	keyFile   string
	group     string
}

// target resolves flag > environment > context > default. A context's key goes
// to that context's address only.
func (a *app) target() (target, error) {
	saved, err := a.savedContext()
	if err != nil {
		return target{}, err
	}
	var t target
	addr := a.addr
	if addr == "" {
		addr = a.env.getenv("MUSTER_ADDR")
	}
	fromContext := addr == "" && saved.Addr != ""
	switch {
	case fromContext:
		addr = saved.Addr
	case addr == "":
		addr = defaultAdminAddr
	}
	if t.endpoints, err = parseAddrs(addr); err != nil {
		return target{}, err
	}
	for _, ep := range t.endpoints {
		host, _, _ := net.SplitHostPort(ep.hostport)
		if !ep.tls && !loopback(host) && !a.insecure {
			return target{}, &usageError{
				err: fmt.Errorf("the API key would travel to %s in clear", ep.hostport),
				try: "https://" + ep.hostport + ", or --insecure if you mean it",
			}
		}
	}
	switch {
	case a.apiKeyFile != "":
		t.apiKey, err = a.readKey(a.apiKeyFile)
	case a.env.getenv("MUSTER_API_KEY") != "":
		t.apiKey = strings.TrimSpace(a.env.getenv("MUSTER_API_KEY"))
	case fromContext && saved.APIKey != "":
		t.apiKey = saved.APIKey
	case fromContext && saved.APIKeyFile != "":
		t.apiKey, err = a.readKey(saved.APIKeyFile)
	}
	if err != nil {
		return target{}, err
	}
	t.caFile = a.caFile
	if t.caFile == "" && fromContext {
		t.caFile = saved.CAFile
	}
	t.certFile, t.keyFile = cmp.Or(a.certFile, a.env.getenv("MUSTER_CERT_FILE")), cmp.Or(a.keyFile, a.env.getenv("MUSTER_KEY_FILE"))
	if (t.certFile == "") != (t.keyFile == "") {
		return target{}, usagef("--cert-file and --key-file belong together")
	}
	t.group = "default"
	if saved.Group != "" {
		t.group = saved.Group
	}
	if a.group != "" {
		t.group = a.group
	}
	return t, nil
}

// client is the admin API of a target.
type client struct {
	musterv1.AdminServiceClient
	fleet   musterv1.FleetServiceClient
	cluster musterv1.ClusterServiceClient
	group   string
	app     *app
	target  target
	servers *servers
}

// connect prepares the calls to the servers of the target; a connection is made
// when the first call needs it. The caller closes the client.
func (a *app) connect() (*client, error) {
	t, err := a.target()
	if err != nil {
		return nil, err
	}
	s, err := a.dial(t)
	if err != nil {
		return nil, err
	}
	return &client{
		AdminServiceClient: musterv1.NewAdminServiceClient(s),
		fleet:              musterv1.NewFleetServiceClient(s),
		cluster:            musterv1.NewClusterServiceClient(s),
		group:              t.group,
		app:                a,
		target:             t,
		servers:            s,
	}, nil
}

func (c *client) close() { c.servers.close() }

// retriable says that a call may be repeated: nothing was done, or what was done
// carries a request_id.
func retriable(err error) bool {
	if status.Code(err) == codes.Unavailable {
		return true
	}
	info, ok := detail[*errdetails.ErrorInfo](err)
	return ok && info.GetReason() == admin.ReasonOutcomeUnknown && status.Code(err) == codes.Unknown
}

func unavailable(t target, err error) error {
	if serverAnswered(err) {
		return &failure{err: fmt.Errorf("%s: %s", t, message(err)), code: exitUnavailable, try: "again in a moment; the servers are choosing a leader or starting"}
	}
	try := "check MUSTER_ADDR, --addr or the context"
	if len(t.endpoints) == 1 && t.endpoints[0].hostport == defaultAdminAddr {
		try = "muster dev, which starts a server here; or set MUSTER_ADDR"
	}
	return &failure{err: fmt.Errorf("%s cannot be reached: %s", t, transportCause(message(err))), code: exitUnavailable, try: try}
}

// transportCause keeps what the operating system said of gRPC's long message.
func transportCause(msg string) string {
	if i := strings.LastIndex(msg, "desc = "); i >= 0 {
		msg = msg[i+len("desc = "):]
	}
	msg = strings.TrimPrefix(msg, "last connection error: ")
	msg = strings.TrimPrefix(msg, "connection error: ")
	if i := strings.LastIndex(msg, "dial tcp "); i >= 0 {
		if _, cause, ok := strings.Cut(msg[i:], ": "); ok {
			msg = cause
		}
	}
	return strings.Trim(msg, `"`)
}

func (t target) String() string {
	names := make([]string, len(t.endpoints))
	for i, ep := range t.endpoints {
		names[i] = ep.hostport
	}
	return strings.Join(names, ", ")
}

func withKey(ctx context.Context, key string) context.Context {
	if key == "" {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", key)
}

// requestID makes a write safe to repeat.
func requestID() string { return rand.Text() }
