// Package auth answers who is calling and what they may do.
//
// Operators present an API key (metadata or header `x-api-key`, or
// `authorization: Bearer`). Keys are random, kept only as SHA-256 hashes in a
// file of mode 0600, and compared in constant time. A key has a name, which
// becomes the author of the revisions it commits, and a [Role].
//
// What a role may do is a table from gRPC method to [Permission]; a method
// that the table does not name is refused, whoever asks.
//
// Data planes present a client certificate whose URI SAN
// `spiffe://<trust-domain>/group/<group>/node/<id>` must name the group and
// node that they ask for. Without TLS there is no identity, so plaintext is
// allowed on loopback only (see [CheckListen]).
package auth
