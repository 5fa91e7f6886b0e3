package gateway

import (
	"errors"
	"fmt"
	"net/http"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"
)

// rbacFilter admits or denies requests by the rules of the route, or its own.
type rbacFilter struct {
	rules *rbacRules
}

// rbacRules are compiled RBAC rules; nil admits everything.
type rbacRules struct {
	allow    bool // what matches is admitted; otherwise it is denied
	policies []rbacPolicy
}

type rbacPolicy struct {
	permissions, principals []condition
}

// condition is a predicate on a request.
type condition func(x *exchange) bool

func newRBACFilter(m *rbacv3.RBAC) (*rbacFilter, error) {
	rules, err := newRBACRules(m.GetRules())
	return &rbacFilter{rules: rules}, err
}

func newRBACRules(m *rbacconfigv3.RBAC) (*rbacRules, error) {
	if m == nil {
		return nil, nil
	}
	r := &rbacRules{}
	switch m.GetAction() {
	case rbacconfigv3.RBAC_ALLOW:
		r.allow = true
	case rbacconfigv3.RBAC_DENY:
	default:
		return nil, fmt.Errorf("rbac: action %s is not supported", m.GetAction())
	}
	for name, p := range m.GetPolicies() {
		policy, err := newRBACPolicy(p)
		if err != nil {
			return nil, fmt.Errorf("rbac policy %q: %w", name, err)
		}
		r.policies = append(r.policies, policy)
	}
	return r, nil
}

func newRBACPolicy(p *rbacconfigv3.Policy) (out rbacPolicy, err error) {
	if out.permissions, err = conditions(p.GetPermissions(), newPermission); err != nil {
		return out, err
	}
	out.principals, err = conditions(p.GetPrincipals(), newPrincipal)
	return out, err
}

func conditions[T any](list []T, compile func(T) (condition, error)) ([]condition, error) {
	var out []condition
	for _, m := range list {
		c, err := compile(m)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

var errRBACRule = errors.New("rule is not supported")

func newPermission(m *rbacconfigv3.Permission) (condition, error) {
	switch rule := m.GetRule().(type) {
	case *rbacconfigv3.Permission_Any:
		return always, nil
	case *rbacconfigv3.Permission_AndRules:
		list, err := conditions(rule.AndRules.GetRules(), newPermission)
		return allOf(list), err
	case *rbacconfigv3.Permission_OrRules:
		list, err := conditions(rule.OrRules.GetRules(), newPermission)
		return anyOf(list), err
	case *rbacconfigv3.Permission_NotRule:
		inner, err := newPermission(rule.NotRule)
		return not(inner), err
	case *rbacconfigv3.Permission_Header:
		match, err := newHeaderMatch(rule.Header)
		return match.matches, err
	}
	return nil, fmt.Errorf("permission %T: %w", m.GetRule(), errRBACRule)
}

func newPrincipal(m *rbacconfigv3.Principal) (condition, error) {
	switch id := m.GetIdentifier().(type) {
	case *rbacconfigv3.Principal_Any:
		return always, nil
	case *rbacconfigv3.Principal_AndIds:
		list, err := conditions(id.AndIds.GetIds(), newPrincipal)
		return allOf(list), err
	case *rbacconfigv3.Principal_OrIds:
		list, err := conditions(id.OrIds.GetIds(), newPrincipal)
		return anyOf(list), err
	case *rbacconfigv3.Principal_NotId:
		inner, err := newPrincipal(id.NotId)
		return not(inner), err
	case *rbacconfigv3.Principal_RemoteIp:
		prefix, err := newPrefix(id.RemoteIp)
		return func(x *exchange) bool { return prefix.Contains(x.client) }, err
	case *rbacconfigv3.Principal_DirectRemoteIp:
		prefix, err := newPrefix(id.DirectRemoteIp)
		return func(x *exchange) bool { return prefix.Contains(x.peer.Addr()) }, err
	case *rbacconfigv3.Principal_FilterState:
		return newStateMatch(id.FilterState)
	}
	return nil, fmt.Errorf("principal %T: %w", m.GetIdentifier(), errRBACRule)
}

// newStateMatch compiles a matcher of a text that the connection has as filter state.
func newStateMatch(m *matcherv3.FilterStateMatcher) (condition, error) {
	if m.GetStringMatch() == nil {
		return nil, fmt.Errorf("filter_state %q: only string_match is supported here", m.GetKey())
	}
	match, err := newStringMatch(m.GetStringMatch())
	return func(x *exchange) bool {
		text, ok := x.chain.textState(m.GetKey())
		return ok && match(text)
	}, err
}

func always(*exchange) bool { return true }

func not(c condition) condition { return func(x *exchange) bool { return !c(x) } }

func allOf(list []condition) condition {
	return func(x *exchange) bool {
		for _, c := range list {
			if !c(x) {
				return false
			}
		}
		return true
	}
}

func anyOf(list []condition) condition {
	return func(x *exchange) bool {
		for _, c := range list {
			if c(x) {
				return true
			}
		}
		return false
	}
}

// admits reports whether a request passes.
func (r *rbacRules) admits(x *exchange) bool {
	if r == nil {
		return true
	}
	for i := range r.policies {
		p := &r.policies[i]
		if anyOf(p.permissions)(x) && anyOf(p.principals)(x) {
			return r.allow
		}
	}
	return !r.allow
}

func (f *rbacFilter) begin(override any) activeFilter {
	if rules, ok := override.(*rbacRules); ok {
		return rules
	}
	return f.rules
}

func (r *rbacRules) request(x *exchange) *reply {
	if r.admits(x) {
		return nil
	}
	return &reply{status: http.StatusForbidden, body: "RBAC: access denied"}
}

func (r *rbacRules) response(*exchange, http.Header) {}
