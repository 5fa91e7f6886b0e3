package xds

import (
	"iter"

	"github.com/musterhq/muster/server/snapshot"
)

// interest is the names that a stream subscribes to of one type. An Envoy
// subscribes to the endpoints of all its clusters, like every other Envoy of the
// group: where the names are those of a set, the set stands for them and the
// stream keeps no map.
type interest struct {
	base        *snapshot.Set // subscribed: its names, but minus; may be nil
	plus, minus map[string]struct{}
	sum         snapshot.Names
}

func (in *interest) len() int { return in.sum.Len() }

func (in *interest) has(name string) bool {
	if _, ok := in.plus[name]; ok {
		return true
	}
	if in.base == nil {
		return false
	}
	if _, ok := in.minus[name]; ok {
		return false
	}
	_, ok := in.base.Get(name)
	return ok
}

// add subscribes to a name and reports whether that is new.
func (in *interest) add(name string) bool {
	if in.has(name) {
		return false
	}
	in.sum.Add([]byte(name))
	if _, ok := in.minus[name]; ok {
		delete(in.minus, name)
		return true
	}
	if in.plus == nil {
		in.plus = map[string]struct{}{}
	}
	in.plus[name] = struct{}{}
	return true
}

// remove unsubscribes from a name and reports whether it was subscribed.
func (in *interest) remove(name string) bool {
	if !in.has(name) {
		return false
	}
	in.sum.Remove([]byte(name))
	if _, ok := in.plus[name]; ok {
		delete(in.plus, name)
		return true
	}
	if in.minus == nil {
		in.minus = map[string]struct{}{}
	}
	in.minus[name] = struct{}{}
	return true
}

// all yields the names, in no order.
func (in *interest) all() iter.Seq[string] {
	return func(yield func(string) bool) {
		for name := range in.plus {
			if !yield(name) {
				return
			}
		}
		if in.base == nil {
			return
		}
		for r := range in.base.All() {
			if _, ok := in.minus[r.Name]; !ok && !yield(r.Name) {
				return
			}
		}
	}
}

// settle lets a set stand for the names where they are its names. Not of few
// names: those cost nothing, and a set that stands for names is kept in memory.
func (in *interest) settle(set *snapshot.Set) {
	if in.base != set && in.len() >= 16 && in.sum == set.Names() {
		*in = interest{base: set, sum: in.sum}
	}
}
