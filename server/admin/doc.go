// Package admin is the gRPC API muster.v1: AdminService and FleetService.
//
// A write goes through the same gates whoever asks: the shape of the request,
// each object by itself, masked secrets put back, the transaction against the
// group as it is (references, expected revision), a trial compilation to xDS;
// only then is it proposed. The leader does that, on what the group will be once
// everything that is on its way has landed (../DESIGN.md). Every problem found by a gate is reported, each as
// a field violation whose path begins in the request
// (`changes[3].put.route.uris[0]`).
//
// Domain errors become gRPC statuses in one place, errors.go.
//
// Secrets (private keys, credentials) leave the server as `***` unless the
// caller may write them and asks with reveal_secrets. A put that holds `***`
// where a secret stands keeps the stored value, so `get | edit | apply` works
// for everybody without a secret on the way.
package admin
