// Package manifest signs and verifies the Manifest of a group's revision.
//
// A server with a key signs what a revision consists of; whoever has the public
// key can tell that a relay, a disk or a bucket did not change it. The signature
// is Ed25519 over a statement whose bytes do not depend on how protobuf encodes.
package manifest
