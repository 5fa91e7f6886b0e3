//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/e2e/upstream"
)

func put(r *musterv1.Resource) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Put{Put: r}}
}

func remove(kind musterv1.Kind, id string) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: kind, Id: id}}}
}

func nodeOf(b *upstream.Backend) *musterv1.Node {
	host, port, err := net.SplitHostPort(b.Addr())
	if err != nil {
		panic(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		panic(err)
	}
	return &musterv1.Node{Host: host, Port: int32(n)}
}

func upstreamOf(backends ...*upstream.Backend) *musterv1.Upstream {
	u := &musterv1.Upstream{}
	for _, b := range backends {
		u.Nodes = append(u.Nodes, nodeOf(b))
	}
	return u
}

func service(s *musterv1.Service) *musterv1.Change {
	return put(&musterv1.Resource{Kind: &musterv1.Resource_Service{Service: s}})
}

func route(r *musterv1.Route) *musterv1.Change {
	return put(&musterv1.Resource{Kind: &musterv1.Resource_Route{Route: r}})
}

// serviceOn is a service of one host; a prefix is kept towards the upstream.
func serviceOn(id, host, prefix string, backends ...*upstream.Backend) *musterv1.Change {
	keep := false
	return service(&musterv1.Service{
		Id: id, Name: id, Hosts: []string{host}, PathPrefix: prefix, StripPathPrefix: &keep, Upstream: upstreamOf(backends...),
	})
}

// routeOf is the service's only route, with the service's id.
func routeOf(serviceID string, uris ...string) *musterv1.Change {
	return route(&musterv1.Route{Id: serviceID, Name: serviceID, ServiceId: serviceID, Uris: uris})
}

// plugin is a plugin's configuration from JSON-like values.
func plugin(config map[string]any) *structpb.Struct {
	s, err := structpb.NewStruct(config)
	if err != nil {
		panic(err)
	}
	return s
}

func consumer(username string) *musterv1.Change {
	return put(&musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{Username: username}}})
}

func keyOf(username, key string) *musterv1.Change {
	return put(&musterv1.Resource{Kind: &musterv1.Resource_Credential{Credential: &musterv1.Credential{
		Id: "key", Name: "key", Consumer: username,
		Plugins: map[string]*structpb.Struct{"key-auth": plugin(map[string]any{"key": key})},
	}}})
}

// answers asks the data plane for host/path and wants a status.
func (p *plane) answers(ctx context.Context, url string, want int, header ...string) error {
	status, body, err := p.get(ctx, url, header...)
	if err != nil {
		return err
	}
	if status != want {
		return fmt.Errorf("%s answered %s with %d, want %d: %s", p.name, url, status, want, body)
	}
	return nil
}

// get asks the data plane's HTTP port for host/path; header holds names and values in turn.
func (p *plane) get(ctx context.Context, url string, header ...string) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	host, path, _ := strings.Cut(url, "/")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.gate.HTTP+"/"+path, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	req.Close = true
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// keyAuth is key-auth with all its defaults.
func keyAuth() map[string]*structpb.Struct {
	return map[string]*structpb.Struct{"key-auth": plugin(nil)}
}

func setDelay(t *testing.T, b *upstream.Backend, delay time.Duration) {
	t.Helper()
	if err := b.Set(upstream.Behaviour{Delay: delay}); err != nil {
		t.Fatal(err)
	}
}
