// Package faultfs mounts a directory through FUSE and makes it misbehave on
// demand: hang, fill up, fail single writes, flip bits, and lose at a power cut
// what was not fsynced, with the last write torn. It is the disk under the
// servers of the fault tests.
//
// The process that mounts must not map files of the mount itself (bbolt does):
// run the program under test as another process.
//
// What it does not simulate: the loss of names. A created, renamed or removed
// file keeps its new name through a power cut, even where its directory was not
// fsynced.
package faultfs
