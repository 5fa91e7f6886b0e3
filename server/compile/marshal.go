package compile

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// marshal encodes deterministically. The messages are the compiler's own and
// hold only valid UTF-8, so that encoding cannot fail.
func marshal(m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic("compile: " + err.Error())
	}
	return b
}

// packed wraps a message in an Any, deterministically.
func packed(m proto.Message) *anypb.Any {
	return &anypb.Any{
		TypeUrl: "type.googleapis.com/" + string(m.ProtoReflect().Descriptor().FullName()),
		Value:   marshal(m),
	}
}
