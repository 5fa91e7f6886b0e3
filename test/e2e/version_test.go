//go:build e2e

package e2e

import (
	"fmt"
	"strconv"
	"strings"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// envoyVersion reads 1.40.0.
func envoyVersion(s string) *typev3.SemanticVersion {
	var n [3]uint32
	for i, part := range strings.SplitN(s, ".", 3) {
		v, err := strconv.ParseUint(part, 10, 32)
		if err != nil {
			panic(err)
		}
		n[i] = uint32(v)
	}
	return &typev3.SemanticVersion{MajorNumber: n[0], MinorNumber: n[1], Patch: n[2]}
}

// version orders the versions of resources, `epoch.revision.hash`.
type version struct{ epoch, revision uint64 }

func parseVersion(s string) (version, error) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) != 3 {
		return version{}, fmt.Errorf("version %q is not epoch.revision.hash", s)
	}
	epoch, err := strconv.ParseUint(parts[0], 10, 64)
	if err != nil {
		return version{}, fmt.Errorf("version %q: %w", s, err)
	}
	revision, err := strconv.ParseUint(parts[1], 10, 64)
	if err != nil {
		return version{}, fmt.Errorf("version %q: %w", s, err)
	}
	return version{epoch, revision}, nil
}

func (v version) before(w version) bool {
	return v.epoch < w.epoch || v.epoch == w.epoch && v.revision < w.revision
}
