package raftstore

import (
	"errors"
	"testing"

	"github.com/musterhq/muster/raftstore/state"
)

func TestAnOutcomeStaysUnknownUntilTheCommandItselfIsAnswered(t *testing.T) {
	done := state.Result{Replayed: true}
	stopped := errors.New("time is up")
	for name, c := range map[string]struct {
		attempts   []error // nil is an answer
		repeatable bool
		want       error
		not        error
	}{
		"an answer":                                 {[]error{nil}, false, nil, nil},
		"not done, then an answer":                  {[]error{&NotLeaderError{}, errHandingOver, nil}, false, nil, nil},
		"never done":                                {[]error{&NotLeaderError{}}, true, ErrNoLeader, ErrUnknown},
		"unknown, not to be repeated":               {[]error{&unknownError{stopped}, nil}, false, ErrUnknown, nil},
		"unknown, then the first answer":            {[]error{&unknownError{stopped}, nil}, true, nil, nil},
		"unknown, then no leader":                   {[]error{&unknownError{stopped}, ErrNoLeader}, true, ErrUnknown, ErrNoLeader},
		"unknown, then a full disk":                 {[]error{&unknownError{stopped}, &DiskFullError{}}, true, ErrUnknown, ErrDiskFull},
		"unknown, then a stop":                      {[]error{&unknownError{stopped}, ErrStopped}, true, ErrUnknown, ErrStopped},
		"a full disk":                               {[]error{&DiskFullError{}}, true, ErrDiskFull, ErrUnknown},
		"unknown, then a command that cannot be":    {[]error{&unknownError{stopped}, ErrPoison}, true, ErrPoison, ErrUnknown},
		"unknown twice, between them another error": {[]error{&unknownError{stopped}, errHandingOver, &unknownError{stopped}}, true, ErrUnknown, nil},
	} {
		t.Run(name, func(t *testing.T) {
			made := 0
			result, err := persist(c.repeatable, func() (state.Result, error) {
				made++
				return done, c.attempts[made-1]
			}, func(int) error {
				if made == len(c.attempts) {
					return stopped
				}
				return nil
			})
			if !errors.Is(err, c.want) || (c.not != nil && errors.Is(err, c.not)) || (err == nil) != result.Replayed {
				t.Errorf("after %d attempts %+v, %v; want %v, not %v", made, result, err, c.want, c.not)
			}
		})
	}
}
