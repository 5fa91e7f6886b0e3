package compile

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	xdscorev3 "github.com/cncf/xds/go/xds/core/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/wrapperspb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile/plugin"
)

// conditions are what a route demands of a request beyond host and path.
type conditions struct {
	headers []*routev3.HeaderMatcher
	query   []*routev3.QueryParameterMatcher
	cookies []*routev3.CookieMatcher
	state   []*matcherv3.FilterStateMatcher
	// n counts the conditions as the user wrote them.
	n int
}

// apply writes the conditions into a match.
func (c *conditions) apply(m *routev3.RouteMatch) {
	m.Headers, m.QueryParameters, m.Cookies, m.FilterState = c.headers, c.query, c.cookies, c.state
}

func exactly(s string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: s}}
}

func matching(regex string) *matcherv3.StringMatcher {
	return &matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_SafeRegex{
		SafeRegex: &matcherv3.RegexMatcher{Regex: regex},
	}}
}

// oneOf matches any of the strings.
func oneOf(values []string) *matcherv3.StringMatcher {
	if len(values) == 1 {
		return exactly(values[0])
	}
	return matching(alternatives(values))
}

func alternatives(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = regexp.QuoteMeta(v)
	}
	return strings.Join(quoted, "|")
}

// conditionsOf translates methods, vars and remote_addrs of a route.
func conditionsOf(r *musterv1.Route) (*conditions, resource.Problems) {
	c := &conditions{}
	var problems resource.Problems
	if methods := r.GetMethods(); len(methods) > 0 {
		methods = slices.Clone(methods)
		slices.Sort(methods)
		c.headers = append(c.headers, &routev3.HeaderMatcher{
			Name:                 ":method",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: oneOf(slices.Compact(methods))},
		})
		c.n++
	}
	vars, found := resource.ParseVars(r.GetVars())
	problems = append(problems, found...)
	if len(found) == 0 {
		problems = append(problems, c.addAll(vars)...)
	}
	for i := range problems {
		problems[i].Path = "vars" + problems[i].Path
	}
	if len(r.GetRemoteAddrs()) > 0 {
		state, wrong := remoteAddrs("remote_addrs", r.GetRemoteAddrs())
		problems = append(problems, wrong...)
		c.state = append(c.state, state)
		c.n++
	}
	return c, problems
}

// remoteAddrs matches the client's address.
func remoteAddrs(path string, addrs []string) (*matcherv3.FilterStateMatcher, resource.Problems) {
	var problems resource.Problems
	ranges := make([]*xdscorev3.CidrRange, 0, len(addrs))
	for i, a := range addrs {
		r, err := cidr(a)
		if err != nil {
			problems = append(problems, resource.Problem{
				Path: fmt.Sprintf("%s[%d]", path, i), Code: resource.CodeInvalid,
				Message: err.Error(), Hint: "an address or a range such as 10.0.0.0/8",
			})
			continue
		}
		ranges = append(ranges, r)
	}
	return &matcherv3.FilterStateMatcher{
		Key:     RemoteAddrKey,
		Matcher: &matcherv3.FilterStateMatcher_AddressMatch{AddressMatch: &matcherv3.AddressMatcher{Ranges: ranges}},
	}, problems
}

// matcher is what a condition demands of a variable's value: to be one of
// strings, or to hold what a regex finds.
type matcher struct {
	values []string
	regex  string
}

// cidr reads an address or a range.
func cidr(s string) (*xdscorev3.CidrRange, error) {
	p, err := plugin.ParseRange(s)
	if err != nil {
		return nil, fmt.Errorf("%q is neither an IP address nor a range", s)
	}
	return &xdscorev3.CidrRange{
		AddressPrefix: p.Addr().String(),
		PrefixLen:     wrapperspb.UInt32(uint32(p.Bits())),
	}, nil
}

// whole is a matcher of the complete value.
func (m matcher) whole() *matcherv3.StringMatcher {
	if m.values != nil {
		return oneOf(m.values)
	}
	return matching(found(m.regex))
}

// found turns a regex that is searched for into one that matches the whole text.
func found(regex string) string { return `(?s:.*)(?:` + regex + `)(?s:.*)` }
