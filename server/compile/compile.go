package compile

import (
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
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
type Compiled struct{}

// Empty is the compilation of a group that has never been compiled: it holds
// no xDS resource at all, not even those that an empty group has.
func Empty() *Compiled { return &Compiled{} }

// Full compiles a whole view; the Delta holds everything.
func Full(v state.View) (*Compiled, Delta, resource.Problems) {
	return Empty().Next(v, nil)
}

// Next compiles the view that differs from the one c was compiled from by the
// changes. It costs O(what the changes touch). The problems are those of the
// objects touched; an object with a problem is left out, as far as the problem
// goes, and everything else is compiled.
func (c *Compiled) Next(v state.View, changes []state.Change) (*Compiled, Delta, resource.Problems) {
	return c, Delta{}, nil
}
