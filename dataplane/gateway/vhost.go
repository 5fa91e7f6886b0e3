package gateway

import (
	"errors"
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/types/known/anypb"
)

// virtualHost is a compiled VirtualHost. It is immutable.
type virtualHost struct {
	name                  string
	domains               []string // lower case
	routes                []*route
	perFilter             map[string]perFilter
	onRequest, onResponse mutations
}

func (g *Gateway) decodeVirtualHost(body *anypb.Any) (*virtualHost, error) {
	m := &routev3.VirtualHost{}
	if err := g.checker.decode(body, m); err != nil {
		return nil, err
	}
	return g.newVirtualHost(m)
}

func (g *Gateway) newVirtualHost(m *routev3.VirtualHost) (*virtualHost, error) {
	v := &virtualHost{name: m.GetName()}
	if len(m.GetDomains()) == 0 {
		return nil, errors.New("it has no domains")
	}
	for _, d := range m.GetDomains() {
		d = strings.ToLower(d)
		if d == "" || strings.Count(d, "*") > 1 || strings.Contains(strings.Trim(d, "*"), "*") {
			return nil, fmt.Errorf("domain %q is invalid", d)
		}
		v.domains = append(v.domains, d)
	}
	var err error
	if v.perFilter, err = g.newPerFilters(m.GetTypedPerFilterConfig()); err != nil {
		return nil, err
	}
	if v.onRequest, err = newHeaderOptions(m.GetRequestHeadersToRemove(), m.GetRequestHeadersToAdd()); err != nil {
		return nil, fmt.Errorf("request headers: %w", err)
	}
	if v.onResponse, err = newHeaderOptions(m.GetResponseHeadersToRemove(), m.GetResponseHeadersToAdd()); err != nil {
		return nil, fmt.Errorf("response headers: %w", err)
	}
	for i, rm := range m.GetRoutes() {
		r, err := g.newRoute(rm)
		if err != nil {
			return nil, fmt.Errorf("routes[%d] %q: %w", i, rm.GetName(), err)
		}
		v.routes = append(v.routes, r)
	}
	return v, nil
}

// match returns the first route that a request matches.
func (v *virtualHost) match(x *exchange) *route {
	for _, r := range v.routes {
		if r.match.matches(x) {
			return r
		}
	}
	return nil
}

// domains finds the virtual host of a request by the value of the selecting
// header: exactly, then by the longest `*suffix`, then by the longest `prefix*`,
// then `*`. It is immutable; a change copies the paths it touches only.
type domains struct {
	exact, suffix, prefix *iradix.Tree[*virtualHost] // suffixes are kept reversed
	any                   *virtualHost
}

func newDomains() *domains {
	return &domains{
		exact: iradix.New[*virtualHost](), suffix: iradix.New[*virtualHost](), prefix: iradix.New[*virtualHost](),
	}
}

// find returns the virtual host of a key in lower case.
func (d *domains) find(key string) *virtualHost {
	k := []byte(key)
	if v, ok := d.exact.Get(k); ok {
		return v
	}
	// The `*` stands for at least one character.
	if len(k) > 0 {
		if d.suffix.Len() > 0 {
			if _, v, ok := d.suffix.Root().LongestPrefix(reversed(key)[:len(k)-1]); ok {
				return v
			}
		}
		if _, v, ok := d.prefix.Root().LongestPrefix(k[:len(k)-1]); ok {
			return v
		}
	}
	return d.any
}

// domainsTxn changes domains.
type domainsTxn struct {
	exact, suffix, prefix *iradix.Txn[*virtualHost]
	any                   *virtualHost
}

func (d *domains) txn() *domainsTxn {
	return &domainsTxn{exact: d.exact.Txn(), suffix: d.suffix.Txn(), prefix: d.prefix.Txn(), any: d.any}
}

func (t *domainsTxn) commit() *domains {
	return &domains{exact: t.exact.Commit(), suffix: t.suffix.Commit(), prefix: t.prefix.Commit(), any: t.any}
}

// tree returns where a domain is kept and under which key; nil for `*`.
func (t *domainsTxn) tree(domain string) (*iradix.Txn[*virtualHost], []byte) {
	switch {
	case domain == "*":
		return nil, nil
	case strings.HasPrefix(domain, "*"):
		return t.suffix, reversed(domain[1:])
	case strings.HasSuffix(domain, "*"):
		return t.prefix, []byte(domain[:len(domain)-1])
	}
	return t.exact, []byte(domain)
}

func (t *domainsTxn) get(domain string) *virtualHost {
	tree, key := t.tree(domain)
	if tree == nil {
		return t.any
	}
	v, _ := tree.Get(key)
	return v
}

// remove takes a virtual host's domains out.
func (t *domainsTxn) remove(v *virtualHost) {
	for _, d := range v.domains {
		if t.get(d) != v {
			continue
		}
		if tree, key := t.tree(d); tree != nil {
			tree.Delete(key)
		} else {
			t.any = nil
		}
	}
}

// add puts a virtual host's domains in, or none and says which is taken.
func (t *domainsTxn) add(v *virtualHost) error {
	for _, d := range v.domains {
		if other := t.get(d); other != nil && other != v {
			return fmt.Errorf("domain %q stands in virtual host %q too", d, other.name)
		}
	}
	for _, d := range v.domains {
		t.set(d, v)
	}
	return nil
}

// addFree puts those domains in that nobody has.
func (t *domainsTxn) addFree(v *virtualHost) {
	for _, d := range v.domains {
		if t.get(d) == nil {
			t.set(d, v)
		}
	}
}

func (t *domainsTxn) set(domain string, v *virtualHost) {
	if tree, key := t.tree(domain); tree != nil {
		tree.Insert(key, v)
	} else {
		t.any = v
	}
}

func reversed(s string) []byte {
	out := make([]byte, len(s))
	for i := range len(s) {
		out[len(s)-1-i] = s[i]
	}
	return out
}
