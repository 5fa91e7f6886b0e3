package compile

import (
	"encoding/binary"
	"slices"
	"strings"

	"github.com/musterhq/muster/resource"
)

// A level is a host as routes have it: exact (`api.example.com`), wildcard
// (`*.example.com`) or none (""). Levels are lower-cased.
type level = string

// levelOf normalises a host of a resource.
func levelOf(host string) level {
	if host == "*" {
		return ""
	}
	return lower(strings.TrimSuffix(host, "."))
}

func isWildcard(l level) bool { return strings.HasPrefix(l, "*.") }

// isExact tells the levels that have virtual hosts of their own.
func isExact(l level) bool { return l != "" && !isWildcard(l) }

// levelsOf yields the levels whose routes a request for the exact host may use,
// in order of precedence.
func levelsOf(host string) []level {
	levels := []level{host}
	for rest := host; ; {
		dot := strings.IndexByte(rest, '.')
		if dot < 0 {
			break
		}
		rest = rest[dot+1:]
		levels = append(levels, "*."+rest)
	}
	return append(levels, "")
}

// pattern is one URI of a route.
type pattern struct {
	// literal is the path, or what a path must begin with.
	literal string
	exact   bool
}

func parsePattern(uri string) pattern {
	if literal, found := strings.CutSuffix(uri, "*"); found {
		return pattern{literal, false}
	}
	return pattern{uri, true}
}

// node is the path of the tree's node where the pattern lives: its longest
// literal prefix that ends on a segment boundary, lower-cased, without a slash
// at the end. The root's is "".
func (p pattern) node() string {
	path := p.literal
	if !p.exact {
		path = path[:strings.LastIndexByte(path, '/')+1]
	}
	return lower(strings.TrimRight(path, "/"))
}

// reaches tells whether the pattern, which lives at an ancestor of the node,
// could match a request below the node.
func (p pattern) reaches(node string) bool {
	return !p.exact && strings.HasPrefix(node+"/", lower(p.literal))
}

// placement is one URI of one route at one host.
type placement struct {
	// order sorts the placements of a level by precedence.
	order string
	pattern
	// conditional routes may decline a request whose path matches.
	conditional bool
	// body is the encoded Route. open is the same for the catch-all virtual host,
	// where a route of a wildcard host must look at the host itself.
	body, open []byte
	// level is where the placement stands.
	level level
	// route and service made it; service may be zero.
	route, service resource.Key
}

func (p *placement) equal(q *placement) bool {
	return p.order == q.order && p.conditional == q.conditional && string(p.body) == string(q.body) && string(p.open) == string(q.open)
}

// orderOf is the precedence within a level: longest path first, exact before
// prefix, higher priority, more conditions, id. Between different paths of one
// length, which never match the same request, the path itself decides, so that
// equal ones stand together.
func orderOf(p pattern, priority int32, conditions int, id string) string {
	b := make([]byte, 0, 9+len(id)+len(p.literal))
	b = binary.BigEndian.AppendUint16(b, ^uint16(min(len(p.literal), 0xffff)))
	b = append(b, p.literal...)
	b = append(b, 0)
	if p.exact {
		b = append(b, 0)
	} else {
		b = append(b, 1)
	}
	b = binary.BigEndian.AppendUint32(b, ^(uint32(priority) ^ 1<<31))
	b = append(b, ^uint8(min(conditions, 0xff)))
	return string(append(b, id...))
}

// openOrder is the precedence of a wildcard or hostless placement in the
// catch-all virtual host: longest suffix first, hostless last.
func openOrder(l level, order string) []byte {
	var b []byte
	if l == "" {
		b = append(b, 1)
	} else {
		b = append(b, 0)
		b = binary.BigEndian.AppendUint16(b, ^uint16(len(l)))
		b = append(b, l...)
		b = append(b, 0)
	}
	return append(b, order...)
}

// node is a place of the tree that has routes of its own, in order.
type node struct {
	host, path string
	places     []*placement
}

// edited returns the node with placements replaced, added and, where the edit
// is nil, removed; edits go by order.
func (n *node) edited(edits map[string]*placement) *node {
	added := make([]*placement, 0, len(edits))
	for _, p := range edits {
		if p != nil {
			added = append(added, p)
		}
	}
	slices.SortFunc(added, byOrder)
	places := make([]*placement, 0, len(n.places)+len(added))
	for _, old := range n.places {
		if _, touched := edits[old.order]; touched {
			continue
		}
		for len(added) > 0 && added[0].order < old.order {
			places, added = append(places, added[0]), added[1:]
		}
		places = append(places, old)
	}
	return &node{n.host, n.path, append(places, added...)}
}

func byOrder(p, q *placement) int { return strings.Compare(p.order, q.order) }
