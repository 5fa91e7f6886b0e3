package plugin

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/resource"
)

// Plugins is the set of plugins that muster knows. It is immutable.
type Plugins struct {
	byName map[string]*definition
	meta   *schema
}

var _ resource.PluginSet = (*Plugins)(nil)

// definition is one plugin.
type definition struct {
	name string
	// config is the schema of the plugin where it acts on requests: on services,
	// routes and global rules, unless rule has a narrower one for the latter.
	config, rule *schema
	// credential is the schema of the plugin on consumers and credentials; nil
	// where it has none.
	credential *schema
	// judge finds what a schema cannot say. May be nil.
	judge func(where resource.Where, config *structpb.Struct) resource.Problems
	// apply adds what the plugin does with requests.
	apply func(e *Effect, config *structpb.Struct)
}

// Set returns the plugins that muster knows.
func Set() *Plugins {
	s := &Plugins{map[string]*definition{}, metaSchema()}
	for _, d := range []*definition{cors(), ipRestriction(), keyAuth(), limitCount(), proxyRewrite()} {
		s.byName[d.name] = d
	}
	return s
}

// Names lists the plugins in order.
func (s *Plugins) Names() []string { return sortedKeys(s.byName) }

// metaSchema is what every plugin's `_meta` may hold.
func metaSchema() *schema {
	return mustSchema(`{
	"type": "object",
	"properties": {
		"disable":        {"type": "boolean", "description": "Switches the plugin off here."},
		"error_response": {"x-unsupported": "Envoy's filters answer with texts of their own"},
		"priority":       {"x-unsupported": "Envoy's chain of filters has a fixed order"},
		"filter":         {"x-unsupported": "Envoy's filters are switched on by route, not by expression"},
		"pre_function":   {"x-unsupported": "no scripts run in the data plane"}
	}
}`)
}

// Check implements resource.PluginSet.
func (s *Plugins) Check(plugin string, where resource.Where, config *structpb.Struct) resource.Problems {
	d, found := s.byName[plugin]
	if !found {
		return resource.Problems{{
			Code: resource.CodeUnknown, Message: fmt.Sprintf("unknown plugin %q", plugin),
			Hint: "known are " + strings.Join(s.Names(), ", "),
		}}
	}
	var sch *schema
	switch where {
	case resource.WhereService, resource.WhereRoute:
		sch = d.config
	case resource.WhereGlobalRule:
		sch = d.config
		if d.rule != nil {
			sch = d.rule
		}
	case resource.WhereConsumer, resource.WhereCredential:
		sch = d.credential
	case resource.WhereMetadata:
		return resource.Problems{{
			Code: resource.CodeUnsupported, Message: fmt.Sprintf("%s has no metadata that could be honoured", plugin), Hint: "leave it out",
		}}
	}
	if sch == nil {
		return resource.Problems{{
			Code: resource.CodeUnsupported, Message: fmt.Sprintf("%s cannot be used on a %s", plugin, where),
			Hint: "use it on a service, a route or a global rule",
		}}
	}
	rest, meta := withoutMeta(config)
	var problems resource.Problems
	if meta != nil {
		problems = s.meta.check("_meta", meta)
	}
	problems = append(problems, sch.check("", structpb.NewStructValue(rest))...)
	if len(problems) == 0 && d.judge != nil {
		problems = append(problems, d.judge(where, rest)...)
	}
	return problems
}

// withoutMeta splits `_meta` off.
func withoutMeta(config *structpb.Struct) (rest *structpb.Struct, meta *structpb.Value) {
	meta, found := config.GetFields()["_meta"]
	if !found {
		if config == nil {
			config = &structpb.Struct{}
		}
		return config, nil
	}
	rest = &structpb.Struct{Fields: make(map[string]*structpb.Value, len(config.GetFields()))}
	for name, v := range config.GetFields() {
		if name != "_meta" {
			rest.Fields[name] = v
		}
	}
	return rest, meta
}

// disabled tells whether `_meta` switches a configuration off.
func disabled(config *structpb.Struct) bool {
	return config.GetFields()["_meta"].GetStructValue().GetFields()["disable"].GetBoolValue()
}

// Enabled lists the plugins that are not switched off, in order.
func Enabled(plugins map[string]*structpb.Struct) []string {
	return slices.DeleteFunc(sortedKeys(plugins), func(name string) bool { return disabled(plugins[name]) })
}

// decode reads a configuration that was judged good into into, which holds the
// defaults and keeps them where the configuration cannot be read.
func decode(config *structpb.Struct, into any) {
	if text, err := json.Marshal(config.AsMap()); err == nil {
		_ = json.Unmarshal(text, into) // its schema made sure of the types
	}
}

func problemAt(path, code, message, hint string) resource.Problems {
	return resource.Problems{{Path: path, Code: code, Message: message, Hint: hint}}
}

func words(s string) []string {
	fields := strings.Split(s, ",")
	for i, f := range fields {
		fields[i] = strings.TrimSpace(f)
	}
	return slices.DeleteFunc(fields, func(f string) bool { return f == "" })
}
