package auth

import (
	"context"
	"fmt"
)

// Role is what an identity may do at most. Roles are ordered: each holds
// everything the one before it holds.
type Role int

const (
	// RoleNone may do nothing. It is the zero value, so that a forgotten role
	// is a refusal.
	RoleNone Role = iota
	// RoleViewer reads everything but secrets.
	RoleViewer
	// RoleEditor commits transactions, changes groups and reads secrets, which
	// it could replace anyway.
	RoleEditor
	// RoleAdmin also runs the cluster: membership, backup and restore.
	RoleAdmin
)

var roleNames = [...]string{"none", "viewer", "editor", "admin"}

// String returns the role's name as it stands in key files.
func (r Role) String() string {
	if r < 0 || int(r) >= len(roleNames) {
		return fmt.Sprintf("Role(%d)", int(r))
	}
	return roleNames[r]
}

// ParseRole is the inverse of [Role.String].
func ParseRole(name string) (Role, error) {
	for i, n := range roleNames {
		if n == name && Role(i) != RoleNone {
			return Role(i), nil
		}
	}
	return RoleNone, fmt.Errorf("unknown role %q: one of viewer, editor, admin", name)
}

// Identity is an authenticated caller.
type Identity struct {
	// Name is recorded as the author of what the caller commits.
	Name string
	Role Role
}

type identityKey struct{}

// WithIdentity returns a context that carries the caller.
func WithIdentity(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// FromContext returns the caller that an interceptor authenticated.
func FromContext(ctx context.Context) (Identity, bool) {
	id, ok := ctx.Value(identityKey{}).(Identity)
	return id, ok
}
