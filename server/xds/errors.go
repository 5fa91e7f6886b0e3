package xds

import (
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/musterhq/muster/server/snapshot"
)

// Field numbers of resource_errors in both responses, of ResourceError,
// ResourceName and google.rpc.Status.
const (
	deltaErrors   protowire.Number = 9
	sotwErrors    protowire.Number = 7
	errorResource protowire.Number = 1
	errorDetail   protowire.Number = 2
	resourceName  protowire.Number = 1
	statusCode    protowire.Number = 1
	statusMessage protowire.Number = 2
)

// withErrors returns a response that also says that names do not exist. What was
// asked for is said once, in the answer.
func (s *session) withErrors(f *snapshot.Frame, missing []string) *snapshot.Frame {
	num := sotwErrors
	if s.delta {
		num = deltaErrors
	}
	out := *f
	out.Bytes = slices.Clone(f.Bytes) // it may be shared
	for _, name := range missing {
		st := protowire.AppendTag(nil, statusCode, protowire.VarintType)
		st = protowire.AppendVarint(st, uint64(codes.NotFound))
		st = appendField(st, statusMessage, []byte("no such resource"))
		e := appendField(nil, errorResource, appendField(nil, resourceName, []byte(name)))
		e = appendField(e, errorDetail, st)
		out.Bytes = appendField(out.Bytes, num, e)
	}
	return &out
}

func appendField(b []byte, num protowire.Number, value []byte) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendBytes(b, value)
}
