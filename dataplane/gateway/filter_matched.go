package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/cespare/xxhash/v2"
	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	xdsmatcherv3 "github.com/cncf/xds/go/xds/type/matcher/v3"
	matchingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/matching/v3"
	compositev3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/composite/v3"
	hashingv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/matching/input_matchers/consistent_hashing/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/anypb"
)

// matchedFilter hands each request to one of several filters.
type matchedFilter struct{ choice choice }

// choice is a node of the matcher: another matcher, or a filter, so that no request
// passes without one.
type choice struct {
	matcher *requestMatcher
	name    string     // of a filter that is delivered by ECDS
	filter  httpFilter // which takes its place where it is not there; may be nil then
}

// requestMatcher takes the first branch that matches.
type requestMatcher struct {
	branches []branch
	none     choice
}

type branch struct {
	matches predicate
	choice  choice
}

type predicate func(x *exchange) bool

func (g *Gateway) newMatchedFilter(m *matchingv3.ExtensionWithMatcher) (*matchedFilter, error) {
	if !m.GetExtensionConfig().GetTypedConfig().MessageIs((*compositev3.Composite)(nil)) {
		return nil, errors.New("only a composite can have a matcher")
	}
	root, err := g.newRequestMatcher(m.GetXdsMatcher())
	if err != nil {
		return nil, err
	}
	return &matchedFilter{choice{matcher: root}}, nil
}

func (g *Gateway) newRequestMatcher(m *xdsmatcherv3.Matcher) (*requestMatcher, error) {
	none, err := g.newChoice(m.GetOnNoMatch())
	if err != nil {
		return nil, fmt.Errorf("on_no_match: %w", err)
	}
	out := &requestMatcher{none: none}
	if t := m.GetMatcherTree(); t != nil {
		out.branches, err = g.newPrefixes(t)
		return out, err
	}
	for i, fm := range m.GetMatcherList().GetMatchers() {
		b := branch{}
		if b.matches, err = newPredicate(fm.GetPredicate()); err == nil {
			b.choice, err = g.newChoice(fm.GetOnMatch())
		}
		if err != nil {
			return nil, fmt.Errorf("matchers[%d]: %w", i, err)
		}
		out.branches = append(out.branches, b)
	}
	return out, nil
}

// newPrefixes compiles a map of prefixes, of which the longest matches.
func (g *Gateway) newPrefixes(t *xdsmatcherv3.Matcher_MatcherTree) ([]branch, error) {
	header, err := inputHeader(t.GetInput())
	if err != nil {
		return nil, err
	}
	all := t.GetPrefixMatchMap().GetMap()
	prefixes := make([]string, 0, len(all))
	for p := range all {
		prefixes = append(prefixes, p)
	}
	slices.SortFunc(prefixes, func(a, b string) int { return len(b) - len(a) })
	var out []branch
	for _, p := range prefixes {
		b := branch{matches: onHeader(header, func(v string) bool { return strings.HasPrefix(v, p) })}
		if b.choice, err = g.newChoice(all[p]); err != nil {
			return nil, fmt.Errorf("prefix %q: %w", p, err)
		}
		out = append(out, b)
	}
	return out, nil
}

func newPredicate(p *xdsmatcherv3.Matcher_MatcherList_Predicate) (predicate, error) {
	switch p := p.GetMatchType().(type) {
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate_:
		return newSinglePredicate(p.SinglePredicate)
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_NotMatcher:
		inner, err := newPredicate(p.NotMatcher)
		return func(x *exchange) bool { return !inner(x) }, err
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_AndMatcher:
		all, err := newPredicates(p.AndMatcher)
		return func(x *exchange) bool {
			return !slices.ContainsFunc(all, func(p predicate) bool { return !p(x) })
		}, err
	case *xdsmatcherv3.Matcher_MatcherList_Predicate_OrMatcher:
		all, err := newPredicates(p.OrMatcher)
		return func(x *exchange) bool {
			return slices.ContainsFunc(all, func(p predicate) bool { return p(x) })
		}, err
	}
	return nil, errors.New("a predicate is empty")
}

func newPredicates(list *xdsmatcherv3.Matcher_MatcherList_Predicate_PredicateList) ([]predicate, error) {
	var out []predicate
	for _, p := range list.GetPredicate() {
		compiled, err := newPredicate(p)
		if err != nil {
			return nil, err
		}
		out = append(out, compiled)
	}
	return out, nil
}

// newSinglePredicate compiles a predicate on a header: on its beginning, or its hash.
func newSinglePredicate(p *xdsmatcherv3.Matcher_MatcherList_Predicate_SinglePredicate) (predicate, error) {
	header, err := inputHeader(p.GetInput())
	if err != nil {
		return nil, err
	}
	if m := p.GetValueMatch(); m != nil {
		prefix := m.GetPrefix()
		if prefix == "" {
			return nil, errors.New("a string matcher has no prefix")
		}
		return onHeader(header, func(v string) bool { return strings.HasPrefix(v, prefix) }), nil
	}
	h := &hashingv3.ConsistentHashing{}
	if err := p.GetCustomMatch().GetTypedConfig().UnmarshalTo(h); err != nil {
		return nil, err
	}
	modulo, threshold := uint64(h.GetModulo()), uint64(h.GetThreshold())
	if modulo == 0 {
		return nil, errors.New("consistent hashing: the modulo is 0")
	}
	return onHeader(header, func(v string) bool { return xxhash.Sum64String(v)%modulo >= threshold }), nil
}

// onHeader matches a header; a request without it does not match. Of several lines
// Envoy matches all, joined.
func onHeader(name string, matches func(value string) bool) predicate {
	return func(x *exchange) bool {
		values := x.headerValues(name)
		return len(values) > 0 && matches(strings.Join(values, ","))
	}
}

func inputHeader(input *xdscorev3.TypedExtensionConfig) (string, error) {
	m := &matcherv3.HttpRequestHeaderMatchInput{}
	if err := input.GetTypedConfig().UnmarshalTo(m); err != nil {
		return "", err
	}
	return headerName(m.GetHeaderName()), nil
}

func (g *Gateway) newChoice(m *xdsmatcherv3.Matcher_OnMatch) (c choice, err error) {
	if next := m.GetMatcher(); next != nil {
		c.matcher, err = g.newRequestMatcher(next)
		return c, err
	}
	var config *anypb.Any
	if config = m.GetAction().GetTypedConfig(); config == nil {
		return c, errors.New("a matcher has to have an action for every request")
	}
	a := &compositev3.ExecuteFilterAction{}
	if err := config.UnmarshalTo(a); err != nil {
		return c, err
	}
	config = a.GetTypedConfig().GetTypedConfig()
	if d := a.GetDynamicConfig(); d != nil {
		c.name, config = d.GetName(), d.GetConfigDiscovery().GetDefaultConfig()
		if config == nil {
			return c, nil
		}
	}
	c.filter, err = g.newFilter(config, nil)
	return c, err
}

// find returns the filter for a request, nil when it is to be delivered by ECDS and
// is not there.
func (c choice) find(x *exchange) httpFilter {
	for c.matcher != nil {
		c = c.matcher.choose(x)
	}
	if c.name != "" {
		if ext, ok := x.table.extensions.Get([]byte(c.name)); ok {
			return ext.filter
		}
	}
	return c.filter
}

func (m *requestMatcher) choose(x *exchange) choice {
	for i := range m.branches {
		if m.branches[i].matches(x) {
			return m.branches[i].choice
		}
	}
	return m.none
}

func (f *matchedFilter) begin(override any) activeFilter {
	return &matchedRequest{filter: f, override: override}
}

type matchedRequest struct {
	filter   *matchedFilter
	override any
	chosen   activeFilter
}

func (m *matchedRequest) request(x *exchange) *reply {
	f := m.filter.choice.find(x)
	if f == nil {
		return &reply{status: http.StatusInternalServerError}
	}
	if m.chosen = f.begin(m.override); m.chosen == nil {
		return nil
	}
	return m.chosen.request(x)
}

func (m *matchedRequest) response(x *exchange, h http.Header) {
	if m.chosen != nil {
		m.chosen.response(x, h)
	}
}
