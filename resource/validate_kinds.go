package resource

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

func (c *checker) service(s *musterv1.Service) {
	c.id("id", s.GetId())
	c.text("name", s.GetName())
	c.text("desc", s.GetDesc())
	c.labels(s.GetLabels())
	c.oneOf("type", s.GetType(), "http", "stream")
	c.hosts("hosts", s.GetHosts())
	stream := s.GetType() == "stream"
	c.conflict("hosts", stream && len(s.GetHosts()) > 0, "a service of type stream has no hosts")
	c.conflict("path_prefix", stream && s.GetPathPrefix() != "", "a service of type stream has no path_prefix")
	c.pathPrefix("path_prefix", s.GetPathPrefix())
	if s.GetUpstream() != nil {
		c.upstream("upstream", s.GetUpstream(), stream)
	}
	seen := map[string]string{}
	for i, upstream := range s.GetUpstreams() {
		path := joinPath("upstreams", indexSegment(i))
		if upstream.GetId() == "" && upstream.GetName() == "" {
			c.add(path, CodeRequired, "a named upstream has neither id nor name", "give it a name")
		}
		if upstream.GetId() != "" {
			c.id(joinPath(path, "id"), upstream.GetId())
		}
		for _, name := range slices.Compact([]string{upstream.GetId(), upstream.GetName()}) {
			if before, taken := seen[name]; taken && name != "" && before != path {
				c.add(path, CodeDuplicate, fmt.Sprintf("%s names %s already", quote(name), before), "give it another id and name")
			}
			seen[name] = path
		}
		c.upstream(path, upstream, stream)
	}
	c.plugins(s.GetPlugins(), WhereService)
}

// conflict reports a field that another one excludes.
func (c *checker) conflict(path string, isSet bool, message string) {
	if isSet {
		c.add(path, CodeConflict, message, "remove the field")
	}
}

func (c *checker) route(r *musterv1.Route) {
	c.id("id", r.GetId())
	c.text("name", r.GetName())
	c.text("desc", r.GetDesc())
	c.labels(r.GetLabels())
	c.parent(r.GetServiceId(), r.GetUpstream() != nil)
	if len(r.GetUris()) == 0 {
		c.add("uris", CodeRequired, "the route has no uris", "write `/*` for every path")
	}
	for i, uri := range r.GetUris() {
		c.uri(joinPath("uris", indexSegment(i)), uri)
	}
	c.duplicates("uris", r.GetUris())
	c.hosts("hosts", r.GetHosts())
	methods := []string{"GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "CONNECT", "TRACE", "PURGE"}
	for i, method := range r.GetMethods() {
		path := joinPath("methods", indexSegment(i))
		if method == "" {
			c.add(path, CodeInvalid, "the method is empty", "one of "+strings.Join(methods, ", "))
		}
		c.oneOf(path, method, methods...)
	}
	c.duplicates("methods", r.GetMethods())
	for i, addr := range r.GetRemoteAddrs() {
		c.addresses(joinPath("remote_addrs", indexSegment(i)), addr)
	}
	c.duplicates("remote_addrs", r.GetRemoteAddrs())
	if r.GetVars() != nil {
		_, problems := ParseVars(r.GetVars())
		for _, p := range problems {
			c.add(joinPath("vars", p.Path), p.Code, p.Message, p.Hint)
		}
	}
	c.timeout("timeout", r.GetTimeout())
	if r.GetUpstream() != nil {
		c.upstream("upstream", r.GetUpstream(), false)
	}
	c.status("status", r.Status)
	c.plugins(r.GetPlugins(), WhereRoute)
}

// parent checks that a route has something to send requests to.
func (c *checker) parent(serviceID string, hasUpstream bool) {
	switch {
	case serviceID != "":
		c.id("service_id", serviceID)
	case !hasUpstream:
		c.add("service_id", CodeRequired, "the route has neither a service nor an upstream", "set service_id, or an upstream of its own")
	}
}

func (c *checker) streamRoute(r *musterv1.StreamRoute) {
	c.id("id", r.GetId())
	c.text("name", r.GetName())
	c.text("desc", r.GetDesc())
	c.labels(r.GetLabels())
	c.parent(r.GetServiceId(), r.GetUpstream() != nil)
	if r.GetServerAddr() != "" {
		c.address("server_addr", r.GetServerAddr())
	}
	if r.GetServerPort() != 0 {
		c.within("server_port", float64(r.GetServerPort()), 1, 65535)
	}
	if r.GetRemoteAddr() != "" {
		c.addresses("remote_addr", r.GetRemoteAddr())
	}
	if r.GetSni() != "" {
		c.host("sni", r.GetSni(), true)
	}
	if r.GetUpstream() != nil {
		c.upstream("upstream", r.GetUpstream(), true)
	}
	c.plugins(r.GetPlugins(), WhereStreamRoute)
}

// authPlugins are the plugins of which a credential holds one.
var authPlugins = []string{"key-auth", "basic-auth", "jwt-auth", "hmac-auth"}

func (c *checker) username(path, username string) {
	switch {
	case username == "":
		c.add(path, CodeRequired, "there is no username", "")
	case !usernamePattern.MatchString(username):
		c.add(path, CodeInvalid, fmt.Sprintf("%s is not a username", quote(username)), "a username is 1 to 256 letters, digits, `-` and `_`")
	}
}

func (c *checker) consumer(consumer *musterv1.Consumer) {
	c.username("username", consumer.GetUsername())
	c.text("desc", consumer.GetDesc())
	c.labels(consumer.GetLabels())
	c.unsupported("group_id", consumer.GetGroupId() != "", "consumer groups are not supported", "put the group's plugins on the consumer")
	c.plugins(consumer.GetPlugins(), WhereConsumer)
}

func (c *checker) credential(credential *musterv1.Credential) {
	c.id("id", credential.GetId())
	c.username("consumer", credential.GetConsumer())
	c.text("name", credential.GetName())
	c.text("desc", credential.GetDesc())
	c.labels(credential.GetLabels())
	if len(credential.GetPlugins()) != 1 {
		c.add("plugins", CodeRequired, fmt.Sprintf("a credential has exactly one auth plugin, not %d", len(credential.GetPlugins())), "one of "+strings.Join(authPlugins, ", "))
	}
	for _, name := range sortedKeys(credential.GetPlugins()) {
		path := FieldPath("plugins", name)
		if !slices.Contains(authPlugins, name) {
			c.add(path, CodeInvalid, fmt.Sprintf("%s is not an auth plugin for credentials", quote(name)), "one of "+strings.Join(authPlugins, ", "))
			continue
		}
		c.plugin(path, name, WhereCredential, credential.GetPlugins()[name])
	}
}

func (c *checker) globalRule(rule *musterv1.GlobalRule) {
	c.id("id", rule.GetId())
	c.labels(rule.GetLabels())
	if len(rule.GetPlugins()) == 0 {
		c.add("plugins", CodeRequired, "a global rule needs a plugin", "delete the rule to be without")
	}
	c.plugins(rule.GetPlugins(), WhereGlobalRule)
}

func (c *checker) metadata(metadata *musterv1.PluginMetadata) {
	c.id("id", metadata.GetId())
	if metadata.GetId() != "" {
		c.plugin("metadata", metadata.GetId(), WhereMetadata, metadata.GetMetadata())
	}
}

func (c *checker) xdsResource(raw *musterv1.XdsResource) {
	c.id("id", raw.GetId())
	c.labels(raw.GetLabels())
	switch url := raw.GetResource().GetTypeUrl(); {
	case raw.GetResource() == nil || url == "":
		c.add("resource", CodeRequired, "an xds_resource needs a message", "set resource, with the type URL in `@type`")
	case !strings.HasPrefix(url, "type.googleapis.com/") || len(url) == len("type.googleapis.com/"):
		c.add("resource", CodeInvalid, fmt.Sprintf("%s is not a type URL of xDS", quote(url)), "type URLs begin with type.googleapis.com/")
	case strings.HasPrefix(url, "type.googleapis.com/muster."):
		c.add("resource", CodeUnsupported, "muster's own messages cannot be sent as xDS", "")
	case packedTooDeep(raw.GetResource(), 0):
		c.add("resource", CodeTooLarge, fmt.Sprintf("messages are packed in each other more than %d levels deep", maxPacked), "")
	case !decodes(raw.GetResource()):
		// A data plane would refuse it, and with it the response that it comes in.
		c.add("resource", CodeInvalid, "the value is not a message of the type "+quote(strings.TrimPrefix(url, "type.googleapis.com/")), "")
	}
}

// decodes tells whether the value can be read as its type, or, of a type that is
// not known here, as a message at all.
func decodes(message *anypb.Any) bool {
	_, err := message.UnmarshalNew()
	if errors.Is(err, protoregistry.NotFound) {
		err = proto.Unmarshal(message.GetValue(), &emptypb.Empty{})
	}
	return err == nil
}

// maxPacked bounds how deep messages are packed in each other: opening them, as
// everybody does who looks for secrets in them, costs their size at each level.
const maxPacked = 32

// packedTooDeep looks into packed messages of types that this program knows; into
// others nobody else here looks either.
func packedTooDeep(m proto.Message, level int) bool {
	if packed, ok := m.(*anypb.Any); ok {
		if level++; level > maxPacked {
			return true
		}
		inner, err := packed.UnmarshalNew()
		return err == nil && packedTooDeep(inner, level)
	}
	deep := false
	m.ProtoReflect().Range(func(fd protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		each := func(m protoreflect.Message) { deep = deep || packedTooDeep(m.Interface(), level) }
		switch {
		case fd.IsMap() && fd.MapValue().Message() != nil:
			value.Map().Range(func(_ protoreflect.MapKey, entry protoreflect.Value) bool {
				each(entry.Message())
				return !deep
			})
		case fd.IsMap() || fd.Message() == nil:
		case fd.IsList():
			for i := range value.List().Len() {
				each(value.List().Get(i).Message())
			}
		default:
			each(value.Message())
		}
		return !deep
	})
	return deep
}
