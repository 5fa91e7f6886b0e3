package compile

import (
	"strconv"
	"strings"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile/plugin"
)

// ruleRecord is what the global rules of a group come to.
type ruleRecord struct {
	// limits are the encoded descriptors by filter, of one rule at most.
	limits map[string][]byte
	owner  resource.Key
}

// holder takes in the API key of a consumer or credential.
func (t *txn) holder(key resource.Key, where resource.Where, consumer string, plugins map[string]*structpb.Struct) {
	for name, config := range plugins {
		for _, p := range t.plugins.Check(name, where, config) {
			p.Path = strings.TrimSuffix("plugins."+name+"."+p.Path, ".")
			t.problem(key, p)
		}
	}
	at := key.String()
	old, had := t.holders.Get([]byte(at))
	secret, has := t.plugins.Key(plugins, where)
	if had && (!has || secret != old) {
		t.keys.Delete(keyAt(old, at))
		t.holders.Delete([]byte(at))
		t.shards[plugin.KeyShard(old)] = struct{}{}
	}
	if !has {
		return
	}
	p := part{credentialOf(secret, consumer), key}
	if q, found := t.keys.Get(keyAt(secret, at)); !found || string(q.encoded) != string(p.encoded) {
		t.keys.Insert(keyAt(secret, at), p)
		t.holders.Insert([]byte(at), secret)
		t.shards[plugin.KeyShard(secret)] = struct{}{}
	}
	t.keys.Root().WalkPrefix(keyAt(secret, ""), func(_ []byte, other part) bool {
		if other.origin != key {
			t.problem(key, resource.Problem{
				Path: "plugins.key-auth.key", Code: resource.CodeConflict,
				Message: "the same key belongs to " + other.origin.String(), Hint: "keys must be unique in the group",
			})
		}
		return other.origin != key
	})
}

// compileKeys puts the shards of the keys together, and chooses among them while
// there are keys.
func (t *txn) compileKeys() {
	keys := t.keys.CommitOnly()
	if t.from.started && (t.from.keys.Len() > 0) != (keys.Len() > 0) {
		t.filters["key-auth"], t.filters[plugin.GlobalPrefix+"key-auth"] = struct{}{}, struct{}{}
	}
	if _, all := t.filters["key-auth"]; all {
		for shard := range byte(plugin.KeyShards) {
			t.shards[shard] = struct{}{}
		}
	}
	for shard := range t.shards {
		name := plugin.KeyShardName(shard)
		if keys.Len() == 0 {
			t.drop(Key{ExtensionConfigType, name})
		} else {
			t.put(extension(name, plugin.KeyAuth(), keyParts(keys, shard)))
		}
	}
	// The global one chooses also while no global rule switches it on: a rule that
	// comes or goes then changes routes alone. If it changed the filter as well, the
	// two would arrive one after the other, and keys be refused in between.
	for _, name := range []string{"key-auth", plugin.GlobalPrefix + "key-auth"} {
		if _, changed := t.filters[name]; !changed {
			continue
		}
		delete(t.filters, name)
		config := plugin.KeyRefuser()
		if keys.Len() > 0 {
			config = plugin.KeyChooser()
		}
		t.put(extension(name, config, nil))
	}
}

// ssl takes in a certificate.
func (t *txn) ssl(key resource.Key, s *musterv1.Ssl) {
	t.tlsListener = true
	var resources []Resource
	if s != nil {
		t.problem(key, refuseSsl(s)...)
		for _, secret := range secretsOf(s) {
			resources = append(resources, Resource{Key: Key{SecretType, secret.GetName()}, Body: marshal(secret)})
		}
	}
	t.own(key, resources)
}

// compileShared puts together what many objects share.
func (t *txn) compileShared() {
	if t.ruleSet {
		t.globalRules()
	}
	if t.tlsListener {
		t.httpsListener()
	}
	t.compileKeys()
	limits := t.limits.CommitOnly()
	for filter := range t.filters {
		t.put(extension(filter, plugin.RateLimit(filter), limitParts(limits, filter)))
	}
}

// globalRules compiles all global rules, of which there are few, into the route
// configuration. Of rules with the same plugin the first by id has it.
func (t *txn) globalRules() {
	taken := map[string]resource.Key{}
	perFilter := map[string]*anypb.Any{}
	var origins []resource.Key
	record := &ruleRecord{}
	for e := range t.view.All(musterv1.Kind_KIND_GLOBAL_RULE) {
		origins = append(origins, e.Key)
		var configs []plugin.Configured
		for name, config := range e.Resource.GetGlobalRule().GetPlugins() {
			if other, found := taken[name]; found {
				t.problem(e.Key, resource.Problem{
					Path: "plugins." + name, Code: resource.CodeConflict,
					Message: "the plugin stands in " + other.String() + " already", Hint: "a plugin can be in one global rule only",
				})
				continue
			}
			taken[name] = e.Key
			configs = append(configs, plugin.Configured{Name: name, Config: config, Origin: e.Key, Where: resource.WhereGlobalRule})
		}
		effect, problems := t.plugins.GlobalRule(e.Key.ID, configs)
		t.problem(e.Key, problems...)
		for name, config := range effect.PerFilter {
			perFilter[name] = config
		}
		if limits := limitsOf(effect, true); limits != nil {
			record.limits, record.owner = limits, e.Key
		}
	}
	old := t.rules
	t.rules = record
	if old.owner != record.owner {
		t.limit(old.owner, old.limits, nil)
		t.limit(record.owner, nil, record.limits)
	} else {
		t.limit(record.owner, old.limits, record.limits)
	}
	t.put(Resource{
		Key:     Key{RouteConfigurationType, RouteConfig},
		Origins: origins,
		Body: marshal(&routev3.RouteConfiguration{
			Name:                 RouteConfig,
			Vhds:                 &routev3.Vhds{ConfigSource: ads()},
			VhostHeader:          RouteKeyHeader,
			TypedPerFilterConfig: perFilter,
		}),
	})
}

// httpsListener puts the listener with TLS together. Of certificates for the
// same name the first by id has it, for Envoy takes a name once only.
func (t *txn) httpsListener() {
	taken := map[string]resource.Key{}
	demanding := map[string][]string{} // by id: names whose clients need certificates
	var chains []*listenerv3.FilterChain
	var origins []resource.Key
	for e := range t.view.All(musterv1.Kind_KIND_SSL) {
		s := e.Resource.GetSsl()
		if !serves(s) || len(refuseSsl(s)) > 0 {
			continue
		}
		var own []string
		for _, sni := range snisOf(s) {
			if other, found := taken[sni]; found {
				t.problem(e.Key, resource.Problem{
					Path: "snis", Code: resource.CodeConflict,
					Message: strconv.Quote(sni) + " is served by " + other.String() + " already", Hint: "a name can have one certificate object; put further certificates into certs and keys",
				})
				continue
			}
			taken[sni] = e.Key
			own = append(own, sni)
		}
		if len(own) > 0 {
			chains = append(chains, chainOf(s, own))
			origins = append(origins, e.Key)
			if s.GetClient().GetCa() != "" {
				demanding[s.GetId()] = own
			}
		}
	}
	t.put(clientCertificates(taken, demanding))
	key := Key{ListenerType, ListenerHTTPS}
	if len(chains) == 0 {
		t.drop(key)
		return
	}
	t.put(Resource{Key: key, Body: marshal(httpsListener(networkFilters(httpsFilters()), chains)), Origins: origins})
}

// rawResource takes in a raw xDS message, which is delivered as it is.
func (t *txn) rawResource(key resource.Key, x *musterv1.XdsResource) {
	at := []byte(key.String())
	if had, found := t.owned.Delete(at); found {
		for _, k := range had {
			t.raw.Delete(rawKey(k, key.ID))
			t.touched[k] = struct{}{}
		}
	}
	if x == nil {
		return
	}
	r := Resource{
		Key:     Key{x.GetResource().GetTypeUrl(), rawName(x)},
		Body:    x.GetResource().GetValue(),
		Origins: []resource.Key{key},
	}
	if r.TypeURL == VirtualHostType {
		r.View = ViewDelta
	}
	t.raw.Insert(rawKey(r.Key, key.ID), &r)
	t.owned.Insert(at, []Key{r.Key})
	t.touched[r.Key] = struct{}{}
}

func rawKey(k Key, id string) []byte { return append(append(outKey(k), 0), id...) }

// rawName is the name under which a raw message is delivered: the one given, or
// the one inside, which is the first field of every xDS message, or the id.
func rawName(x *musterv1.XdsResource) string {
	if x.GetName() != "" {
		return x.GetName()
	}
	for rest := x.GetResource().GetValue(); len(rest) > 0 && strings.HasPrefix(x.GetResource().GetTypeUrl(), "type.googleapis.com/envoy."); {
		num, kind, n := protowire.ConsumeTag(rest)
		if n < 0 {
			break
		}
		if num == 1 && kind == protowire.BytesType {
			if name, m := protowire.ConsumeString(rest[n:]); m > 0 && name != "" {
				return name
			}
		}
		m := protowire.ConsumeFieldValue(num, kind, rest[n:])
		if m < 0 {
			break
		}
		rest = rest[n+m:]
	}
	return x.GetId()
}

// clashes reports raw messages under a name that is taken.
func (t *txn) clashes(next *Compiled, k Key) {
	_, compiled := next.out.Get(outKey(k))
	var first *Resource
	next.raw.Root().WalkPrefix(append(outKey(k), 0), func(_ []byte, r *Resource) bool {
		switch {
		case compiled:
			t.problem(r.Origins[0], resource.Problem{
				Path: "name", Code: resource.CodeConflict,
				Message: strconv.Quote(k.Name) + " is the name of a resource of this type that is compiled from other objects", Hint: "give it another name",
			})
		case first != nil:
			t.problem(r.Origins[0], resource.Problem{
				Path: "name", Code: resource.CodeConflict,
				Message: strconv.Quote(k.Name) + " is the name of " + first.Origins[0].String() + " already", Hint: "give it another name",
			})
		default:
			first = r
		}
		return false
	})
}

func itoa(i int) string { return strconv.Itoa(i) }
