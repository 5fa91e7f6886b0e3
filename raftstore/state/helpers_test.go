package state

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

func service(id, desc string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{Id: id, Desc: desc}}}
}

func route(id, serviceID, desc string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{Id: id, ServiceId: serviceID, Desc: desc}}}
}

func streamRoute(id, serviceID string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_StreamRoute{StreamRoute: &musterv1.StreamRoute{Id: id, ServiceId: serviceID}}}
}

func consumer(name string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{Username: name}}}
}

func credential(name, id string) *musterv1.Resource {
	return &musterv1.Resource{Kind: &musterv1.Resource_Credential{Credential: &musterv1.Credential{Consumer: name, Id: id}}}
}

func put(r *musterv1.Resource) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Put{Put: r}}
}

func del(key string) *musterv1.Change {
	return &musterv1.Change{Action: &musterv1.Change_Delete{Delete: key2(key).Proto()}}
}

func key2(s string) resource.Key {
	k, err := resource.ParseKey(s)
	if err != nil {
		panic(err)
	}
	return k
}

func at(seconds int64) *timestamppb.Timestamp { return &timestamppb.Timestamp{Seconds: seconds} }

func command(c any) *musterv1.Command {
	cmd := &musterv1.Command{Author: "alice", Time: at(1000)}
	switch c := c.(type) {
	case *musterv1.CommitCommand:
		cmd.Command = &musterv1.Command_Commit{Commit: c}
	case *musterv1.DeleteGroupCommand:
		cmd.Command = &musterv1.Command_DeleteGroup{DeleteGroup: c}
	case *musterv1.RaiseEpochCommand:
		cmd.Command = &musterv1.Command_RaiseEpoch{RaiseEpoch: c}
	case *musterv1.Group:
		cmd.Command = &musterv1.Command_CreateGroup{CreateGroup: c}
	default:
		panic(fmt.Sprintf("%T", c))
	}
	return cmd
}

func update(g *musterv1.Group) *musterv1.Command {
	return &musterv1.Command{Author: "alice", Time: at(2000), Command: &musterv1.Command_UpdateGroup{UpdateGroup: g}}
}

func commit(group string, changes ...*musterv1.Change) *musterv1.CommitCommand {
	return &musterv1.CommitCommand{Group: group, Changes: changes}
}

// do applies commands that must succeed.
func do(t testing.TB, s *State, cmds ...any) *State {
	t.Helper()
	for _, c := range cmds {
		cmd, ok := c.(*musterv1.Command)
		if !ok {
			cmd = command(c)
		}
		next, result := s.Apply(cmd)
		if result.Err != nil {
			t.Fatalf("%v: %v", cmd, result.Err)
		}
		s = next
	}
	return s
}

// fails applies a command that must be refused, and returns the error.
func fails(t testing.TB, s *State, c any) error {
	t.Helper()
	cmd, ok := c.(*musterv1.Command)
	if !ok {
		cmd = command(c)
	}
	next, result := s.Apply(cmd)
	if result.Err == nil {
		t.Fatalf("%v succeeded", cmd)
	}
	if next != s {
		t.Fatalf("%v failed and changed the state", cmd)
	}
	return result.Err
}

func group(t testing.TB, s *State, id string) *Group {
	t.Helper()
	g, found := s.Group(id)
	if !found {
		t.Fatalf("no group %q", id)
	}
	return g
}

// keys lists a view's keys, sorted.
func keys(v View) string {
	var out []string
	for e := range v.Entries() {
		out = append(out, e.Key.String())
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// results lists changes as `created service/a`.
func results(changes []*musterv1.ResourceChange) string {
	var out []string
	for _, c := range changes {
		result := strings.ToLower(strings.TrimPrefix(c.GetResult().String(), "CHANGE_RESULT_"))
		out = append(out, result+" "+resource.KeyFromProto(c.GetKey()).String())
	}
	return strings.Join(out, ", ")
}
