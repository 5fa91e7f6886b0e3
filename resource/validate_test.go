package resource_test

import (
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// Each case is a resource in protobuf's JSON and what is wrong with it.
func TestWhatIsWrongWithAResource(t *testing.T) {
	upstream := func(fields string) string {
		return `{"service":{"id":"s","upstream":{` + fields + `}}}`
	}
	for name, test := range map[string]struct{ resource, want string }{
		"nothing":                 {`{}`, " required: the resource has no kind"},
		"a service":               {`{"service":{"id":"s","hosts":["a.example.com","*.example.com","localhost","[::1]","10.0.0.1","x_y"]}}`, ""},
		"no id":                   {`{"service":{}}`, "id required: the object has no id"},
		"a bad id":                {`{"service":{"id":"a b"}}`, `id invalid: "a b" is not an id`},
		"dots":                    {`{"service":{"id":".."}}`, `id invalid: ".." is not an id`},
		"a long id":               {`{"service":{"id":"` + strings.Repeat("x", 257) + `"}}`, `id invalid: "` + strings.Repeat("x", 64) + `..." is not an id`},
		"a long name":             {`{"service":{"id":"s","name":"` + strings.Repeat("x", 64<<10+1) + `"}}`, "name too_large: the text has 65537 bytes; at most 65536 are allowed"},
		"a long name that is not": {`{"service":{"id":"s","name":"` + strings.Repeat("x", 64<<10) + `"}}`, ""},
		"an empty label":          {`{"service":{"id":"s","labels":{"":"x"}}}`, `labels["***"] invalid: a label's name must have 1 to 256 bytes, without control characters`},
		"a type":                  {`{"service":{"id":"s","type":"tcp"}}`, `type invalid: "tcp" is not one of http, stream`},
		"hosts": {`{"service":{"id":"s","hosts":["","*","a:80","http://a","a/b","x.*","*x","a..b","-é","` + strings.Repeat("x", 64) + `"]}}`,
			"hosts[0] invalid: \"\" is not a host\nhosts[1] invalid: \"*\" is not a host\nhosts[2] invalid: \"a:80\" is not a host\nhosts[3] invalid: \"http://a\" is not a host\n" +
				"hosts[4] invalid: \"a/b\" is not a host\nhosts[5] invalid: \"x.*\" is not a host\nhosts[6] invalid: \"*x\" is not a host\nhosts[7] invalid: \"a..b\" is not a host\n" +
				"hosts[8] invalid: \"-é\" is not a host\nhosts[9] invalid: \"" + strings.Repeat("x", 64) + "\" is not a host"},
		"path prefixes":          {`{"service":{"id":"s","path_prefix":"api"}}`, `path_prefix invalid: "api" does not begin with /`},
		"a path prefix with *":   {`{"service":{"id":"s","path_prefix":"/api/*"}}`, `path_prefix invalid: "/api/*" holds a *`},
		"a stream with hosts":    {`{"service":{"id":"s","type":"stream","hosts":["a"],"path_prefix":"/x"}}`, "hosts conflict: a service of type stream has no hosts\npath_prefix conflict: a service of type stream has no path_prefix"},
		"a stream's upstream":    {`{"service":{"id":"s","type":"stream","upstream":{}}}`, "upstream.scheme required: an upstream of a stream service needs a scheme"},
		"a stream over http":     {`{"service":{"id":"s","type":"stream","upstream":{"scheme":"http"}}}`, `upstream.scheme invalid: "http" is not one of tcp, tls, udp`},
		"named upstreams":        {`{"service":{"id":"s","upstreams":[{},{"name":"a"},{"name":"a"},{"id":"a"},{"id":"b","name":"b"}]}}`, "upstreams[0] required: a named upstream has neither id nor name\nupstreams[2] duplicate: \"a\" names upstreams[1] already\nupstreams[3] duplicate: \"a\" names upstreams[2] already"},
		"plugins":                {`{"service":{"id":"s","plugins":{"cors":{"allow_origins":"*","x":1},"nope":{}}}}`, "plugins.cors.x unknown: the plugin has no such field\nplugins.nope unknown: there is no plugin \"nope\""},
		"kafka":                  {upstream(`"scheme":"kafka"`), "upstream.scheme unsupported: kafka upstreams are not supported"},
		"ewma":                   {upstream(`"type":"ewma"`), "upstream.type unsupported: ewma is not supported: data planes do not measure latencies that way"},
		"a balancer":             {upstream(`"type":"random"`), `upstream.type invalid: "random" is not one of roundrobin, least_conn, chash`},
		"discovery":              {upstream(`"service_name":"x","discovery_type":"dns","discovery_args":{"a":1}`), "upstream.service_name unsupported: service discovery is not supported\nupstream.discovery_type unsupported: service discovery is not supported\nupstream.discovery_args unsupported: service discovery is not supported"},
		"nodes":                  {upstream(`"nodes":[{"host":"::1"},{"host":"[::1]","port":80},{"host":"a","weight":0,"priority":-1},{"host":"h","port":65536,"weight":1000001}]`), "upstream.nodes[3].port invalid: 65536 is not in 1 to 65535\nupstream.nodes[3].weight invalid: 1000001 is not in 0 to 1000000"},
		"the same node":          {upstream(`"nodes":[{"host":"::1","port":1},{"host":"[::1]","port":1}]`), "upstream.nodes[1] duplicate: the node is in the list already, at [0]"},
		"hash_on everywhere":     {upstream(`"hash_on":"vars"`), ""},
		"chash of a variable":    {upstream(`"type":"chash","key":"remote_addr"`), ""},
		"chash of an argument":   {upstream(`"type":"chash","hash_on":"vars","key":"arg_x"`), ""},
		"chash of anything":      {upstream(`"type":"chash","key":"nope"`), `upstream.key invalid: "nope" is not a variable that can be hashed`},
		"chash of a consumer":    {upstream(`"type":"chash","hash_on":"consumer"`), ""},
		"chash of combinations":  {upstream(`"type":"chash","hash_on":"vars_combinations","key":"uri"`), `upstream.key invalid: "uri" holds no variable`},
		"chash of a cookie":      {upstream(`"type":"chash","hash_on":"cookie","key":"a b"`), `upstream.key invalid: "a b" is not the name of a cookie`},
		"chash of nothing known": {upstream(`"type":"chash","hash_on":"ip","key":"x"`), `upstream.hash_on invalid: "ip" is not one of vars, header, cookie, consumer, vars_combinations`},
		"pass_host":              {upstream(`"pass_host":"keep"`), `upstream.pass_host invalid: "keep" is not one of pass, node, rewrite`},
		"upstream_host":          {upstream(`"pass_host":"rewrite","upstream_host":"a.example.com:8080"`), ""},
		"upstream_host's port":   {upstream(`"pass_host":"rewrite","upstream_host":"a:0"`), `upstream.upstream_host invalid: "a:0" has a port that is not 1 to 65535`},
		"retries":                {upstream(`"retries":65536,"retry_timeout":-1`), "upstream.retries invalid: 65536 is not in 0 to 65535\nupstream.retry_timeout invalid: -1 is not in 0 to 31536000"},
		"zero is a choice":       {upstream(`"retries":0,"retry_timeout":0,"keepalive_pool":{"idle_timeout":0}`), ""},
		"active checks": {upstream(`"checks":{"active":{"type":"grpc","timeout":0,"concurrency":0,"host":"*","port":-1,"http_path":"x","req_headers":["a","b: c"],"healthy":{"interval":0,"successes":0},"unhealthy":{"http_failures":0,"tcp_failures":255,"timeouts":1,"http_statuses":[600]}}}`),
			"upstream.checks.active.type invalid: \"grpc\" is not one of http, https, tcp\nupstream.checks.active.timeout invalid: 0 is not a number of seconds above 0\n" +
				"upstream.checks.active.concurrency invalid: 0 is not in 1 to 2147483647\nupstream.checks.active.host invalid: \"*\" is not a host\n" +
				"upstream.checks.active.port invalid: -1 is not in 1 to 65535\nupstream.checks.active.http_path invalid: \"x\" does not begin with /\n" +
				"upstream.checks.active.req_headers[0] invalid: this is not a header\nupstream.checks.active.healthy.interval invalid: 0 is not a number of seconds above 0\n" +
				"upstream.checks.active.healthy.successes invalid: 0 is not in 1 to 254\nupstream.checks.active.unhealthy.http_statuses[0] invalid: 600 is not in 100 to 599\n" +
				"upstream.checks.active.unhealthy.http_failures invalid: 0 is not in 1 to 254\nupstream.checks.active.unhealthy.tcp_failures invalid: 255 is not in 1 to 254"},
		"a passive zero":       {upstream(`"checks":{"active":{},"passive":{"unhealthy":{"http_failures":0,"timeouts":0}}}`), ""},
		"a route":              {`{"route":{"id":"r","service_id":"s","uris":["/","/*","/a","/a*","/a/*"],"methods":["GET","PURGE"],"remote_addrs":["::1","10.0.0.0/8"]}}`, ""},
		"a route to nowhere":   {`{"route":{"id":"r","uris":["/"]}}`, "service_id required: the route has neither a service nor an upstream"},
		"a route of nothing":   {`{"route":{"id":"r","service_id":"s"}}`, "uris required: the route has no uris"},
		"uris":                 {`{"route":{"id":"r","service_id":"s","uris":["","a","/a?b","/a b","/a#","/*/a","/a","/a"]}}`, "uris[0] invalid: \"\" does not begin with /\nuris[1] invalid: \"a\" does not begin with /\nuris[2] invalid: \"/a?b\" holds a ? or #\nuris[3] invalid: \"/a b\" holds a blank or control character\nuris[4] invalid: \"/a#\" holds a ? or #\nuris[5] invalid: \"/*/a\" has a * that is not at its end\nuris[7] duplicate: \"/a\" is in the list already, at [6]"},
		"vars":                 {`{"route":{"id":"r","service_id":"s","uris":["/"],"vars":[["a","!=",1]]}}`, "vars[0][1] invalid: there is no such operator"},
		"a stream route":       {`{"stream_route":{"id":"r","service_id":"s","server_addr":"127.0.0.1","server_port":70000,"remote_addr":"x","sni":"*.a"}}`, "server_port invalid: 70000 is not in 1 to 65535\nremote_addr invalid: \"x\" is neither an IP address nor a CIDR range"},
		"a stream route's own": {`{"stream_route":{"id":"r","server_addr":"x","upstream":{"scheme":"udp"}}}`, `server_addr invalid: "x" is not an IP address`},
		"a consumer":           {`{"consumer":{"username":"a.b","group_id":"g","plugins":{"key-auth":{"key":"x"}}}}`, "username invalid: \"a.b\" is not a username\ngroup_id unsupported: consumer groups are not supported"},
		"no username":          {`{"consumer":{}}`, "username required: there is no username"},
		"a credential":         {`{"credential":{"id":"k","consumer":"a","plugins":{"key-auth":{"key":"x"}}}}`, ""},
		"two plugins":          {`{"credential":{"id":"k","consumer":"a","plugins":{"key-auth":{},"cors":{}}}}`, "plugins required: a credential has exactly one auth plugin, not 2\nplugins.cors invalid: \"cors\" is not an auth plugin for credentials"},
		"no plugin":            {`{"credential":{"id":"k","consumer":"a"}}`, "plugins required: a credential has exactly one auth plugin, not 0"},
		"a global rule":        {`{"global_rule":{"id":"x"}}`, "plugins required: a global rule needs a plugin"},
		"metadata":             {`{"plugin_metadata":{"id":"limit-count","metadata":{"x":1}}}`, "metadata.x unknown: the plugin has no such field"},
		"raw":                  {`{"xds_resource":{"id":"x"}}`, "resource required: an xds_resource needs a message"},
		"not finite":           {`{"service":{"id":"s","upstream":{"retry_timeout":"NaN"}}}`, "upstream.retry_timeout invalid: infinity and NaN are not numbers here"},
	} {
		t.Run(name, func(t *testing.T) {
			r := &musterv1.Resource{}
			if err := protojson.Unmarshal([]byte(test.resource), r); err != nil {
				t.Fatal(err)
			}
			problems := resource.Validator{Plugins: knownPlugins{}, Now: now}.Resource(r)
			if got := describe(problems); got != test.want {
				t.Errorf("got:\n%s\nwant:\n%s", got, test.want)
			}
			for _, p := range problems {
				if p.Object != resource.KeyOf(r) {
					t.Errorf("the problem is with %v", p.Object)
				}
			}
		})
	}
}

func TestARawMessageThatDoesNotDecodeIsRefused(t *testing.T) {
	for name, test := range map[string]struct {
		url, value string
		refused    bool
	}{
		"a known type":           {"envoy.config.cluster.v3.Cluster", "\n\x01c", false},
		"a known type, garbled":  {"envoy.config.cluster.v3.Cluster", "\xff\xff\xff", true},
		"a known type, cut":      {"envoy.config.cluster.v3.Cluster", "\n\x05c", true},
		"not UTF-8":              {"envoy.config.cluster.v3.Cluster", "\n\x01\xff", true},
		"an unknown type":        {"no.such.Type", "\n\x01c", false},
		"an unknown type, noise": {"no.such.Type", "\xff\xff\xff", true},
	} {
		r := &musterv1.Resource{Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{
			Id: "x", Resource: &anypb.Any{TypeUrl: "type.googleapis.com/" + test.url, Value: []byte(test.value)},
		}}}
		problems := resource.Validator{Plugins: knownPlugins{}, Now: now}.Resource(r)
		if (len(problems) > 0) != test.refused {
			t.Errorf("%s: problems %q", name, describe(problems))
		}
	}
}

func TestMessagesThatJSONCannotWriteAreRefused(t *testing.T) {
	deep := structpb.NewNullValue()
	for range 200 {
		deep = structpb.NewListValue(&structpb.ListValue{Values: []*structpb.Value{deep}})
	}
	service := func(value *structpb.Value) *musterv1.Resource {
		return &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
			Id: "s", Plugins: map[string]*structpb.Struct{"x": {Fields: map[string]*structpb.Value{"y": value}}},
		}}}
	}
	unknown := service(structpb.NewNullValue())
	unknown.GetService().ProtoReflect().SetUnknown([]byte{0xf8, 0x7f, 0x01})
	for name, test := range map[string]struct {
		resource *musterv1.Resource
		want     string
	}{
		"infinity":       {service(structpb.NewNumberValue(math.Inf(1))), "plugins.x.y invalid: infinity and NaN are not numbers here"},
		"depth":          {service(deep), " too_large: lists and objects nest deeper than 100 levels"},
		"unknown fields": {unknown, " unknown: the message holds fields that this server does not know"},
		"size":           {service(structpb.NewStringValue(strings.Repeat("x", 5<<20))), " too_large: the object has 5242919 bytes; at most 4194304 are allowed"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := describe(resource.Validate(test.resource)); got != test.want {
				t.Errorf("got %s, want %s", got, test.want)
			}
		})
	}
}

// A plugin set is asked at the place where the plugin stands.
func TestPluginsAreCheckedWhereTheyStand(t *testing.T) {
	var asked []string
	set := askedPlugins{&asked}
	for _, text := range []string{
		`{"service":{"id":"x","plugins":{"p":{}}}}`, `{"route":{"id":"x","uris":["/"],"service_id":"s","plugins":{"p":{}}}}`, `{"stream_route":{"id":"x","service_id":"s","plugins":{"p":{}}}}`,
		`{"consumer":{"username":"x","plugins":{"p":{}}}}`, `{"credential":{"id":"x","consumer":"x","plugins":{"key-auth":{}}}}`, `{"global_rule":{"id":"x","plugins":{"p":{}}}}`, `{"plugin_metadata":{"id":"p"}}`,
	} {
		r := &musterv1.Resource{}
		if err := protojson.Unmarshal([]byte(text), r); err != nil {
			t.Fatal(err)
		}
		if problems := (resource.Validator{Plugins: set}).Resource(r); len(problems) != 0 {
			t.Errorf("%s: %v", text, problems)
		}
	}
	if got := strings.Join(asked, ", "); got != "p on service, p on route, p on stream route, p on consumer, key-auth on credential, p on global rule, p on plugin metadata" {
		t.Errorf("got %s", got)
	}
}

type askedPlugins struct{ asked *[]string }

func (a askedPlugins) Check(plugin string, where resource.Where, _ *structpb.Struct) resource.Problems {
	*a.asked = append(*a.asked, plugin+" on "+where.String())
	return nil
}
