package gateway

import (
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strconv"

	"github.com/cespare/xxhash/v2"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// ring is a consistent-hash ring, built as Envoy builds it, so that both send a key
// to the same host.
type ring struct {
	entries []ringEntry // by hash
}

type ringEntry struct {
	hash uint64
	host *host
}

// The bounds of a ring's size when the cluster says none.
const (
	defaultMinRing = 1024
	defaultMaxRing = 8 << 20
)

func newRing(members []member, minSize, maxSize uint64) *ring {
	total, least := 0.0, math.MaxFloat64
	for _, m := range members {
		total += float64(m.weight)
		least = min(least, float64(m.weight))
	}
	least /= total
	scale := min(math.Ceil(least*float64(minSize))/least, float64(maxSize))
	r := &ring{entries: make([]ringEntry, 0, int(math.Ceil(scale)))}
	current, target := 0.0, 0.0
	var key []byte
	for _, m := range members {
		target += scale * float64(m.weight) / total
		for i := uint64(0); current < target; i++ {
			key = append(append(key[:0], m.address...), '_')
			key = strconv.AppendUint(key, i, 10)
			r.entries = append(r.entries, ringEntry{xxhash.Sum64(key), m.host})
			current++
		}
	}
	slices.SortFunc(r.entries, func(a, b ringEntry) int {
		switch {
		case a.hash < b.hash:
			return -1
		case a.hash > b.hash:
			return 1
		}
		return 0
	})
	return r
}

func (r *ring) pick(hash uint64, attempt int) *host {
	i, _ := slices.BinarySearchFunc(r.entries, hash, func(e ringEntry, h uint64) int {
		switch {
		case e.hash < h:
			return -1
		case e.hash > h:
			return 1
		}
		return 0
	})
	return r.entries[(i+attempt)%len(r.entries)].host
}

// hashPolicy is a compiled HashPolicy.
type hashPolicy struct {
	hash     func(x *exchange) (uint64, bool)
	terminal bool
}

func newHashPolicies(list []*routev3.RouteAction_HashPolicy) ([]hashPolicy, error) {
	var out []hashPolicy
	for i, m := range list {
		p := hashPolicy{terminal: m.GetTerminal()}
		switch s := m.GetPolicySpecifier().(type) {
		case *routev3.RouteAction_HashPolicy_Header_:
			name := headerName(s.Header.GetHeaderName())
			rewrite, err := newRegexRewrite(s.Header.GetRegexRewrite())
			if err != nil {
				return nil, fmt.Errorf("[%d]: %w", i, err)
			}
			p.hash = func(x *exchange) (uint64, bool) { return hashValues(x.headerValues(name), rewrite) }
		case *routev3.RouteAction_HashPolicy_Cookie_:
			if s.Cookie.GetTtl() != nil {
				return nil, fmt.Errorf("[%d]: a cookie with ttl is not supported", i)
			}
			name := s.Cookie.GetName()
			p.hash = func(x *exchange) (uint64, bool) {
				v, ok := x.cookie(name)
				return xxhash.Sum64String(v), ok && v != ""
			}
		case *routev3.RouteAction_HashPolicy_ConnectionProperties_:
			if !s.ConnectionProperties.GetSourceIp() {
				return nil, fmt.Errorf("[%d]: connection_properties has no source_ip", i)
			}
			p.hash = func(x *exchange) (uint64, bool) { return xxhash.Sum64String(x.client.String()), true }
		case *routev3.RouteAction_HashPolicy_QueryParameter_:
			name := s.QueryParameter.GetName()
			p.hash = func(x *exchange) (uint64, bool) {
				v := decodedQueryValue(x.query, name)
				return xxhash.Sum64String(v), v != ""
			}
		default:
			return nil, fmt.Errorf("[%d]: %T is not supported", i, s)
		}
		out = append(out, p)
	}
	return out, nil
}

// hashValues hashes the values of a header; several in sorted order.
func hashValues(values []string, rewrite *regexRewrite) (uint64, bool) {
	if len(values) == 0 {
		return 0, false
	}
	if rewrite == nil && len(values) == 1 {
		return xxhash.Sum64String(values[0]), true
	}
	rewritten := slices.Clone(values)
	if rewrite != nil {
		for i, v := range rewritten {
			rewritten[i] = rewrite.pattern.ReplaceAllString(v, rewrite.substitution)
		}
	}
	slices.Sort(rewritten)
	d := xxhash.New()
	for _, v := range rewritten {
		_, _ = d.WriteString(v) // a hash never fails
	}
	return d.Sum64(), true
}

// hashOf combines the hash policies of a route; false when none has a value.
func hashOf(policies []hashPolicy, x *exchange) (uint64, bool) {
	var sum uint64
	found := false
	for _, p := range policies {
		h, ok := p.hash(x)
		if !ok {
			continue
		}
		if found {
			sum = bits.RotateLeft64(sum, 1) ^ h
		} else {
			sum, found = h, true
		}
		if p.terminal {
			break
		}
	}
	return sum, found
}
