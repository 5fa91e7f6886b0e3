package compile

import (
	"fmt"
	"regexp"
	"regexp/syntax"
	"strconv"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/resource"
)

// addAll adds conditions that must all hold.
func (c *conditions) addAll(vars []resource.Condition) resource.Problems {
	var problems resource.Problems
	for _, v := range vars {
		switch v.Logic {
		case "":
			if p := c.add(v); p != nil {
				problems = append(problems, *p)
			}
		case "AND":
			problems = append(problems, c.addAll(v.All)...)
		default:
			problems = append(problems, resource.Problem{
				Path: v.Path + "[0]", Code: resource.CodeUnsupported,
				Message: v.Logic + " cannot be honoured: Envoy's route matchers must all hold",
				Hint:    "make a route of each alternative",
			})
		}
	}
	return problems
}

// add adds one comparison.
func (c *conditions) add(v resource.Condition) *resource.Problem {
	at := 2
	if v.Negated {
		at = 3
	}
	valuePath := fmt.Sprintf("%s[%d]", v.Path, at)
	unsupported := func(path, message, hint string) *resource.Problem {
		return &resource.Problem{Path: path, Code: resource.CodeUnsupported, Message: message, Hint: hint}
	}
	negated := v.Negated
	var m matcher
	switch v.Op {
	case "==":
		m.values = []string{text(v.Value)}
	case "~=":
		m.values, negated = []string{text(v.Value)}, !negated
	case "in":
		for _, one := range v.Value.GetListValue().GetValues() {
			m.values = append(m.values, text(one))
		}
	case "~~":
		m.regex = v.Value.GetStringValue()
	case "~*":
		m.regex = "(?i)" + v.Value.GetStringValue()
	case "ipmatch":
		return c.addIPMatch(v, valuePath, negated)
	default:
		return unsupported(fmt.Sprintf("%s[%d]", v.Path, at-1), fmt.Sprintf("the operator %s cannot be honoured by Envoy's route matchers", v.Op),
			"supported are == ~= ~~ ~* in and, for remote_addr, ipmatch, each also after !")
	}
	c.n++
	switch name, value, _ := strings.Cut(v.Var, "_"); {
	case name == "arg" && value != "":
		return c.addQuery(value, m, negated, valuePath)
	case name == "cookie" && value != "":
		c.cookies = append(c.cookies, &routev3.CookieMatcher{Name: value, StringMatch: m.whole(), InvertMatch: negated})
		return nil
	case v.Var == "uri":
		return c.addPath(m, negated, valuePath)
	}
	header, ok := headerOf(v.Var)
	if !ok {
		return unsupported(v.Path+"[0]", fmt.Sprintf("the variable %q cannot be matched by Envoy's routes", v.Var),
			"supported are http_<header>, arg_<query parameter>, cookie_<name>, uri, request_uri, host and request_method, and remote_addr with ipmatch")
	}
	c.header(header, m.whole(), negated)
	return nil
}

// header adds a matcher. A header that is missing is unequal to everything.
func (c *conditions) header(name string, m *matcherv3.StringMatcher, negated bool) {
	c.headers = append(c.headers, &routev3.HeaderMatcher{
		Name:                      name,
		HeaderMatchSpecifier:      &routev3.HeaderMatcher_StringMatch{StringMatch: m},
		InvertMatch:               negated,
		TreatMissingHeaderAsEmpty: negated,
	})
}

func (c *conditions) addIPMatch(v resource.Condition, valuePath string, negated bool) *resource.Problem {
	if v.Var != "remote_addr" || negated {
		return &resource.Problem{
			Path: v.Path, Code: resource.CodeUnsupported,
			Message: "ipmatch can be honoured for remote_addr only, and not negated", Hint: "the plugin ip-restriction has a blacklist",
		}
	}
	values := v.Value.GetListValue().GetValues()
	if values == nil {
		values = []*structpb.Value{v.Value}
	}
	addrs := make([]string, len(values))
	for i, one := range values {
		addrs[i] = one.GetStringValue()
	}
	state, problems := remoteAddrs(valuePath, addrs)
	if len(problems) > 0 {
		return &problems[0]
	}
	c.state = append(c.state, state)
	c.n++
	return nil
}

// text is a scalar as a request carries it.
func text(v *structpb.Value) string {
	switch k := v.GetKind().(type) {
	case *structpb.Value_StringValue:
		return k.StringValue
	case *structpb.Value_NumberValue:
		return strconv.FormatFloat(k.NumberValue, 'f', -1, 64)
	case *structpb.Value_BoolValue:
		return strconv.FormatBool(k.BoolValue)
	}
	return ""
}

// headerOf returns the header that holds one of nginx's variables.
func headerOf(variable string) (string, bool) {
	switch variable {
	case "host", "http_host":
		return ":authority", true
	case "request_method":
		return ":method", true
	case "request_uri":
		return ":path", true
	}
	name, found := strings.CutPrefix(variable, "http_")
	if !found || name == "" {
		return "", false
	}
	return strings.ReplaceAll(lower(name), "_", "-"), true
}

// addQuery matches a query parameter. Envoy has no inverted query matcher, so
// that a negated one looks for the parameter in the whole path.
func (c *conditions) addQuery(name string, m matcher, negated bool, valuePath string) *resource.Problem {
	if !negated {
		c.query = append(c.query, &routev3.QueryParameterMatcher{
			Name:                         name,
			QueryParameterMatchSpecifier: &routev3.QueryParameterMatcher_StringMatch{StringMatch: m.whole()},
		})
		return nil
	}
	value, problem := m.inside('&', valuePath)
	if problem == nil {
		c.headers = append(c.headers, &routev3.HeaderMatcher{
			Name: ":path",
			HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{
				StringMatch: matching(`[^?]*\?(?:.*&)?` + regexp.QuoteMeta(name) + `=(?:` + value + `)(?:&.*)?`),
			},
			InvertMatch: true,
		})
	}
	return problem
}

// addPath matches the path without the query, which Envoy keeps in one header.
func (c *conditions) addPath(m matcher, negated bool, valuePath string) *resource.Problem {
	value, problem := m.inside('?', valuePath)
	if problem == nil {
		c.header(":path", matching(`(?:`+value+`)(?:\?.*)?`), negated)
	}
	return problem
}

// inside is a regex of the complete value where it stands in a longer text, up
// to the separator.
func (m matcher) inside(separator rune, valuePath string) (string, *resource.Problem) {
	if m.values != nil {
		return alternatives(m.values), nil
	}
	value, err := within(m.regex, separator)
	if err != nil {
		return "", &resource.Problem{
			Path: valuePath, Code: resource.CodeUnsupported,
			Message: "the regular expression cannot be honoured here: " + err.Error(),
			Hint:    "use a plainer one, or == or in",
		}
	}
	return value, nil
}

// within rewrites a regex that is searched for in a value into one that matches
// the whole value and never reaches across the separator that ends it.
func within(regex string, separator rune) (string, error) {
	re, err := syntax.Parse(regex, syntax.Perl)
	if err != nil {
		return "", err
	}
	re = re.Simplify()
	any := fmt.Sprintf("[^%s]*", regexp.QuoteMeta(string(separator)))
	before, after := any, any
	parts := []*syntax.Regexp{re}
	if re.Op == syntax.OpConcat {
		parts = re.Sub
	}
	if len(parts) > 0 && parts[0].Op == syntax.OpBeginText {
		before, parts = "", parts[1:]
	}
	if n := len(parts); n > 0 && parts[n-1].Op == syntax.OpEndText {
		after, parts = "", parts[:n-1]
	}
	var b strings.Builder
	b.WriteString(before)
	for _, p := range parts {
		if err := confine(p, separator); err != nil {
			return "", err
		}
		b.WriteString("(?:" + p.String() + ")")
	}
	b.WriteString(after)
	return b.String(), nil
}

// confine takes the separator out of everything that a regex can match.
func confine(re *syntax.Regexp, separator rune) error {
	switch re.Op {
	case syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		re.Op = syntax.OpCharClass
		re.Rune = []rune{0, separator - 1, separator + 1, 0x10ffff}
	case syntax.OpCharClass:
		re.Rune = classWithout(re.Rune, separator)
		if len(re.Rune) == 0 {
			return fmt.Errorf("it asks for %q, which ends the value", separator)
		}
	case syntax.OpLiteral:
		for _, r := range re.Rune {
			if r == separator {
				return fmt.Errorf("it asks for %q, which ends the value", separator)
			}
		}
	case syntax.OpBeginLine, syntax.OpEndLine, syntax.OpBeginText, syntax.OpEndText, syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		return fmt.Errorf("it has an anchor (%s) other than ^ at its start and $ at its end", re)
	}
	for _, sub := range re.Sub {
		if err := confine(sub, separator); err != nil {
			return err
		}
	}
	return nil
}

func classWithout(class []rune, separator rune) []rune {
	var out []rune
	for i := 0; i+1 < len(class); i += 2 {
		lo, hi := class[i], class[i+1]
		if separator < lo || separator > hi {
			out = append(out, lo, hi)
			continue
		}
		if lo < separator {
			out = append(out, lo, separator-1)
		}
		if separator < hi {
			out = append(out, separator+1, hi)
		}
	}
	return out
}
