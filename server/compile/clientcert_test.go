package compile

import (
	"slices"
	"strings"
	"testing"

	rbacconfigv3 "github.com/envoyproxy/go-control-plane/envoy/config/rbac/v3"

	"github.com/musterhq/muster/resource"
)

// matches says whether a permission that clientCertificates makes holds for a host.
func matches(p *rbacconfigv3.Permission, host string) bool {
	switch r := p.GetRule().(type) {
	case *rbacconfigv3.Permission_Header:
		m := r.Header.GetStringMatch()
		return m.GetExact() == host || m.GetSuffix() != "" && strings.HasSuffix(host, m.GetSuffix())
	case *rbacconfigv3.Permission_AndRules:
		return !slices.ContainsFunc(r.AndRules.GetRules(), func(p *rbacconfigv3.Permission) bool { return !matches(p, host) })
	case *rbacconfigv3.Permission_OrRules:
		return slices.ContainsFunc(r.OrRules.GetRules(), func(p *rbacconfigv3.Permission) bool { return matches(p, host) })
	case *rbacconfigv3.Permission_NotRule:
		return !matches(r.NotRule, host)
	}
	panic("unexpected")
}

func TestAHostBelongsToTheMostSpecificServerName(t *testing.T) {
	owner := func(id string) resource.Key { return resource.Key{ID: id} }
	owners := map[string]resource.Key{
		"a.test": owner("mine"), "*.w.test": owner("mine"), "deep.x.w.test": owner("mine"),
		"own.w.test": owner("other"), "*.x.w.test": owner("other"), "b.test": owner("other"), "xw.test": owner("other"),
	}
	for host, want := range map[string]bool{
		"a.test": true, "q.w.test": true, "q.r.w.test": true, "deep.x.w.test": true,
		"own.w.test": false, "q.x.w.test": false, "b.test": false, "w.test": false, "xw.test": false, "a.test.": false,
	} {
		got := false
		for _, name := range []string{"a.test", "*.w.test", "deep.x.w.test"} {
			got = got || matches(hostIn(name, owners), host)
		}
		if got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
}
