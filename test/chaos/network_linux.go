package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/musterhq/muster/test/chaos/netlab"
)

// networkFaults cut, lose and slow what the servers send each other.
func networkFaults() []fault {
	return []fault{
		{row: "3", name: "leader cut off from the others", weight: 6, gap: gapCut, run: cutLeader},
		{row: "3", name: "leader cut off from everybody", weight: 3, run: cutLeaderWhole},
		{row: "3", name: "leader hears nobody", weight: 3, run: deafLeader},
		{row: "3", name: "nobody hears the leader", weight: 3, run: muteLeader},
		{row: "3", name: "bridge: two servers see only the third", weight: 4, run: bridge},
		{row: "3", name: "leader cut off and back, once a second", weight: 3, run: flap},
		{row: "4", name: "20% of packets lost", weight: 3, run: loss},
		{row: "4", name: "round trips of 100 ms", weight: 2, run: distant},
		{row: "4", name: "1 s of delay each way", weight: 2, run: delayed},
		{row: "4", name: "64 kB/s between servers", weight: 2, run: narrow},
	}
}

const gapCut = "leader cut off from the others"

// peersOf are the addresses of the other members.
func (w *world) peersOf(n *node) (ips []string) {
	for _, m := range w.members() {
		if m != n {
			ips = append(ips, m.host.ip)
		}
	}
	return ips
}

// term is the highest term of the servers that answer.
func (w *world) term(ctx context.Context) (term uint64) {
	for _, st := range w.statuses(ctx) {
		term = max(term, st.GetTerm())
	}
	return term
}

// partitioned cuts for a while and checks that terms stay bounded: pre-vote
// keeps a server that cannot win from disturbing the others.
func (w *world) partitioned(ctx context.Context, long time.Duration, cut func(leader *node, followers []*node) map[*node]netlab.Rules) error {
	leader, followers, err := w.followers(ctx)
	if err != nil {
		return err
	}
	before, began := w.term(ctx), time.Now()
	for n, rules := range cut(leader, followers) {
		if err := w.net.Set(n.host.name, rules); err != nil {
			return err
		}
	}
	sleep(ctx, long)
	for _, n := range w.members() {
		if err := w.net.Set(n.host.name, netlab.Rules{}); err != nil {
			return err
		}
	}
	sleep(ctx, 300*time.Millisecond)
	// An election takes about a second; twice that many terms is a storm.
	after := w.term(ctx)
	lasted := time.Since(began)
	if bound := before + 4 + 2*uint64(lasted/time.Second); after > bound {
		return violated("row 3: %d terms in %s, want %d at most", after-before, lasted, bound-before)
	}
	return nil
}

func cutLeader(ctx context.Context, w *world, random *rand.Rand) error {
	return w.partitioned(ctx, between(random, 500*time.Millisecond, 2500*time.Millisecond), func(leader *node, _ []*node) map[*node]netlab.Rules {
		peers := w.peersOf(leader)
		return map[*node]netlab.Rules{leader: {DropIn: peers, DropOut: peers}}
	})
}

func cutLeaderWhole(ctx context.Context, w *world, random *rand.Rand) error {
	return w.partitioned(ctx, between(random, 500*time.Millisecond, 2500*time.Millisecond), func(leader *node, _ []*node) map[*node]netlab.Rules {
		all := append(w.peersOf(leader), netlab.HubIP)
		return map[*node]netlab.Rules{leader: {DropIn: all, DropOut: all}}
	})
}

func deafLeader(ctx context.Context, w *world, random *rand.Rand) error {
	return w.partitioned(ctx, between(random, 500*time.Millisecond, 2500*time.Millisecond), func(leader *node, _ []*node) map[*node]netlab.Rules {
		return map[*node]netlab.Rules{leader: {DropIn: w.peersOf(leader)}}
	})
}

func muteLeader(ctx context.Context, w *world, random *rand.Rand) error {
	return w.partitioned(ctx, between(random, 500*time.Millisecond, 2500*time.Millisecond), func(leader *node, _ []*node) map[*node]netlab.Rules {
		return map[*node]netlab.Rules{leader: {DropOut: w.peersOf(leader)}}
	})
}

// bridge cuts two servers off from each other; the third reaches both. The
// leader is the bridge, or one of the two.
func bridge(ctx context.Context, w *world, random *rand.Rand) error {
	leads := random.IntN(2) == 0
	return w.partitioned(ctx, between(random, 500*time.Millisecond, 2500*time.Millisecond), func(leader *node, followers []*node) map[*node]netlab.Rules {
		a, b := followers[0], followers[1]
		if !leads {
			a = leader
		}
		return map[*node]netlab.Rules{a: {DropIn: []string{b.host.ip}, DropOut: []string{b.host.ip}}}
	})
}

func flap(ctx context.Context, w *world, random *rand.Rand) error {
	for range 2 + random.IntN(2) {
		err := w.partitioned(ctx, 500*time.Millisecond, func(leader *node, _ []*node) map[*node]netlab.Rules {
			peers := w.peersOf(leader)
			return map[*node]netlab.Rules{leader: {DropIn: peers, DropOut: peers}}
		})
		if err != nil {
			return err
		}
		sleep(ctx, 200*time.Millisecond)
	}
	return nil
}

func loss(ctx context.Context, w *world, random *rand.Rand) error {
	for _, n := range w.members() {
		if err := w.net.Lose(n.host.name, 0.2); err != nil {
			return err
		}
	}
	sleep(ctx, between(random, 1500*time.Millisecond, 4*time.Second))
	return nil
}

// slow puts every connection between two servers behind a slow link.
func (w *world) slow(ctx context.Context, shape netlab.Shape, during func() error) (err error) {
	links := map[*node]*netlab.Link{}
	defer func() {
		for _, n := range w.members() {
			err = errors.Join(err, w.net.Set(n.host.name, netlab.Rules{}))
		}
		for _, l := range links {
			l.Close()
		}
	}()
	for _, n := range w.members() {
		l, err := netlab.NewLink(netlab.HubIP+":0", n.host.addr(raftPort), shape)
		if err != nil {
			return err
		}
		links[n] = l
	}
	for _, n := range w.members() {
		rules := netlab.Rules{Redirect: map[string]string{}}
		for m, l := range links {
			if m != n {
				rules.Redirect[m.host.addr(raftPort)] = l.Addr()
				rules.Reset = append(rules.Reset, m.host.addr(raftPort))
			}
		}
		if err := w.net.Set(n.host.name, rules); err != nil {
			return err
		}
	}
	return during()
}

// distant also checks that servers 100 ms apart keep their leader.
func distant(ctx context.Context, w *world, random *rand.Rand) error {
	long := between(random, 1500*time.Millisecond, 3*time.Second)
	return w.slow(ctx, netlab.Shape{Delay: 50 * time.Millisecond}, func() error {
		// The connections were broken to put the link between; what that did is not
		// the distance's fault.
		sleep(ctx, 2*time.Second)
		if _, err := w.leader(ctx, healLimit); err != nil {
			return violated("row 4: round trips of 100 ms: %v", err)
		}
		// A busy machine may lose a leader by itself, but not each time.
		for try := 1; ; try++ {
			before := w.term(ctx)
			sleep(ctx, long)
			after := w.term(ctx)
			if after == before {
				return nil
			}
			if try == 3 {
				return violated("row 4: with round trips of 100 ms the leader changed again and again (terms %d to %d)", before, after)
			}
		}
	})
}

func delayed(ctx context.Context, w *world, random *rand.Rand) error {
	long := between(random, 1500*time.Millisecond, 3*time.Second)
	return w.slow(ctx, netlab.Shape{Delay: time.Second}, func() error { sleep(ctx, long); return nil })
}

func narrow(ctx context.Context, w *world, random *rand.Rand) error {
	long := between(random, 1500*time.Millisecond, 3*time.Second)
	return w.slow(ctx, netlab.Shape{Rate: 64 << 10}, func() error {
		sleep(ctx, long)
		if _, err := w.leader(ctx, healLimit); err != nil {
			return fmt.Errorf("with 64 kB/s: %w", err)
		}
		return nil
	})
}
