package oracle

import (
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Slots is the number of slots of a group.
const Slots = 8

// Values are the values of a group's slots.
type Values [Slots]uint32

// Kind is what a call does.
type Kind int

// The kinds of calls.
const (
	Put     Kind = iota // puts Value into Slot, on the condition Expected if there is one
	Read                // reads one slot, linearizable
	ReadAll             // reads all slots, linearizable
)

// Outcome is how a call ended.
type Outcome int

// The outcomes.
const (
	OK Outcome = iota
	// Conflict is a put whose condition did not hold.
	Conflict
	// Unknown is a put that may have happened, or may yet.
	Unknown
	// Failed is a call of which the server, or the network, said that nothing
	// was done.
	Failed
)

// Op is one call.
type Op struct {
	Client       int
	Group        string
	Kind         Kind
	Slot         int
	Value        uint32
	Expected     *uint64
	Call, Return time.Duration // since the beginning of the run
	Outcome      Outcome
	// Epoch and Revision are what a put led to, what a read saw, and for a
	// conflict the group's actual revision.
	Epoch, Revision uint64
	Values          Values // of a ReadAll; of a Read only Values[Slot]
	Err             string
}

func (o Op) String() string {
	what := [...]string{"put", "read", "read all"}[o.Kind]
	s := fmt.Sprintf("%9.3fs..%9.3fs client %d %s %s", o.Call.Seconds(), o.Return.Seconds(), o.Client, o.Group, what)
	if o.Kind != ReadAll {
		s += fmt.Sprintf(" slot %d", o.Slot)
	}
	if o.Kind == Put {
		s += fmt.Sprintf(" value %#x", o.Value)
	}
	if o.Expected != nil {
		s += fmt.Sprintf(" expecting %d", *o.Expected)
	}
	s += " -> " + [...]string{"ok", "conflict", "unknown", "failed"}[o.Outcome]
	if o.Outcome == OK || o.Outcome == Conflict {
		s += fmt.Sprintf(" revision %d.%d", o.Epoch, o.Revision)
	}
	switch {
	case o.Outcome != OK:
	case o.Kind == Read:
		s += fmt.Sprintf(" value %#x", o.Values[o.Slot])
	case o.Kind == ReadAll:
		s += fmt.Sprintf(" values %#x", o.Values)
	}
	if o.Err != "" {
		s += " (" + o.Err + ")"
	}
	return s
}

// History is the calls of one group since the last check. Its methods are safe
// for concurrent use.
type History struct {
	group string

	mu    sync.Mutex
	begin register
	ops   []Op
	// failed are the values of puts that must never be seen.
	failed map[uint32]Op
}

// NewHistory begins with what the group holds.
func NewHistory(group string, revision uint64, values Values) *History {
	return &History{group: group, begin: register{revision, values}, failed: map[uint32]Op{}}
}

// Record notes a call that has ended.
func (h *History) Record(op Op) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, op)
	if op.Kind == Put && op.Outcome == Failed {
		h.failed[op.Value] = op
	}
}

// Ops returns the calls since the last check.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.ops)
}

// register is the state of the model.
type register struct {
	revision uint64
	values   Values
}

func model(begin register) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return begin },
		Step: func(s, in, out any) (bool, any) {
			now, op := s.(register), out.(Op)
			switch op.Kind {
			case Read:
				return op.Revision == now.revision && op.Values[op.Slot] == now.values[op.Slot], now
			case ReadAll:
				return op.Revision == now.revision && op.Values == now.values, now
			}
			holds := op.Expected == nil || *op.Expected == now.revision
			next := now
			next.revision++
			next.values[op.Slot] = op.Value
			switch op.Outcome {
			case Conflict:
				return !holds && op.Revision == now.revision, now
			case Unknown:
				// It may take effect at any time after the call. If it never does, that
				// is as if it did after everything else.
				if holds {
					return true, next
				}
				return true, now
			}
			return holds && op.Revision == next.revision, next
		},
		DescribeOperation: func(_, out any) string { return out.(Op).String() },
	}
}

// Check says what is wrong with the calls since the last check. last is a
// ReadAll that was called after all others had returned and nothing was under
// way any more; the next history begins with what it saw. decided is false when
// the history was too large to be judged in time.
func (h *History) Check(last Op, limit time.Duration) (violations []string, decided bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	violations = h.lost(last)
	var ops []porcupine.Operation
	for _, op := range append(h.ops, last) {
		ret := op.Return
		switch {
		case op.Outcome == Failed, op.Outcome == Unknown && op.Kind != Put:
			continue
		case op.Outcome == Unknown:
			ret = 1 << 60
		}
		// Clients that go on after an unknown outcome overlap with themselves,
		// which porcupine does not mind.
		ops = append(ops, porcupine.Operation{ClientId: op.Client, Input: op.Kind, Output: op, Call: int64(op.Call), Return: int64(ret)})
	}
	decided = true
	switch porcupine.CheckOperationsTimeout(model(h.begin), ops, limit) {
	case porcupine.Illegal:
		violations = append(violations, fmt.Sprintf("I5: the history of group %s (%d calls, from revision %d) is not linearizable", h.group, len(ops), h.begin.revision))
	case porcupine.Unknown:
		decided = false
	}
	h.begin = register{last.Revision, last.Values}
	h.ops = nil
	return violations, decided
}

// lost compares the end with what was acknowledged.
func (h *History) lost(last Op) (violations []string) {
	var newest [Slots]*Op
	at := map[uint64]Op{}
	maybe := map[uint32]bool{}
	for i, op := range h.ops {
		if op.Kind != Put {
			continue
		}
		switch op.Outcome {
		case Unknown:
			maybe[op.Value] = true
		case OK:
			if other, taken := at[op.Revision]; taken {
				violations = append(violations, fmt.Sprintf("I1: two writes were acknowledged as revision %d: %s and %s", op.Revision, other, op))
			}
			at[op.Revision] = op
			if n := newest[op.Slot]; n == nil || n.Revision < op.Revision {
				newest[op.Slot] = &h.ops[i]
			}
		}
	}
	for slot, value := range last.Values {
		if op, failed := h.failed[value]; failed {
			violations = append(violations, fmt.Sprintf("I1: a write that failed appeared in slot %d: %s", slot, op))
		}
		switch n := newest[slot]; {
		case n == nil && value != h.begin.values[slot] && !maybe[value]:
			violations = append(violations, fmt.Sprintf("I1: slot %d of %s held %#x, nobody wrote, and it holds %#x", slot, h.group, h.begin.values[slot], value))
		case n != nil && value != n.Value && !maybe[value]:
			violations = append(violations, fmt.Sprintf("I1: an acknowledged write is lost: slot %d holds %#x after %s", slot, value, n))
		}
		if n := newest[slot]; n != nil && last.Revision < n.Revision {
			violations = append(violations, fmt.Sprintf("I1: the group is at revision %d after %s", last.Revision, n))
		}
	}
	return violations
}
