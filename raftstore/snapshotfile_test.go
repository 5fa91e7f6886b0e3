package raftstore

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
)

// A small command can do much: one that deletes by id, or rolls back, is recorded
// with the bodies of everything that it changed.
func TestASnapshotOfARevisionFarLargerThanItsCommandCanBeRead(t *testing.T) {
	st := state.New()
	apply := func(cmd *musterv1.Command) {
		t.Helper()
		next, result := st.Apply(cmd)
		if result.Err != nil {
			t.Fatal(result.Err)
		}
		st = next
	}
	apply(createGroup("g"))
	const services, size = 72, 1 << 20
	var deletes []*musterv1.Change
	for i := range services {
		cmd := putService("g", fmt.Sprint("s", i), strings.Repeat("x", size))
		apply(cmd)
		deletes = append(deletes, &musterv1.Change{Action: &musterv1.Change_Delete{
			Delete: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SERVICE, Id: fmt.Sprint("s", i)},
		}})
	}
	apply(&musterv1.Command{Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: "g", Changes: deletes}}})
	var file bytes.Buffer
	if err := writeSnapshot(&file, st); err != nil {
		t.Fatal(err)
	}
	back, err := readSnapshot(&file)
	if err != nil {
		t.Fatalf("what this server wrote, it cannot read: %v", err)
	}
	if g, _ := back.Group("g"); g.Revision() != services+1 {
		t.Errorf("revision %d", g.Revision())
	}
}
