package plugin

import (
	"strconv"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"
	matcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	hashingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/consistent_hashing/v3"
	envoymatcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

// sourced is what key-source leaves of a key: raw as a client sent it.
func sourced(raw string) map[string]string {
	return map[string]string{keyHeader: raw, bearerHeader: bearer + raw}
}

// chosen is the filter that the matcher hands a request to, as Envoy reads it.
func chosen(t *rapid.T, m *matcherv3.Matcher, headers map[string]string) *compositev3.ExecuteFilterAction {
	next := m.GetOnNoMatch()
	for _, fm := range m.GetMatcherList().GetMatchers() {
		if holds(t, fm.GetPredicate(), headers) {
			next = fm.GetOnMatch()
			break
		}
	}
	if inner := next.GetMatcher(); inner != nil {
		return chosen(t, inner, headers)
	}
	a := &compositev3.ExecuteFilterAction{}
	if err := next.GetAction().GetTypedConfig().UnmarshalTo(a); err != nil {
		t.Fatal(err)
	}
	return a
}

func holds(t *rapid.T, p *matcherv3.Matcher_MatcherList_Predicate, headers map[string]string) bool {
	switch p := p.GetMatchType().(type) {
	case *matcherv3.Matcher_MatcherList_Predicate_OrMatcher:
		for _, one := range p.OrMatcher.GetPredicate() {
			if holds(t, one, headers) {
				return true
			}
		}
		return false
	case *matcherv3.Matcher_MatcherList_Predicate_AndMatcher:
		for _, one := range p.AndMatcher.GetPredicate() {
			if !holds(t, one, headers) {
				return false
			}
		}
		return true
	case *matcherv3.Matcher_MatcherList_Predicate_NotMatcher:
		return !holds(t, p.NotMatcher, headers)
	}
	single := p.GetSinglePredicate()
	input, hash := &envoymatcherv3.HttpRequestHeaderMatchInput{}, &hashingv3.ConsistentHashing{}
	if err := single.GetInput().GetTypedConfig().UnmarshalTo(input); err != nil {
		t.Fatal(err)
	}
	value, found := headers[input.GetHeaderName()]
	if m := single.GetValueMatch(); m != nil {
		return found && strings.HasPrefix(value, m.GetPrefix())
	}
	if err := single.GetCustomMatch().GetTypedConfig().UnmarshalTo(hash); err != nil {
		t.Fatal(err)
	}
	return found && xxhash.Sum64String(value)%uint64(hash.GetModulo()) >= uint64(hash.GetThreshold())
}

func TestARequestIsHandedToTheShardOfItsKey(t *testing.T) {
	m := KeyChooser().(*matchingv3.ExtensionWithMatcher).GetXdsMatcher()
	seen := map[byte]bool{}
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			key := rapid.StringN(1, 40, 80).Draw(t, "key")
			shard := KeyShard(key)
			seen[shard] = true
			for _, raw := range []string{key, bearer + key} {
				if strings.HasPrefix(key, bearer) && raw == key {
					continue // such a key is known by its rest
				}
				if got := chosen(t, m, sourced(raw)).GetDynamicConfig().GetName(); got != KeyShardName(shard) {
					t.Fatalf("%q is of %s and is looked for in %s", raw, KeyShardName(shard), got)
				}
			}
		}
		// Whatever the headers are, some filter sees the request.
		for _, headers := range []map[string]string{{}, {keyHeader: ""}, {bearerHeader: bearer}, {keyHeader: bearer}} {
			if a := chosen(t, m, headers); a.GetDynamicConfig().GetName() == "" {
				t.Fatalf("%v passes unseen", headers)
			}
		}
	})
	if len(seen) < KeyShards/2 {
		t.Errorf("keys come to %d shards only", len(seen))
	}
}

func TestKeysAreSpreadOverTheShardsEvenly(t *testing.T) {
	const keys = 10_000
	held := map[byte]int{}
	for i := range keys {
		held[KeyShard("a-key-that-is-counted-on-"+strconv.Itoa(i))]++
	}
	for shard := range byte(KeyShards) {
		if n := held[shard]; n < keys/KeyShards/2 || n > keys/KeyShards*2 {
			t.Errorf("shard %d has %d of %d keys", shard, n, keys)
		}
	}
}

func TestTheAnchorAsksForEveryShardAndWaitsForNone(t *testing.T) {
	m := KeyAnchor().(*matchingv3.ExtensionWithMatcher).GetXdsMatcher()
	asked := map[string]bool{}
	for _, next := range m.GetMatcherTree().GetPrefixMatchMap().GetMap() {
		a := &compositev3.ExecuteFilterAction{}
		if err := next.GetAction().GetTypedConfig().UnmarshalTo(a); err != nil {
			t.Fatal(err)
		}
		d := a.GetDynamicConfig()
		asked[d.GetName()] = true
		// Envoy shares what it asked for between those that ask in the same words.
		if !proto.Equal(d.GetConfigDiscovery().GetConfigSource(), shardAction(0).GetDynamicConfig().GetConfigDiscovery().GetConfigSource()) {
			t.Errorf("%s is asked for elsewhere", d.GetName())
		}
		if !d.GetConfigDiscovery().GetApplyDefaultConfigWithoutWarming() || d.GetConfigDiscovery().GetDefaultConfig() == nil {
			t.Errorf("a listener waits for %s", d.GetName())
		}
	}
	for shard := range byte(KeyShards) {
		if !asked[KeyShardName(shard)] {
			t.Errorf("%s is not asked for", KeyShardName(shard))
		}
	}
}
