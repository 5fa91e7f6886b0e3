package gateway

import (
	"fmt"
	"net/netip"
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// stringMatch is a compiled StringMatcher.
type stringMatch func(string) bool

func newStringMatch(m *matcherv3.StringMatcher) (stringMatch, error) {
	fold := m.GetIgnoreCase()
	text := func(s string) string {
		if fold {
			return strings.ToLower(s)
		}
		return s
	}
	switch p := m.GetMatchPattern().(type) {
	case *matcherv3.StringMatcher_Exact:
		if fold {
			return func(s string) bool { return strings.EqualFold(s, p.Exact) }, nil
		}
		return func(s string) bool { return s == p.Exact }, nil
	case *matcherv3.StringMatcher_Prefix:
		want := text(p.Prefix)
		return func(s string) bool { return strings.HasPrefix(text(s), want) }, nil
	case *matcherv3.StringMatcher_Suffix:
		want := text(p.Suffix)
		return func(s string) bool { return strings.HasSuffix(text(s), want) }, nil
	case *matcherv3.StringMatcher_Contains:
		want := text(p.Contains)
		return func(s string) bool { return strings.Contains(text(s), want) }, nil
	case *matcherv3.StringMatcher_SafeRegex:
		re, err := newRegex(p.SafeRegex)
		if err != nil {
			return nil, err
		}
		return re.MatchString, nil
	}
	return nil, fmt.Errorf("a string matcher has no pattern")
}

// newRegex compiles a regular expression that has to match the whole value.
func newRegex(m *matcherv3.RegexMatcher) (*regexp.Regexp, error) {
	re, err := regexp.Compile(`\A(?:` + m.GetRegex() + `)\z`)
	if err != nil {
		return nil, fmt.Errorf("regular expression %q: %w", m.GetRegex(), err)
	}
	return re, nil
}

// headerMatch is a compiled HeaderMatcher.
type headerMatch struct {
	name           string // canonical, or a pseudo header
	match          stringMatch
	present        bool // matches on presence alone
	absent         bool // matches on absence alone
	invert         bool
	missingIsEmpty bool
}

func newHeaderMatch(m *routev3.HeaderMatcher) (headerMatch, error) {
	h := headerMatch{
		name: headerName(m.GetName()), invert: m.GetInvertMatch(), missingIsEmpty: m.GetTreatMissingHeaderAsEmpty(),
	}
	var err error
	switch s := m.GetHeaderMatchSpecifier().(type) {
	case nil:
		h.present = true
	case *routev3.HeaderMatcher_PresentMatch:
		h.present, h.absent = s.PresentMatch, !s.PresentMatch
	case *routev3.HeaderMatcher_StringMatch:
		h.match, err = newStringMatch(s.StringMatch)
	default:
		err = fmt.Errorf("matcher %T is not supported", s)
	}
	if err != nil {
		return h, fmt.Errorf("header %q: %w", m.GetName(), err)
	}
	return h, nil
}

// matches applies the matcher to a request. Like Envoy it takes each line of a
// repeated header for itself, and a missing header never matches a pattern,
// inverted or not, unless it is treated as empty.
func (h *headerMatch) matches(x *exchange) bool {
	values := x.headerValues(h.name)
	if h.present || h.absent {
		return (len(values) > 0) == h.present != h.invert
	}
	if len(values) == 0 {
		return h.missingIsEmpty && h.match("") != h.invert
	}
	for _, v := range values {
		if h.match(v) {
			return !h.invert
		}
	}
	return h.invert
}

func newHeaderMatches(ms []*routev3.HeaderMatcher) ([]headerMatch, error) {
	var out []headerMatch
	for _, m := range ms {
		h, err := newHeaderMatch(m)
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// queryMatch is a compiled QueryParameterMatcher. It compares the raw text of the
// first parameter of that name.
type queryMatch struct {
	name  string
	match stringMatch // nil matches any value
	want  bool        // whether the parameter has to be there
}

func newQueryMatch(m *routev3.QueryParameterMatcher) (queryMatch, error) {
	q := queryMatch{name: m.GetName(), want: true}
	switch s := m.GetQueryParameterMatchSpecifier().(type) {
	case nil:
	case *routev3.QueryParameterMatcher_PresentMatch:
		q.want = s.PresentMatch
	case *routev3.QueryParameterMatcher_StringMatch:
		match, err := newStringMatch(s.StringMatch)
		if err != nil {
			return q, fmt.Errorf("query parameter %q: %w", q.name, err)
		}
		q.match = match
	}
	return q, nil
}

func (q *queryMatch) matches(query string) bool {
	v, ok := rawQueryValue(query, q.name)
	if ok != q.want {
		return false
	}
	return !ok || q.match == nil || q.match(v)
}

func newQueryMatches(ms []*routev3.QueryParameterMatcher) ([]queryMatch, error) {
	var out []queryMatch
	for _, m := range ms {
		q, err := newQueryMatch(m)
		if err != nil {
			return nil, err
		}
		out = append(out, q)
	}
	return out, nil
}

// rawQueryValue returns the undecoded value of the first parameter of a name.
func rawQueryValue(query, name string) (string, bool) {
	for part := range strings.SplitSeq(query, "&") {
		if k, v, _ := strings.Cut(part, "="); k == name && part != "" {
			return v, true
		}
	}
	return "", false
}

// cookieMatch is a compiled CookieMatcher; a missing cookie matches an inverted one.
type cookieMatch struct {
	name   string
	match  stringMatch
	invert bool
}

func (c *cookieMatch) matches(x *exchange) bool {
	v, ok := x.cookie(c.name)
	return (ok && c.match(v)) != c.invert
}

func newCookieMatches(ms []*routev3.CookieMatcher) ([]cookieMatch, error) {
	var out []cookieMatch
	for _, m := range ms {
		match, err := newStringMatch(m.GetStringMatch())
		if err != nil {
			return nil, fmt.Errorf("cookie %q: %w", m.GetName(), err)
		}
		out = append(out, cookieMatch{name: m.GetName(), match: match, invert: m.GetInvertMatch()})
	}
	return out, nil
}

// addressMatch is a compiled FilterStateMatcher on the client's address.
type addressMatch struct {
	key    string
	ranges []netip.Prefix
	invert bool
}

func (a *addressMatch) matches(x *exchange) bool {
	addr, ok := x.filterState(a.key)
	return ok && anyContains(a.ranges, addr) != a.invert
}

func newAddressMatches(ms []*matcherv3.FilterStateMatcher) ([]addressMatch, error) {
	var out []addressMatch
	for _, m := range ms {
		if m.GetAddressMatch() == nil {
			return nil, fmt.Errorf("filter_state %q: only address_match is supported", m.GetKey())
		}
		ranges, err := newPrefixes(m.GetAddressMatch().GetRanges())
		if err != nil {
			return nil, fmt.Errorf("filter_state %q: %w", m.GetKey(), err)
		}
		out = append(out, addressMatch{key: m.GetKey(), ranges: ranges, invert: m.GetAddressMatch().GetInvertMatch()})
	}
	return out, nil
}

// cidr is a CidrRange, of Envoy's API or of xDS's.
type cidr interface {
	GetAddressPrefix() string
	GetPrefixLen() *wrapperspb.UInt32Value
}

func newPrefixes[R cidr](ranges []R) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, r := range ranges {
		p, err := newPrefix(r)
		if err != nil {
			return nil, err
		}
		out = append(out, p)
	}
	return out, nil
}

func newPrefix(r cidr) (netip.Prefix, error) {
	addr, err := netip.ParseAddr(r.GetAddressPrefix())
	if err != nil {
		return netip.Prefix{}, err
	}
	return addr.Prefix(int(r.GetPrefixLen().GetValue()))
}

func anyContains(ranges []netip.Prefix, addr netip.Addr) bool {
	for _, p := range ranges {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
