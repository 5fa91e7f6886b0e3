package plugin

import (
	"regexp"
	"strconv"
	"strings"

	corsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/cors/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/musterhq/muster/resource"
)

// cors answers preflight requests and tells browsers which origins may read
// answers. It becomes Envoy's cors filter.
//
// Differences from API7: where API7 answers `*`, Envoy answers with the origin,
// method or headers that the browser asked about, which allows the same. Only
// OPTIONS requests that are preflights (Origin and Access-Control-Request-Method)
// are answered by the gateway; API7 answers every OPTIONS request. A request
// that matches no route gets no CORS headers.
func cors() *definition {
	return &definition{
		name: "cors",
		config: mustSchema(`{
			"type": "object",
			"properties": {
				"allow_origins": {"type": "string", "default": "*",
					"description": "Origins, comma-separated; * is any, ** any also with credentials."},
				"allow_origins_by_regex": {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1, "maxLength": 4096},
					"description": "Regular expressions to be found in the origin; replaces allow_origins."},
				"allow_methods": {"type": "string", "default": "*", "description": "Methods, comma-separated; * and ** are any."},
				"allow_headers": {"type": "string", "default": "*", "description": "Request headers, comma-separated; * and ** are any."},
				"expose_headers": {"type": "string", "description": "Answer headers that scripts may read, comma-separated."},
				"max_age": {"type": "integer", "default": 5, "minimum": -1, "maximum": 31536000, "description": "Seconds for which a preflight may be cached; -1 is none."},
				"allow_credential": {"type": "boolean", "default": false, "description": "Whether cookies may be sent."},
				"allow_origins_by_metadata": {"x-unsupported": "origins in plugin metadata are not supported"},
				"timing_allow_origins": {"x-unsupported": "Envoy's cors filter does not set Timing-Allow-Origin"},
				"timing_allow_origins_by_regex": {"x-unsupported": "Envoy's cors filter does not set Timing-Allow-Origin"}
			}
		}`),
		judge: judgeCors,
		apply: applyCors,
	}
}

type corsConfig struct {
	AllowOrigins        string   `json:"allow_origins"`
	AllowOriginsByRegex []string `json:"allow_origins_by_regex"`
	AllowMethods        string   `json:"allow_methods"`
	AllowHeaders        string   `json:"allow_headers"`
	ExposeHeaders       string   `json:"expose_headers"`
	MaxAge              int      `json:"max_age"`
	AllowCredential     bool     `json:"allow_credential"`
}

func corsOf(config *structpb.Struct) corsConfig {
	c := corsConfig{AllowOrigins: "*", AllowMethods: "*", AllowHeaders: "*", MaxAge: 5}
	decode(config, &c)
	return c
}

func judgeCors(_ resource.Where, config *structpb.Struct) resource.Problems {
	c := corsOf(config)
	var problems resource.Problems
	for i, r := range c.AllowOriginsByRegex {
		if _, err := regexp.Compile(r); err != nil {
			problems = append(problems, problemAt("allow_origins_by_regex["+strconv.Itoa(i)+"]", resource.CodeInvalid,
				"not a regular expression of RE2, which Envoy uses", "RE2 has no lookaround and no backreferences")...)
		}
	}
	if c.AllowCredential {
		for name, value := range map[string]string{"allow_origins": c.AllowOrigins, "allow_methods": c.AllowMethods, "allow_headers": c.AllowHeaders, "expose_headers": c.ExposeHeaders} {
			if value == "*" && !(name == "allow_origins" && c.AllowOriginsByRegex != nil) {
				problems = append(problems, problemAt(name, resource.CodeConflict, "must not be * when allow_credential is true", "list them, or write **")...)
			}
		}
	}
	return problems
}

func applyCors(e *Effect, config *structpb.Struct) {
	c := corsOf(config)
	policy := &corsv3.CorsPolicy{
		AllowMethods:                 anyOr(c.AllowMethods),
		AllowHeaders:                 anyOr(c.AllowHeaders),
		ExposeHeaders:                anyOr(c.ExposeHeaders),
		MaxAge:                       strconv.Itoa(c.MaxAge),
		ForwardNotMatchingPreflights: wrapperspb.Bool(false),
	}
	if c.AllowCredential {
		policy.AllowCredentials = wrapperspb.Bool(true)
	}
	switch {
	case c.AllowOriginsByRegex != nil:
		for _, r := range c.AllowOriginsByRegex {
			policy.AllowOriginStringMatch = append(policy.AllowOriginStringMatch, regexMatcher(`(?s:.*)(?:`+r+`)(?s:.*)`))
		}
	case c.AllowOrigins == "*" || c.AllowOrigins == "**":
		policy.AllowOriginStringMatch = []*matcherv3.StringMatcher{regexMatcher(".*")}
	default:
		for _, o := range words(c.AllowOrigins) {
			policy.AllowOriginStringMatch = append(policy.AllowOriginStringMatch, &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: o}})
		}
	}
	e.enable("cors", policy)
}

// anyOr writes API7's `**` as `*`, which Envoy answers with what was asked for.
func anyOr(s string) string {
	if s == "**" {
		return "*"
	}
	return strings.TrimSpace(s)
}

func regexMatcher(regex string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{SafeRegex: &matcherv3.RegexMatcher{Regex: regex}}}
}
