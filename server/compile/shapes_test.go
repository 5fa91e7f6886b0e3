package compile_test

import (
	"fmt"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// shape is how the services of a group are laid out.
type shape struct {
	name  string
	hosts func(i int) []string
}

var shapes = []shape{
	{"one-host", func(int) []string { return []string{"api.example.com"} }},
	{"host-each", func(i int) []string { return []string{fmt.Sprintf("s%d.example.com", i)} }},
	{"hostless", func(int) []string { return nil }},
	{"wildcard", func(int) []string { return []string{"*.example.com"} }},
}

// group makes n services, each with an upstream and one route.
func (s shape) group(n int) []*musterv1.Resource {
	var out []*musterv1.Resource
	for i := range n {
		id := fmt.Sprintf("s%d", i)
		out = append(out, &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
			Id: id, Name: id, Hosts: s.hosts(i), PathPrefix: fmt.Sprintf("/svc%d", i),
			Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: fmt.Sprintf("10.0.%d.%d", i/250, i%250+1), Port: 80}}},
		}}})
	}
	for i := range n {
		out = append(out, s.route(i, 0))
	}
	return out
}

func (s shape) route(i, variant int) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{
		Id: fmt.Sprintf("r%d", i), ServiceId: fmt.Sprintf("s%d", i), Uris: []string{"/*"},
		Timeout: &musterv1.Timeout{Read: float64(61 + variant)},
	}}}
}

func (s shape) service(i, variant int) *musterv1.Resource {
	r := s.group(i + 1)[i]
	r.GetService().Upstream.Nodes[0].Port = int32(81 + variant)
	return r
}
