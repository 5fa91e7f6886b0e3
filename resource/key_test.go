package resource_test

import (
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func TestKeysReadBackAsTheyAreWritten(t *testing.T) {
	for _, kind := range resource.Kinds() {
		key := resource.Key{Kind: kind, ID: "x-1._"}
		if kind == musterv1.Kind_KIND_CREDENTIAL {
			key = resource.CredentialKey("alice", "k1")
		}
		back, err := resource.ParseKey(key.String())
		if err != nil || back != key {
			t.Errorf("%s became %v, %v", key, back, err)
		}
		if resource.KeyFromProto(key.Proto()) != key {
			t.Errorf("%s does not survive its message", key)
		}
	}
	if len(resource.Kinds()) != len(musterv1.Kind_name)-1 {
		t.Error("Kinds does not list every kind")
	}
}

func TestKindsAreReadInSingularAndPlural(t *testing.T) {
	for name, want := range map[string]musterv1.Kind{
		"service": 1, "services": 1, "Routes": 2, "stream-route": 3, "stream_routes": 3, "ssls": 6, "GLOBAL_RULE": 7, "plugin-metadata": 8, "xds_resources": 9,
	} {
		if got, err := resource.ParseKind(name); err != nil || got != want {
			t.Errorf("%s is %v, %v", name, got, err)
		}
	}
	for _, kind := range resource.Kinds() {
		for _, name := range []string{resource.KindName(kind), resource.KindPlural(kind)} {
			if got, err := resource.ParseKind(name); err != nil || got != kind {
				t.Errorf("%s is %v, %v", name, got, err)
			}
		}
	}
	if resource.KindName(0) != "unknown" || resource.KindName(99) != "unknown" || resource.KindPlural(-1) != "unknown" {
		t.Error("an unknown kind has a name")
	}
}

func TestWhatIsNoKeyIsRefused(t *testing.T) {
	for _, text := range []string{"", "route", "route/", "/x", "rout/x", "route/a/b", "credential/alice", "credential//k", "credential/alice/", "credential/a/b/c"} {
		if key, err := resource.ParseKey(text); err == nil {
			t.Errorf("%q is %v", text, key)
		}
	}
}

func TestKeyOfEveryKind(t *testing.T) {
	for want, r := range map[string]*musterv1.Resource{
		"service/s":          {Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: "s"}}},
		"route/r":            {Kind: &musterv1.Resource_Route{Route: &musterv1.Route{Id: "r"}}},
		"stream_route/r":     {Kind: &musterv1.Resource_StreamRoute{StreamRoute: &musterv1.StreamRoute{Id: "r"}}},
		"consumer/alice":     {Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{Username: "alice"}}},
		"credential/alice/k": {Kind: &musterv1.Resource_Credential{Credential: &musterv1.Credential{Consumer: "alice", Id: "k"}}},
		"ssl/x":              {Kind: &musterv1.Resource_Ssl{Ssl: &musterv1.Ssl{Id: "x"}}},
		"global_rule/cors":   {Kind: &musterv1.Resource_GlobalRule{GlobalRule: &musterv1.GlobalRule{Id: "cors"}}},
		"plugin_metadata/p":  {Kind: &musterv1.Resource_PluginMetadata{PluginMetadata: &musterv1.PluginMetadata{Id: "p"}}},
		"xds_resource/raw":   {Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{Id: "raw"}}},
	} {
		if got := resource.KeyOf(r).String(); got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
	if resource.KeyOf(nil) != (resource.Key{}) || resource.KeyOf(&musterv1.Resource{}) != (resource.Key{}) {
		t.Error("nothing has a key")
	}
	if !(resource.Key{Kind: 1, ID: "b"}).Less(resource.Key{Kind: 2, ID: "a"}) || !(resource.Key{Kind: 1, ID: "a"}).Less(resource.Key{Kind: 1, ID: "b"}) {
		t.Error("keys order by kind, then id")
	}
}
