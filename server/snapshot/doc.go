// Package snapshot holds the xDS resources of one gateway group at one revision.
//
// A [Snapshot] is immutable. Next derives the snapshot of the following revision
// and shares with its parent everything that did not change; it costs what
// changed, never the size of the group. Each type's resources form a [Set]: an
// index by name and by the revision that last changed each name, removals
// included, so that "what changed since revision R" is a range read.
//
// Resources are encoded once, when they enter a snapshot, and an [Encoder]
// encodes a response for (type, from, to) once for all streams that need it.
//
// DESIGN.md tells why it is so.
package snapshot
