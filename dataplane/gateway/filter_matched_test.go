package gateway

import (
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
)

const (
	typePrefix = `"@type":"type.googleapis.com/envoy.`
	keyInput   = `"input":{"name":"i","typedConfig":{` + typePrefix + `type.matcher.v3.HttpRequestHeaderMatchInput","headerName":"apikey"}}`
	nobody     = `{` + typePrefix + `extensions.filters.http.api_key_auth.v3.ApiKeyAuth","keySources":[{"header":"apikey"}]}`
)

func action(fields string) string {
	return `{"action":{"name":"a","typedConfig":{` + typePrefix + `extensions.filters.http.composite.v3.ExecuteFilterAction",` + fields + `}}}`
}

func inlined(config string) string {
	return action(`"typedConfig":{"name":"x","typedConfig":` + config + `}`)
}

func byName(name, more string) string {
	return action(`"dynamicConfig":{"name":"` + name + `","configDiscovery":{"configSource":{"ads":{}},"typeUrls":["x"]` + more + `}}`)
}

func hashed(threshold, modulo int) string {
	return fmt.Sprintf(`{"singlePredicate":{`+keyInput+`,"customMatch":{"name":"h","typedConfig":{`+typePrefix+`extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing","threshold":%d,"modulo":%d}}}}`, threshold, modulo)
}

func prefixed(prefix string) string {
	return `{"singlePredicate":{` + keyInput + `,"valueMatch":{"prefix":"` + prefix + `"}}}`
}

func matched(matcher string) named {
	m := fromJSON(&matchingv3.ExtensionWithMatcher{}, `{"extensionConfig":{"name":"c","typedConfig":{`+typePrefix+`extensions.filters.http.composite.v3.Composite"}},"xdsMatcher":`+matcher+`}`)
	return res("key-auth", &corev3.TypedExtensionConfig{Name: "key-auth", TypedConfig: pack(m)})
}

func shard(name string, keys ...string) named {
	m := &apikeyv3.ApiKeyAuth{KeySources: []*apikeyv3.KeySource{{Header: "apikey"}}, Forwarding: &apikeyv3.Forwarding{Header: "x-consumer-username"}}
	for _, k := range keys {
		m.Credentials = append(m.Credentials, &apikeyv3.Credential{Key: k, Client: name})
	}
	return res(name, &corev3.TypedExtensionConfig{Name: name, TypedConfig: pack(m)})
}

// wantAnswers asks for /key with each key.
func wantAnswers(t *testing.T, l *lab, want map[string]string) {
	t.Helper()
	for key, client := range want {
		change := func(*http.Request) {}
		if key != "" {
			change = header("apikey", key)
		}
		a := l.do("GET", "/key", change)
		got := fmt.Sprint(a.status)
		if a.seen != nil {
			got = a.seen.Header.Get("X-Consumer-Username")
		}
		if got != client {
			t.Errorf("%q: %s, want %s", key, got, client)
		}
	}
}

func TestAMatcherHandsARequestToTheFilterOfItsHash(t *testing.T) {
	var keys [2][]string // by half
	for i := 0; len(keys[0]) < 5 || len(keys[1]) < 5; i++ {
		key := fmt.Sprint("key-", i)
		half := xxhash.Sum64String(key) % 2
		keys[half] = append(keys[half], key)
	}
	l := filterLab(t, catchAll(with("/key", `"key-auth":`+on)), shard("low", keys[0]...), shard("high", keys[1]...),
		matched(`{"matcherList":{"matchers":[{"predicate":`+hashed(1, 2)+`,"onMatch":`+byName("high", "")+`}]},"onNoMatch":`+byName("low", "")+`}`))
	want := map[string]string{"": "401", "none": "401"}
	for i, half := range keys {
		for _, k := range half {
			want[k] = []string{"low", "high"}[i]
		}
	}
	wantAnswers(t, l, want)
	// Without its resource a filter answers 500, and lets nobody in.
	l.apply(gone("high", &corev3.TypedExtensionConfig{}))
	for _, k := range keys[1] {
		want[k] = "500"
	}
	delete(want, "none")
	wantAnswers(t, l, want)
}

func TestMatchersOfPrefixesAndPredicates(t *testing.T) {
	nest := func(m string) string { return `{"matcher":` + m + `}` }
	or := func(a, b string) string { return `{"orMatcher":{"predicate":[` + a + `,` + b + `]}}` }
	and := func(a, b string) string { return `{"andMatcher":{"predicate":[` + a + `,` + b + `]}}` }
	not := func(a string) string { return `{"notMatcher":` + a + `}` }
	list := `{"matcherList":{"matchers":[{"predicate":` + or(prefixed("b"), and(prefixed("c"), not(prefixed("cc")))) + `,"onMatch":` + byName("b-or-c", "") + `}]},"onNoMatch":` + byName("gone", `,"defaultConfig":`+nobody) + `}`
	l := filterLab(t, catchAll(with("/key", `"key-auth":`+on)), shard("a", "a1", "ab1"), shard("ab", "ab1"), shard("b-or-c", "b1", "c1", "cc1"),
		matched(`{"matcherTree":{`+keyInput+`,"prefixMatchMap":{"map":{"a":`+byName("a", "")+`,"ab":`+byName("ab", "")+`}}},"onNoMatch":`+nest(list)+`}`))
	wantAnswers(t, l, map[string]string{"a1": "a", "ab1": "ab", "b1": "b-or-c", "c1": "b-or-c", "cc1": "401", "": "401", "z": "401"})
}

func TestAMatcherThatCouldLetARequestPassIsRefused(t *testing.T) {
	l := filterLab(t, catchAll(with("/key", `"key-auth":`+on)), matched(`{"onNoMatch":`+inlined(nobody)+`}`))
	wantAnswers(t, l, map[string]string{"any": "401", "": "401"})
	list := func(predicate, more string) string {
		return `{"matcherList":{"matchers":[{"predicate":` + predicate + `,"onMatch":` + inlined(nobody) + `}]}` + more + `}`
	}
	none := `,"onNoMatch":` + inlined(nobody)
	for matcher, why := range map[string]string{
		list(prefixed("a"), ""):                                 "action for every request",
		list(hashed(0, 0), none):                                "modulo is 0",
		list(prefixed(""), none):                                "no prefix",
		list(`{}`, none):                                        "predicate is empty",
		list(`{"andMatcher":{"predicate":[{}]}}`, none):         "predicate is empty",
		`{"onNoMatch":` + action(`"filterChainName":"x"`) + `}`: "filter_chain_name",
	} {
		if got := l.refuses(matched(matcher)); !strings.Contains(got, why) {
			t.Errorf("%s: %q", matcher, got)
		}
	}
	wantAnswers(t, l, map[string]string{"any": "401"})
}

func TestQueryParametersAreReadAndRemoved(t *testing.T) {
	mutate := func(fields string) string {
		return typed("proxy-rewrite", "header_mutation.v3.HeaderMutationPerRoute", `"mutations":{`+fields+`}`)
	}
	l := filterLab(t, catchAll(with("/", mutate(`"requestMutations":[{"append":{"header":{"key":"x-k","value":"[%QUERY_PARAM(k)%]"}}}],"queryParameterMutations":[{"remove":"k"}]`))))
	for target, want := range map[string]string{
		"/": "/ []", "/?k=1": "/ [1]", "/?a=2&k=%31+&k=3&b": "/?a=2&b [1+]", "/?%6b=v": "/ [v]", "/?K=1": "/?K=1 []",
	} {
		a := l.do("GET", target)
		if got := a.seen.URI + " " + a.seen.Header.Get("X-K"); got != want {
			t.Errorf("%s: %s, want %s", target, got, want)
		}
	}
}
