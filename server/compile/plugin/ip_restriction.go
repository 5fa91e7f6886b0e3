package plugin

import (
	"fmt"
	"net/netip"
	"strconv"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"
	rbacv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/rbac/v3"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/musterhq/muster/resource"
)

// ipRestriction lets clients pass by their address. It becomes Envoy's rbac
// filter, which answers 403 with `RBAC: access denied`.
func ipRestriction() *definition {
	return &definition{
		name: "ip-restriction",
		config: mustSchema(`{
			"type": "object",
			"properties": {
				"whitelist": {"type": "array", "minItems": 1, "items": {"type": "string"},
					"description": "Only these addresses and ranges may pass."},
				"blacklist": {"type": "array", "minItems": 1, "items": {"type": "string"},
					"description": "These addresses and ranges may not pass."},
				"message": {"x-unsupported": "Envoy's RBAC answers with a text of its own"},
				"response_code": {"type": "integer", "default": 403, "x-only": [403], "x-reason": "Envoy's RBAC always answers 403"}
			},
			"oneOf": [{"required": ["whitelist"]}, {"required": ["blacklist"]}]
		}`),
		judge: judgeIPRestriction,
		apply: applyIPRestriction,
	}
}

func judgeIPRestriction(_ resource.Where, config *structpb.Struct) resource.Problems {
	var problems resource.Problems
	for _, name := range []string{"whitelist", "blacklist"} {
		for i, v := range config.GetFields()[name].GetListValue().GetValues() {
			if _, err := ParseRange(v.GetStringValue()); err != nil {
				problems = append(problems, problemAt(name+"["+strconv.Itoa(i)+"]", resource.CodeInvalid, "neither an IP address nor a range", "for example 10.0.0.0/8")...)
			}
		}
	}
	return problems
}

// ParseRange reads an address or a range of them. One of IPv4 addresses written as
// IPv6 becomes the IPv4 range, for that is how data planes see such clients.
func ParseRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, err := netip.ParseAddr(s)
		if err != nil {
			return netip.Prefix{}, err
		}
		if a.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q has a zone", s)
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	const mapped = 96 // bits before the IPv4 address
	if p.Addr().Is4In6() && p.Bits() >= mapped {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-mapped)
	}
	return p.Masked(), nil
}

func applyIPRestriction(e *Effect, config *structpb.Struct) {
	action, list := rbacconfigv3.RBAC_ALLOW, config.GetFields()["whitelist"].GetListValue().GetValues()
	if list == nil {
		action, list = rbacconfigv3.RBAC_DENY, config.GetFields()["blacklist"].GetListValue().GetValues()
	}
	policy := &rbacconfigv3.Policy{Permissions: []*rbacconfigv3.Permission{{Rule: &rbacconfigv3.Permission_Any{Any: true}}}}
	for _, v := range list {
		p, _ := ParseRange(v.GetStringValue())
		policy.Principals = append(policy.Principals, &rbacconfigv3.Principal{Identifier: &rbacconfigv3.Principal_RemoteIp{
			RemoteIp: &corev3.CidrRange{AddressPrefix: p.Addr().String(), PrefixLen: wrapperspb.UInt32(uint32(p.Bits()))},
		}})
	}
	e.enable("ip-restriction", &rbacv3.RBACPerRoute{Rbac: &rbacv3.RBAC{Rules: &rbacconfigv3.RBAC{
		Action:   action,
		Policies: map[string]*rbacconfigv3.Policy{"ip-restriction": policy},
	}}})
}
