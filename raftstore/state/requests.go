package state

import (
	"encoding/binary"
	"fmt"
	"strings"

	iradix "github.com/hashicorp/go-immutable-radix/v2"
	"google.golang.org/protobuf/proto"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// Bounds of the memory of requests. The oldest are forgotten first; the bounds
// are part of the state machine and must be the same on every server.
const (
	MaxRequestID     = 256
	maxRequests      = 8192
	maxRequestsBytes = 8 << 20
)

// requests remembers the answers to the latest successful commands that
// carried a request_id.
type requests struct {
	byKey *iradix.Tree[*remembered]
	bySeq *iradix.Tree[*remembered]
	next  uint64
	bytes int
}

type remembered struct {
	seq    uint64
	key    string
	result Result
	bytes  int
}

func newRequests() requests {
	return requests{byKey: iradix.New[*remembered](), bySeq: iradix.New[*remembered]()}
}

// requestKey scopes a request id to what was asked, of which group, by whom:
// two callers that happen to choose one id never see each other's answer. It
// is empty for a command without a request id.
func requestKey(cmd *musterv1.Command) (string, error) {
	id := cmd.GetRequestId()
	if id == "" {
		return "", nil
	}
	if len(id) > MaxRequestID || strings.Contains(id, "\x00") {
		return "", &InvalidError{"request_id", fmt.Sprintf("is longer than %d bytes or holds a NUL", MaxRequestID)}
	}
	var verb, group string
	switch c := cmd.GetCommand().(type) {
	case *musterv1.Command_CreateGroup:
		verb, group = "create", c.CreateGroup.GetId()
		if group == "" {
			group = c.CreateGroup.GetName()
		}
	case *musterv1.Command_UpdateGroup:
		verb, group = "update", c.UpdateGroup.GetId()
	case *musterv1.Command_ChangeGroup:
		verb, group = "update", c.ChangeGroup.GetGroup().GetId()
	case *musterv1.Command_DeleteGroup:
		verb, group = "delete", c.DeleteGroup.GetId()
	case *musterv1.Command_Commit:
		verb, group = "commit", c.Commit.GetGroup()
	case *musterv1.Command_RaiseEpoch:
		verb = "raise_epoch"
	}
	if strings.Contains(group, "\x00") {
		return "", &InvalidError{"group", "holds a NUL"}
	}
	// The author comes last: it is the only part that may hold a NUL.
	return strings.Join([]string{group, verb, id, cmd.GetAuthor()}, "\x00"), nil
}

// Replay returns the answer that Apply would give to a command whose
// request_id is remembered; false when it is not. Callers that judge a command
// before they propose it ask first: the group may have moved on since.
func (s *State) Replay(cmd *musterv1.Command) (Result, bool) {
	key, err := requestKey(cmd)
	if err != nil {
		return Result{}, false
	}
	first, known := s.requests.get(key)
	first.Replayed = known
	return first, known
}

func (r requests) get(key string) (Result, bool) {
	if key == "" {
		return Result{}, false
	}
	if m, found := r.byKey.Get([]byte(key)); found {
		return m.result, true
	}
	return Result{}, false
}

func (r requests) remember(key string, result Result) requests {
	m := &remembered{seq: r.next, key: key, result: result, bytes: len(key) + proto.Size(result.Group) + proto.Size(result.Commit)}
	byKey, bySeq := r.byKey.Txn(), r.bySeq.Txn()
	byKey.Insert([]byte(key), m)
	bySeq.Insert(sequenceKey(m.seq), m)
	bytes, count := r.bytes+m.bytes, r.byKey.Len()+1
	for ; count > 1 && (count > maxRequests || bytes > maxRequestsBytes); count-- {
		k, oldest, _ := bySeq.Root().Minimum()
		bySeq.Delete(k)
		byKey.Delete([]byte(oldest.key))
		bytes -= oldest.bytes
	}
	return requests{byKey.CommitOnly(), bySeq.CommitOnly(), r.next + 1, bytes}
}

// forget drops what was remembered of a group: a group that is made again
// under the id is another group.
func (r requests) forget(group string) requests {
	byKey, bySeq, bytes := r.byKey.Txn(), r.bySeq.Txn(), r.bytes
	prefix := []byte(group + "\x00")
	r.byKey.Root().WalkPrefix(prefix, func(_ []byte, m *remembered) bool {
		bySeq.Delete(sequenceKey(m.seq))
		bytes -= m.bytes
		return false
	})
	byKey.DeletePrefix(prefix)
	return requests{byKey.CommitOnly(), bySeq.CommitOnly(), r.next, bytes}
}

func sequenceKey(seq uint64) []byte { return binary.BigEndian.AppendUint64(nil, seq) }
