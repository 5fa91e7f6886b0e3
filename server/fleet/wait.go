package fleet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

// missingLimit bounds the data planes named by a wait's progress.
const missingLimit = 20

// lookInterval is the shortest time between two looks of one wait: a fleet of
// thousands acknowledges in a burst, and each look costs O(group).
const lookInterval = 20 * time.Millisecond

// ErrGroupDropped ends a wait whose group was deleted.
var ErrGroupDropped = errors.New("the group was deleted")

// WaitSpec says what to wait for.
type WaitSpec struct {
	// Version must be acknowledged whole.
	Version Version
	// Percent is the share of connected data planes that must have, 1 to 100.
	Percent uint32
	// Min is how many data planes must be connected at least.
	Min uint32
}

// NotReachedError tells how far a wait got until its context ended.
type NotReachedError struct {
	// Last is the last progress, with who is missing.
	Last  *musterv1.WaitResponse
	cause error
}

func (e *NotReachedError) Error() string {
	return fmt.Sprintf("revision %d: acknowledged by %d of %d connected data planes", e.Last.GetRevision(), e.Last.GetAcked(), e.Last.GetConnected())
}

// Unwrap returns the context's error.
func (e *NotReachedError) Unwrap() error { return e.cause }

// Wait returns nil once enough data planes acknowledged the version. progress
// is called from this goroutine, first at once and then when the numbers
// changed; the last call before nil has done set. It returns
// *[NotReachedError] when ctx ends first, [ErrGroupDropped], or progress's error.
func (r *Registry) Wait(ctx context.Context, groupID string, spec WaitSpec, progress func(*musterv1.WaitResponse) error) error {
	g := r.group(groupID)
	wake := make(chan struct{}, 1)
	g.mu.Lock()
	g.waiters[wake] = struct{}{}
	g.mu.Unlock()
	r.waiting.Add(1)
	defer func() {
		r.waiting.Add(-1)
		g.mu.Lock()
		delete(g.waiters, wake)
		g.mu.Unlock()
	}()

	pause := time.NewTimer(0)
	defer pause.Stop()
	<-pause.C
	var last *musterv1.WaitResponse
	for {
		r.expire(r.cfg.Now())
		now, dropped := g.look(spec, r.cfg.Now())
		if dropped {
			return ErrGroupDropped
		}
		if last == nil || now.GetAcked() != last.GetAcked() || now.GetConnected() != last.GetConnected() ||
			now.GetDone() || !sameMissing(now, last) {
			if err := progress(now); err != nil {
				return err
			}
		}
		last = now
		if now.GetDone() {
			return nil
		}
		select {
		case <-ctx.Done():
			return &NotReachedError{Last: last, cause: ctx.Err()}
		case <-wake:
		}
		pause.Reset(lookInterval)
		select {
		case <-ctx.Done():
			// One more look: what came within the pause counts.
			if now, _ := g.look(spec, r.cfg.Now()); now.GetDone() {
				return progress(now)
			}
			return &NotReachedError{Last: last, cause: ctx.Err()}
		case <-pause.C:
		}
	}
}

func (g *group) look(spec WaitSpec, now time.Time) (*musterv1.WaitResponse, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	resp := &musterv1.WaitResponse{Revision: spec.Version.Revision}
	var missing []*plane
	for _, p := range g.merged() {
		if !p.live() {
			continue
		}
		resp.Connected++
		if p.reached(spec.Version) {
			resp.Acked++
		} else {
			missing = append(missing, p)
		}
	}
	resp.Done = resp.Connected >= spec.Min && uint64(resp.Acked)*100 >= uint64(resp.Connected)*uint64(spec.Percent)
	// Those that refuse first: they will not come round by waiting.
	slices.SortFunc(missing, func(a, b *plane) int {
		return cmp.Or(cmp.Compare(len(b.refusals), len(a.refusals)), cmp.Compare(a.id, b.id))
	})
	for _, p := range missing[:min(len(missing), missingLimit)] {
		resp.Missing = append(resp.Missing, p.message(g, now, false))
	}
	return resp, g.dropped
}

func sameMissing(a, b *musterv1.WaitResponse) bool {
	return slices.EqualFunc(a.GetMissing(), b.GetMissing(), func(x, y *musterv1.DataPlane) bool {
		return x.GetId() == y.GetId() && x.GetState() == y.GetState() && len(x.GetRefusals()) == len(y.GetRefusals())
	})
}
