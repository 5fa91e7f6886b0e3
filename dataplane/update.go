package dataplane

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/types/known/anypb"
)

// Handler applies configuration to a data plane.
type Handler interface {
	// Apply brings the data plane to the state of the update. It returns nil when
	// all of it is in service, a *Refused when all but the named resources are
	// (those keep their last good version, or stay absent), and any other error
	// when nothing of it is.
	//
	// The client calls Apply from one goroutine, one call at a time. The context
	// ends when the client stops; Apply should then return soon. The update and
	// what it refers to are shared and must not be modified.
	Apply(ctx context.Context, u *Update) error
}

// HandlerFunc is a Handler made of a function.
type HandlerFunc func(ctx context.Context, u *Update) error

// Apply calls f.
func (f HandlerFunc) Apply(ctx context.Context, u *Update) error { return f(ctx, u) }

// Update is a change of the group's configuration.
type Update struct {
	// Group is the group's name as configured.
	Group string
	// Epoch and Revision are the version that the update leads to. Both are 0
	// while the upstream has never sent a Manifest.
	Epoch, Revision uint64
	// Whole tells that the update leads exactly to the revision, as its Manifest
	// says. Without it the update is one response of an upstream that sends no
	// Manifest, and other types may belong to other versions.
	Whole bool
	// Cached tells that the update was read from disk and that no control plane
	// has confirmed it yet.
	Cached bool
	// Types holds the changes by type URL. Types without changes are absent.
	Types map[string]TypeUpdate
	// State is the full configuration with the update applied; Previous is the
	// configuration that is in service. Both are immutable.
	State, Previous *State
}

// TypeUpdate is the change of the resources of one type.
type TypeUpdate struct {
	// Upsert holds the added and changed resources by name.
	Upsert map[string]*anypb.Any
	// Versions holds the version of each resource in Upsert, as the upstream sent it.
	Versions map[string]string
	// Remove names the removed resources, sorted.
	Remove []string
}

// Empty reports whether the update changes no resource.
func (u *Update) Empty() bool { return len(u.Types) == 0 }

// Refusal says why a data plane does not accept a resource.
type Refusal struct {
	TypeURL string
	Name    string
	// Reason is shown to the operator; it should name the field at fault.
	Reason string
}

// Refused is the error of a handler that applied an update apart from the
// resources it names.
type Refused struct {
	Resources []Refusal
}

// Error lists the refused resources and the reasons.
func (r *Refused) Error() string {
	var b strings.Builder
	for i, res := range r.Resources {
		if i > 0 {
			b.WriteString("; ")
		}
		if i == maxRefusalsNamed {
			fmt.Fprintf(&b, "and %d more", len(r.Resources)-i)
			break
		}
		fmt.Fprintf(&b, "%s %q: %s", shortType(res.TypeURL), res.Name, res.Reason)
	}
	return b.String()
}

// Add appends a refusal.
func (r *Refused) Add(typeURL, name, reason string) {
	r.Resources = append(r.Resources, Refusal{TypeURL: typeURL, Name: name, Reason: reason})
}

// Err returns r, or nil when it names no resource.
func (r *Refused) Err() error {
	if r == nil || len(r.Resources) == 0 {
		return nil
	}
	return r
}

// maxRefusalsNamed bounds the length of a NACK's text.
const maxRefusalsNamed = 20

// shortType returns the message name of a type URL: "Cluster".
func shortType(typeURL string) string {
	return typeURL[strings.LastIndexByte(typeURL, '.')+1:]
}
