package xds

import (
	"errors"
	"iter"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/musterhq/muster/server/snapshot"
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

	tally  snapshot.Tally   // of initial_resource_versions
	newest snapshot.Version // the newest of muster's versions among them
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

// parseDelta decodes a DeltaDiscoveryRequest, in one pass. Unknown fields are
// skipped.
func parseDelta(b []byte) (request, error) {
	r := request{raw: b, delta: true}
	for len(b) > 0 {
		num, value, n := consume(b)
		if n <= 0 {
			return request{}, errMalformed
		}
		b = b[n:]
		if value == nil {
			continue
		}
		switch num {
		case deltaInitial:
			r.initial++
			name, version := entryOf(value)
			if v, ok := r.tally.Add(name, version); ok && r.newest.Less(v) {
				r.newest = v
			}
		case deltaNode:
			r.node = value
		case deltaTypeURL:
			r.typeURL = value
		case deltaSubscribe:
			r.subscribe++
		case deltaUnsubscribe:
			r.unsubscribe++
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
	switch {
	case r.subscribe == 0:
		return func(func([]byte) bool) {}
	case r.delta:
		return r.values(deltaSubscribe)
	}
	return r.values(sotwNames)
}

// unsubscribed yields the names to unsubscribe from.
func (r *request) unsubscribed() iter.Seq[[]byte] {
	if r.unsubscribe == 0 {
		return func(func([]byte) bool) {}
	}
	return r.values(deltaUnsubscribe)
}

func (r *request) values(want protowire.Number) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for num, value := range fields(r.raw) {
			if num == want && !yield(value) {
				return
			}
		}
	}
}

// versions calls f with the names and versions of initial_resource_versions.
func (r *request) versions(f func(name, version []byte)) {
	for value := range r.values(deltaInitial) {
		f(entryOf(value))
	}
}

// entryOf decodes an entry of a map of strings.
func entryOf(b []byte) (key, value []byte) {
	// As every encoder writes it, when both are shorter than 128 bytes.
	const keyTag, valueTag = 1<<3 | byte(protowire.BytesType), 2<<3 | byte(protowire.BytesType)
	if len(b) >= 4 && b[0] == keyTag && b[1] < 0x80 {
		k := 2 + int(b[1])
		if len(b) >= k+2 && b[k] == valueTag && b[k+1] < 0x80 && len(b) == k+2+int(b[k+1]) {
			return b[2:k:k], b[k+2:]
		}
	}
	for len(b) > 0 {
		num, v, n := consume(b)
		if n <= 0 {
			break
		}
		b = b[n:]
		switch num {
		case 1:
			key = v
		case 2:
			value = v
		}
	}
	return key, value
}

// consume reads one field. The value is nil unless it is length-delimited; n is
// not positive when the field is malformed.
func consume(b []byte) (num protowire.Number, value []byte, n int) {
	// The usual case by hand: a field below 16 of less than 128 bytes.
	if len(b) >= 2 && b[0]&7 == byte(protowire.BytesType) && b[0] < 0x80 && b[0] >= 8 && b[1] < 0x80 {
		if n = 2 + int(b[1]); n <= len(b) {
			return protowire.Number(b[0] >> 3), b[2:n:n], n
		}
		return 0, nil, -1
	}
	num, typ, n := protowire.ConsumeTag(b)
	if n < 0 {
		return 0, nil, n
	}
	if typ != protowire.BytesType {
		m := protowire.ConsumeFieldValue(num, typ, b[n:])
		if m < 0 {
			return 0, nil, m
		}
		return num, nil, n + m
	}
	value, m := protowire.ConsumeBytes(b[n:])
	if m < 0 {
		return 0, nil, m
	}
	return num, value, n + m
}

// fields yields the length-delimited fields of a message and skips the others.
// After malformed bytes it yields the number 0, which no field has, and stops.
func fields(b []byte) iter.Seq2[protowire.Number, []byte] {
	return func(yield func(protowire.Number, []byte) bool) {
		for len(b) > 0 {
			num, value, n := consume(b)
			if n <= 0 {
				yield(0, nil)
				return
			}
			b = b[n:]
			if value != nil && !yield(num, value) {
				return
			}
		}
	}
}
