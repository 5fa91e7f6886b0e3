package plugin

import (
	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/resource"
)

// ConsumerHeader is how auth plugins tell the upstream who the caller is.
const ConsumerHeader = "x-consumer-username"

const defaultKeyName = "apikey"

// keyAuth demands an API key of a consumer. It becomes Envoy's api_key_auth
// filter, whose credentials are delivered apart from the routes, by ECDS. A key
// that is missing or wrong is answered 401 with `Client authentication failed.`
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
		apply: applyKeyAuth,
	}
}

type keyAuthConfig struct {
	Header          string `json:"header"`
	Query           string `json:"query"`
	HideCredentials bool   `json:"hide_credentials"`
}

func applyKeyAuth(e *Effect, config *structpb.Struct) {
	c := keyAuthConfig{Header: defaultKeyName, Query: defaultKeyName}
	decode(config, &c)
	if c == (keyAuthConfig{Header: defaultKeyName, Query: defaultKeyName}) {
		e.enableDiscovered("key-auth")
		return
	}
	e.enable("key-auth", &apikeyv3.ApiKeyAuthPerRoute{
		KeySources: keySources(c.Header, c.Query),
		Forwarding: &apikeyv3.Forwarding{Header: ConsumerHeader, HideCredentials: c.HideCredentials},
	})
}

func keySources(header, query string) []*apikeyv3.KeySource {
	return []*apikeyv3.KeySource{{Header: header}, {Query: query}}
}

// KeyAuth is the key-auth filter's configuration without credentials, which are
// appended to its encoding.
func KeyAuth() *apikeyv3.ApiKeyAuth {
	return &apikeyv3.ApiKeyAuth{
		KeySources: keySources(defaultKeyName, defaultKeyName),
		Forwarding: &apikeyv3.Forwarding{Header: ConsumerHeader},
	}
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
