package state

import (
	"errors"
	"fmt"

	"github.com/musterhq/muster/resource"
)

var (
	// ErrNotFound is wrapped by every *NotFoundError.
	ErrNotFound = errors.New("not found")
	// ErrExists is wrapped by every *ExistsError.
	ErrExists = errors.New("already exists")
	// ErrGroupNotEmpty says that a group holds resources and force was not set.
	ErrGroupNotEmpty = errors.New("the group holds resources")
	// ErrInvalid is wrapped by every *InvalidError.
	ErrInvalid = errors.New("invalid")
	// ErrTrimmed is wrapped by every *TrimmedError.
	ErrTrimmed = errors.New("the revision is no longer kept")
	// ErrSnapshot is wrapped by every *SnapshotError.
	ErrSnapshot = errors.New("snapshot does not hold")
)

// NotFoundError says that a group or a resource is not there.
type NotFoundError struct {
	// Group is the id that was asked for, or the group that was searched.
	Group string
	// Key is the missing resource; zero when the group itself is missing.
	Key resource.Key
}

func (e *NotFoundError) Error() string {
	if e.Key == (resource.Key{}) {
		return fmt.Sprintf("group %q not found", e.Group)
	}
	return fmt.Sprintf("%s not found in group %q", e.Key, e.Group)
}

func (e *NotFoundError) Unwrap() error { return ErrNotFound }

// ExistsError says that a new group would collide with one that is there.
type ExistsError struct {
	// Group is the id of the group that is in the way.
	Group string
	// Field is `id`, `name` or `control_plane_key_prefix`; Value is what collides.
	Field, Value string
}

func (e *ExistsError) Error() string {
	return fmt.Sprintf("%s %q collides with group %q", e.Field, e.Value, e.Group)
}

func (e *ExistsError) Unwrap() error { return ErrExists }

// RevisionConflict says that expected_revision does not hold, or, with Expected
// and Actual equal, that the group holds something else than it was judged on.
type RevisionConflict struct {
	Group            string
	Expected, Actual uint64
	// Author made revision Actual; empty when that is no longer known.
	Author string
}

func (e *RevisionConflict) Error() string {
	return fmt.Sprintf("group %q is at revision %d, not at the expected %d", e.Group, e.Actual, e.Expected)
}

// InvalidError says that a field of a command is out of bounds. Resources at
// fault are told by resource.Problems instead.
type InvalidError struct {
	// Field is the command's or group's field name.
	Field, Reason string
}

func (e *InvalidError) Error() string { return fmt.Sprintf("%s: %s", e.Field, e.Reason) }

func (e *InvalidError) Unwrap() error { return ErrInvalid }

// TrimmedError says that a revision was asked for that history no longer holds.
type TrimmedError struct {
	Group    string
	Revision uint64
	// Oldest is the oldest revision that can be asked for.
	Oldest uint64
}

func (e *TrimmedError) Error() string {
	return fmt.Sprintf("revision %d of group %q is no longer kept; the oldest is %d", e.Revision, e.Group, e.Oldest)
}

func (e *TrimmedError) Unwrap() error { return ErrTrimmed }

// SnapshotError says why a snapshot cannot be restored.
type SnapshotError struct {
	// Record counts from 0.
	Record uint64
	Reason string
}

func (e *SnapshotError) Error() string {
	return fmt.Sprintf("snapshot record %d: %s", e.Record, e.Reason)
}

func (e *SnapshotError) Unwrap() error { return ErrSnapshot }
