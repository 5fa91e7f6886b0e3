package compile_test

import (
	"testing"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/resource"
)

// store is a one-group store whose commits give views and changes.
type store struct {
	t     testing.TB
	state *state.State
}

func newStore(t testing.TB) *store {
	s := &store{t, state.New()}
	s.apply(&musterv1.Command{Command: &musterv1.Command_CreateGroup{CreateGroup: &musterv1.Group{
		Id: "g", Name: "g", Type: "api7_gateway", ControlPlaneKeyPrefix: "/gateway_groups/g",
	}}})
	return s
}

func (s *store) apply(cmd *musterv1.Command) {
	s.t.Helper()
	next, result := s.state.Apply(cmd)
	if result.Err != nil {
		s.t.Fatal(result.Err)
	}
	s.state = next
}

// commit puts and deletes resources in one transaction.
func (s *store) commit(put []*musterv1.Resource, remove ...resource.Key) (state.View, []state.Change) {
	s.t.Helper()
	before := s.group().Revision()
	cmd := &musterv1.CommitCommand{Group: "g"}
	for _, r := range put {
		cmd.Changes = append(cmd.Changes, &musterv1.Change{Action: &musterv1.Change_Put{Put: r}})
	}
	for _, k := range remove {
		cmd.Changes = append(cmd.Changes, &musterv1.Change{Action: &musterv1.Change_Delete{Delete: k.Proto()}})
	}
	s.apply(&musterv1.Command{Command: &musterv1.Command_Commit{Commit: cmd}})
	changes, ok := s.group().Changes(before, s.group().Revision())
	if !ok {
		s.t.Fatal("no changes")
	}
	return s.group().View(), changes
}

func (s *store) group() *state.Group {
	g, ok := s.state.Group("g")
	if !ok {
		s.t.Fatal("no group")
	}
	return g
}
