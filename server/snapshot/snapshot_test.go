package snapshot

import (
	"fmt"
	"testing"

	"github.com/musterhq/muster/server/compile"
)

func up(typeURL, name, body string) compile.Resource {
	return compile.Resource{Key: compile.Key{TypeURL: typeURL, Name: name}, Body: []byte(body)}
}

func TestChangedSinceIsWhatChanged(t *testing.T) {
	const T = compile.ClusterType
	s := Empty("g", 1).Next(Version{1, 1}, compile.Delta{Upsert: []compile.Resource{up(T, "a", "1"), up(T, "b", "1")}})
	s2 := s.Next(Version{1, 2}, compile.Delta{Upsert: []compile.Resource{up(T, "a", "2")}, Remove: []compile.Key{{TypeURL: T, Name: "b"}}})
	seq, ok := s2.Set(T, View{}).ChangedSince(1)
	if !ok {
		t.Fatal("revision 1 is forgotten")
	}
	got := ""
	for name, r := range seq {
		got += fmt.Sprint(name, " ", r != nil, "; ")
	}
	if want := "a true; b false; "; got != want {
		t.Errorf("changed since 1: %q, want %q", got, want)
	}
}
