package raftstore

import (
	"errors"
	"fmt"
	"time"
)

var (
	// ErrNoLeader says that no leader was found in time. Nothing was done.
	ErrNoLeader = errors.New("no leader")
	// ErrNotLeader is wrapped by every *NotLeaderError. Nothing was done.
	ErrNotLeader = errors.New("not the leader")
	// ErrUnknown is wrapped by errors that leave open whether a command was
	// committed. A command with a request_id may be repeated safely.
	ErrUnknown = errors.New("the outcome is not known")
	// ErrStopped says that the store stops or has stopped. Nothing was done.
	ErrStopped = errors.New("the store has stopped")
	// ErrNotReady says that the server has not caught up with the cluster yet.
	ErrNotReady = errors.New("not caught up with the cluster yet")
	// ErrTooLarge says that a command is larger than MaxCommand.
	ErrTooLarge = errors.New("the transaction is too large")
	// ErrDiskFull is wrapped by every *DiskFullError. Nothing was done.
	ErrDiskFull = errors.New("the disk is full")
	// ErrCorrupt is wrapped by every *CorruptError.
	ErrCorrupt = errors.New("data on disk is corrupt")
	// ErrIncompatible says that the log holds an entry that this version does
	// not know and must not skip.
	ErrIncompatible = errors.New("the log holds an entry of a newer version")
	// ErrPoison says that a command was committed but cannot be carried out. No
	// server carried it out; the state is as before.
	ErrPoison = errors.New("the command cannot be carried out")
)

// NotLeaderError names the server that should be asked instead.
type NotLeaderError struct {
	// Leader is the leader's raft address; empty when there is none.
	Leader string
}

func (e *NotLeaderError) Error() string {
	if e.Leader == "" {
		return "not the leader, and none is known"
	}
	return fmt.Sprintf("not the leader; it is at %s", e.Leader)
}

func (e *NotLeaderError) Unwrap() error { return ErrNotLeader }

// unknown marks an error as leaving the outcome open.
type unknownError struct{ cause error }

func (e *unknownError) Error() string   { return "the outcome is not known: " + e.cause.Error() }
func (e *unknownError) Unwrap() []error { return []error{ErrUnknown, e.cause} }

// DiskFullError says that writes are refused because too little space is free.
type DiskFullError struct {
	Dir string
	// Free and Floor are in bytes.
	Free, Floor uint64
}

func (e *DiskFullError) Error() string {
	return fmt.Sprintf("the disk of %s is full: %d MiB are free, writes need %d", e.Dir, e.Free>>20, e.Floor>>20)
}

func (e *DiskFullError) Unwrap() error { return ErrDiskFull }

// CorruptError names what is corrupt and what to do.
type CorruptError struct {
	Path   string
	Detail string
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is corrupt: %s (remove this server from the cluster, move its data directory away and let it join again)", e.Path, e.Detail)
}

func (e *CorruptError) Unwrap() error { return ErrCorrupt }

// LockedError says that data on disk is encrypted and cannot be read with the keys
// that were given.
type LockedError struct {
	Path   string
	Reason error
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s cannot be read: %s (give the key file that it was written with; a new key goes before the old ones in it)", e.Path, e.Reason)
}

func (e *LockedError) Unwrap() error { return e.Reason }

// DiskStalledError says that a write has been in flight for too long.
type DiskStalledError struct {
	Op  string
	For time.Duration
}

func (e *DiskStalledError) Error() string {
	return fmt.Sprintf("the disk hangs: %s has taken %s", e.Op, e.For.Round(time.Millisecond))
}
