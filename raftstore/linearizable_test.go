package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/musterhq/muster/raftstore/state"
)

// registerInput is one operation on the group's revision: a compare-and-set by
// expected_revision, or a read.
type registerInput struct {
	read     bool
	expected uint64
}

type registerOutput struct {
	revision uint64 // of a read, or of a conflict
	ok       bool   // the write was taken
	unknown  bool
}

// register says how a group's revision may behave.
var register = porcupine.Model{
	Init: func() any { return uint64(0) },
	Step: func(s, in, out any) (bool, any) {
		now, i, o := s.(uint64), in.(registerInput), out.(registerOutput)
		switch {
		case i.read:
			return o.revision == now, now
		case o.unknown:
			// Its condition decides, whenever it took effect; if it never did, that
			// is as if it had come after everything else.
			if i.expected == now {
				return true, now + 1
			}
			return true, now
		case o.ok:
			return i.expected == now, now + 1
		}
		return i.expected != now, now
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
}

// TestRevisionsAreLinearizable lets clients on all servers compare and set and
// read one group while leaders are cut off and restarted, and checks the
// history. A write of unknown outcome ends its client; it is taken to last until the
// end, so that it may have happened at any time or, by its condition, never.
func TestRevisionsAreLinearizable(t *testing.T) {
	c := newCluster(t, 3, nil)
	mustApply(t, c.members[0].Store, groupG())
	var mu sync.Mutex
	var history []porcupine.Operation
	begin := time.Now()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	client := 0
	for i := range 6 {
		m := c.members[i%3]
		wg.Go(func() {
			mu.Lock()
			me := client
			client++
			mu.Unlock()
			random := rand.New(rand.NewPCG(uint64(i), 7))
			var known uint64
			for n := 0; ctx.Err() == nil; n++ {
				op := porcupine.Operation{ClientId: me, Input: registerInput{read: random.IntN(2) == 0, expected: known}}
				in := op.Input.(registerInput)
				op.Call = int64(time.Since(begin))
				out, valid := registerOp(m.Store, in, fmt.Sprintf("%d-%d", i, n))
				op.Return = int64(time.Since(begin))
				if !valid {
					continue
				}
				if out.unknown {
					op.Return = int64(time.Hour)
				}
				op.Output = out
				known = out.revision
				mu.Lock()
				history = append(history, op)
				if out.unknown {
					me = client
					client++
				}
				mu.Unlock()
				time.Sleep(time.Duration(random.IntN(10)) * time.Millisecond)
			}
		})
	}
	for range 3 {
		time.Sleep(700 * time.Millisecond)
		old := c.leader()
		c.net.isolate(old.id)
		c.leader(old)
		time.Sleep(300 * time.Millisecond)
		c.net.heal()
	}
	time.Sleep(500 * time.Millisecond)
	cancel()
	wg.Wait()
	writes, unknown := 0, 0
	for _, op := range history {
		if op.Output.(registerOutput).ok {
			writes++
		}
		if op.Output.(registerOutput).unknown {
			unknown++
		}
	}
	t.Logf("%d operations, %d writes taken, %d of unknown outcome", len(history), writes, unknown)
	if writes < 20 {
		t.Errorf("only %d writes", writes)
	}
	if result := porcupine.CheckOperationsTimeout(register, history, 30*time.Second); result != porcupine.Ok {
		t.Errorf("the history is %v", result)
	}
}

func registerOp(s *Store, in registerInput, id string) (registerOutput, bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	if in.read {
		if s.ReadIndex(ctx) != nil {
			return registerOutput{}, false
		}
		g, _ := s.State().Group("g")
		return registerOutput{revision: g.Revision()}, true
	}
	cmd := putService("g", "register", id+strconv.FormatUint(in.expected, 10))
	cmd.GetCommit().ExpectedRevision = &in.expected
	result, err := s.Apply(ctx, cmd)
	var conflict *state.RevisionConflict
	switch {
	case errors.Is(err, ErrUnknown):
		return registerOutput{unknown: true}, true
	case err != nil:
		return registerOutput{}, false
	case errors.As(result.Err, &conflict):
		return registerOutput{revision: conflict.Actual}, true
	case result.Err != nil:
		return registerOutput{}, false
	}
	return registerOutput{revision: result.Commit.GetRevision(), ok: true}, true
}
