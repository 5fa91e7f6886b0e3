package compile

import (
	"maps"
	"slices"
	"strings"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	matcherv3 "github.com/envoyproxy/go-control-plane/envoy/type/matcher/v3"

	"github.com/musterhq/muster/resource"
)

const clientCertificatesType = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"

// clientCertificates is the configuration of the filter of that name. A handshake
// names a host, and so does each request after it, which need not be the same. Where
// the certificate object of the request's host asks for client certificates, the
// handshake must have been that object's.
func clientCertificates(owners map[string]resource.Key, demanding map[string][]string) Resource {
	config := &rbacv3.RBAC{}
	var origins []resource.Key
	for _, id := range slices.Sorted(maps.Keys(demanding)) {
		if config.Rules == nil {
			config.Rules = &rbacconfigv3.RBAC{Action: rbacconfigv3.RBAC_DENY, Policies: map[string]*rbacconfigv3.Policy{}}
		}
		var rules []*rbacconfigv3.Permission
		for _, name := range demanding[id] {
			rules = append(rules, hostIn(name, owners))
			origins = append(origins, owners[name])
		}
		config.Rules.Policies[sslSecret(id)] = &rbacconfigv3.Policy{
			Permissions: rules,
			Principals: []*rbacconfigv3.Principal{{Identifier: &rbacconfigv3.Principal_NotId{NotId: &rbacconfigv3.Principal{
				Identifier: &rbacconfigv3.Principal_FilterState{FilterState: &matcherv3.FilterStateMatcher{
					Key: FilterChainKey, Matcher: &matcherv3.FilterStateMatcher_StringMatch{StringMatch: exactly(sslSecret(id))},
				}},
			}}}},
		}
	}
	return Resource{
		Key:     Key{ExtensionConfigType, ClientCertificates},
		Body:    marshal(&corev3.TypedExtensionConfig{Name: ClientCertificates, TypedConfig: packed(config)}),
		Origins: slices.Compact(origins),
	}
}

// hostIn matches requests for hosts of a server name, but for those that a more
// specific name of another certificate object has.
func hostIn(name string, owners map[string]resource.Key) *rbacconfigv3.Permission {
	suffix, wildcard := strings.CutPrefix(name, "*")
	if !wildcard {
		return host(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Exact{Exact: name}})
	}
	in := host(&matcherv3.StringMatcher{MatchPattern: &matcherv3.StringMatcher_Suffix{Suffix: suffix}})
	var others []*rbacconfigv3.Permission
	for _, other := range slices.Sorted(maps.Keys(owners)) {
		if other != name && strings.HasSuffix(other, suffix) && owners[other] != owners[name] {
			others = append(others, hostIn(other, nil))
		}
	}
	if len(others) == 0 {
		return in
	}
	not := &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_NotRule{NotRule: &rbacconfigv3.Permission{
		Rule: &rbacconfigv3.Permission_OrRules{OrRules: &rbacconfigv3.Permission_Set{Rules: others}},
	}}}
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_AndRules{AndRules: &rbacconfigv3.Permission_Set{
		Rules: []*rbacconfigv3.Permission{in, not},
	}}}
}

func host(m *matcherv3.StringMatcher) *rbacconfigv3.Permission {
	m.IgnoreCase = true
	return &rbacconfigv3.Permission{Rule: &rbacconfigv3.Permission_Header{Header: &routev3.HeaderMatcher{
		Name: ":authority", HeaderMatchSpecifier: &routev3.HeaderMatcher_StringMatch{StringMatch: m},
	}}}
}
