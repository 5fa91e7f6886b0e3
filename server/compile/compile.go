package compile

import (
	iradix "github.com/hashicorp/go-immutable-radix/v2"

	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile/plugin"
)

// Key names one xDS resource.
type Key struct{ TypeURL, Name string }

// View says which clients a resource is for.
type View int

// The views.
const (
	// ViewAll: every client gets the resource.
	ViewAll View = iota
	// ViewDelta: only clients of the incremental protocol, which can use VHDS.
	ViewDelta
	// ViewSotW: only clients of the state-of-the-world protocol.
	ViewSotW
	// ViewGRPC: only gRPC's own xDS clients.
	ViewGRPC
)

// Resource is one xDS resource. It is immutable.
type Resource struct {
	Key
	// Body is the deterministic encoding of the message itself, without an Any
	// around it.
	Body []byte
	// Origins are the objects that the resource was made from, nearest first.
	Origins []resource.Key
	// View says which clients the resource is for.
	View View
}

// Delta is what differs between two compilations.
type Delta struct {
	// Upsert holds new resources and those whose bytes differ, by type and name.
	Upsert []Resource
	// Remove holds what is no longer there, by type and name.
	Remove []Key
}

// Compiled is a group's compilation. It is immutable; all methods are safe for
// concurrent use.
type Compiled struct {
	// fixed is what does not depend on the group.
	fixed *fixed
	// started is false only of Empty.
	started bool
	tree    tree
	// routes holds what each route has, by id.
	routes *iradix.Tree[*routeRecord]
	// owned lists the xDS resources that an object has to itself, by key.
	owned *iradix.Tree[[]Key]
	// keys holds the API keys by key and holder, holders the key of each consumer
	// and credential by holder.
	keys    *iradix.Tree[part]
	holders *iradix.Tree[string]
	// limits holds descriptors by filter and owner.
	limits *iradix.Tree[part]
	// rules is what the global rules come to.
	rules *ruleRecord
	// out holds what was compiled, raw the xds_resources also by their ids.
	out, raw *iradix.Tree[*Resource]
}

// fixed is what every compilation of a process shares.
type fixed struct {
	plugins  *plugin.Plugins
	notFound []byte
}

// Empty is the compilation of a group that has never been compiled: it holds
// no xDS resource at all, not even those that an empty group has.
func Empty() *Compiled {
	return &Compiled{
		fixed:   &fixed{plugin.Set(), notFound()},
		tree:    newTree(),
		routes:  iradix.New[*routeRecord](),
		owned:   iradix.New[[]Key](),
		keys:    iradix.New[part](),
		holders: iradix.New[string](),
		limits:  iradix.New[part](),
		rules:   &ruleRecord{},
		out:     iradix.New[*Resource](),
		raw:     iradix.New[*Resource](),
	}
}

// Full compiles a whole view; the Delta holds everything.
func Full(v state.View) (*Compiled, Delta, resource.Problems) {
	changes := make([]state.Change, 0, v.Len())
	for e := range v.Entries() {
		changes = append(changes, state.Change{Key: e.Key, After: e})
	}
	return Empty().Next(v, changes)
}

// Next compiles the view that differs from the one c was compiled from by the
// changes. It costs O(what the changes touch). The problems are those of the
// objects touched; an object with a problem is left out, as far as the problem
// goes, and everything else is compiled.
func (c *Compiled) Next(v state.View, changes []state.Change) (*Compiled, Delta, resource.Problems) {
	t := c.txn(v)
	if !c.started {
		t.begin()
	}
	for _, change := range changes {
		t.object(change.Key)
	}
	t.compileRoutes()
	t.compileTree()
	t.compileShared()
	return t.commit()
}
