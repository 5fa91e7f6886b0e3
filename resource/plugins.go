package resource

import "google.golang.org/protobuf/types/known/structpb"

// Where says what a plugin is configured on.
type Where int

// The places of a plugin.
const (
	WhereService Where = iota + 1
	WhereRoute
	WhereStreamRoute
	WhereGlobalRule
	WhereConsumer
	WhereCredential
	WhereMetadata
)

// String returns `service`, `stream route`, and so on.
func (w Where) String() string {
	switch w {
	case WhereService:
		return "service"
	case WhereRoute:
		return "route"
	case WhereStreamRoute:
		return "stream route"
	case WhereGlobalRule:
		return "global rule"
	case WhereConsumer:
		return "consumer"
	case WhereCredential:
		return "credential"
	case WhereMetadata:
		return "plugin metadata"
	}
	return "unknown place"
}

// PluginSet knows the plugins and their configurations.
type PluginSet interface {
	// Check returns what is wrong with a plugin's configuration at a place: that
	// there is no such plugin, that it cannot be used there, or what its fields
	// lack. Paths are relative to the configuration (`rules[0].count`, "" for the
	// whole, see FieldPath); the caller puts `plugins.<name>` before them.
	// Implementations must not put into messages what may be a secret, which in a
	// broken configuration may also stand where a field's name belongs; must not
	// modify config; and must be safe for concurrent use.
	Check(plugin string, where Where, config *structpb.Struct) Problems
}
