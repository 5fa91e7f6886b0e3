package plugin

import (
	"fmt"
	"regexp"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/musterhq/muster/resource"
)

// limitCount lets each caller make a number of requests in a time window,
// counted by each data plane for itself. It becomes Envoy's local_ratelimit.
//
// Each route counts for itself, also when the plugin stands in its service, as
// in API7. Envoy's counter is a bucket that is full at first and fills at an
// even rate, count in time_window; API7's jumps back at the end of a window.
// Refused requests are answered with the text `local_rate_limited`; answers
// carry x-ratelimit-limit, x-ratelimit-remaining and x-ratelimit-reset.
func limitCount() *definition {
	return &definition{
		name: "limit-count",
		config: mustSchema(`{
			"type": "object",
			"properties": {
				"count": {"type": "integer", "exclusiveMinimum": 0, "maximum": 4294967295, "description": "How many requests."},
				"time_window": {"type": "integer", "exclusiveMinimum": 0, "maximum": 31536000, "description": "In how many seconds."},
				"key_type": {"type": "string", "enum": ["var", "var_combination", "constant"], "default": "var",
					"description": "What key is: a variable, a combination such as \"$remote_addr $http_x_tenant\", or one counter for all."},
				"key": {"type": "string", "default": "remote_addr",
					"description": "Whose requests are counted: remote_addr, consumer_name, http_<header>, host, request_method or request_uri. A request without the header is counted by its address."},
				"rejected_code": {"type": "integer", "default": 503, "x-only": [503, 429], "x-reason": "the answer's status stands in the filter, and the chain has one for 503 and one for 429"},
				"policy": {"type": "string", "default": "local", "x-only": ["local"], "x-reason": "counters are kept by each data plane"},
				"window_type": {"type": "string", "default": "fixed", "x-only": ["fixed"], "x-reason": "Envoy has one kind of window"},
				"allow_degradation": {"type": "boolean", "default": false, "description": "Without meaning for local counters, which do not fail."},
				"show_limit_quota_header": {"type": "boolean", "default": true, "x-only": [true], "x-reason": "the headers are a setting of the filter, for all routes"},
				"rejected_msg": {"x-unsupported": "Envoy's local_ratelimit answers with a text of its own"},
				"group": {"x-unsupported": "counters shared between routes are not supported"},
				"rules": {"x-unsupported": "several limits in one plugin are not supported"},
				"nodelay": {"x-unsupported": "it is a field of limit-req"},
				"redis_host": {"x-unsupported": "counters are kept by each data plane"},
				"redis_port": {"x-unsupported": "counters are kept by each data plane"},
				"redis_username": {"x-unsupported": "counters are kept by each data plane"},
				"redis_password": {"x-unsupported": "counters are kept by each data plane"},
				"redis_database": {"x-unsupported": "counters are kept by each data plane"},
				"redis_timeout": {"x-unsupported": "counters are kept by each data plane"},
				"redis_ssl": {"x-unsupported": "counters are kept by each data plane"},
				"redis_ssl_verify": {"x-unsupported": "counters are kept by each data plane"},
				"redis_cluster_nodes": {"x-unsupported": "counters are kept by each data plane"},
				"redis_cluster_name": {"x-unsupported": "counters are kept by each data plane"}
			},
			"required": ["count", "time_window"]
		}`),
		judge: func(_ resource.Where, config *structpb.Struct) resource.Problems {
			_, problems := limitCountOf(config).parts()
			return problems
		},
		apply: applyLimitCount,
	}
}

type limitCountConfig struct {
	Count        uint32 `json:"count"`
	TimeWindow   int64  `json:"time_window"`
	KeyType      string `json:"key_type"`
	Key          string `json:"key"`
	RejectedCode int    `json:"rejected_code"`
}

func limitCountOf(config *structpb.Struct) limitCountConfig {
	c := limitCountConfig{KeyType: "var", Key: "remote_addr", RejectedCode: 503}
	decode(config, &c)
	return c
}

var combinedVariable = regexp.MustCompile(`\$(\w+|\{\w+\})`)

// parts are what a request is counted by: headers, and "" for its address.
func (c limitCountConfig) parts() ([]string, resource.Problems) {
	switch c.KeyType {
	case "constant":
		return nil, nil
	case "var":
		part, ok := limitPart(c.Key)
		if !ok {
			return nil, problemAt("key", resource.CodeUnsupported, fmt.Sprintf("Envoy cannot count by the variable %q", c.Key), limitHint)
		}
		return []string{part}, nil
	}
	var parts []string
	headers := 0
	for _, v := range combinedVariable.FindAllString(c.Key, -1) {
		v = strings.Trim(v, "${}")
		part, ok := limitPart(v)
		if !ok {
			return nil, problemAt("key", resource.CodeUnsupported, fmt.Sprintf("Envoy cannot count by the variable %q", v), limitHint)
		}
		if part != "" {
			headers++
		}
		parts = append(parts, part)
	}
	switch {
	case len(parts) == 0:
		return nil, problemAt("key", resource.CodeInvalid, "the combination names no variable", "for example \"$remote_addr $http_x_tenant\"")
	case headers > 2:
		return nil, problemAt("key", resource.CodeUnsupported, "more than two headers cannot be combined", "")
	}
	return parts, nil
}

const limitHint = "supported are remote_addr, consumer_name, http_<header>, host, request_method and request_uri"

// limitPart is the header that holds a variable, "" for the client's address.
func limitPart(variable string) (string, bool) {
	switch variable {
	case "remote_addr":
		return "", true
	case "consumer_name":
		return ConsumerHeader, true
	case "host", "http_host":
		return ":authority", true
	case "request_method":
		return ":method", true
	case "request_uri":
		return ":path", true
	}
	name, found := strings.CutPrefix(variable, "http_")
	return strings.ReplaceAll(strings.ToLower(name), "_", "-"), found && name != ""
}

func applyLimitCount(e *Effect, config *structpb.Struct) {
	c := limitCountOf(config)
	parts, _ := c.parts()
	name := "limit-count"
	if c.RejectedCode == 429 {
		name = "limit-count-429"
	}
	e.enableDiscovered(name)
	bucket := &typev3.TokenBucket{
		MaxTokens:     c.Count,
		TokensPerFill: wrapperspb.UInt32(c.Count),
		FillInterval:  durationpb.New(time.Duration(c.TimeWindow) * time.Second),
	}
	for _, d := range descriptors(e.scope, parts) {
		limit := Limit{
			Filter:     e.filter(name),
			RateLimit:  &routev3.RateLimit{Actions: d.actions},
			Descriptor: &ratelimitv3.LocalRateLimitDescriptor{Entries: d.entries, TokenBucket: bucket},
		}
		e.Limits = append(e.Limits, limit)
		if !e.global {
			e.RateLimits = append(e.RateLimits, limit.RateLimit)
		}
	}
}

// descriptor is what is counted, as actions that ask and as entries that answer.
type descriptor struct {
	actions []*routev3.RateLimit_Action
	entries []*ratelimitv3.RateLimitDescriptor_Entry
}

func (d descriptor) with(action *routev3.RateLimit_Action, key, value string) descriptor {
	return descriptor{
		append(d.actions[:len(d.actions):len(d.actions)], action),
		append(d.entries[:len(d.entries):len(d.entries)], &ratelimitv3.RateLimitDescriptor_Entry{Key: key, Value: value}),
	}
}

// descriptors lists the ways of counting of one limit. A missing header would
// leave a request uncounted, so that each header doubles the ways: with it, and
// without it by address.
func descriptors(scope string, parts []string) []descriptor {
	ways := []descriptor{descriptor{}.with(&routev3.RateLimit_Action{
		ActionSpecifier: &routev3.RateLimit_Action_GenericKey_{GenericKey: &routev3.RateLimit_Action_GenericKey{DescriptorValue: scope}},
	}, "generic_key", scope)}
	for _, part := range parts {
		var next []descriptor
		for _, d := range ways {
			if part == "" {
				next = append(next, d.byAddress())
				continue
			}
			next = append(next, d.with(requestHeader(part), part, ""))
			if !strings.HasPrefix(part, ":") {
				next = append(next, d.with(noHeader(part), "no-"+part, "1"))
			}
		}
		ways = next
	}
	for i, d := range ways {
		// A key that came out empty is API7's reason to count by address.
		if counted := d.entries[1:]; len(counted) > 0 && onlyMissing(counted) {
			ways[i] = d.byAddress()
		}
	}
	return ways
}

func (d descriptor) byAddress() descriptor {
	return d.with(&routev3.RateLimit_Action{
		ActionSpecifier: &routev3.RateLimit_Action_RemoteAddress_{RemoteAddress: &routev3.RateLimit_Action_RemoteAddress{}},
	}, "remote_address", "")
}

func onlyMissing(entries []*ratelimitv3.RateLimitDescriptor_Entry) bool {
	for _, e := range entries {
		if !strings.HasPrefix(e.Key, "no-") {
			return false
		}
	}
	return true
}

func requestHeader(name string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_RequestHeaders_{
		RequestHeaders: &routev3.RateLimit_Action_RequestHeaders{HeaderName: name, DescriptorKey: name},
	}}
}

func noHeader(name string) *routev3.RateLimit_Action {
	return &routev3.RateLimit_Action{ActionSpecifier: &routev3.RateLimit_Action_HeaderValueMatch_{
		HeaderValueMatch: &routev3.RateLimit_Action_HeaderValueMatch{
			DescriptorKey:   "no-" + name,
			DescriptorValue: "1",
			ExpectMatch:     wrapperspb.Bool(false),
			Headers: []*routev3.HeaderMatcher{{
				Name:                 name,
				HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
			}},
		},
	}}
}

// maxDynamicDescriptors bounds the callers that one filter counts at a time;
// the ones seen longest ago are forgotten first.
const maxDynamicDescriptors = 65536

// RateLimit is the configuration of one of the rate limit filters without its
// descriptors, which are appended to its encoding. What no descriptor knows is
// not limited.
func RateLimit(filter string) *localratelimitv3.LocalRateLimit {
	all := &corev3.RuntimeFractionalPercent{DefaultValue: &typev3.FractionalPercent{Numerator: 100}}
	c := &localratelimitv3.LocalRateLimit{
		StatPrefix: filter,
		TokenBucket: &typev3.TokenBucket{
			MaxTokens:     1<<32 - 1,
			TokensPerFill: wrapperspb.UInt32(1<<32 - 1),
			FillInterval:  durationpb.New(time.Second),
		},
		FilterEnabled:                   all,
		FilterEnforced:                  all,
		AlwaysConsumeDefaultTokenBucket: wrapperspb.Bool(false),
		EnableXRatelimitHeaders:         ratelimitv3.XRateLimitHeadersRFCVersion_DRAFT_VERSION_03,
		MaxDynamicDescriptors:           wrapperspb.UInt32(maxDynamicDescriptors),
	}
	if !strings.HasSuffix(filter, "-429") {
		c.Status = &typev3.HttpStatus{Code: typev3.StatusCode_ServiceUnavailable}
	}
	return c
}
