package resource

import (
	"fmt"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Key names one resource inside a group. It is comparable. The zero Key names nothing.
type Key struct {
	Kind musterv1.Kind
	// ID is the resource's id; a credential's is `<username>/<credential id>`.
	ID string
}

// kindNames lists the kinds by their number; the position is the enum's value.
var kindNames = [...]struct{ singular, plural string }{
	musterv1.Kind_KIND_SERVICE:         {"service", "services"},
	musterv1.Kind_KIND_ROUTE:           {"route", "routes"},
	musterv1.Kind_KIND_STREAM_ROUTE:    {"stream_route", "stream_routes"},
	musterv1.Kind_KIND_CONSUMER:        {"consumer", "consumers"},
	musterv1.Kind_KIND_CREDENTIAL:      {"credential", "credentials"},
	musterv1.Kind_KIND_SSL:             {"ssl", "ssls"},
	musterv1.Kind_KIND_GLOBAL_RULE:     {"global_rule", "global_rules"},
	musterv1.Kind_KIND_PLUGIN_METADATA: {"plugin_metadata", "plugin_metadata"},
	musterv1.Kind_KIND_XDS_RESOURCE:    {"xds_resource", "xds_resources"},
}

// Kinds returns every kind, in the order in which their objects depend on each
// other: what is referred to comes before what refers to it.
func Kinds() []musterv1.Kind {
	return []musterv1.Kind{
		musterv1.Kind_KIND_SSL,
		musterv1.Kind_KIND_SERVICE,
		musterv1.Kind_KIND_ROUTE,
		musterv1.Kind_KIND_STREAM_ROUTE,
		musterv1.Kind_KIND_CONSUMER,
		musterv1.Kind_KIND_CREDENTIAL,
		musterv1.Kind_KIND_GLOBAL_RULE,
		musterv1.Kind_KIND_PLUGIN_METADATA,
		musterv1.Kind_KIND_XDS_RESOURCE,
	}
}

// String returns `route/foo`, and for a credential `credential/alice/k1`.
// ParseKey is its inverse.
func (k Key) String() string { return KindName(k.Kind) + "/" + k.ID }

// Less orders keys by kind (the enum's order), then id.
func (k Key) Less(other Key) bool {
	if k.Kind != other.Kind {
		return k.Kind < other.Kind
	}
	return k.ID < other.ID
}

// Proto returns the key as a message.
func (k Key) Proto() *musterv1.ResourceKey {
	return &musterv1.ResourceKey{Kind: k.Kind, Id: k.ID}
}

// KeyFromProto returns the key that a message names; of nil the zero Key.
func KeyFromProto(k *musterv1.ResourceKey) Key {
	return Key{Kind: k.GetKind(), ID: k.GetId()}
}

// CredentialKey names a consumer's credential.
func CredentialKey(username, id string) Key {
	return Key{Kind: musterv1.Kind_KIND_CREDENTIAL, ID: username + "/" + id}
}

// KeyOf returns the key under which the resource is stored. Of nil, or of a
// resource without a kind, it is the zero Key.
func KeyOf(r *musterv1.Resource) Key {
	switch r.GetKind().(type) {
	case *musterv1.Resource_Service:
		return Key{musterv1.Kind_KIND_SERVICE, r.GetService().GetId()}
	case *musterv1.Resource_Route:
		return Key{musterv1.Kind_KIND_ROUTE, r.GetRoute().GetId()}
	case *musterv1.Resource_StreamRoute:
		return Key{musterv1.Kind_KIND_STREAM_ROUTE, r.GetStreamRoute().GetId()}
	case *musterv1.Resource_Consumer:
		return Key{musterv1.Kind_KIND_CONSUMER, r.GetConsumer().GetUsername()}
	case *musterv1.Resource_Credential:
		return CredentialKey(r.GetCredential().GetConsumer(), r.GetCredential().GetId())
	case *musterv1.Resource_Ssl:
		return Key{musterv1.Kind_KIND_SSL, r.GetSsl().GetId()}
	case *musterv1.Resource_GlobalRule:
		return Key{musterv1.Kind_KIND_GLOBAL_RULE, r.GetGlobalRule().GetId()}
	case *musterv1.Resource_PluginMetadata:
		return Key{musterv1.Kind_KIND_PLUGIN_METADATA, r.GetPluginMetadata().GetId()}
	case *musterv1.Resource_XdsResource:
		return Key{musterv1.Kind_KIND_XDS_RESOURCE, r.GetXdsResource().GetId()}
	}
	return Key{}
}

// ParseKey reads `<kind>/<id>`; the kind may be in the plural. A credential's
// id holds one slash: `credential/<username>/<id>`.
func ParseKey(s string) (Key, error) {
	name, id, found := strings.Cut(s, "/")
	if !found || id == "" {
		return Key{}, fmt.Errorf("resource: key %q is not of the form <kind>/<id>", s)
	}
	kind, err := ParseKind(name)
	if err != nil {
		return Key{}, err
	}
	if kind == musterv1.Kind_KIND_CREDENTIAL {
		username, credential, found := strings.Cut(id, "/")
		if !found || username == "" || credential == "" || strings.Contains(credential, "/") {
			return Key{}, fmt.Errorf("resource: key %q is not of the form credential/<username>/<id>", s)
		}
		return CredentialKey(username, credential), nil
	}
	if strings.Contains(id, "/") {
		return Key{}, fmt.Errorf("resource: the id in key %q must not hold a slash", s)
	}
	return Key{Kind: kind, ID: id}, nil
}

// KindName returns the kind's name, `stream_route`; of an unknown kind `unknown`.
func KindName(k musterv1.Kind) string {
	if k <= 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k].singular
}

// KindPlural returns the kind's name as collections and files carry it, `stream_routes`.
func KindPlural(k musterv1.Kind) string {
	if k <= 0 || int(k) >= len(kindNames) {
		return "unknown"
	}
	return kindNames[k].plural
}

// ParseKind reads a kind's name, in the singular or plural, with `_` or `-`
// between words and in any case.
func ParseKind(name string) (musterv1.Kind, error) {
	folded := strings.ReplaceAll(strings.ToLower(name), "-", "_")
	names := make([]string, 0, len(kindNames))
	for i, n := range kindNames {
		if i == 0 {
			continue
		}
		if folded == n.singular || folded == n.plural {
			return musterv1.Kind(i), nil
		}
		names = append(names, n.singular)
	}
	return musterv1.Kind_KIND_UNSPECIFIED, fmt.Errorf("resource: unknown kind %q; the kinds are %s", name, strings.Join(names, ", "))
}
