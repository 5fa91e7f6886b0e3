// Command dataplane is a gateway in one file, built on package dataplane: it
// follows a group and passes a request for /SERVICE/PATH on as /PATH to an endpoint
// of that service, one after the other. It acknowledges what it serves, names what
// it does not take, and goes on from disk when no server answers.
//
//	muster dev                     # another terminal
//	muster apply -f examples/shop.yaml
//	go run ./examples/dataplane
//	curl http://127.0.0.1:8080/shop/hello
//	muster dp status               # shows it beside the gateway of muster dev
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/dataplane"
)

func main() {
	servers := flag.String("servers", "127.0.0.1:7943", "host:port of the servers' xDS ports, separated by commas")
	group := flag.String("group", "default", "gateway group")
	listen := flag.String("listen", "127.0.0.1:8080", "where to serve HTTP")
	cache := flag.String("cache-dir", "", "directory for the last good configuration; empty keeps none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, strings.Split(*servers, ","), *group, *listen, *cache); err != nil {
		log.Fatal(err)
	}
}

// run serves until ctx ends.
func run(ctx context.Context, servers []string, group, listen, cache string) error {
	g := &gateway{}
	g.serving.Store(&routing{})
	client, err := dataplane.New(dataplane.Config{
		Servers:  servers,
		Insecure: true, // on loopback; TLS elsewhere
		Group:    group, NodeID: "example-1",
		UserAgentName: "dataplane-example", UserAgentVersion: "1",
		TypeURLs: []string{dataplane.EndpointType}, // what this gateway can make use of
		CacheDir: cache,
		Handler:  g,
	})
	if err != nil {
		return err
	}
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	log.Printf("serving on http://%s", ln.Addr())
	srv := &http.Server{Handler: g, ReadHeaderTimeout: 5 * time.Second}
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return client.Run(ctx) })
	parts.Go(func() error {
		if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
			return err
		}
		return nil
	})
	parts.Go(func() error {
		<-ctx.Done()
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		return srv.Shutdown(grace)
	})
	return parts.Wait()
}

// routing is what is served from. It is never changed, but replaced as a whole.
type routing struct {
	services map[string]*service // by name
}

type service struct {
	endpoints []string // host:port
	next      atomic.Uint64
}

// gateway is both sides: Apply takes configuration, ServeHTTP serves by it.
type gateway struct {
	serving atomic.Pointer[routing]
}

// Apply implements dataplane.Handler. What serves is untouched until the swap.
func (g *gateway) Apply(_ context.Context, u *dataplane.Update) error {
	next := &routing{services: maps.Clone(g.serving.Load().services)}
	if next.services == nil {
		next.services = map[string]*service{}
	}
	var refused dataplane.Refused
	change := u.Types[dataplane.EndpointType]
	for _, name := range slices.Sorted(maps.Keys(change.Upsert)) {
		s, err := provision(change.Upsert[name])
		if err != nil {
			// It stays in service as it is; the operator sees why in `muster dp status`.
			refused.Add(dataplane.EndpointType, name, err.Error())
			continue
		}
		next.services[strings.TrimPrefix(name, "service/")] = s
	}
	for _, name := range change.Remove {
		delete(next.services, strings.TrimPrefix(name, "service/"))
	}
	g.serving.Store(next)
	log.Printf("revision %d: %d services, from disk: %v", u.Revision, len(next.services), u.Cached)
	return refused.Err()
}

// provision makes of a resource what requests are served from.
func provision(body *anypb.Any) (*service, error) {
	m := &endpointv3.ClusterLoadAssignment{}
	if err := body.UnmarshalTo(m); err != nil {
		return nil, err
	}
	s := &service{}
	for _, locality := range m.GetEndpoints() {
		for _, e := range locality.GetLbEndpoints() {
			at := e.GetEndpoint().GetAddress().GetSocketAddress()
			if at == nil {
				return nil, fmt.Errorf("endpoints: an address that is no socket's")
			}
			s.endpoints = append(s.endpoints, net.JoinHostPort(at.GetAddress(), strconv.FormatUint(uint64(at.GetPortValue()), 10)))
		}
	}
	return s, nil
}

// ServeHTTP implements http.Handler.
func (g *gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	name, _, _ := strings.Cut(strings.TrimPrefix(r.URL.Path, "/"), "/")
	s := g.serving.Load().services[name]
	if s == nil || len(s.endpoints) == 0 {
		http.Error(w, "no such service", http.StatusNotFound)
		return
	}
	target := &url.URL{Scheme: "http", Host: s.endpoints[s.next.Add(1)%uint64(len(s.endpoints))]}
	proxy := &httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(target)
		p.SetXForwarded()
		p.Out.URL.Path = strings.TrimPrefix(p.In.URL.Path, "/"+name)
	}}
	proxy.ServeHTTP(w, r)
}
