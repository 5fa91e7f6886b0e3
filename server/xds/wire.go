package xds

import (
	"errors"
	"iter"

	"google.golang.org/protobuf/encoding/protowire"
)

// request is a DeltaDiscoveryRequest or DiscoveryRequest, decoded where it lies:
// nothing is copied and nothing allocated, however many names and versions a
// reconnecting client sends. It is valid as long as its bytes are.
type request struct {
	raw     []byte
	delta   bool
	node    []byte // encoded core.v3.Node; nil when absent
	typeURL []byte
	nonce   []byte
	version []byte // of the last accepted response; state of the world only
	failure []byte // encoded google.rpc.Status; see failed
	failed  bool   // error_detail is present: the response was refused

	subscribe   int // the number of names, state-of-the-world names included
	unsubscribe int
	initial     int // entries of initial_resource_versions
}

var errMalformed = errors.New("malformed discovery request")

// Field numbers of DeltaDiscoveryRequest.
const (
	deltaNode        protowire.Number = 1
	deltaTypeURL     protowire.Number = 2
	deltaSubscribe   protowire.Number = 3
	deltaUnsubscribe protowire.Number = 4
	deltaInitial     protowire.Number = 5
	deltaNonce       protowire.Number = 6
	deltaError       protowire.Number = 7
)

// Field numbers of DiscoveryRequest.
const (
	sotwVersion protowire.Number = 1
	sotwNode    protowire.Number = 2
	sotwNames   protowire.Number = 3
	sotwTypeURL protowire.Number = 4
	sotwNonce   protowire.Number = 5
	sotwError   protowire.Number = 6
)

// parseDelta decodes a DeltaDiscoveryRequest. Unknown fields are skipped.
func parseDelta(b []byte) (request, error) {
	r := request{raw: b, delta: true}
	for num, value := range fields(b) {
		switch num {
		case 0:
			return request{}, errMalformed
		case deltaNode:
			r.node = value
		case deltaTypeURL:
			r.typeURL = value
		case deltaSubscribe:
			r.subscribe++
		case deltaUnsubscribe:
			r.unsubscribe++
		case deltaInitial:
			r.initial++
		case deltaNonce:
			r.nonce = value
		case deltaError:
			r.failure, r.failed = value, true
		}
	}
	return r, nil
}

// parseSotW decodes a DiscoveryRequest. Unknown fields are skipped.
func parseSotW(b []byte) (request, error) {
	r := request{raw: b}
	for num, value := range fields(b) {
		switch num {
		case 0:
			return request{}, errMalformed
		case sotwVersion:
			r.version = value
		case sotwNode:
			r.node = value
		case sotwNames:
			r.subscribe++
		case sotwTypeURL:
			r.typeURL = value
		case sotwNonce:
			r.nonce = value
		case sotwError:
			r.failure, r.failed = value, true
		}
	}
	return r, nil
}

// subscribed yields the names to subscribe to; in the state-of-the-world protocol
// all names. The names are valid as long as the request is.
func (r *request) subscribed() iter.Seq[[]byte] {
	if r.delta {
		return r.values(deltaSubscribe)
	}
	return r.values(sotwNames)
}

// unsubscribed yields the names to unsubscribe from.
func (r *request) unsubscribed() iter.Seq[[]byte] { return r.values(deltaUnsubscribe) }

func (r *request) values(want protowire.Number) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for num, value := range fields(r.raw) {
			if num == want && !yield(value) {
				return
			}
		}
	}
}

// versions yields the names and versions of initial_resource_versions.
func (r *request) versions() iter.Seq2[[]byte, []byte] {
	return func(yield func(name, version []byte) bool) {
		for num, item := range fields(r.raw) {
			if num != deltaInitial {
				continue
			}
			var name, version []byte
			for n, v := range fields(item) {
				switch n {
				case 1:
					name = v
				case 2:
					version = v
				}
			}
			if !yield(name, version) {
				return
			}
		}
	}
}

// fields yields the length-delimited fields of a message and skips the others.
// After malformed bytes it yields the number 0, which no field has, and stops.
func fields(b []byte) iter.Seq2[protowire.Number, []byte] {
	return func(yield func(protowire.Number, []byte) bool) {
		for len(b) > 0 {
			num, typ, n := protowire.ConsumeTag(b)
			if n < 0 {
				yield(0, nil)
				return
			}
			b = b[n:]
			if typ != protowire.BytesType {
				if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
					yield(0, nil)
					return
				}
				b = b[n:]
				continue
			}
			value, n := protowire.ConsumeBytes(b)
			if n < 0 {
				yield(0, nil)
				return
			}
			if !yield(num, value) {
				return
			}
			b = b[n:]
		}
	}
}
