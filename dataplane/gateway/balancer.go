package gateway

import (
	"container/heap"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
)

// member is a host with its weight in a set.
type member struct {
	*host
	weight uint32
}

// balancer picks one of a set of hosts. It is safe for concurrent use.
type balancer interface {
	pick(hash uint64, attempt int) *host
}

// newBalancer returns a balancer over members, nil when there are none.
func newBalancer(cfg *clusterConfig, members []member) balancer {
	if len(members) == 0 {
		return nil
	}
	switch cfg.policy {
	case clusterv3.Cluster_RING_HASH:
		return newRing(members, cfg.minRing, cfg.maxRing)
	case clusterv3.Cluster_RANDOM:
		return randomBalancer(members)
	case clusterv3.Cluster_LEAST_REQUEST:
		if equalWeights(members) {
			return &leastRequest{members: members, choices: cfg.choices}
		}
		bias := cfg.bias
		return newSchedule(members, func(m member) float64 {
			return float64(m.weight) / math.Pow(float64(m.requests.Load()+1), bias)
		})
	}
	if equalWeights(members) {
		return &roundRobin{members: members}
	}
	return newSchedule(members, func(m member) float64 { return float64(m.weight) })
}

func equalWeights(members []member) bool {
	for _, m := range members[1:] {
		if m.weight != members[0].weight {
			return false
		}
	}
	return true
}

// roundRobin goes round hosts of equal weight.
type roundRobin struct {
	members []member
	next    atomic.Uint64
}

func (r *roundRobin) pick(uint64, int) *host {
	return r.members[(r.next.Add(1)-1)%uint64(len(r.members))].host
}

// leastRequest takes the least busy of a few random hosts.
type leastRequest struct {
	members []member
	choices int
}

func (l *leastRequest) pick(uint64, int) *host {
	var best *host
	for range l.choices {
		h := l.members[rand.IntN(len(l.members))].host
		if best == nil || h.requests.Load() < best.requests.Load() {
			best = h
		}
	}
	return best
}

type randomBalancer []member

func (r randomBalancer) pick(uint64, int) *host { return r[rand.IntN(len(r))].host }

// schedule gives each host its share by weight, evenly spread: earliest deadline
// first, where a pick moves a host's deadline by the inverse of its weight.
type schedule struct {
	weight func(member) float64

	mu    sync.Mutex
	queue deadlines
	order uint64
}

func newSchedule(members []member, weight func(member) float64) *schedule {
	s := &schedule{weight: weight}
	for _, m := range members {
		s.queue = append(s.queue, deadline{at: 1 / weight(m), order: s.order, member: m})
		s.order++
	}
	heap.Init(&s.queue)
	return s
}

func (s *schedule) pick(uint64, int) *host {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := &s.queue[0]
	h := first.member.host
	first.at += 1 / s.weight(first.member)
	first.order = s.order
	s.order++
	heap.Fix(&s.queue, 0)
	return h
}

type deadline struct {
	at     float64
	order  uint64 // breaks ties: first in, first out
	member member
}

type deadlines []deadline

func (d deadlines) Len() int { return len(d) }
func (d deadlines) Less(i, j int) bool {
	return d[i].at < d[j].at || d[i].at == d[j].at && d[i].order < d[j].order
}
func (d deadlines) Swap(i, j int) { d[i], d[j] = d[j], d[i] }
func (d *deadlines) Push(x any)   { *d = append(*d, x.(deadline)) }
func (d *deadlines) Pop() any {
	last := (*d)[len(*d)-1]
	*d = (*d)[:len(*d)-1]
	return last
}
