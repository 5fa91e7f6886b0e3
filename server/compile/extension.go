package compile

import (
	"strings"

	apikeyv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/api_key_auth/v3"
	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile/plugin"
)

// Field numbers of the messages that are put together from encoded parts.
const (
	rateLimitDescriptorsField protowire.Number = 8  // LocalRateLimit
	rateLimitRateLimitsField  protowire.Number = 17 // LocalRateLimit
	keyAuthCredentialsField   protowire.Number = 1  // ApiKeyAuth
	extensionNameField        protowire.Number = 1  // TypedExtensionConfig
	extensionConfigField      protowire.Number = 2  // TypedExtensionConfig
	anyTypeField              protowire.Number = 1
	anyValueField             protowire.Number = 2
)

// field encodes one field with bytes.
func field(num protowire.Number, value []byte) []byte {
	b := make([]byte, 0, len(value)+8)
	return protowire.AppendBytes(protowire.AppendTag(b, num, protowire.BytesType), value)
}

// part is a piece of a filter's configuration and where it comes from.
type part struct {
	encoded []byte
	origin  resource.Key
}

// limitsOf encodes what an effect adds to the rate limit filters, by filter.
// With rules the actions go along, for there no route carries them.
func limitsOf(e *plugin.Effect, rule bool) map[string][]byte {
	if len(e.Limits) == 0 {
		return nil
	}
	out := map[string][]byte{}
	for _, l := range e.Limits {
		out[l.Filter] = append(out[l.Filter], field(rateLimitDescriptorsField, marshal(l.Descriptor))...)
		if rule {
			out[l.Filter] = append(out[l.Filter], field(rateLimitRateLimitsField, marshal(l.RateLimit))...)
		}
	}
	return out
}

// credentialOf encodes a key of the key-auth filter.
func credentialOf(key, consumer string) []byte {
	return field(keyAuthCredentialsField, marshal(&apikeyv3.Credential{Key: key, Client: consumer}))
}

// extension is a TypedExtensionConfig of a base and encoded parts of it.
func extension(name string, base proto.Message, parts []part) Resource {
	size := 0
	for _, p := range parts {
		size += len(p.encoded)
	}
	head := marshal(base)
	value := make([]byte, 0, len(head)+size)
	value = append(value, head...)
	var origins []resource.Key
	for _, p := range parts {
		value = append(value, p.encoded...)
		origins = append(origins, p.origin)
	}
	typeURL := "type.googleapis.com/" + string(base.ProtoReflect().Descriptor().FullName())
	config := append(field(anyTypeField, []byte(typeURL)), field(anyValueField, value)...)
	return Resource{
		Key:     Key{ExtensionConfigType, name},
		Body:    append(field(extensionNameField, []byte(name)), field(extensionConfigField, config)...),
		Origins: origins,
	}
}

// limitParts lists the descriptors of one filter by owner.
func limitParts(limits *iradix.Tree[part], filter string) []part {
	var parts []part
	limits.Root().WalkPrefix([]byte(filter+"\x00"), func(_ []byte, p part) bool {
		parts = append(parts, p)
		return false
	})
	return parts
}

// keyAt is where a key stands: by shard, key and holder.
func keyAt(secret, holder string) []byte {
	return []byte(string([]byte{plugin.KeyShard(secret)}) + secret + "\x00" + holder)
}

// keyParts lists the credentials of a shard by key. Of holders of the same key, which
// Envoy would refuse, the first has it.
func keyParts(keys *iradix.Tree[part], shard byte) []part {
	var parts []part
	last := "\x00"
	keys.Root().WalkPrefix([]byte{shard}, func(k []byte, p part) bool {
		secret := string(k[:strings.LastIndexByte(string(k), 0)])
		if secret != last {
			parts = append(parts, p)
		}
		last = secret
		return false
	})
	return parts
}
