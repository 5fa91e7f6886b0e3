package compile

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"slices"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

const (
	// maxAlternatives bounds the routes that one route becomes because of negated
	// conditions: two for each.
	maxAlternatives = 16
	// maxGRPCRegex bounds a regular expression as it is sent. RE2 bounds the memory
	// of one, Go's regexp does not, and what RE2 refuses ends a grpc-js process.
	maxGRPCRegex = 1000
)

// grpcMatch collects the conditions of one route. Each of any is a choice of which
// at least one header matcher must hold.
type grpcMatch struct {
	c   *grpcCompiler
	key resource.Key
	any [][]*routev3.HeaderMatcher
	// never is set when no call can fulfil the conditions, or one of them cannot be
	// judged by a client.
	never bool
}

// conditions returns the conditions of a route as alternatives, each a list of
// header matchers that must all hold; false when the route must be left out.
func (c *grpcCompiler) conditions(key resource.Key, r *musterv1.Route) ([][]*routev3.HeaderMatcher, bool) {
	m := &grpcMatch{c: c, key: key}
	if methods := r.GetMethods(); len(methods) > 0 && !slices.Contains(methods, "POST") {
		m.leaveOut("methods", "gRPC calls are POST, so the route can take none")
	}
	if len(r.GetRemoteAddrs()) > 0 {
		m.leaveOut("remote_addrs", "a proxyless gRPC client does not know its own address as others see it: the route is left out")
	}
	vars, _ := resource.ParseVars(r.GetVars())
	m.all(vars)
	if n := 1 << min(len(m.any), 30); !m.never && n > maxAlternatives {
		m.leaveOut("vars", fmt.Sprintf("more than %d negated conditions would become too many routes for gRPC clients: the route is left out", 4))
	}
	if m.never {
		return nil, false
	}
	alternatives := [][]*routev3.HeaderMatcher{nil}
	for _, choice := range m.any {
		var next [][]*routev3.HeaderMatcher
		for _, a := range alternatives {
			for _, h := range choice {
				next = append(next, append(slices.Clone(a), h))
			}
		}
		alternatives = next
	}
	return alternatives, true
}

func (m *grpcMatch) leaveOut(path, message string) {
	m.never = true
	m.c.warn(m.key, path, message, "")
}

func (m *grpcMatch) all(vars []resource.Condition) {
	for _, v := range vars {
		if v.Logic != "" {
			m.all(v.All) // AND: others have no compiled route
			continue
		}
		m.one(v)
	}
}

// one adds one comparison.
func (m *grpcMatch) one(v resource.Condition) {
	path := "vars" + v.Path
	value, negated := matcher{}, v.Negated
	switch v.Op {
	case "==":
		value.values = []string{text(v.Value)}
	case "~=":
		value.values, negated = []string{text(v.Value)}, !negated
	case "in":
		for _, one := range v.Value.GetListValue().GetValues() {
			value.values = append(value.values, text(one))
		}
	case "~~":
		value.regex = v.Value.GetStringValue()
	case "~*":
		value.regex = "(?i)" + v.Value.GetStringValue()
	default: // ipmatch: others have no compiled route
		m.leaveOut(path, "a proxyless gRPC client does not know its own address as others see it: the route is left out")
		return
	}
	header, isHeader := headerOf(v.Var)
	switch {
	case header == ":method":
		if value.matches("POST") == negated {
			m.leaveOut(path, "gRPC calls are POST, so the route can take none")
		}
	case strings.HasPrefix(v.Var, "arg_"):
		// A call has no query, and what is missing is unequal to everything. A query
		// matcher must not be sent either: with one grpc-js hangs calls.
		if !negated {
			m.leaveOut(path, "gRPC calls have no query, so the route can take none")
		}
	case !isHeader || strings.HasPrefix(header, ":"):
		m.leaveOut(path, fmt.Sprintf("gRPC clients cannot match the variable %q: the route is left out", v.Var))
	case hiddenHeader(header):
		m.leaveOut(path, fmt.Sprintf("gRPC clients cannot match the header %s, which is binary or gRPC's own: the route is left out", header))
	default:
		m.header(path, header, value, negated)
	}
}

// hiddenHeader tells headers that a client does not see when it chooses a route.
func hiddenHeader(name string) bool {
	return strings.HasSuffix(name, "-bin") || strings.HasPrefix(name, "grpc-") ||
		slices.Contains([]string{"host", "te", "user-agent", "connection"}, name)
}

// header adds a condition on a header. Missing is unequal: of a negated
// condition the alternative is the header's absence, for clients do not agree on
// whether an inverted matcher holds without the header.
func (m *grpcMatch) header(path, name string, value matcher, negated bool) {
	h := &routev3.HeaderMatcher{Name: name, InvertMatch: negated}
	if len(value.values) == 1 {
		//lint:ignore SA1019 older clients refuse string_match
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_ExactMatch{ExactMatch: value.values[0]}
	} else {
		regex, ok := value.grpcRegex()
		if !ok {
			m.leaveOut(path, "the regular expression is too large for gRPC clients: the route is left out")
			return
		}
		//lint:ignore SA1019 older clients refuse string_match
		h.HeaderMatchSpecifier = &routev3.HeaderMatcher_SafeRegexMatch{SafeRegexMatch: &matcherv3.RegexMatcher{Regex: regex}}
	}
	choice := []*routev3.HeaderMatcher{h}
	if negated {
		choice = append(choice, &routev3.HeaderMatcher{
			Name: name, InvertMatch: true,
			HeaderMatchSpecifier: &routev3.HeaderMatcher_PresentMatch{PresentMatch: true},
		})
	}
	m.any = append(m.any, choice)
}

// grpcRegex is a regex of the whole value, written plainly and in a group of its
// own: grpc-js puts ^ and $ around it as it is, so that an alternative at the top
// would lose one of them. It is false for one that RE2 might find too large.
func (m matcher) grpcRegex() (string, bool) {
	regex := found(m.regex)
	if m.values != nil {
		regex = alternatives(m.values)
	}
	re, err := syntax.Parse(regex, syntax.Perl)
	if err != nil {
		return "", false // unreachable: it was validated
	}
	plain := re.Simplify().String()
	return "(?:" + plain + ")", len(plain) <= maxGRPCRegex
}

// matches tells whether a value that is known fulfils the matcher.
func (m matcher) matches(value string) bool {
	if m.values != nil {
		return slices.Contains(m.values, value)
	}
	re, err := regexp.Compile(m.regex)
	return err == nil && re.MatchString(value)
}
