package compile

import (
	"fmt"
	"regexp"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile/plugin"
)

// combined finds the variables of hash_on vars_combinations.
var combined = regexp.MustCompile(`\$(\w+|\{\w+\})`)

// hashPolicy says what chash hashes. A request that has nothing to hash goes to
// any node.
func (u *upstream) hashPolicy() []*routev3.RouteAction_HashPolicy {
	one := func(p *routev3.RouteAction_HashPolicy) []*routev3.RouteAction_HashPolicy {
		return []*routev3.RouteAction_HashPolicy{p}
	}
	key := u.GetKey()
	if key == "" && u.GetHashOn() != "consumer" && u.GetHashOn() != "" && u.GetHashOn() != "vars" {
		u.problem(resource.CodeRequired, "key", "chash needs a key", "")
		return nil
	}
	switch u.GetHashOn() {
	case "", "vars":
		if key == "" {
			key = "remote_addr"
		}
		p, ok := hashVariable(key)
		if !ok {
			u.problem(resource.CodeUnsupported, "key", fmt.Sprintf("Envoy cannot hash the variable %q", key), hashHint)
			return nil
		}
		return one(p)
	case "header":
		return one(hashHeader(strings.ReplaceAll(lower(strings.TrimPrefix(key, "http_")), "_", "-")))
	case "cookie":
		return one(hashCookie(strings.TrimPrefix(key, "cookie_")))
	case "consumer":
		return one(hashHeader(plugin.ConsumerHeader))
	case "vars_combinations":
		var policies []*routev3.RouteAction_HashPolicy
		if rest := combined.ReplaceAllString(key, ""); strings.Contains(rest, "$") {
			u.problem(resource.CodeInvalid, "key", fmt.Sprintf("%q is not a combination of variables", key), "for example $remote_addr$http_x_tenant")
			return nil
		}
		for _, v := range combined.FindAllString(key, -1) {
			v = strings.Trim(v, "${}")
			p, ok := hashVariable(v)
			if !ok {
				u.problem(resource.CodeUnsupported, "key", fmt.Sprintf("Envoy cannot hash the variable %q", v), hashHint)
				return nil
			}
			policies = append(policies, p)
		}
		if len(policies) == 0 {
			u.problem(resource.CodeInvalid, "key", "the combination names no variable", "for example $remote_addr$http_x_tenant")
		}
		return policies
	}
	u.problem(resource.CodeInvalid, "hash_on", fmt.Sprintf("hash_on %q does not exist", u.GetHashOn()), "vars, header, cookie, consumer or vars_combinations")
	return nil
}

const hashHint = "supported are remote_addr, uri, request_uri, query_string, host, arg_<query parameter>, http_<header> and cookie_<name>"

func hashVariable(name string) (*routev3.RouteAction_HashPolicy, bool) {
	switch name {
	case "remote_addr":
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_ConnectionProperties_{
			ConnectionProperties: &routev3.RouteAction_HashPolicy_ConnectionProperties{SourceIp: true},
		}}, true
	case "uri":
		p := hashHeader(":path")
		p.GetHeader().RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{Regex: `\?.*`}}
		return p, true
	case "query_string":
		p := hashHeader(":path")
		p.GetHeader().RegexRewrite = &matcherv3.RegexMatchAndSubstitute{Pattern: &matcherv3.RegexMatcher{Regex: `^[^?]*\??`}}
		return p, true
	}
	if param, found := strings.CutPrefix(name, "arg_"); found && param != "" {
		return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_QueryParameter_{
			QueryParameter: &routev3.RouteAction_HashPolicy_QueryParameter{Name: param},
		}}, true
	}
	if cookie, found := strings.CutPrefix(name, "cookie_"); found && cookie != "" {
		return hashCookie(cookie), true
	}
	if header, ok := headerOf(name); ok {
		return hashHeader(header), true
	}
	return nil, false
}

func hashHeader(name string) *routev3.RouteAction_HashPolicy {
	return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Header_{
		Header: &routev3.RouteAction_HashPolicy_Header{HeaderName: name},
	}}
}

func hashCookie(name string) *routev3.RouteAction_HashPolicy {
	return &routev3.RouteAction_HashPolicy{PolicySpecifier: &routev3.RouteAction_HashPolicy_Cookie_{
		Cookie: &routev3.RouteAction_HashPolicy_Cookie{Name: name},
	}}
}
