package snapshot

import (
	"fmt"
	"strings"
	"testing"
)

// BenchmarkNext is one changed resource of 10,000.
func BenchmarkNext(b *testing.B) {
	var up []Upsert
	for i := range 10000 {
		up = append(up, put(clusters, fmt.Sprint("muster/api.example.com/s", i), strings.Repeat("x", 300)))
	}
	s := Empty("g", 1).Apply(Version{1, 1}, up, nil)
	rev := uint64(1)
	b.ReportAllocs()
	for b.Loop() {
		rev++
		s = s.Apply(Version{1, rev}, []Upsert{put(clusters, fmt.Sprint("muster/api.example.com/s", rev%10000), fmt.Sprint(rev))}, nil)
	}
}
