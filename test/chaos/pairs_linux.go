package main

import (
	"context"
	"math/rand/v2"
	"sync"
	"syscall"
	"time"

	"github.com/musterhq/muster/test/chaos/netlab"
)

// pairFaults let several things go wrong at once.
func pairFaults() []fault {
	return []fault{{row: "mix", name: "two to four faults at once", weight: 12, run: atOnce}}
}

// blows are what may hit a server at any time, whatever role it has and whatever
// hit it before.
var blows = []func(ctx context.Context, w *world, n *node, random *rand.Rand) error{
	func(_ context.Context, _ *world, n *node, _ *rand.Rand) error { n.kill(); return nil },
	func(_ context.Context, w *world, n *node, _ *rand.Rand) error {
		n.kill()
		return w.startAgain(n)
	},
	func(_ context.Context, w *world, n *node, random *rand.Rand) error {
		if err := cutPower(random, n); err != nil {
			return err
		}
		return w.startAgain(n)
	},
	func(ctx context.Context, _ *world, n *node, random *rand.Rand) error {
		_ = n.signal(syscall.SIGSTOP) // it may have ended
		sleep(ctx, between(random, 100*time.Millisecond, 1500*time.Millisecond))
		_ = n.signal(syscall.SIGCONT)
		return nil
	},
	func(ctx context.Context, w *world, n *node, random *rand.Rand) error {
		rules := netlab.Rules{DropIn: w.peersOf(n)}
		if random.IntN(2) == 0 {
			rules.DropOut = rules.DropIn
		}
		return w.net.Set(n.host.name, rules)
	},
	func(_ context.Context, w *world, n *node, _ *rand.Rand) error { return w.net.Lose(n.host.name, 0.3) },
	func(ctx context.Context, _ *world, n *node, random *rand.Rand) error {
		n.host.disk.Hang()
		sleep(ctx, between(random, 100*time.Millisecond, 1200*time.Millisecond))
		n.host.disk.Resume()
		return nil
	},
	func(_ context.Context, _ *world, n *node, random *rand.Rand) error {
		n.host.disk.FailWrites(1+random.IntN(3), syscall.EIO)
		return nil
	},
}

// startAgain starts a server that may have been started meanwhile.
func (w *world) startAgain(n *node) error {
	if n.runs() {
		return nil
	}
	return w.start(n)
}

func atOnce(ctx context.Context, w *world, random *rand.Rand) error {
	w.mayEnd = append(w.mayEnd, diskHangs, diskFails)
	members := w.members()
	var wg sync.WaitGroup
	errs := make(chan error, 4)
	// One server is hit by one blow at a time, so that each is what it says.
	perServer := map[*node][]func() error{}
	for range 2 + random.IntN(3) {
		n, blow := pick(random, members), pick(random, blows)
		own := rand.New(rand.NewPCG(random.Uint64(), 6))
		perServer[n] = append(perServer[n], func() error {
			sleep(ctx, between(own, 0, 600*time.Millisecond))
			return blow(ctx, w, n, own)
		})
	}
	for _, list := range perServer {
		wg.Go(func() {
			for _, do := range list {
				if err := do(); err != nil {
					errs <- err
				}
			}
		})
	}
	wg.Wait()
	sleep(ctx, between(random, 300*time.Millisecond, 1500*time.Millisecond))
	select {
	case err := <-errs:
		return err
	default:
		return nil
	}
}
