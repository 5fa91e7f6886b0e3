package resource

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// File is a decoded declarative file.
type File struct {
	// Resources are in canonical form, in the order of the file, parents first.
	Resources []*musterv1.Resource
	Positions Positions
}

// DecodeFile is Decoder.File of the zero Decoder.
func DecodeFile(name string, data []byte) (*File, Problems) { return Decoder{}.File(name, data) }

// File reads a declarative file, YAML or JSON, at most 64 MiB; name is used in
// problems only. The shape is that of API7's adc:
//
//	services: [{name, upstream, routes: [...], stream_routes: [...], ...}]
//	ssls: [{snis, certificates: [{certificate, key}], ...}]
//	consumers: [{username, credentials: [{name, type, config}], ...}]
//	global_rules: {<plugin>: {...}}
//	plugin_metadata: {<plugin>: {...}}
//
// and beside it muster's own: `xds_resources`, `global_rules` as a list for
// rules with an id of their own, and `routes`, `stream_routes` and
// `credentials` at the top for those that nest nowhere. Where no id is given,
// it is made of names as adc makes it; see GeneratedID.
//
// The file is nil when the text cannot be read at all; otherwise it holds what
// could be read, beside the problems, whose paths are relative to the file.
func (d Decoder) File(name string, data []byte) (*File, Problems) {
	src, failure := parseSource(name, data, maxFileSize)
	if failure != nil {
		return nil, src.failed(failure)
	}
	w := &fileDecoder{decoder: d.decoder(src), file: &File{}, seen: map[Key]string{}}
	w.decoder.file = true
	w.top(src.root)
	return w.file, w.finish()
}

// GeneratedID is the id of an object that a file gives none: the hexadecimal
// SHA-1 of its name, for nested objects behind that of the parent and a dot. For
// an ssl the name is its SNIs, joined by commas.
func GeneratedID(names ...string) string {
	sum := sha1.Sum([]byte(strings.Join(names, ".")))
	return hex.EncodeToString(sum[:])
}

// sslID is the generated id of an ssl.
func sslID(ssl *musterv1.Ssl) string { return GeneratedID(strings.Join(ssl.GetSnis(), ",")) }

// fileDecoder reads the objects of a file.
type fileDecoder struct {
	*decoder
	file *File
	// seen holds the path of each object read.
	seen map[Key]string
}

// refusedKinds are API7's kinds that a file may not hold.
var refusedKinds = map[string]refusal{
	"consumer_groups":   {"consumer groups are not supported", "put the plugins on the consumers"},
	"upstreams":         noUpstreams,
	"plugin_configs":    {"shared plugin configurations are not supported", "write the plugins into the services and routes"},
	"protos":            {"protos are not supported", ""},
	"secrets":           {"secret providers are not supported", ""},
	"secret_providers":  {"secret providers are not supported", ""},
	"service_templates": {"service templates are not supported", "use `services`"},
}

func (d *fileDecoder) top(n *node) {
	if n.kind == nullNode {
		return
	}
	var c *cursor
	if n.kind != mapNode {
		d.mismatch(c, n, "an object", false)
		return
	}
	sections := map[string]func(n *node, c *cursor){
		"services": d.each(d.service),
		"routes": d.each(func(n *node, c *cursor) {
			d.route(n, c, nil)
		}),
		"stream_routes": d.each(func(n *node, c *cursor) {
			d.streamRoute(n, c, nil)
		}),
		"ssls":      d.each(d.ssl),
		"consumers": d.each(d.consumer),
		"credentials": d.each(func(n *node, c *cursor) {
			d.credential(n, c, nil)
		}),
		"global_rules":    d.globalRules,
		"plugin_metadata": d.pluginMetadata,
		"xds_resources":   d.each(d.xdsResource),
	}
	seen := map[string]bool{}
	for i := range n.fields {
		f := &n.fields[i]
		at := &cursor{seg: shownSegment(f.key)}
		section := sections[f.key]
		if refused, known := refusedKinds[f.key]; known && section == nil {
			d.report(at, f.at, CodeUnsupported, refused.reason, refused.hint)
			continue
		}
		if section == nil && d.full() {
			continue
		}
		if section == nil {
			names := make([]string, 0, len(sections))
			for name := range sections {
				names = append(names, name)
			}
			d.report(at, f.at, CodeUnknown, "a file has no such section", suggestion(f.key, names))
			continue
		}
		if seen[f.key] {
			d.report(at, f.at, CodeDuplicate, "the section is given twice", "join the two")
			continue
		}
		seen[f.key] = true
		if f.value.kind != nullNode {
			section(f.value, at)
		}
	}
}

// each reads a list of objects. Every object gets a place of its own.
func (d *fileDecoder) each(read func(n *node, c *cursor)) func(n *node, c *cursor) {
	return func(n *node, c *cursor) {
		if n.kind != listNode {
			d.mismatch(c, n, "a list", false)
			return
		}
		for i, item := range n.items {
			at := &cursor{parent: c, seg: indexSegment(i), place: &place{at: item.at}}
			if item.kind != mapNode {
				d.mismatch(at, item, "an object", false)
				continue
			}
			read(item, at)
		}
	}
}

// later returns an extra that keeps a nested section for when its parent is known.
func later(into **node, at **cursor) func(n *node, c *cursor) {
	return func(n *node, c *cursor) { *into, *at = n, c }
}

// keep adds an object to the file. One that got no id is dropped: that was reported.
func (d *fileDecoder) keep(r *musterv1.Resource, n *node, c *cursor) {
	Normalize(r)
	key := KeyOf(r)
	if key.ID == "" || strings.HasPrefix(key.ID, "/") || strings.HasSuffix(key.ID, "/") {
		return
	}
	if before, taken := d.seen[key]; taken {
		d.report(c, n.at, CodeDuplicate, fmt.Sprintf("the file holds the same object already, at %s: %s", before, key),
			"give one of them another name, or an id of its own")
		return
	}
	d.seen[key] = c.String()
	d.file.Resources = append(d.file.Resources, r)
	d.file.Positions.register(r, &object{src: d.src, place: c.place, within: c.String()})
}

// id returns the id to use: the given one, or that generated from names, of
// which the last is the object's own.
func (d *fileDecoder) id(given string, n *node, c *cursor, names ...string) string {
	if given != "" {
		return given
	}
	if names[len(names)-1] == "" {
		if c.place.silent("name") {
			d.report(&cursor{parent: c, seg: "name"}, n.at, CodeRequired, "the object has neither name nor id", "give it a name; its id is made of that")
		}
		return ""
	}
	return GeneratedID(names...)
}

func (d *fileDecoder) service(n *node, c *cursor) {
	service := &musterv1.Service{}
	var routes, streamRoutes *node
	var routesAt, streamAt *cursor
	d.message(service.ProtoReflect(), n, c, extras{
		"routes":        later(&routes, &routesAt),
		"stream_routes": later(&streamRoutes, &streamAt),
	})
	service.Id = d.id(service.GetId(), n, c, service.GetName())
	base := service.GetName()
	if base == "" {
		base = service.GetId()
	}
	for i, upstream := range service.GetUpstreams() {
		at := &cursor{parent: &cursor{parent: c, seg: "upstreams"}, seg: indexSegment(i)}
		switch {
		case upstream.GetId() != "":
		case upstream.GetName() != "":
			upstream.Id = GeneratedID(base, upstream.GetName())
		default:
			d.report(at, n.get("upstreams").items[i].at, CodeRequired, "the upstream has neither name nor id", "give it a name; its id is made of that")
		}
	}
	if service.GetType() == "" {
		service.Type = derivedType(service, streamRoutes != nil && len(streamRoutes.items) > 0)
	}
	d.keep(&musterv1.Resource{Kind: &musterv1.Resource_Service{Service: service}}, n, c)
	if routes != nil && streamRoutes != nil {
		d.report(streamAt, streamRoutes.at, CodeConflict, "a service has either routes or stream_routes", "split it into two services")
		return
	}
	parent := &parentService{id: service.GetId(), name: base}
	if routes != nil {
		d.each(func(n *node, c *cursor) { d.route(n, c, parent) })(routes, routesAt)
	}
	if streamRoutes != nil {
		d.each(func(n *node, c *cursor) { d.streamRoute(n, c, parent) })(streamRoutes, streamAt)
	}
}

// derivedType is the type that a file's service has when none is written: adc
// has no such field, it looks at the upstream.
func derivedType(service *musterv1.Service, hasStreamRoutes bool) string {
	if isStreamScheme(service.GetUpstream().GetScheme()) || hasStreamRoutes {
		return "stream"
	}
	return ""
}

func isStreamScheme(scheme string) bool { return scheme == "tcp" || scheme == "tls" || scheme == "udp" }

// parentService is the service in which a route nests, nil at the top.
type parentService struct{ id, name string }

// adopt returns the service id of a nested route, and the names that make up its id.
func (d *fileDecoder) adopt(parent *parentService, given, name string, n *node, c *cursor) (serviceID string, names []string) {
	if parent == nil {
		return given, []string{name}
	}
	if at := n.get("service_id"); given != "" && given != parent.id && at != nil {
		d.report(c.field("service_id", "service_id", at.at), at.at, CodeConflict, "the route nests in another service than this", "leave the field out")
	}
	return parent.id, []string{parent.name, name}
}

func (d *fileDecoder) route(n *node, c *cursor, parent *parentService) {
	route := &musterv1.Route{}
	d.message(route.ProtoReflect(), n, c, nil)
	serviceID, names := d.adopt(parent, route.GetServiceId(), route.GetName(), n, c)
	route.ServiceId = serviceID
	route.Id = d.id(route.GetId(), n, c, names...)
	d.keep(&musterv1.Resource{Kind: &musterv1.Resource_Route{Route: route}}, n, c)
}

func (d *fileDecoder) streamRoute(n *node, c *cursor, parent *parentService) {
	route := &musterv1.StreamRoute{}
	d.message(route.ProtoReflect(), n, c, nil)
	serviceID, names := d.adopt(parent, route.GetServiceId(), route.GetName(), n, c)
	route.ServiceId = serviceID
	route.Id = d.id(route.GetId(), n, c, names...)
	d.keep(&musterv1.Resource{Kind: &musterv1.Resource_StreamRoute{StreamRoute: route}}, n, c)
}

func (d *fileDecoder) ssl(n *node, c *cursor) {
	ssl := &musterv1.Ssl{}
	d.message(ssl.ProtoReflect(), n, c, extras{
		"certificates": func(list *node, at *cursor) { d.certificates(ssl, n, list, at) },
	})
	if ssl.GetId() == "" {
		if len(ssl.GetSnis()) == 0 {
			if c.place.silent("snis") {
				d.report(&cursor{parent: c, seg: "snis"}, n.at, CodeRequired, "the ssl has neither snis nor an id", "give it snis; its id is made of them")
			}
			return
		}
		ssl.Id = sslID(ssl)
	}
	d.keep(&musterv1.Resource{Kind: &musterv1.Resource_Ssl{Ssl: ssl}}, n, c)
}

// certificates reads adc's list of pairs: the first is the ssl's `cert` and
// `key`, the others its `certs` and `keys`.
func (d *fileDecoder) certificates(ssl *musterv1.Ssl, whole, list *node, c *cursor) {
	for _, name := range []string{"cert", "key", "certs", "keys"} {
		if whole.get(name) != nil {
			d.report(c, list.at, CodeConflict, fmt.Sprintf("certificates and %s are the same", name), "keep one of them")
			return
		}
	}
	fields := ssl.ProtoReflect().Descriptor().Fields()
	top := c.parent.place
	d.each(func(n *node, c *cursor) {
		first := ssl.GetCert() == "" && ssl.GetKey() == "" && len(ssl.GetCerts()) == 0
		values := map[string]string{}
		for i := range n.fields {
			f := &n.fields[i]
			at := &cursor{parent: c, seg: shownSegment(f.key), place: &place{at: f.value.at}}
			field := map[string]string{"certificate": "cert", "key": "key"}[f.key]
			if _, taken := values[field]; field == "" || taken {
				d.report(at, f.at, CodeUnknown, "a certificate has the fields certificate and key, once each", suggestion(f.key, []string{"certificate", "key"}))
				continue
			}
			if first {
				at.place = top.child(field, f.value.at)
			} else {
				at.place = top.child(field+"s", list.at).child(indexSegment(len(ssl.GetCerts())), f.value.at)
			}
			fd := fields.ByTextName(field)
			if value, ok := d.scalar(fd, f.value, at, isSecretField(fd)); ok {
				values[field] = value.String()
			}
		}
		if first {
			ssl.Cert, ssl.Key = values["cert"], values["key"]
			return
		}
		ssl.Certs, ssl.Keys = append(ssl.Certs, values["cert"]), append(ssl.Keys, values["key"])
	})(list, c)
}

func (d *fileDecoder) consumer(n *node, c *cursor) {
	consumer := &musterv1.Consumer{}
	var credentials *node
	var credentialsAt *cursor
	d.message(consumer.ProtoReflect(), n, c, extras{"credentials": later(&credentials, &credentialsAt)})
	if consumer.GetUsername() == "" && c.place.silent("username") {
		d.report(&cursor{parent: c, seg: "username"}, n.at, CodeRequired, "the consumer has no username", "")
	}
	d.keep(&musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: consumer}}, n, c)
	if credentials != nil {
		d.each(func(n *node, c *cursor) { d.credential(n, c, consumer) })(credentials, credentialsAt)
	}
}

// credential reads a credential; parent is nil at the top. adc writes the auth
// plugin as `type` and `config`.
func (d *fileDecoder) credential(n *node, c *cursor, parent *musterv1.Consumer) {
	credential := &musterv1.Credential{}
	var kind, config *node
	var kindAt, configAt *cursor
	d.message(credential.ProtoReflect(), n, c, extras{
		"type": later(&kind, &kindAt), "config": later(&config, &configAt),
	})
	d.typedConfig(credential, n, c, kind, kindAt, config, configAt)
	switch at := n.get("consumer"); {
	case parent == nil && credential.GetConsumer() == "":
		if !c.place.silent("consumer") {
			return
		}
		d.report(&cursor{parent: c, seg: "consumer"}, n.at, CodeRequired, "the credential names no consumer", "write the username into `consumer`, or nest the credential in its consumer")
		return
	case parent == nil:
	case at != nil && credential.GetConsumer() != parent.GetUsername():
		d.report(c.field("consumer", "consumer", at.at), at.at, CodeConflict, "the credential nests in another consumer than this", "leave the field out")
	default:
		credential.Consumer = parent.GetUsername()
	}
	credential.Id = d.id(credential.GetId(), n, c, credential.GetConsumer(), credential.GetName())
	d.keep(&musterv1.Resource{Kind: &musterv1.Resource_Credential{Credential: credential}}, n, c)
}

func (d *fileDecoder) typedConfig(credential *musterv1.Credential, n *node, c *cursor, kind *node, kindAt *cursor, config *node, configAt *cursor) {
	if kind == nil && config == nil {
		return
	}
	plugins := c.place.child("plugins", n.at)
	// Whatever is reported here leaves the plugins in a state that says nothing.
	before := len(d.problems)
	defer func() { plugins.faulty = plugins.faulty || len(d.problems) > before }()
	switch {
	case n.get("plugins") != nil:
		d.report(&cursor{parent: c, seg: "plugins"}, n.at, CodeConflict, "type and config, and plugins, are the same", "keep one of them")
		return
	case kind == nil:
		d.report(&cursor{parent: c, seg: "type"}, n.at, CodeRequired, "a credential with a config needs a type", "for example key-auth")
		return
	case kind.kind != stringNode:
		d.mismatch(kindAt, kind, "a string", false)
		return
	case config == nil:
		d.report(&cursor{parent: c, seg: "config"}, n.at, CodeRequired, "a credential with a type needs a config", "for example {key: ...}")
		return
	case config.kind != mapNode:
		d.mismatch(configAt, config, "an object", true)
		return
	}
	kind.public = true
	configAt.place = plugins.child(shownSegment(kind.text), kind.at)
	fields := d.freeFields(config, configAt, pluginSecrets("muster.v1.Credential", kind.text))
	credential.Plugins = map[string]*structpb.Struct{kind.text: {Fields: fields}}
}

// globalRules reads adc's object of plugin name to configuration, one rule
// each, or a list of whole rules.
func (d *fileDecoder) globalRules(n *node, c *cursor) {
	if n.kind == listNode {
		d.each(func(n *node, c *cursor) {
			rule := &musterv1.GlobalRule{}
			d.message(rule.ProtoReflect(), n, c, nil)
			if rule.GetId() == "" && c.place.silent("id") {
				d.report(&cursor{parent: c, seg: "id"}, n.at, CodeRequired, "a global rule in a list needs an id", "")
			}
			d.keep(&musterv1.Resource{Kind: &musterv1.Resource_GlobalRule{GlobalRule: rule}}, n, c)
		})(n, c)
		return
	}
	d.plugins(n, c, func(f *field, c *cursor) {
		at := &cursor{parent: c.parent, seg: c.seg, place: c.place.child("plugins", f.value.at).child(shownSegment(f.key), f.value.at)}
		rule := &musterv1.GlobalRule{Id: f.key, Plugins: map[string]*structpb.Struct{
			f.key: {Fields: d.freeFields(f.value, at, secretRule{guarded: true})},
		}}
		d.keep(&musterv1.Resource{Kind: &musterv1.Resource_GlobalRule{GlobalRule: rule}}, f.value, c)
	})
}

func (d *fileDecoder) pluginMetadata(n *node, c *cursor) {
	d.plugins(n, c, func(f *field, c *cursor) {
		at := &cursor{parent: c.parent, seg: c.seg, place: c.place.child("metadata", f.value.at)}
		metadata := &musterv1.PluginMetadata{Id: f.key, Metadata: &structpb.Struct{Fields: d.freeFields(f.value, at, secretRule{guarded: true})}}
		d.keep(&musterv1.Resource{Kind: &musterv1.Resource_PluginMetadata{PluginMetadata: metadata}}, f.value, c)
	})
}

// plugins reads an object of plugin name to configuration.
func (d *fileDecoder) plugins(n *node, c *cursor, read func(f *field, c *cursor)) {
	if n.kind != mapNode {
		d.mismatch(c, n, "an object", false)
		return
	}
	for i := range n.fields {
		f := &n.fields[i]
		at := &cursor{parent: c, seg: shownSegment(f.key), place: &place{at: f.at}}
		if f.value.kind != mapNode {
			d.mismatch(at, f.value, "an object", false)
			continue
		}
		read(f, at)
	}
}

func (d *fileDecoder) xdsResource(n *node, c *cursor) {
	raw := &musterv1.XdsResource{}
	d.message(raw.ProtoReflect(), n, c, nil)
	if raw.GetId() == "" && c.place.silent("id") {
		d.report(&cursor{parent: c, seg: "id"}, n.at, CodeRequired, "an xds_resource needs an id", "")
	}
	d.keep(&musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: raw}}, n, c)
}
