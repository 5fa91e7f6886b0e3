package compile

import (
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/musterhq/muster/resource"
)

// Field numbers of envoy.config.route.v3.VirtualHost.
const (
	virtualHostNameField    protowire.Number = 1
	virtualHostDomainsField protowire.Number = 2
	virtualHostRoutesField  protowire.Number = 3
)

// notFoundBody is what a request without a route is answered, with 404.
const notFoundBody = `{"error_msg":"404 Route Not Found"}`

// notFound is the encoded route that ends virtual hosts.
func notFound() []byte {
	return marshal(&routev3.Route{
		Name:  "404",
		Match: &routev3.RouteMatch{PathSpecifier: &routev3.RouteMatch_Prefix{Prefix: "/"}},
		Action: &routev3.Route_DirectResponse{DirectResponse: &routev3.DirectResponseAction{
			Status: 404,
			Body:   &corev3.DataSource{Specifier: &corev3.DataSource_InlineString{InlineString: notFoundBody}},
		}},
	})
}

// virtualHost builds a VirtualHost out of encoded routes, which keeps a change
// of one route from costing the encoding of its neighbours.
type virtualHost struct {
	body     []byte
	notFound []byte
	origins  []resource.Key
	seen     map[resource.Key]struct{}
	shadow   shadow
}

func newVirtualHost(name string, notFound []byte, size, routes int, domains ...string) *virtualHost {
	v := &virtualHost{
		body:     make([]byte, 0, size+len(name)+len(notFound)+64*len(domains)+16),
		notFound: notFound,
		origins:  make([]resource.Key, 0, 2*routes),
		seen:     make(map[resource.Key]struct{}, 2*routes),
	}
	v.body = protowire.AppendTag(v.body, virtualHostNameField, protowire.BytesType)
	v.body = protowire.AppendString(v.body, name)
	for _, d := range domains {
		v.body = protowire.AppendTag(v.body, virtualHostDomainsField, protowire.BytesType)
		v.body = protowire.AppendString(v.body, d)
	}
	return v
}

func (v *virtualHost) appendRoute(route []byte) {
	v.body = protowire.AppendTag(v.body, virtualHostRoutesField, protowire.BytesType)
	v.body = protowire.AppendBytes(v.body, route)
}

// add appends a placement, in the form that body is, unless what stands before
// it leaves it no request.
func (v *virtualHost) add(p *placement, body []byte) {
	if v.shadow.hides(p.pattern) {
		return
	}
	if !p.conditional {
		v.shadow.add(p.pattern)
	}
	v.appendRoute(body)
	v.origin(p.route)
	if p.service.ID != "" {
		v.origin(p.service)
	}
}

func (v *virtualHost) origin(k resource.Key) {
	if _, seen := v.seen[k]; !seen {
		v.seen[k] = struct{}{}
		v.origins = append(v.origins, k)
	}
}

// finish ends the virtual host with the 404, unless that cannot be reached.
func (v *virtualHost) finish() Resource {
	if !v.shadow.hides(pattern{literal: "/"}) {
		v.appendRoute(v.notFound)
	}
	return Resource{Body: v.body, Origins: v.origins}
}

// shadow knows which patterns are taken whole by routes without conditions. It
// is fed level by level, in order, so that within a level only equal literals
// can hide each other, and those stand together.
type shadow struct {
	exact, prefix string // the last ones of this level
	// current holds this level's prefixes; above those of earlier levels, by
	// length and literal.
	current []string
	above   map[int]map[string]struct{}
}

func (s *shadow) hides(p pattern) bool {
	if s.prefix != "" && s.prefix == p.literal || p.exact && s.exact != "" && s.exact == p.literal {
		return true
	}
	for n, literals := range s.above {
		if n <= len(p.literal) {
			if _, found := literals[p.literal[:n]]; found {
				return true
			}
		}
	}
	return false
}

func (s *shadow) add(p pattern) {
	if p.exact {
		s.exact = p.literal
	} else {
		s.prefix = p.literal
		s.current = append(s.current, p.literal)
	}
}

// next begins a level that serves the same hosts as the one before or more.
func (s *shadow) next() {
	for _, literal := range s.current {
		if s.above == nil {
			s.above = map[int]map[string]struct{}{}
		}
		if s.above[len(literal)] == nil {
			s.above[len(literal)] = map[string]struct{}{}
		}
		s.above[len(literal)][literal] = struct{}{}
	}
	s.exact, s.prefix, s.current = "", "", s.current[:0]
}

// forget begins a level that serves other hosts.
func (s *shadow) forget() { *s = shadow{} }

// nodeHost builds the virtual host of a node of an exact host.
func (t tree) nodeHost(n *node, notFound []byte) Resource {
	var size int
	for _, p := range n.places {
		size += len(p.body) + 8
	}
	at := n.host + n.path
	domains := []string{at, at + "/", at + "/*"}
	if n.path == "" {
		domains = domains[1:]
	}
	v := newVirtualHost(virtualHostName(n.host, n.path), notFound, size, len(n.places), domains...)
	for _, l := range levelsOf(n.host) {
		if !isExact(l) && t.open.Len() == 0 {
			break
		}
		for _, p := range t.gather(l, n.path) {
			v.add(p, p.body)
		}
		v.shadow.next()
	}
	return v.finish()
}

// catchAllHost builds the virtual host of everything that no node takes.
func (t tree) catchAllHost(notFound []byte) Resource {
	var size int
	places := make([]*placement, 0, t.catchAll.Len())
	t.catchAll.Root().Walk(func(_ []byte, p *placement) bool {
		size += max(len(p.body), len(p.open)) + 8
		places = append(places, p)
		return false
	})
	v := newVirtualHost(CatchAll, notFound, size, len(places), "*")
	var at level
	for _, p := range places {
		if p.level != at {
			v.shadow.forget()
			at = p.level
		}
		if p.open != nil {
			v.add(p, p.open)
		} else {
			v.add(p, p.body)
		}
	}
	if at != "" {
		v.shadow.forget()
	}
	return v.finish()
}
