package xds

import (
	"encoding/base64"
	"encoding/binary"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/snapshot"
)

// resumeRelay is resume for a relay, which says what it holds in one entry: the
// digest of all of it. It costs O(changed) on both sides.
func (s *session) resumeRelay(t *track, r *request, set *snapshot.Set) error {
	rev, known := uint64(0), false
	r.versions(func(name, version []byte) {
		if string(name) != snapshot.ResumeName {
			return
		}
		if digest, ok := digestOfVersion(version); ok {
			rev, known = set.RevisionOf(digest)
		}
	})
	if known {
		t.held, t.least = set, s.newest
		if changed, ok := set.ChangedSince(rev); ok {
			for name, res := range changed {
				s.except(t, name, res)
			}
			return nil
		}
	}
	return status.Error(codes.FailedPrecondition,
		"this server does not remember a revision with the content that the relay has: it has to say what it has by name")
}

// digestOfVersion reads `<epoch>.<revision>.<digest>`, the digest in unpadded URL base64.
func digestOfVersion(version []byte) (d snapshot.Digest, ok bool) {
	_, content, ok := snapshot.ParseVersion(version)
	if !ok {
		return d, false
	}
	sum := make([]byte, base64.RawURLEncoding.DecodedLen(len(content)))
	if n, err := base64.RawURLEncoding.Decode(sum, content); err != nil || n != 32 {
		return d, false
	}
	for i := range d {
		d[i] = binary.BigEndian.Uint64(sum[24-8*i:])
	}
	return d, true
}
