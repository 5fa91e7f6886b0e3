package resource

import (
	"fmt"
	"slices"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// EncodeFile is Encoder.File of the zero Encoder.
func EncodeFile(rs []*musterv1.Resource) ([]byte, error) { return Encoder{}.File(rs) }

// File returns the resources as a declarative file in YAML, secrets in clear:
// routes in their services, credentials in their consumers, ids only where they
// are not those that the names generate. What adc's shape cannot express is
// written as muster's own extension of it, see Decoder.File; the times that the
// server set are left out. Resources of a kind are in the order given.
//
// Decoding the result with DecodeFile gives equal resources but for the times,
// provided that they are valid, in canonical form and have their ids. It fails
// where Object does.
func (e Encoder) File(rs []*musterv1.Resource) ([]byte, error) {
	f := &fileEncoder{w: e.writer(), sections: map[musterv1.Kind]*node{}, parents: map[Key]*parentNode{}}
	for _, r := range rs {
		switch kind := KeyOf(r).Kind; kind {
		case musterv1.Kind_KIND_SERVICE, musterv1.Kind_KIND_CONSUMER:
			f.parents[KeyOf(r)] = &parentNode{resource: r, routes: newList(), streamRoutes: newList(), credentials: newList()}
		case musterv1.Kind_KIND_UNSPECIFIED:
			return nil, fmt.Errorf("resource: the resource has no kind")
		}
	}
	f.simpleRules = allSimpleRules(rs)
	for _, r := range rs {
		if err := f.add(r); err != nil {
			return nil, err
		}
	}
	return appendYAML(nil, f.top()), nil
}

// fileEncoder gathers the nodes of a file by section.
type fileEncoder struct {
	w        writer
	sections map[musterv1.Kind]*node
	parents  map[Key]*parentNode
	// simpleRules says that every global rule fits adc's shape.
	simpleRules bool
}

// parentNode is a service or consumer and what nests in it.
type parentNode struct {
	resource                          *musterv1.Resource
	node                              *node
	routes, streamRoutes, credentials *node
}

func (f *fileEncoder) add(r *musterv1.Resource) error {
	key := KeyOf(r)
	n, err := f.w.tree(r)
	if err != nil {
		return err
	}
	n.rename("desc", "description")
	labels(n)
	n.remove("create_time")
	n.remove("update_time")
	section := f.sections[key.Kind]
	if section == nil {
		section = newList()
		f.sections[key.Kind] = section
	}
	switch {
	case r.GetService() != nil, r.GetConsumer() != nil:
		f.parents[key].node = n
		section.items = append(section.items, n)
		f.upstreams(n, r.GetService())
		if r.GetService().GetName() != "" && r.GetService().GetId() == GeneratedID(r.GetService().GetName()) {
			n.remove("id")
		}
	case r.GetRoute() != nil:
		f.nest(n, r.GetRoute().GetServiceId(), r.GetRoute().GetId(), r.GetRoute().GetName(), section, func(p *parentNode) *node { return p.routes })
		f.upstreams(n, nil)
	case r.GetStreamRoute() != nil:
		f.nest(n, r.GetStreamRoute().GetServiceId(), r.GetStreamRoute().GetId(), r.GetStreamRoute().GetName(), section, func(p *parentNode) *node { return p.streamRoutes })
		f.upstreams(n, nil)
	case r.GetCredential() != nil:
		f.credential(n, r.GetCredential(), section)
	case r.GetSsl() != nil:
		f.ssl(n, r.GetSsl())
		section.items = append(section.items, n)
	case r.GetGlobalRule() != nil && f.simpleRules:
		section.kind = mapNode
		section.add(key.ID, n.get("plugins").get(key.ID))
	case r.GetPluginMetadata() != nil:
		section.kind = mapNode
		section.add(key.ID, freeStruct(r.GetPluginMetadata().GetMetadata(), secretRule{}))
	default:
		section.items = append(section.items, n)
	}
	return nil
}

// upstreams writes the upstreams of a service or route in the file's dialect.
func (f *fileEncoder) upstreams(n *node, service *musterv1.Service) {
	if upstream := n.get("upstream"); upstream != nil {
		upstream.rename("desc", "description")
		labels(upstream)
	}
	list := n.get("upstreams")
	if list == nil {
		return
	}
	base := service.GetName()
	if base == "" {
		base = service.GetId()
	}
	for i, upstream := range list.items {
		upstream.rename("desc", "description")
		labels(upstream)
		message := service.GetUpstreams()[i]
		if message.GetName() != "" && message.GetId() == GeneratedID(base, message.GetName()) {
			upstream.remove("id")
		}
	}
}

// nest puts a route into its service, or into the section when that is not in
// the file or has the other type of routes.
func (f *fileEncoder) nest(n *node, serviceID, id, name string, section *node, list func(*parentNode) *node) {
	parent := f.parents[Key{musterv1.Kind_KIND_SERVICE, serviceID}]
	if parent == nil || serviceID == "" {
		if name != "" && id == GeneratedID(name) {
			n.remove("id")
		}
		section.items = append(section.items, n)
		return
	}
	n.remove("service_id")
	base := parent.resource.GetService().GetName()
	if base == "" {
		base = serviceID
	}
	if name != "" && id == GeneratedID(base, name) {
		n.remove("id")
	}
	into := list(parent)
	into.items = append(into.items, n)
}

// credential writes the one auth plugin as type and config.
func (f *fileEncoder) credential(n *node, credential *musterv1.Credential, section *node) {
	if plugins := n.get("plugins"); plugins != nil && len(plugins.fields) == 1 {
		plugin := plugins.fields[0]
		n.remove("plugins")
		n.add("type", newString(plugin.key))
		n.add("config", plugin.value)
	}
	if credential.GetName() != "" && credential.GetId() == GeneratedID(credential.GetConsumer(), credential.GetName()) {
		n.remove("id")
	}
	parent := f.parents[Key{musterv1.Kind_KIND_CONSUMER, credential.GetConsumer()}]
	if parent == nil {
		section.items = append(section.items, n)
		return
	}
	n.remove("consumer")
	parent.credentials.items = append(parent.credentials.items, n)
}

// ssl writes the certificates as adc's pairs, when they are pairs.
func (f *fileEncoder) ssl(n *node, ssl *musterv1.Ssl) {
	if len(ssl.GetSnis()) > 0 && ssl.GetId() == sslID(ssl) {
		n.remove("id")
	}
	if ssl.GetCert() == "" || ssl.GetKey() == "" || len(ssl.GetCerts()) != len(ssl.GetKeys()) ||
		slices.Contains(ssl.GetCerts(), "") || slices.Contains(ssl.GetKeys(), "") {
		return
	}
	pair := func(cert, key string) *node {
		p := newMap()
		p.add("certificate", newString(cert))
		p.add("key", newString(key).markSecret())
		return p
	}
	list := newList(pair(ssl.GetCert(), ssl.GetKey()))
	for i, cert := range ssl.GetCerts() {
		list.items = append(list.items, pair(cert, ssl.GetKeys()[i]))
	}
	for _, name := range []string{"cert", "key", "certs", "keys"} {
		n.remove(name)
	}
	n.insert("certificates", list, "id", "labels", "type", "snis")
}

// allSimpleRules says whether every global rule is one plugin under its own name.
func allSimpleRules(rs []*musterv1.Resource) bool {
	for _, r := range rs {
		rule := r.GetGlobalRule()
		if rule == nil {
			continue
		}
		if _, own := rule.GetPlugins()[rule.GetId()]; !own || len(rule.GetPlugins()) != 1 || len(rule.GetLabels()) > 0 {
			return false
		}
	}
	return true
}

// top joins the sections.
func (f *fileEncoder) top() *node {
	for _, p := range f.parents {
		if service := p.resource.GetService(); service != nil {
			derived := derivedType(service, len(p.streamRoutes.items) > 0)
			switch {
			case derived != "" && derived == service.GetType():
				p.node.remove("type")
			case derived != "" && service.GetType() == "":
				p.node.insert("type", newString("http"), "id", "name", "description", "labels")
			}
		}
		for _, nested := range []field{{key: "routes", value: p.routes}, {key: "stream_routes", value: p.streamRoutes}, {key: "credentials", value: p.credentials}} {
			if len(nested.value.items) > 0 {
				p.node.add(nested.key, nested.value)
			}
		}
	}
	out := newMap()
	for _, kind := range []musterv1.Kind{
		musterv1.Kind_KIND_SERVICE, musterv1.Kind_KIND_ROUTE, musterv1.Kind_KIND_STREAM_ROUTE, musterv1.Kind_KIND_SSL,
		musterv1.Kind_KIND_CONSUMER, musterv1.Kind_KIND_CREDENTIAL, musterv1.Kind_KIND_GLOBAL_RULE,
		musterv1.Kind_KIND_PLUGIN_METADATA, musterv1.Kind_KIND_XDS_RESOURCE,
	} {
		if section := f.sections[kind]; section != nil && (len(section.items) > 0 || len(section.fields) > 0) {
			out.add(KindPlural(kind), section)
		}
	}
	return out
}

// labels writes a node's labels as files have them: lists as lists.
func labels(n *node) {
	values := n.get("labels")
	if values == nil {
		return
	}
	for i := range values.fields {
		if list := splitLabel(values.fields[i].value.text); list != nil {
			values.fields[i].value = list
		}
	}
}

// remove drops a field.
func (n *node) remove(key string) {
	n.fields = slices.DeleteFunc(n.fields, func(f field) bool { return f.key == key })
}
