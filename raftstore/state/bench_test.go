package state

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// BenchmarkCommit replaces one resource of 1 KiB in a group of 500, of 128
// groups, as the log does: the command is decoded first.
func BenchmarkCommit(b *testing.B) {
	s := New()
	var entries [][]byte
	for g := range 128 {
		s = do(b, s, &musterv1.Group{Id: "g" + itoa(g)})
		for i := range 500 {
			if g > 0 && i > 3 {
				break
			}
			s = do(b, s, commit("g"+itoa(g), put(service("s"+itoa(i), ""))))
		}
	}
	for i := range 1000 {
		data, _ := proto.Marshal(command(commit("g0", put(service("s"+itoa(i%500), strings.Repeat("x", 900)+itoa(i))))))
		entries = append(entries, data)
	}
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		cmd := &musterv1.Command{}
		if err := proto.Unmarshal(entries[i%1000], cmd); err != nil {
			b.Fatal(err)
		}
		next, result := s.Take(cmd)
		if result.Err != nil {
			b.Fatal(result.Err)
		}
		s = next
		i++
	}
}
