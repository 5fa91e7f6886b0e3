package snapshot

import (
	"crypto/sha256"
	"encoding/base64"
	"sync/atomic"

	"google.golang.org/protobuf/encoding/protowire"

	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/server/compile"
)

// Resource is one xDS resource at one version. It is immutable and shared.
type Resource struct {
	Name    string
	TypeURL string
	// Version is `<epoch>.<revision>.<content>`: the revision that last changed
	// the resource on this server and a hash of its content.
	Version string
	// Rev is the revision that last changed the resource.
	Rev uint64
	// Encoded is the resource as an envoy.service.discovery.v3.Resource message; of
	// one of RelayType it is the end of that.
	Encoded []byte
	// Body is the message itself: the value of the Any inside Encoded.
	Body []byte
	// Origins are the objects that the resource was made from, nearest first.
	Origins []resource.Key

	head    []byte // goes before Encoded
	passed  bool   // the version came with it
	anyLen  int    // the Any is the last anyLen bytes of Encoded
	view    compile.View
	content string // the content part of Version
	print   fingerprint
	digest  Digest
	// untouched is the resource as it was before its version was moved on; see
	// edit.touch.
	untouched *Resource
	sourced   atomic.Pointer[sourcedBody] // a cache
}

// Any returns the encoded google.protobuf.Any of the resource.
func (r *Resource) Any() []byte { return r.Encoded[len(r.Encoded)-r.anyLen:] }

// size is the length of the encoded message.
func (r *Resource) size() int { return len(r.head) + len(r.Encoded) }

// appendTo appends the encoded message.
func (r *Resource) appendTo(b []byte) []byte { return append(append(b, r.head...), r.Encoded...) }

// at returns the resource as one that a revision changed.
func (r *Resource) at(rev uint64) *Resource {
	return &Resource{
		Name: r.Name, TypeURL: r.TypeURL, Version: r.Version, Rev: rev,
		Encoded: r.Encoded, Body: r.Body, Origins: r.Origins,
		head: r.head, anyLen: r.anyLen, view: r.view, content: r.content, print: r.print, digest: r.digest,
	}
}

// SameContent reports whether both are the same content. Nil is the content of
// no resource.
func (r *Resource) SameContent(o *Resource) bool {
	if r == nil || o == nil {
		return r == o
	}
	return r == o || r.content == o.content
}

// IsContent reports whether a version of the resource's name, as a client sends
// it back, denotes the resource's content. Of a resource that shows a removal an
// earlier version does not.
func (r *Resource) IsContent(version []byte) bool {
	v, content, _ := ParseVersion(version)
	if string(content) != r.content {
		return false
	}
	if r.untouched == nil {
		return true
	}
	own, _, _ := ParseVersion(r.Version)
	return !v.Less(own)
}

// Field numbers of envoy.service.discovery.v3.Resource and google.protobuf.Any.
const (
	resourceVersion  protowire.Number = 1
	resourceResource protowire.Number = 2
	resourceName     protowire.Number = 3
	anyTypeURL       protowire.Number = 1
	anyValue         protowire.Number = 2
)

// NewResource makes a resource that is in no snapshot.
func NewResource(typeURL, name string, v Version, body []byte) *Resource {
	return newResource(typeURL, name, "", v, body, nil, compile.ViewAll)
}

// newResource encodes a resource. Of an empty version it makes one from v and
// the content.
func newResource(typeURL, name, version string, v Version, body []byte, origins []resource.Key, view compile.View) *Resource {
	var content string
	if version == "" {
		buf := v.append(make([]byte, 0, 48))
		buf = append(buf, '.')
		buf = base64.RawURLEncoding.AppendEncode(buf, contentHash(body))
		version = string(buf)
		content = version[len(version)-contentLen:]
	} else {
		_, content, _ = ParseVersion(version)
	}
	bodyLen := len(body)
	anyLen := protowire.SizeTag(anyTypeURL) + protowire.SizeBytes(len(typeURL)) +
		protowire.SizeTag(anyValue) + protowire.SizeBytes(bodyLen)
	size := protowire.SizeTag(resourceVersion) + protowire.SizeBytes(len(version)) +
		protowire.SizeTag(resourceName) + protowire.SizeBytes(len(name)) +
		protowire.SizeTag(resourceResource) + protowire.SizeBytes(anyLen)
	b := make([]byte, 0, size)
	b = appendString(b, resourceVersion, version)
	b = appendString(b, resourceName, name)
	// The Any comes last, so that it and the body are tails of the message.
	b = protowire.AppendTag(b, resourceResource, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(anyLen))
	b = appendString(b, anyTypeURL, typeURL)
	b = protowire.AppendTag(b, anyValue, protowire.BytesType)
	b = protowire.AppendBytes(b, body)
	return &Resource{
		Name: name, TypeURL: typeURL, Version: version, Rev: v.Revision,
		Encoded: b, Body: b[len(b)-bodyLen : len(b) : len(b)], Origins: origins,
		anyLen: anyLen, view: view, content: content,
		print:  printOfName(name, content),
		digest: digestOf(name, content),
	}
}

func appendString(b []byte, num protowire.Number, s string) []byte {
	b = protowire.AppendTag(b, num, protowire.BytesType)
	return protowire.AppendString(b, s)
}

// contentHash is what is shown of a body's hash: 48 bits. A collision would need
// two contents of one name, and would only make a reconnecting client keep the
// earlier one until the next change.
func contentHash(body []byte) []byte {
	sum := sha256.Sum256(body)
	return sum[:contentLen*6/8]
}
