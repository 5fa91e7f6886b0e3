package compile

import (
	"fmt"
	"slices"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile/plugin"
)

// txn makes the next Compiled. Objects are taken in first, then routes, then
// what is put together from many objects.
type txn struct {
	from    *Compiled
	view    state.View
	plugins *plugin.Plugins

	tree    *treeTxn
	after   tree
	routes  *iradix.Txn[*routeRecord]
	owned   *iradix.Txn[[]Key]
	keys    *iradix.Txn[part]
	holders *iradix.Txn[string]
	limits  *iradix.Txn[part]
	rules   *ruleRecord
	out     *iradix.Txn[*Resource]
	raw     *iradix.Txn[*Resource]

	// todo lists the routes to compile, by id.
	todo map[string]struct{}
	// touched are the xDS resources that may differ.
	touched map[Key]struct{}
	// changed are the objects taken in.
	changed map[resource.Key]struct{}
	// What of the shared resources must be put together again: ECDS by filter
	// name, the listener with TLS, the global rules, the catch-all.
	filters                     map[string]struct{}
	shards                      map[byte]struct{} // of API keys
	tlsListener, ruleSet, start bool

	problems resource.Problems
}

func (c *Compiled) txn(v state.View) *txn {
	return &txn{
		from: c, view: v, plugins: c.fixed.plugins,
		tree: c.tree.txn(), routes: c.routes.Txn(), owned: c.owned.Txn(), keys: c.keys.Txn(), holders: c.holders.Txn(),
		limits: c.limits.Txn(), rules: c.rules, out: c.out.Txn(), raw: c.raw.Txn(),
		todo: map[string]struct{}{}, touched: map[Key]struct{}{}, filters: map[string]struct{}{}, shards: map[byte]struct{}{},
		changed: map[resource.Key]struct{}{},
	}
}

// outKey is where an xDS resource stands; no name holds a NUL.
func outKey(k Key) []byte { return []byte(k.TypeURL + "\x00" + k.Name) }

// put sets a compiled resource.
func (t *txn) put(r Resource) {
	t.out.Insert(outKey(r.Key), &r)
	t.touched[r.Key] = struct{}{}
}

// drop removes a compiled resource.
func (t *txn) drop(k Key) {
	if _, found := t.out.Delete(outKey(k)); found {
		t.touched[k] = struct{}{}
	}
}

// own sets the resources that an object has to itself, instead of those it had.
func (t *txn) own(object resource.Key, resources []Resource) {
	for i := range resources {
		resources[i].Origins = append([]resource.Key{object}, resources[i].Origins...)
	}
	t.hold(object, resources)
}

// hold is own for resources that know their origins.
func (t *txn) hold(object resource.Key, resources []Resource) {
	at := []byte(object.String())
	had, _ := t.owned.Get(at)
	var have []Key
	for _, r := range resources {
		t.put(r)
		have = append(have, r.Key)
	}
	for _, k := range had {
		if !slices.Contains(have, k) {
			t.drop(k)
		}
	}
	if len(have) == 0 {
		t.owned.Delete(at)
	} else {
		t.owned.Insert(at, have)
	}
}

func (t *txn) problem(object resource.Key, problems ...resource.Problem) {
	for _, p := range problems {
		if p.Object == (resource.Key{}) {
			p.Object = object
		}
		t.problems = append(t.problems, p)
	}
}

// begin makes what every group has.
func (t *txn) begin() {
	t.start, t.ruleSet, t.tlsListener = true, true, true
	for _, f := range plugin.Chain() {
		if f.Discovered {
			t.filters[f.Name] = struct{}{}
		}
	}
	t.put(Resource{Key: Key{ListenerType, ListenerHTTP}, Body: marshal(httpListener(networkFilters(plaintextFilters())))})
}

// object takes in an object as the view has it.
func (t *txn) object(key resource.Key) {
	t.changed[key] = struct{}{}
	var r *musterv1.Resource
	if e, found := t.view.Get(key); found {
		r = e.Resource
	}
	switch key.Kind {
	case musterv1.Kind_KIND_SERVICE:
		t.service(key, r.GetService())
	case musterv1.Kind_KIND_ROUTE:
		t.todo[key.ID] = struct{}{}
	case musterv1.Kind_KIND_CONSUMER:
		t.holder(key, resource.WhereConsumer, r.GetConsumer().GetUsername(), r.GetConsumer().GetPlugins())
	case musterv1.Kind_KIND_CREDENTIAL:
		t.holder(key, resource.WhereCredential, r.GetCredential().GetConsumer(), r.GetCredential().GetPlugins())
	case musterv1.Kind_KIND_SSL:
		t.ssl(key, r.GetSsl())
	case musterv1.Kind_KIND_GLOBAL_RULE:
		t.ruleSet = true
	case musterv1.Kind_KIND_XDS_RESOURCE:
		t.rawResource(key, r.GetXdsResource())
	case musterv1.Kind_KIND_STREAM_ROUTE:
		if r != nil {
			t.problem(key, resource.Problem{Code: resource.CodeUnsupported, Message: "stream routes are not supported yet", Hint: "use an HTTP service, or an xds_resource"})
		}
	case musterv1.Kind_KIND_PLUGIN_METADATA:
		if r != nil {
			t.problem(key, t.plugins.Check(key.ID, resource.WhereMetadata, r.GetPluginMetadata().GetMetadata())...)
		}
	}
}

// service compiles the clusters of a service and has its routes compiled.
func (t *txn) service(key resource.Key, s *musterv1.Service) {
	var resources []Resource
	if s.GetType() == "stream" {
		t.problem(key, resource.Problem{Path: "type", Code: resource.CodeUnsupported, Message: "stream services are not supported yet", Hint: "use an HTTP service, or an xds_resource"})
	} else if s != nil {
		resources = t.clusters(key, s)
		for _, c := range plugin.Merge(s, nil) {
			for _, p := range t.plugins.Check(c.Name, c.Where, c.Config) {
				p.Path = strings.TrimSuffix("plugins."+c.Name+"."+p.Path, ".")
				t.problem(key, p)
			}
		}
	}
	t.own(key, resources)
	for e := range t.view.RoutesOf(key.ID) {
		t.todo[e.Key.ID] = struct{}{}
	}
}

func (t *txn) clusters(key resource.Key, s *musterv1.Service) []Resource {
	var out []Resource
	add := func(name, path string, u *musterv1.Upstream) {
		resources, problems := clusterOf(name, path, u, connectTimeout(u))
		t.problem(key, problems...)
		out = append(out, resources...)
	}
	if s.GetUpstream() != nil {
		add(serviceCluster(s.GetId()), "upstream", s.GetUpstream())
	}
	for i, u := range s.GetUpstreams() {
		name := u.GetId()
		if name == "" {
			name = u.GetName()
		}
		add(namedCluster(s.GetId(), name), "upstreams["+itoa(i)+"]", u)
	}
	return out
}

// compileRoutes compiles the routes on the list and edits the tree.
func (t *txn) compileRoutes() {
	for id := range t.todo {
		key := resource.Key{Kind: musterv1.Kind_KIND_ROUTE, ID: id}
		old, _ := t.routes.Get([]byte(id))
		if old == nil {
			old = &routeRecord{}
		}
		record, resources := t.route(key)
		t.own(key, resources)
		t.place(old, record)
		t.limit(key, old.limits, record.limits)
		if record.empty() {
			t.routes.Delete([]byte(id))
		} else {
			t.routes.Insert([]byte(id), record)
		}
	}
}

func (t *txn) route(key resource.Key) (*routeRecord, []Resource) {
	e, found := t.view.Get(key)
	if !found {
		return &routeRecord{}, nil
	}
	c := &routeCompiler{plugins: t.plugins, route: e.Resource.GetRoute(), key: key}
	if id := c.route.GetServiceId(); id != "" {
		s, found := t.view.Get(resource.Key{Kind: musterv1.Kind_KIND_SERVICE, ID: id})
		if !found {
			t.problem(key, resource.Problem{Path: "service_id", Code: resource.CodeReference, Message: "there is no service " + id})
			return &routeRecord{}, nil
		}
		c.service = s.Resource.GetService()
	}
	record, resources := c.compile()
	t.problem(key, c.problems...)
	return record, resources
}

// place edits the tree by what differs between two records of a route.
func (t *txn) place(old, record *routeRecord) {
	type at struct{ level, order string }
	had := make(map[at]*placement, len(old.placements))
	for _, p := range old.placements {
		had[at{p.level, p.order}] = p
	}
	for _, p := range record.placements {
		k := at{p.level, p.order}
		if q := had[k]; q == nil || !q.equal(p) {
			t.tree.set(p.level, p, q)
		}
		delete(had, k)
	}
	for _, p := range had {
		t.tree.remove(p.level, p)
	}
}

// limit replaces what an owner has in the rate limit filters.
func (t *txn) limit(owner resource.Key, old, limits map[string][]byte) {
	for filter := range old {
		if _, kept := limits[filter]; !kept {
			t.limits.Delete([]byte(filter + "\x00" + owner.ID))
			t.filters[filter] = struct{}{}
		}
	}
	for filter, encoded := range limits {
		if string(old[filter]) != string(encoded) {
			t.limits.Insert([]byte(filter+"\x00"+owner.ID), part{encoded, owner})
			t.filters[filter] = struct{}{}
		}
	}
}

// compileTree commits the tree and builds the virtual hosts that may differ.
func (t *txn) compileTree() {
	after, dirty, catchAll := t.tree.commit()
	t.after = after
	last := t.from.fixed.notFound
	for at := range dirty {
		key := Key{VirtualHostType, virtualHostName(at.level, at.path)}
		n, found := after.exact.Get(exactKey(at.level, at.path))
		if !found {
			t.drop(key)
			continue
		}
		r := after.nodeHost(n, last)
		r.Key, r.View = key, ViewDelta
		t.put(r)
	}
	if catchAll || t.start {
		r := after.catchAllHost(last)
		r.Key, r.View = Key{VirtualHostType, CatchAll}, ViewDelta
		t.put(r)
	}
}

// commit finds out what differs.
func (t *txn) commit() (*Compiled, Delta, resource.Problems) {
	next := &Compiled{
		fixed: t.from.fixed, started: true, tree: t.after, routes: t.routes.CommitOnly(), owned: t.owned.CommitOnly(),
		keys: t.keys.CommitOnly(), holders: t.holders.CommitOnly(), limits: t.limits.CommitOnly(),
		rules: t.rules, out: t.out.CommitOnly(), raw: t.raw.CommitOnly(),
	}
	var delta Delta
	for key := range t.touched {
		before, after := t.from.effective(key), next.effective(key)
		switch {
		case after == nil && before != nil:
			delta.Remove = append(delta.Remove, key)
		case after != nil && (before == nil || string(before.Body) != string(after.Body) || before.View != after.View):
			delta.Upsert = append(delta.Upsert, *after)
		}
		t.clashes(next, key)
		t.tooLarge(before, after)
	}
	slices.SortFunc(delta.Upsert, func(a, b Resource) int { return compareKeys(a.Key, b.Key) })
	slices.SortFunc(delta.Remove, compareKeys)
	return next, delta, tidied(t.problems)
}

// MaxResource is how large a resource may be, in bytes: what a message of 4 MiB
// holds besides its own fields. Data planes take no larger one, and a resource
// cannot be split.
const MaxResource = 4<<20 - 128<<10

// tooLarge reports a resource that has become too large: of the changed object that
// has a part in it, where one has.
func (t *txn) tooLarge(before, after *Resource) {
	if after == nil || len(after.Body) <= MaxResource || before != nil && len(after.Body) <= len(before.Body) {
		return
	}
	var object resource.Key
	for i, k := range after.Origins {
		if _, changed := t.changed[k]; changed || i == 0 {
			object = k
		}
		if _, changed := t.changed[object]; changed {
			break
		}
	}
	t.problem(object, resource.Problem{
		Code: resource.CodeInvalid,
		Message: fmt.Sprintf("with it the xDS resource %s %s comes to %d bytes, and data planes take %d at most",
			after.TypeURL[strings.LastIndexByte(after.TypeURL, '.')+1:], after.Name, len(after.Body), MaxResource),
		Hint: "make the object smaller, or spread such objects over several groups",
	})
}

// effective is the resource that clients get under a key.
func (c *Compiled) effective(k Key) *Resource {
	if r, found := c.out.Get(outKey(k)); found {
		return r
	}
	var raw *Resource
	c.raw.Root().WalkPrefix(append(outKey(k), 0), func(_ []byte, r *Resource) bool { raw = r; return true })
	return raw
}

func compareKeys(a, b Key) int {
	if c := strings.Compare(a.TypeURL, b.TypeURL); c != 0 {
		return c
	}
	return strings.Compare(a.Name, b.Name)
}

// tidied sorts problems and drops those found twice: the routes of a service
// all find the service's.
func tidied(problems resource.Problems) resource.Problems {
	slices.SortStableFunc(problems, func(a, b resource.Problem) int {
		switch {
		case a.Object.Less(b.Object):
			return -1
		case b.Object.Less(a.Object):
			return 1
		}
		if c := strings.Compare(a.Path, b.Path); c != 0 {
			return c
		}
		return strings.Compare(a.Message, b.Message)
	})
	return slices.CompactFunc(problems, func(a, b resource.Problem) bool {
		return a.Object == b.Object && a.Path == b.Path && a.Message == b.Message
	})
}
