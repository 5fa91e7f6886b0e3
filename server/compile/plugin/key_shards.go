package plugin

import (
	"fmt"

	"github.com/cespare/xxhash/v2"
	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	hashingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/consistent_hashing/v3"
	envoymatcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
)

// KeyShards is how many filters the API keys of a group are spread over, so that a
// changed key costs a shard. The number is fixed: another would move keys from
// shards that data planes have to some that they do not have yet.
const (
	KeyShards = 64
	// keyBlock is how many shards are told apart at a time.
	keyBlock = 8
)

// KeyShard returns the shard of a key. Envoy hashes the key behind `Bearer `, which
// a client may write or not.
func KeyShard(key string) byte { return byte(xxhash.Sum64String(bearer+key) % KeyShards) }

// KeyShardName is the name of a shard's filter.
func KeyShardName(shard byte) string { return fmt.Sprintf("key-auth/%02x", shard) }

// KeyAuth is a shard's configuration without credentials, which are appended to its
// encoding.
func KeyAuth() *apikeyv3.ApiKeyAuth {
	return &apikeyv3.ApiKeyAuth{
		KeySources: []*apikeyv3.KeySource{{Header: keyHeader}, {Header: bearerHeader}},
		// What is hidden are the private headers.
		Forwarding: &apikeyv3.Forwarding{Header: ConsumerHeader, HideCredentials: true},
	}
}

// KeyChooser is the key-auth filter: it hands a request to the shard of its key. No
// request passes it without one.
func KeyChooser() proto.Message { return choosing(byHash(0, KeyShards, keyBlock)) }

// KeyRefuser is the key-auth filter of a group without keys.
func KeyRefuser() proto.Message {
	return choosing(&matcherv3.Matcher{OnNoMatch: refuse()})
}

// KeyAnchor is a filter that no route switches on. It has Envoy ask for every shard
// from the start, whether there is one or not: what a filter refers to that comes
// later by ECDS is found only if it was asked for before.
func KeyAnchor() proto.Message {
	all := map[string]*matcherv3.Matcher_OnMatch{}
	for shard := range byte(KeyShards) {
		a := shardAction(shard)
		a.DynamicConfig.ConfigDiscovery.DefaultConfig = packed(&apikeyv3.ApiKeyAuth{})
		a.DynamicConfig.ConfigDiscovery.ApplyDefaultConfigWithoutWarming = true
		all[fmt.Sprintf("%02x", shard)] = execute(a)
	}
	return choosing(&matcherv3.Matcher{
		MatcherType: &matcherv3.Matcher_MatcherTree_{MatcherTree: &matcherv3.Matcher_MatcherTree{
			Input:    headerInput(keyHeader),
			TreeType: &matcherv3.Matcher_MatcherTree_PrefixMatchMap{PrefixMatchMap: &matcherv3.Matcher_MatcherTree_MatchMap{Map: all}},
		}},
		OnNoMatch: refuse(),
	})
}

// refuse is a shard without keys.
func refuse() *matcherv3.Matcher_OnMatch {
	return execute(&compositev3.ExecuteFilterAction{
		TypedConfig: &corev3.TypedExtensionConfig{Name: "key-auth", TypedConfig: packed(KeyAuth())},
	})
}

func choosing(m *matcherv3.Matcher) proto.Message {
	return &matchingv3.ExtensionWithMatcher{
		ExtensionConfig: &corev3.TypedExtensionConfig{Name: "composite", TypedConfig: packed(&compositev3.Composite{})},
		XdsMatcher:      m,
	}
}

// byHash tells the shards from first on apart, in steps.
func byHash(first, shards, step int) *matcherv3.Matcher {
	next := func(at int) *matcherv3.Matcher_OnMatch {
		if step == 1 {
			return execute(shardAction(byte(at)))
		}
		return &matcherv3.Matcher_OnMatch{OnMatch: &matcherv3.Matcher_OnMatch_Matcher{Matcher: byHash(at, step, 1)}}
	}
	list := &matcherv3.Matcher_MatcherList{}
	for at := first + shards - step; at > first; at -= step {
		list.Matchers = append(list.Matchers, &matcherv3.Matcher_MatcherList_FieldMatcher{Predicate: shardFrom(at), OnMatch: next(at)})
	}
	return &matcherv3.Matcher{
		MatcherType: &matcherv3.Matcher_MatcherList_{MatcherList: list},
		// A request without a key comes here, too: the shard refuses it.
		OnNoMatch: next(first),
	}
}

type (
	predicate       = matcherv3.Matcher_MatcherList_Predicate
	predicates      = matcherv3.Matcher_MatcherList_Predicate_PredicateList
	singlePredicate = matcherv3.Matcher_MatcherList_Predicate_SinglePredicate
)

// shardFrom matches requests whose key is of the shard or a later one: by the header
// in which the key stands behind `Bearer ` once.
func shardFrom(at int) *predicate {
	single := func(p *singlePredicate) *predicate {
		return &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_{SinglePredicate: p}}
	}
	both := func(a, b *predicate) *predicate {
		return &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_AndMatcher{AndMatcher: &predicates{Predicate: []*predicate{a, b}}}}
	}
	hashed := func(header string) *predicate {
		return single(&singlePredicate{Input: headerInput(header), Matcher: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_CustomMatch{
			CustomMatch: &xdscorev3.TypedExtensionConfig{Name: "h", TypedConfig: packed(&hashingv3.ConsistentHashing{Threshold: uint32(at), Modulo: KeyShards})},
		}})
	}
	prefixed := single(&singlePredicate{Input: headerInput(keyHeader), Matcher: &matcherv3.Matcher_MatcherList_Predicate_SinglePredicate_ValueMatch{
		ValueMatch: &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Prefix{Prefix: bearer}},
	}})
	plain := &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_NotMatcher{NotMatcher: prefixed}}
	return &predicate{MatchType: &matcherv3.Matcher_MatcherList_Predicate_OrMatcher{OrMatcher: &predicates{
		Predicate: []*predicate{both(prefixed, hashed(keyHeader)), both(plain, hashed(bearerHeader))},
	}}}
}

func execute(a *compositev3.ExecuteFilterAction) *matcherv3.Matcher_OnMatch {
	return &matcherv3.Matcher_OnMatch{OnMatch: &matcherv3.Matcher_OnMatch_Action{Action: &xdscorev3.TypedExtensionConfig{Name: "a", TypedConfig: packed(a)}}}
}

func headerInput(name string) *xdscorev3.TypedExtensionConfig {
	return &xdscorev3.TypedExtensionConfig{Name: "i", TypedConfig: packed(&envoymatcherv3.HttpRequestHeaderMatchInput{HeaderName: name})}
}

func shardAction(shard byte) *compositev3.ExecuteFilterAction {
	return &compositev3.ExecuteFilterAction{DynamicConfig: &compositev3.DynamicConfig{
		Name: KeyShardName(shard),
		ConfigDiscovery: &corev3.ExtensionConfigSource{
			ConfigSource: &corev3.ConfigSource{
				ConfigSourceSpecifier: &corev3.ConfigSource_Ads{Ads: &corev3.AggregatedConfigSource{}},
				ResourceApiVersion:    corev3.ApiVersion_V3,
			},
			TypeUrls: []string{apiKeyAuthType},
		},
	}}
}
