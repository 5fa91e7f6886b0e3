package compile

import (
	"slices"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
)

// tree is the routing tree of a group: what is routed where, by host and path.
// It is immutable. Keys hold a NUL between host and path, which neither can hold.
type tree struct {
	// exact holds the nodes of exact hosts by reversed host and path, byPath the
	// same nodes by path and reversed host.
	exact, byPath *iradix.Tree[*node]
	// open holds the nodes of wildcard hosts and of none by level and path.
	open *iradix.Tree[*node]
	// catchAll holds every placement of open in the order of the catch-all.
	catchAll *iradix.Tree[*placement]
}

func newTree() tree {
	return tree{iradix.New[*node](), iradix.New[*node](), iradix.New[*node](), iradix.New[*placement]()}
}

func exactKey(host, path string) []byte { return []byte(reversed(host) + "\x00" + path) }
func pathKey(host, path string) []byte  { return []byte(path + "\x00" + reversed(host)) }
func openKey(l level, path string) []byte {
	return []byte(l + "\x00" + path)
}

// place names a node, whether or not it is there.
type place struct{ level, path string }

// treeTxn collects edits of a tree.
type treeTxn struct {
	tree
	edits map[place]map[string]*placement
	// gone remembers what edits removed or replaced.
	gone map[place][]*placement
}

func (t tree) txn() *treeTxn {
	return &treeTxn{t, map[place]map[string]*placement{}, map[place][]*placement{}}
}

func (t *treeTxn) edit(l level, p pattern, order string, value, old *placement) {
	at := place{l, p.node()}
	if t.edits[at] == nil {
		t.edits[at] = map[string]*placement{}
	}
	t.edits[at][order] = value
	if old != nil {
		t.gone[at] = append(t.gone[at], old)
	}
}

// set puts a placement at a level; old is the one that it replaces, if any.
func (t *treeTxn) set(l level, p, old *placement) { t.edit(l, p.pattern, p.order, p, old) }

// remove takes a placement away.
func (t *treeTxn) remove(l level, p *placement) { t.edit(l, p.pattern, p.order, nil, p) }

// commit applies the edits. It returns the new tree, the nodes of exact hosts
// whose virtual hosts may differ, and whether the catch-all may.
func (t *treeTxn) commit() (after tree, dirty map[place]struct{}, catchAll bool) {
	if len(t.edits) == 0 {
		return t.tree, nil, false
	}
	exact, byPath, open, all := t.exact.Txn(), t.byPath.Txn(), t.open.Txn(), t.tree.catchAll.Txn()
	for at, edits := range t.edits {
		if isExact(at.level) {
			n := change(exact, exactKey(at.level, at.path), at, edits)
			if n == nil {
				byPath.Delete(pathKey(at.level, at.path))
			} else {
				byPath.Insert(pathKey(at.level, at.path), n)
			}
			continue
		}
		change(open, openKey(at.level, at.path), at, edits)
		for order, p := range edits {
			if p == nil {
				all.Delete(openOrder(at.level, order))
			} else {
				all.Insert(openOrder(at.level, order), p)
			}
		}
	}
	after = tree{exact.CommitOnly(), byPath.CommitOnly(), open.CommitOnly(), all.CommitOnly()}
	dirty, catchAll = t.reach(after)
	return after, dirty, catchAll
}

// change edits one node and returns it, nil when nothing is left of it.
func change(txn *iradix.Txn[*node], key []byte, at place, edits map[string]*placement) *node {
	n, found := txn.Get(key)
	if !found {
		n = &node{host: at.level, path: at.path}
	}
	n = n.edited(edits)
	if len(n.places) == 0 {
		txn.Delete(key)
		return nil
	}
	txn.Insert(key, n)
	return n
}

// reach finds the nodes whose virtual hosts the edits may change. When looking
// costs more than building every virtual host would, it returns all of them.
func (t *treeTxn) reach(after tree) (dirty map[place]struct{}, catchAll bool) {
	dirty = map[place]struct{}{}
	budget := max(64, after.exact.Len())
	for at, edits := range t.edits {
		if !isExact(at.level) {
			catchAll = true
		}
		placements := slices.Clone(t.gone[at])
		for _, p := range edits {
			if p != nil {
				placements = append(placements, p)
			}
		}
		mark := func(_ []byte, n *node) bool {
			budget--
			if n.path == at.path || strings.HasPrefix(at.path, n.path+"/") {
				dirty[place{n.host, n.path}] = struct{}{}
				return false
			}
			if !strings.HasPrefix(n.path, at.path+"/") {
				return false
			}
			for _, p := range placements {
				if p.reaches(n.path) {
					dirty[place{n.host, n.path}] = struct{}{}
					break
				}
			}
			return budget < 0
		}
		below := slices.ContainsFunc(placements, func(p *placement) bool { return !p.exact })
		switch {
		case isExact(at.level):
			dirty[at] = struct{}{}
			if below {
				after.exact.Root().WalkPrefix(exactKey(at.level, at.path+"/"), mark)
			}
		default:
			hosts := reversed(strings.TrimPrefix(at.level, "*"))
			for _, path := range ancestors(at.path) {
				after.byPath.Root().WalkPrefix([]byte(path+"\x00"+hosts), mark)
			}
			if below && at.level == "" {
				after.byPath.Root().WalkPrefix([]byte(at.path+"/"), mark)
			} else if below {
				after.exact.Root().WalkPrefix([]byte(hosts), mark)
			}
		}
		if budget < 0 {
			break
		}
	}
	if budget < 0 {
		after.exact.Root().Walk(func(_ []byte, n *node) bool {
			dirty[place{n.host, n.path}] = struct{}{}
			return false
		})
		for at := range t.edits {
			if isExact(at.level) {
				dirty[at] = struct{}{}
			} else {
				catchAll = true
			}
		}
	}
	return dirty, catchAll
}

// ancestors lists a path and those above it, longest first; the root is "".
func ancestors(path string) []string {
	paths := []string{path}
	for path != "" {
		path = path[:strings.LastIndexByte(path, '/')]
		paths = append(paths, path)
	}
	return paths
}

// gather lists, in order, the placements of one level that a request below the
// node could use. Of an exact level, deeper nodes are not the node's concern.
func (t tree) gather(l level, path string) []*placement {
	var found []*placement
	get := func(at string) (*node, bool) {
		if isExact(l) {
			return t.exact.Get(exactKey(l, at))
		}
		return t.open.Get(openKey(l, at))
	}
	for _, at := range ancestors(path) {
		n, ok := get(at)
		switch {
		case !ok:
		case at == path:
			found = append(found, n.places...)
		default:
			for _, p := range n.places {
				if p.reaches(path) {
					found = append(found, p)
				}
			}
		}
	}
	if !isExact(l) {
		t.open.Root().WalkPrefix(openKey(l, path+"/"), func(_ []byte, n *node) bool {
			found = append(found, n.places...)
			return false
		})
	}
	slices.SortFunc(found, byOrder)
	return found
}
