package gateway

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/dataplane"
)

// virtualHosts puts the virtual hosts of VHDS into the domains of their route
// configurations. What goes, goes first: a domain may move from one to another.
func (c *change) virtualHosts() {
	t := c.u.Types[dataplane.VirtualHostType]
	if len(t.Upsert)+len(t.Remove) == 0 {
		return
	}
	compiled := map[string]*virtualHost{}
	eachDecoded(c, dataplane.VirtualHostType, c.g.decodeVirtualHost, func(name string, v *virtualHost) error {
		if !strings.Contains(name, "/") {
			return errors.New("its name is not <route configuration>/<anything>")
		}
		if v.name != name {
			return fmt.Errorf("its name %q is not the resource's", v.name)
		}
		compiled[name] = v
		return nil
	})
	txns := map[string]*domainsTxn{}
	txnOf := func(name string) *domainsTxn {
		rc, _, _ := strings.Cut(name, "/")
		if txns[rc] == nil {
			txns[rc] = c.domainsOf(rc).txn()
		}
		return txns[rc]
	}
	vhosts := c.old.vhosts.Txn()
	for _, name := range t.Remove {
		if v, ok := vhosts.Delete([]byte(name)); ok {
			txnOf(name).remove(v)
		}
	}
	names := slices.Sorted(maps.Keys(compiled))
	before := map[string]*virtualHost{}
	for _, name := range names {
		if v, ok := vhosts.Get([]byte(name)); ok {
			before[name] = v
			txnOf(name).remove(v)
		}
	}
	for _, name := range names {
		if err := txnOf(name).add(compiled[name]); err != nil {
			c.refuse(dataplane.VirtualHostType, name, err)
			continue
		}
		vhosts.Insert([]byte(name), compiled[name])
		delete(before, name)
	}
	// Refused ones keep what they had, as far as nobody else has it now.
	for _, name := range slices.Sorted(maps.Keys(before)) {
		txnOf(name).addFree(before[name])
	}
	c.next.vhosts = vhosts.Commit()
	c.next.domains = maps.Clone(c.next.domains)
	for rc, txn := range txns {
		c.next.domains[rc] = txn.commit()
	}
}

// listeners compiles listeners and binds new ones.
func (c *change) listeners() {
	t := c.u.Types[dataplane.ListenerType]
	if len(t.Upsert)+len(t.Remove) == 0 {
		return
	}
	c.next.listeners = maps.Clone(c.old.listeners)
	for _, name := range t.Remove {
		delete(c.next.listeners, name)
	}
	c.each(dataplane.ListenerType, func(name string, body *anypb.Any) error {
		l, err := c.g.decodeListener(body, c.old.listeners[name])
		if err != nil {
			return err
		}
		if err := c.bind(l.name); err != nil {
			return err
		}
		c.next.listeners[l.name] = l
		return nil
	})
}

// bind binds a listener that is not yet. It serves after the swap.
func (c *change) bind(name string) error {
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	if c.g.listeners[name] != nil {
		return nil
	}
	s, err := c.g.bind(name)
	if err != nil || s == nil {
		return err
	}
	c.g.listeners[name] = s
	c.bound = append(c.bound, s)
	return nil
}
