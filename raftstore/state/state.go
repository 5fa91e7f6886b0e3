package state

import (
	"iter"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
)

// State is the whole store at one log index.
type State struct {
	epoch, index, term uint64
	// groups holds the groups by id, names their ids by name, and prefixes
	// their ids by `<control_plane_key_prefix>/`.
	groups   *iradix.Tree[*Group]
	names    *iradix.Tree[string]
	prefixes *iradix.Tree[string]
	// graves remembers the last revision of deleted groups, so that a group
	// made again under the same id never goes back in revision.
	graves   *iradix.Tree[uint64]
	requests requests
}

// maxVersion bounds epochs and revisions that come from outside: what counts on
// from there never wraps around.
const maxVersion = 1 << 62

// Result is what a command did. On an error the state did not change.
type Result struct {
	// Group describes the group that was created, updated or deleted, or that a
	// transaction changed, as it is afterwards (a deleted one as it was).
	Group *musterv1.Group
	// Commit is a transaction's answer, without bodies.
	Commit *musterv1.CommitResponse
	// Err is nil, *NotFoundError, *ExistsError, *RevisionConflict, *InvalidError,
	// *TrimmedError, resource.Problems or ErrGroupNotEmpty.
	Err error
	// Replayed says that request_id was known and this is the first answer.
	Replayed bool
}

// New returns the empty store at epoch 1.
func New() *State {
	return &State{
		epoch:    1,
		groups:   iradix.New[*Group](),
		names:    iradix.New[string](),
		prefixes: iradix.New[string](),
		graves:   iradix.New[uint64](),
		requests: newRequests(),
	}
}

// Epoch is the store's epoch, from 1 up. It rises on restore and recovery.
func (s *State) Epoch() uint64 { return s.epoch }

// Index is the index of the last log entry that the state reflects.
func (s *State) Index() uint64 { return s.index }

// Term is the term of the log entry at Index.
func (s *State) Term() uint64 { return s.term }

// At returns the same state, marked as reflecting the log up to index.
func (s *State) At(index, term uint64) *State {
	next := *s
	next.index, next.term = index, term
	return &next
}

// WithEpoch returns the state at a higher epoch; the state itself when epoch
// is not higher.
func (s *State) WithEpoch(epoch uint64) *State {
	if epoch <= s.epoch {
		return s
	}
	next := *s
	next.epoch = epoch
	groups := s.groups.Txn()
	for g := range s.Groups() {
		raised := *g
		raised.meta = proto.CloneOf(g.meta)
		raised.meta.Epoch = epoch
		groups.Insert([]byte(g.ID()), &raised)
	}
	next.groups = groups.CommitOnly()
	return &next
}

// Group finds a group by id or, failing that, by name.
func (s *State) Group(idOrName string) (*Group, bool) {
	if g, found := s.groups.Get([]byte(idOrName)); found {
		return g, true
	}
	id, found := s.names.Get([]byte(idOrName))
	if !found {
		return nil, false
	}
	return s.groups.Get([]byte(id))
}

// Groups yields all groups by id.
func (s *State) Groups() iter.Seq[*Group] {
	return func(yield func(*Group) bool) {
		s.groups.Root().Walk(func(_ []byte, g *Group) bool { return !yield(g) })
	}
}

// Lookup resolves a full path, `<control_plane_key_prefix>/<kind>/<id>`.
func (s *State) Lookup(path string) (*Group, *Entry, bool) {
	prefix, id, found := s.prefixes.Root().LongestPrefix([]byte(path))
	if !found {
		return nil, nil, false
	}
	key, err := resource.ParseKey(path[len(prefix):])
	if err != nil || key.String() != path[len(prefix):] {
		return nil, nil, false
	}
	g, _ := s.groups.Get([]byte(id))
	e, found := g.View().Get(key)
	return g, e, found
}

// Path is where a resource of the group lies in the store.
func (g *Group) Path(key resource.Key) string {
	return g.meta.GetControlPlaneKeyPrefix() + "/" + key.String()
}

// Apply returns the state after a command. It is deterministic: author and
// time come with the command.
func (s *State) Apply(cmd *musterv1.Command) (*State, Result) {
	return s.Take(proto.CloneOf(cmd))
}

// Take is Apply for a command that nobody else holds: what it puts becomes part of
// the state as it is, but for the times.
func (s *State) Take(cmd *musterv1.Command) (*State, Result) {
	key, err := requestKey(cmd)
	if err != nil {
		return s, Result{Err: err}
	}
	if first, known := s.requests.get(key); known {
		first.Replayed = true
		return s, first
	}
	next, result := s.apply(cmd)
	if result.Err != nil {
		return s, result
	}
	if key != "" {
		if next == s {
			copied := *s
			next = &copied
		}
		next.requests = next.requests.remember(key, result)
	}
	return next, result
}

func (s *State) apply(cmd *musterv1.Command) (*State, Result) {
	switch c := cmd.GetCommand().(type) {
	case *musterv1.Command_CreateGroup:
		return s.createGroup(c.CreateGroup, cmd.GetTime())
	case *musterv1.Command_UpdateGroup:
		return s.changeGroup(c.UpdateGroup, GroupFields(), cmd.GetTime())
	case *musterv1.Command_ChangeGroup:
		return s.changeGroup(c.ChangeGroup.GetGroup(), c.ChangeGroup.GetFields(), cmd.GetTime())
	case *musterv1.Command_DeleteGroup:
		return s.deleteGroup(c.DeleteGroup)
	case *musterv1.Command_Commit:
		return s.commit(c.Commit, cmd)
	case *musterv1.Command_RaiseEpoch:
		if c.RaiseEpoch.GetAtLeast() > maxVersion {
			return s, Result{Err: &InvalidError{"at_least", "is too large for an epoch"}}
		}
		return s.WithEpoch(max(s.epoch+1, c.RaiseEpoch.GetAtLeast())), Result{}
	}
	return s, Result{Err: &InvalidError{"command", "is not set or not known"}}
}

func (s *State) commit(c *musterv1.CommitCommand, cmd *musterv1.Command) (*State, Result) {
	g, found := s.groups.Get([]byte(c.GetGroup()))
	if !found {
		return s, Result{Err: &NotFoundError{Group: c.GetGroup()}}
	}
	tx, err := g.evaluate(c, cmd.GetAuthor(), cmd.GetTime())
	if err != nil {
		return s, Result{Err: err}
	}
	after := tx.commit(g, c, cmd.GetTime())
	next := s
	if after != g {
		next = s.withGroup(after)
	}
	answer := &musterv1.CommitResponse{Revision: after.Revision(), Epoch: s.epoch, Changes: tx.answer(false)}
	return next, Result{Group: after.meta, Commit: answer}
}

func (s *State) withGroup(g *Group) *State {
	next := *s
	next.groups, _, _ = s.groups.Insert([]byte(g.ID()), g)
	return &next
}
