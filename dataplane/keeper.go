package dataplane

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"
)

// keeper writes what is in service to the second home, on a goroutine of its own:
// the newest only, and seldom. A store that fails or hangs holds up nobody.
type keeper struct {
	home         *SecondHome
	group, alias string // as configured
	types        []string
	log          *slog.Logger
	hook         func(SecondHomeWritten)

	offered atomic.Pointer[State]
	wake    chan struct{}
	named   bool // the names were written; of the goroutine of run
}

func newKeeper(cfg *Config) *keeper {
	return &keeper{
		home: cfg.SecondHome, group: cfg.Group, alias: cfg.GroupAlias, types: cfg.TypeURLs, log: cfg.Logger,
		hook: cfg.Hooks.secondHomeWritten, wake: make(chan struct{}, 1),
	}
}

// offer says that a whole revision is in service. It never waits.
func (k *keeper) offer(s *State) {
	if k == nil || s.Revision() == 0 {
		return // only what has a version can be told from what is older
	}
	k.offered.Store(s)
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

const (
	// keepSpread is the longest that a writer waits before it looks what is there:
	// of several relays one writes and the others find it.
	keepSpread = time.Second
	// keepRetryMax is the longest wait after failures.
	keepRetryMax = 5 * time.Minute
)

func (k *keeper) run(ctx context.Context) {
	failures := 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		}
		if !sleep(ctx, time.Duration(rand.Int64N(int64(min(keepSpread, k.home.cfg.Interval/2))+1))) {
			return
		}
		wait := k.home.cfg.Interval
		if err := k.keep(ctx, k.offered.Load()); err != nil {
			if ctx.Err() != nil {
				return
			}
			wait = min(wait<<min(failures, 10), keepRetryMax)
			failures++
			k.log.Warn("configuration not kept in the second home", "error", err, "failures", failures, "next_try", wait)
			select {
			case k.wake <- struct{}{}:
			default:
			}
		} else {
			failures = 0
		}
		if !sleep(ctx, wait) {
			return
		}
	}
}

// keep writes one state.
func (k *keeper) keep(ctx context.Context, s *State) error {
	started := time.Now()
	id := k.group
	if m := s.Manifest(); m.GetGroup() != "" {
		id = m.GetGroup()
	}
	done, err := k.home.keep(ctx, id, s, k.types)
	if err == nil && !k.named {
		err = k.name(ctx, id)
	}
	w := SecondHomeWritten{
		Epoch: s.Epoch(), Revision: s.Revision(), Bytes: done.bytes, There: done.there || done.newer != "",
		Took: time.Since(started), Err: err,
	}
	switch {
	case err != nil:
	case done.newer != "":
		k.log.Warn("not kept in the second home: a newer version is there; a control plane that began anew is kept only after its objects are removed",
			"epoch", w.Epoch, "revision", w.Revision, "newer", done.newer)
	case !done.there:
		k.log.Info("configuration kept in the second home", "epoch", w.Epoch, "revision", w.Revision, "bytes", w.Bytes, "took", w.Took)
	}
	k.hook(w)
	return err
}

// name writes the names by which the group may be looked for besides its id.
func (k *keeper) name(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(ctx, k.home.cfg.Timeout)
	defer cancel()
	for _, word := range []string{k.group, k.alias} {
		if word == "" || word == id {
			continue
		}
		if found, err := k.home.Find(ctx, word); err == nil && found == id {
			continue
		}
		if err := k.home.writeAlias(ctx, word, id); err != nil {
			return err
		}
	}
	k.named = true
	return nil
}
