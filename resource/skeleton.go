package resource

import (
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"google.golang.org/protobuf/proto"
)

// Validator judges resources. The zero Validator knows no plugins (it checks
// none) and no time (it takes every certificate for current).
type Validator struct {
	// Plugins checks plugin configurations. Nil checks none.
	Plugins PluginSet
	// Now is the time for which certificates must be valid. Zero checks none, so
	// that a replayed log is judged the same at any time.
	Now time.Time
}

// Validate judges one resource with the zero Validator.
func Validate(r *musterv1.Resource) Problems { return Validator{}.Resource(r) }

// Resource returns everything that is wrong with the resource by itself.
func (v Validator) Resource(r *musterv1.Resource) Problems { return nil }

// Group returns what is wrong between objects, as far as the changed keys are
// concerned: references from them, and to those that lookup no longer finds.
func (v Validator) Group(lookup func(Key) (*musterv1.Resource, bool), changed []Key) Problems {
	return nil
}

// Redact returns a copy in which every secret is `***`.
func Redact(r *musterv1.Resource) *musterv1.Resource { return proto.CloneOf(r) }

// FieldDiff is one field that differs between two states of an object.
type FieldDiff struct {
	// Path is the field, `upstream.nodes[0].weight`.
	Path string
	// Before and After are the values as JSON; empty when the field is absent.
	// A secret is `"***"`.
	Before, After string
}

// DiffFields returns the fields that differ, in path order. Either may be nil.
func DiffFields(before, after *musterv1.Resource) []FieldDiff { return nil }
