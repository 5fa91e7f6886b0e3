package plugin

import (
	"strings"

	mutationrulesv3 "github.com/envoyproxy/go-control-plane/envoy/config/common/mutation_rules/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	headermutationv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/header_mutation/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/resource"
)

// ConsumerHeader is how auth plugins tell the upstream who the caller is.
const ConsumerHeader = "x-consumer-username"

const defaultKeyName = "apikey"

// keyAuth demands an API key of a consumer. It becomes many of Envoy's api_key_auth
// filters, each with the credentials of a shard and delivered apart from the routes,
// by ECDS, and one that chooses among them. A key that is missing or wrong is
// answered 401 with `Client authentication failed.`
// The consumer's name goes upstream in `x-consumer-username`.
//
// The header is looked at before the query parameter, as in API7.
func keyAuth() *definition {
	return &definition{
		name: "key-auth",
		config: mustSchema(`{
			"type": "object",
			"properties": {
				"header": {"type": "string", "default": "apikey", "minLength": 1, "description": "The header that holds the key."},
				"query": {"type": "string", "default": "apikey", "minLength": 1, "description": "The query parameter that holds the key, when the header does not."},
				"hide_credentials": {"type": "boolean", "default": false, "description": "Whether the key is removed before the request goes upstream."},
				"anonymous_consumer": {"x-unsupported": "Envoy's api_key_auth has no caller without a key"},
				"realm": {"x-unsupported": "Envoy's api_key_auth sends no WWW-Authenticate"}
			}
		}`),
		credential: mustSchema(`{
			"type": "object",
			"properties": {
				"key": {"type": "string", "minLength": 1, "description": "The API key. Secret, and unique in the group."}
			},
			"required": ["key"]
		}`),
		judge: judgeKeyAuth,
		apply: applyKeyAuth,
	}
}

// judgeKeyAuth refuses names that Envoy's substitution formats cannot hold.
func judgeKeyAuth(where resource.Where, config *structpb.Struct) resource.Problems {
	if where == resource.WhereConsumer || where == resource.WhereCredential {
		return nil
	}
	var problems resource.Problems
	fields := config.GetFields()
	switch name := fields["header"].GetStringValue(); {
	case name == "":
	case !headerName.MatchString(name):
		problems = append(problems, problemAt("header", resource.CodeInvalid, "not a header's name", "")...)
	case strings.ContainsAny(name, "%"), strings.HasPrefix(strings.ToLower(name), privatePrefix), strings.EqualFold(name, "host"):
		problems = append(problems, problemAt("header", resource.CodeUnsupported, "a key in this header cannot be honoured", "no %, no name of muster's own (x-muster-...), and not Host")...)
	}
	if name := fields["query"].GetStringValue(); strings.ContainsAny(name, "%)\x00\r\n") {
		problems = append(problems, problemAt("query", resource.CodeUnsupported, "a key in this query parameter cannot be honoured", "its name must hold no %, no ) and no line break")...)
	}
	return problems
}

type keyAuthConfig struct {
	Header          string `json:"header"`
	Query           string `json:"query"`
	HideCredentials bool   `json:"hide_credentials"`
}

// keySourceFilter reads the key where a route says that it is, so that one filter
// behind it serves every route.
const keySourceFilter = "key-source"

// The private headers in which key-source leaves the key: as the client sent it,
// and behind `Bearer `. They go no further than to key-auth.
const (
	privatePrefix = "x-muster-"
	keyHeader     = privatePrefix + "key"
	bearerHeader  = privatePrefix + "key-bearer"
	bearer        = "Bearer "
)

func applyKeyAuth(e *Effect, config *structpb.Struct) {
	c := keyAuthConfig{Header: defaultKeyName, Query: defaultKeyName}
	decode(config, &c)
	e.enableDiscovered("key-auth")
	if c == (keyAuthConfig{Header: defaultKeyName, Query: defaultKeyName}) {
		e.enableDiscovered(keySourceFilter)
		return
	}
	e.enable(keySourceFilter, &headermutationv3.HeaderMutationPerRoute{Mutations: keySource(c)})
}

func defaultKeySource() proto.Message {
	return &headermutationv3.HeaderMutation{Mutations: keySource(keyAuthConfig{Header: defaultKeyName, Query: defaultKeyName})}
}

// keySource takes the key from the header, or else the query parameter.
func keySource(c keyAuthConfig) *headermutationv3.Mutations {
	remove := func(name string) *mutationrulesv3.HeaderMutation {
		return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Remove{Remove: name}}
	}
	// A value that comes out empty adds nothing.
	add := func(name, value string) *mutationrulesv3.HeaderMutation {
		return &mutationrulesv3.HeaderMutation{Action: &mutationrulesv3.HeaderMutation_Append{Append: &corev3.HeaderValueOption{
			Header: &corev3.HeaderValue{Key: name, Value: value}, AppendAction: corev3.HeaderValueOption_ADD_IF_ABSENT,
		}}}
	}
	m := &headermutationv3.Mutations{RequestMutations: []*mutationrulesv3.HeaderMutation{
		remove(keyHeader), remove(bearerHeader),
		add(keyHeader, "%REQ("+strings.ToLower(c.Header)+")%"),
		// Of a header `Bearer ` is no part of the key; in a query parameter it would be.
		add(keyHeader, bearer+"%QUERY_PARAM("+c.Query+")%"),
		add(bearerHeader, bearer+"%REQ("+keyHeader+")%"),
	}}
	if c.HideCredentials {
		m.RequestMutations = append(m.RequestMutations, remove(strings.ToLower(c.Header)))
		m.QueryParameterMutations = []*corev3.KeyValueMutation{{Remove: c.Query}}
	}
	return m
}

// Key returns the API key among the plugins of a consumer or credential, if
// there is a good one.
func (s *Plugins) Key(plugins map[string]*structpb.Struct, where resource.Where) (string, bool) {
	config, found := plugins["key-auth"]
	if !found || disabled(config) || len(s.Check("key-auth", where, config)) > 0 {
		return "", false
	}
	return config.GetFields()["key"].GetStringValue(), true
}
