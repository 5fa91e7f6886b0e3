package fleet

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/compile"
)

// waiting runs a Wait in a synctest bubble and collects its progress.
type waiting struct {
	seen []*musterv1.WaitResponse
	err  error
	done chan struct{}
}

func startWait(ctx context.Context, r *Registry, spec WaitSpec) *waiting {
	w := &waiting{done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.err = r.Wait(ctx, "g", spec, func(p *musterv1.WaitResponse) error {
			w.seen = append(w.seen, p)
			return nil
		})
	}()
	synctest.Wait()
	return w
}

func (w *waiting) finished() bool {
	time.Sleep(2 * lookInterval)
	synctest.Wait()
	select {
	case <-w.done:
		return true
	default:
		return false
	}
}

func (w *waiting) last() *musterv1.WaitResponse { return w.seen[len(w.seen)-1] }

func all(v uint64) WaitSpec { return WaitSpec{Version: rev(v), Percent: 100, Min: 1} }

func TestWaitReportsProgressUntilAllAcknowledged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRegistry(t)
		r.Published("g", rev(2))
		a := connect(r, 1, "a").subscribe(compile.ClusterType)
		b := connect(r, 2, "b").subscribe(compile.ClusterType)
		w := startWait(t.Context(), r, all(2))
		if p := w.last(); p.GetAcked() != 0 || p.GetConnected() != 2 || len(p.GetMissing()) != 2 || p.GetDone() {
			t.Fatalf("first progress = %v", p)
		}
		a.ack(compile.ClusterType, 2)
		if w.finished() {
			t.Fatal("done with one of two")
		}
		if p := w.last(); p.GetAcked() != 1 || p.GetMissing()[0].GetId() != "b" {
			t.Fatalf("progress = %v", p)
		}
		b.ack(compile.ClusterType, 2)
		if !w.finished() || w.err != nil || !w.last().GetDone() || w.last().GetAcked() != 2 {
			t.Fatalf("err = %v, last = %v", w.err, w.last())
		}
	})
}

func TestWaitCountsAShareOfTheConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRegistry(t)
		r.Published("g", rev(2))
		for i := range 20 {
			d := connect(r, uint64(i+1), fmt.Sprintf("dp-%02d", i)).subscribe(compile.ClusterType)
			if i < 18 {
				d.ack(compile.ClusterType, 2)
			}
		}
		connect(r, 99, "gone").disconnect()
		if w := startWait(t.Context(), r, WaitSpec{Version: rev(2), Percent: 90, Min: 1}); !w.finished() || w.err != nil {
			t.Fatalf("18 of 20 are not 90%%: %v", w.err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		w := startWait(ctx, r, WaitSpec{Version: rev(2), Percent: 95, Min: 1})
		<-w.done
		var reached *NotReachedError
		if !errors.As(w.err, &reached) || reached.Last.GetAcked() != 18 || len(reached.Last.GetMissing()) != 2 {
			t.Fatalf("err = %v", w.err)
		}
	})
}

func TestWaitNeedsTheLeastNumberConnected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRegistry(t)
		r.Published("g", rev(1))
		w := startWait(t.Context(), r, all(1))
		if w.finished() {
			t.Fatal("done with nobody connected")
		}
		connect(r, 1, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 1)
		if !w.finished() || w.err != nil {
			t.Fatalf("err = %v", w.err)
		}
	})
}

func TestARefusalOfTheRevisionItselfHoldsItsWaitUpAndThatOfAnotherDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRegistry(t)
		r.Published("g", rev(8))
		d := connect(r, 1, "a").subscribe(compile.ClusterType).nack(compile.ClusterType, "service/pay", "no").synced(8)
		own := startWait(t.Context(), r, all(7)) // what nack says it refused
		if own.finished() {
			t.Fatal("revision 7 was refused and its wait is done")
		}
		if p := own.last(); len(p.GetMissing()) != 1 || p.GetMissing()[0].GetState() != nacked {
			t.Fatalf("progress = %v", p)
		}
		if other := startWait(t.Context(), r, all(8)); !other.finished() || other.err != nil {
			t.Fatalf("revision 8 waits for what 7 brought: %v", other.err)
		}
		d.ack(compile.ClusterType, 9, "service/pay")
		if !own.finished() || own.err != nil {
			t.Fatalf("the refusal is cleared and the wait goes on: %v", own.err)
		}
	})
}

func TestANewerRevisionCountsForAnOlder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRegistry(t)
		r.Published("g", rev(9))
		connect(r, 1, "a").subscribe(compile.ClusterType).ack(compile.ClusterType, 9)
		if w := startWait(t.Context(), r, all(4)); !w.finished() || w.err != nil {
			t.Fatalf("err = %v", w.err)
		}
	})
}

func TestAWaitEndsWithItsGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRegistry(t)
		r.Published("g", rev(1))
		w := startWait(t.Context(), r, all(1))
		r.Dropped("g")
		if !w.finished() || !errors.Is(w.err, ErrGroupDropped) {
			t.Fatalf("err = %v, want ErrGroupDropped", w.err)
		}
	})
}

func TestAWaitEndsWhenItsProgressCannotBeTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r, _ := newRegistry(t)
		r.Published("g", rev(1))
		broken := errors.New("broken pipe")
		err := r.Wait(t.Context(), "g", all(1), func(*musterv1.WaitResponse) error { return broken })
		if !errors.Is(err, broken) {
			t.Fatalf("err = %v", err)
		}
		if g := r.group("g"); len(g.waiters) != 0 {
			t.Fatal("the waiter is still registered")
		}
	})
}
