// Package atrest encrypts what a server keeps on disk.
//
// The key file is one of age (filippo.io/age): the identities that `age-keygen`
// makes, one a line. The first encrypts, all decrypt, so that a key is replaced by
// putting a new one before it. Streams, which are snapshots, are age files: the age
// program can read them. Log entries are too small and too many for an age header
// each; a [Sealer] encrypts them under a data key that lies beside the log, in an age
// file of its own.
package atrest
