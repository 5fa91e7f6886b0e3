package gateway

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/dataplane"
)

// warmUp bounds the wait for new clusters: their names are resolved and their hosts
// checked once before requests may go to them.
const warmUp = 5 * time.Second

// change is an update on its way into service.
type change struct {
	g       *Gateway
	u       *dataplane.Update
	refused dataplane.Refused

	old, next   *table
	assignments map[string]*assignment // changed ones; nil is removed
	elsewhere   map[string][]*cluster  // those whose assignments have another name than they; nil until asked for
	started     []*cluster             // provisioned
	retired     []*cluster             // replaced or removed
	bound       []*listenerServer
}

// Apply implements dataplane.Handler: it provisions everything that the update
// brings, swaps, and cleans up. Resources that the gateway does not honour are
// refused and stay as they were.
func (g *Gateway) Apply(ctx context.Context, u *dataplane.Update) error {
	old := g.table.Load()
	next := *old
	c := &change{g: g, u: u, old: old, next: &next, assignments: map[string]*assignment{}}
	c.secrets()
	c.extensions()
	c.endpoints()
	c.clusters()
	c.routeConfigs()
	c.virtualHosts()
	c.listeners()
	c.warm(ctx)

	c.feed()
	g.table.Store(c.next)
	for _, s := range c.bound {
		s.start()
	}
	c.cleanUp()
	return c.refused.Err()
}

func (c *change) refuse(typeURL, name string, err error) {
	c.refused.Add(typeURL, name, err.Error())
}

// each calls compile for each added or changed resource of a type, in the order of
// names, and refuses what it returns an error for.
func (c *change) each(typeURL string, compile func(name string, body *anypb.Any) error) {
	t := c.u.Types[typeURL]
	for _, name := range slices.Sorted(maps.Keys(t.Upsert)) {
		if err := compile(name, t.Upsert[name]); err != nil {
			c.refuse(typeURL, name, err)
		}
	}
}

// eachDecoded decodes the added and changed resources of a type, on all processors,
// and calls compile for each in the order of names. What either returns an error for
// is refused.
func eachDecoded[T any](c *change, typeURL string, decode func(*anypb.Any) (T, error), compile func(name string, decoded T) error) {
	t := c.u.Types[typeURL]
	names := slices.Sorted(maps.Keys(t.Upsert))
	decoded, errs := make([]T, len(names)), make([]error, len(names))
	var next atomic.Int64
	var workers sync.WaitGroup
	for range min(runtime.GOMAXPROCS(0), (len(names)+decodeBatch-1)/decodeBatch) {
		workers.Go(func() {
			for {
				end := int(next.Add(decodeBatch))
				if end-decodeBatch >= len(names) {
					return
				}
				for i := end - decodeBatch; i < min(end, len(names)); i++ {
					decoded[i], errs[i] = decode(t.Upsert[names[i]])
				}
			}
		})
	}
	workers.Wait()
	for i, name := range names {
		if errs[i] == nil {
			errs[i] = compile(name, decoded[i])
		}
		if errs[i] != nil {
			c.refuse(typeURL, name, errs[i])
		}
	}
}

// decodeBatch is how many resources are worth a goroutine of their own.
const decodeBatch = 64

// tree changes one of the table's trees.
func tree[T, D any](c *change, typeURL string, from *iradix.Tree[T], decode func(*anypb.Any) (D, error), compile func(name string, decoded D, previous T) (T, error)) *iradix.Tree[T] {
	txn := from.Txn()
	for _, name := range c.u.Types[typeURL].Remove {
		txn.Delete([]byte(name))
	}
	eachDecoded(c, typeURL, decode, func(name string, decoded D) error {
		previous, _ := txn.Get([]byte(name))
		v, err := compile(name, decoded, previous)
		if err == nil {
			txn.Insert([]byte(name), v)
		}
		return err
	})
	return txn.Commit()
}

func (c *change) secrets() {
	c.next.secrets = tree(c, dataplane.SecretType, c.old.secrets, c.g.decodeSecret,
		func(_ string, s, _ *secret) (*secret, error) { return s, nil })
}

func (c *change) extensions() {
	c.next.extensions = tree(c, dataplane.ExtensionConfigType, c.old.extensions,
		func(body *anypb.Any) (*anypb.Any, error) { return body, nil },
		func(_ string, body *anypb.Any, previous *extensionConfig) (*extensionConfig, error) {
			return c.g.newExtensionConfig(body, previous)
		})
}

// endpoints compiles load assignments.
func (c *change) endpoints() {
	for _, name := range c.u.Types[dataplane.EndpointType].Remove {
		c.assignments[name] = nil
	}
	eachDecoded(c, dataplane.EndpointType, c.g.decodeAssignment, func(name string, a *assignment) error {
		c.assignments[name] = a
		return nil
	})
}

// assignment returns a load assignment as it will be.
func (c *change) assignment(name string) *assignment {
	if a, ok := c.assignments[name]; ok {
		return a
	}
	return c.g.assignments[name]
}

// clusters provisions new and changed clusters.
func (c *change) clusters() {
	for _, name := range c.u.Types[dataplane.ClusterType].Remove {
		if gone, ok := c.old.clusters.Get([]byte(name)); ok {
			c.retired = append(c.retired, gone)
		}
	}
	c.next.clusters = tree(c, dataplane.ClusterType, c.old.clusters, c.g.decodeCluster,
		func(_ string, cfg *clusterConfig, previous *cluster) (*cluster, error) {
			n := c.g.newCluster(cfg, c.assignment(cfg.assignmentName), previous)
			if previous != nil {
				c.retired = append(c.retired, previous)
			}
			n.start(previous)
			c.started = append(c.started, n)
			return n, nil
		})
}

func (c *change) routeConfigs() {
	t := c.u.Types[dataplane.RouteConfigurationType]
	if len(t.Upsert)+len(t.Remove) == 0 {
		return
	}
	c.next.routeConfigs, c.next.domains = maps.Clone(c.old.routeConfigs), maps.Clone(c.old.domains)
	for _, name := range t.Remove {
		if rc := c.next.routeConfigs[name]; rc != nil {
			c.changeDomains(name, func(txn *domainsTxn) { removeAll(txn, rc.inline) })
		}
		delete(c.next.routeConfigs, name)
	}
	c.each(dataplane.RouteConfigurationType, func(name string, body *anypb.Any) error {
		rc, err := c.g.decodeRouteConfig(body)
		if err != nil {
			return err
		}
		if err := c.replaceInline(name, rc); err != nil {
			return err
		}
		c.next.routeConfigs[name] = rc
		return nil
	})
}

// replaceInline puts the virtual hosts that stand in a route configuration itself in
// the place of its former ones.
func (c *change) replaceInline(name string, rc *routeConfig) error {
	txn := c.domainsOf(name).txn()
	if before := c.next.routeConfigs[name]; before != nil {
		removeAll(txn, before.inline)
	}
	for _, v := range rc.inline {
		if err := txn.add(v); err != nil {
			return fmt.Errorf("virtual host %q: %w", v.name, err)
		}
	}
	c.next.domains[name] = txn.commit()
	return nil
}

func removeAll(txn *domainsTxn, vhosts []*virtualHost) {
	for _, v := range vhosts {
		txn.remove(v)
	}
}

func (c *change) domainsOf(routeConfig string) *domains {
	if d, ok := c.next.domains[routeConfig]; ok {
		return d
	}
	return newDomains()
}

func (c *change) changeDomains(routeConfig string, f func(*domainsTxn)) {
	txn := c.domainsOf(routeConfig).txn()
	f(txn)
	c.next.domains[routeConfig] = txn.commit()
}

// cleanUp ends what is no longer in service.
func (c *change) cleanUp() {
	for _, r := range c.retired {
		r.close()
	}
	for _, n := range c.started {
		n.takeOver()
	}
	c.g.mu.Lock()
	defer c.g.mu.Unlock()
	for name, l := range c.g.listeners {
		if _, ok := c.next.listeners[name]; !ok {
			c.g.drain(l)
			delete(c.g.listeners, name)
		}
	}
}

// warm waits until the new clusters have what they need, but not for ever.
func (c *change) warm(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, warmUp)
	defer cancel()
	for _, n := range c.started {
		select {
		case <-n.ready:
		case <-ctx.Done():
			c.g.log.Warn("cluster used before it is warm", "cluster", n.cfg.name)
		}
	}
}

// feed gives the clusters that stay their new endpoints.
func (c *change) feed() {
	for name, a := range c.assignments {
		if a == nil {
			delete(c.g.assignments, name)
			a = &assignment{}
		} else {
			c.g.assignments[name] = a
		}
		for _, cl := range c.clustersOf(name) {
			cl.assign(a)
		}
	}
}

// clustersOf returns the clusters whose endpoints an assignment holds.
func (c *change) clustersOf(assignment string) []*cluster {
	// By the compiler's contract both have the same name.
	if cl, ok := c.next.clusters.Get([]byte(assignment)); ok && cl.cfg.assignmentName == assignment {
		return []*cluster{cl}
	}
	if c.elsewhere == nil {
		c.elsewhere = map[string][]*cluster{}
		c.next.clusters.Root().Walk(func(_ []byte, cl *cluster) bool {
			if name := cl.cfg.assignmentName; name != "" && name != cl.cfg.name {
				c.elsewhere[name] = append(c.elsewhere[name], cl)
			}
			return false
		})
	}
	return c.elsewhere[assignment]
}
