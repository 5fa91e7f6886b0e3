// Package behaviour is the behaviour suite: what a group's configuration makes
// of requests, written as files that every kind of data plane must satisfy.
//
// A case is a txtar archive in testdata. The text before the first file is the
// promise. The file config.yaml is the group's configuration in the shape that
// `muster apply` reads; steps.yaml lists requests and what must come of them;
// further files are configurations that a step applies.
//
// In configurations a dollar sign names what a test makes:
//
//	$a $b $c        the port on 127.0.0.1 of an HTTP backend
//	$tls $mtls      the port of an HTTPS backend; the second demands a client certificate
//	$grpc           the port of a gRPC server that answers health checks
//	$dead           a port on which nothing listens
//	$cert(NAME)     a certificate chain for the DNS name, in PEM
//	$key(NAME)      its key
//	$ca             the certificate of the authority that signs them all
//
// See Step for what a step can do, and Expect for what it can demand.
package behaviour
