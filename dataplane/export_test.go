package dataplane

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/types/known/anypb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// VersionOf is the version that a muster server gives a resource.
func VersionOf(epoch, revision uint64, body *anypb.Any) string {
	sum := sha256.Sum256(body.GetValue())
	return fmt.Sprintf("%d.%d.%s", epoch, revision, base64.RawURLEncoding.EncodeToString(sum[:6]))
}

// ManifestOf is the Manifest of a revision that has resources of one type.
func ManifestOf(group string, epoch, revision uint64, typeURL string, all []*discoveryv3.Resource) *anypb.Any {
	var sum digest
	for _, r := range all {
		sum.add(resourceDigest(r.GetName(), r.GetVersion()))
	}
	m, err := anypb.New(&musterv1.Manifest{Group: group, Epoch: epoch, Revision: revision, Types: []*musterv1.TypeDigest{
		{TypeUrl: typeURL, Count: uint64(len(all)), Digest: sum.bytes()},
	}})
	if err != nil {
		panic(err) // of valid strings
	}
	return m
}
