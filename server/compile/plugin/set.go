package plugin

import (
	"google.golang.org/protobuf/types/known/structpb"

	"github.com/musterhq/muster/resource"
)

// Plugins is the set of known plugins.
type Plugins struct{}

var _ resource.PluginSet = (*Plugins)(nil)

// Set returns the plugins that muster knows.
func Set() *Plugins { return &Plugins{} }

// Check implements resource.PluginSet.
func (s *Plugins) Check(plugin string, where resource.Where, config *structpb.Struct) resource.Problems {
	return nil
}
