package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// route is a compiled Route.
type route struct {
	name  string
	match routeMatch

	perFilter  map[string]perFilter
	onRequest  mutations
	onResponse mutations
	rateLimits []rateLimit

	// Exactly one of these.
	forward  *forward
	direct   *reply
	redirect *redirect
}

// routeMatch is a compiled RouteMatch.
type routeMatch struct {
	kind      pathKind
	path      string // lower case when fold
	fold      bool
	regex     *regexp.Regexp
	headers   []headerMatch
	query     []queryMatch
	cookies   []cookieMatch
	addresses []addressMatch
}

type pathKind int

const (
	pathPrefix pathKind = iota
	pathExact
	pathRegex
	pathSeparatedPrefix
)

// forward is a compiled RouteAction.
type forward struct {
	cluster  string
	weighted []weightedCluster
	total    uint32

	prefixRewrite string
	regexRewrite  *regexRewrite

	hostLiteral string
	autoHost    bool

	timeout     time.Duration // 0 is none
	idleTimeout time.Duration // of the route; 0 is none
	hasIdle     bool          // whether the route says one
	retry       *retryPolicy
	hash        []hashPolicy
	upgrades    map[string]bool // enabled, by lower-case type
}

type weightedCluster struct {
	name                  string
	weight                uint32
	onRequest, onResponse mutations
}

type regexRewrite struct {
	pattern      *regexp.Regexp
	substitution string // in the syntax of package regexp
}

// The timeout of a route that says none, as in Envoy.
const defaultRouteTimeout = 15 * time.Second

func (g *Gateway) newRoute(m *routev3.Route) (*route, error) {
	r := &route{name: m.GetName()}
	var err error
	if r.match, err = newRouteMatch(m.GetMatch()); err != nil {
		return nil, fmt.Errorf("match: %w", err)
	}
	if r.perFilter, err = g.newPerFilters(m.GetTypedPerFilterConfig()); err != nil {
		return nil, err
	}
	if r.onRequest, err = newHeaderOptions(m.GetRequestHeadersToRemove(), m.GetRequestHeadersToAdd()); err != nil {
		return nil, fmt.Errorf("request headers: %w", err)
	}
	if r.onResponse, err = newHeaderOptions(m.GetResponseHeadersToRemove(), m.GetResponseHeadersToAdd()); err != nil {
		return nil, fmt.Errorf("response headers: %w", err)
	}
	switch a := m.GetAction().(type) {
	case *routev3.Route_Route:
		if r.forward, err = newForward(a.Route); err != nil {
			return nil, fmt.Errorf("route: %w", err)
		}
		r.rateLimits, err = newRateLimits(a.Route.GetRateLimits())
	case *routev3.Route_DirectResponse:
		r.direct = &reply{status: int(a.DirectResponse.GetStatus()), body: dataOf(a.DirectResponse.GetBody())}
	case *routev3.Route_Redirect:
		r.redirect = newRedirect(a.Redirect)
	default:
		err = errors.New("it has no action")
	}
	return r, err
}

func newRouteMatch(m *routev3.RouteMatch) (routeMatch, error) {
	var out routeMatch
	out.fold = m.GetCaseSensitive() != nil && !m.GetCaseSensitive().GetValue()
	switch p := m.GetPathSpecifier().(type) {
	case *routev3.RouteMatch_Prefix:
		out.kind, out.path = pathPrefix, p.Prefix
	case *routev3.RouteMatch_Path:
		out.kind, out.path = pathExact, p.Path
	case *routev3.RouteMatch_PathSeparatedPrefix:
		out.kind, out.path = pathSeparatedPrefix, p.PathSeparatedPrefix
	case *routev3.RouteMatch_SafeRegex:
		out.kind = pathRegex
		re, err := newRegex(p.SafeRegex)
		if err != nil {
			return out, err
		}
		out.regex = re
	default:
		return out, errors.New("it has no path")
	}
	if out.fold {
		out.path = strings.ToLower(out.path)
	}
	var err error
	if out.headers, err = newHeaderMatches(m.GetHeaders()); err != nil {
		return out, err
	}
	if out.query, err = newQueryMatches(m.GetQueryParameters()); err != nil {
		return out, err
	}
	if out.cookies, err = newCookieMatches(m.GetCookies()); err != nil {
		return out, err
	}
	out.addresses, err = newAddressMatches(m.GetFilterState())
	return out, err
}

// matches reports whether a request is for the route.
func (m *routeMatch) matches(x *exchange) bool {
	return m.matchesPath(x.path) && allHeaders(m.headers, x) && m.matchesQuery(x.query) && m.matchesRest(x)
}

func (m *routeMatch) matchesPath(path string) bool {
	if m.fold {
		path = strings.ToLower(path)
	}
	switch m.kind {
	case pathExact:
		return path == m.path
	case pathRegex:
		return m.regex.MatchString(path)
	case pathSeparatedPrefix:
		return strings.HasPrefix(path, m.path) && (len(path) == len(m.path) || path[len(m.path)] == '/')
	}
	return strings.HasPrefix(path, m.path)
}

func (m *routeMatch) matchesQuery(query string) bool {
	for i := range m.query {
		if !m.query[i].matches(query) {
			return false
		}
	}
	return true
}

func (m *routeMatch) matchesRest(x *exchange) bool {
	for i := range m.cookies {
		if !m.cookies[i].matches(x) {
			return false
		}
	}
	for i := range m.addresses {
		if !m.addresses[i].matches(x) {
			return false
		}
	}
	return true
}

func newForward(m *routev3.RouteAction) (*forward, error) {
	f := &forward{
		cluster: m.GetCluster(), prefixRewrite: m.GetPrefixRewrite(),
		hostLiteral: m.GetHostRewriteLiteral(), autoHost: m.GetAutoHostRewrite().GetValue(),
		timeout: defaultRouteTimeout,
	}
	if m.GetTimeout() != nil {
		f.timeout = m.GetTimeout().AsDuration()
	}
	if m.GetIdleTimeout() != nil {
		f.hasIdle, f.idleTimeout = true, m.GetIdleTimeout().AsDuration()
	}
	var err error
	if f.regexRewrite, err = newRegexRewrite(m.GetRegexRewrite()); err != nil {
		return nil, fmt.Errorf("regex_rewrite: %w", err)
	}
	if err := f.setWeighted(m.GetWeightedClusters()); err != nil {
		return nil, fmt.Errorf("weighted_clusters: %w", err)
	}
	if f.cluster == "" && f.weighted == nil {
		return nil, errors.New("it names no cluster")
	}
	if f.retry, err = newRetryPolicy(m.GetRetryPolicy()); err != nil {
		return nil, fmt.Errorf("retry_policy: %w", err)
	}
	if f.hash, err = newHashPolicies(m.GetHashPolicy()); err != nil {
		return nil, fmt.Errorf("hash_policy: %w", err)
	}
	for _, u := range m.GetUpgradeConfigs() {
		if f.upgrades == nil {
			f.upgrades = map[string]bool{}
		}
		f.upgrades[strings.ToLower(u.GetUpgradeType())] = u.GetEnabled() == nil || u.GetEnabled().GetValue()
	}
	return f, nil
}

func (f *forward) setWeighted(m *routev3.WeightedCluster) error {
	for _, c := range m.GetClusters() {
		w := weightedCluster{name: c.GetName(), weight: c.GetWeight().GetValue()}
		var err error
		if w.onRequest, err = newHeaderOptions(c.GetRequestHeadersToRemove(), c.GetRequestHeadersToAdd()); err != nil {
			return err
		}
		if w.onResponse, err = newHeaderOptions(c.GetResponseHeadersToRemove(), c.GetResponseHeadersToAdd()); err != nil {
			return err
		}
		f.weighted = append(f.weighted, w)
		f.total += w.weight
	}
	if m != nil && f.total == 0 {
		return errors.New("the sum of the weights is 0")
	}
	return nil
}

// choose returns the cluster for one request, and its own header changes.
func (f *forward) choose() (string, *weightedCluster) {
	if f.weighted == nil {
		return f.cluster, nil
	}
	n := rand.Uint32N(f.total)
	for i := range f.weighted {
		w := &f.weighted[i]
		if n < w.weight {
			return w.name, w
		}
		n -= w.weight
	}
	return f.weighted[0].name, &f.weighted[0]
}

func newRegexRewrite(m *matcherv3.RegexMatchAndSubstitute) (*regexRewrite, error) {
	if m == nil {
		return nil, nil
	}
	re, err := regexp.Compile(m.GetPattern().GetRegex())
	if err != nil {
		return nil, err
	}
	sub, err := goSubstitution(m.GetSubstitution(), re.NumSubexp())
	return &regexRewrite{pattern: re, substitution: sub}, err
}

// goSubstitution turns RE2's `\1` into `${1}`.
func goSubstitution(s string, groups int) (string, error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '$':
			b.WriteString("$$")
		case c != '\\':
			b.WriteByte(c)
		case i+1 < len(s) && s[i+1] == '\\':
			b.WriteByte('\\')
			i++
		case i+1 < len(s) && s[i+1] >= '0' && s[i+1] <= '9':
			if int(s[i+1]-'0') > groups {
				return "", fmt.Errorf("substitution %q refers to a group that the pattern does not have", s)
			}
			fmt.Fprintf(&b, "${%c}", s[i+1])
			i++
		default:
			return "", fmt.Errorf("substitution %q has a stray backslash", s)
		}
	}
	return b.String(), nil
}

// rewritePath changes the path of a request as the route says.
func (r *route) rewritePath(x *exchange) {
	f := r.forward
	switch {
	case f.regexRewrite != nil:
		x.path = f.regexRewrite.pattern.ReplaceAllString(x.path, f.regexRewrite.substitution)
	case f.prefixRewrite != "":
		switch r.match.kind {
		case pathPrefix, pathSeparatedPrefix:
			x.path = f.prefixRewrite + x.path[len(r.match.path):]
		case pathExact, pathRegex:
			x.path = f.prefixRewrite
		}
	}
}
