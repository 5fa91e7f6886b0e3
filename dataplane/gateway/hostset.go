package gateway

import (
	"math/rand/v2"
)

// hostSet is the hosts of a cluster with their health at one moment. It is
// immutable but for the balancers' own counters.
type hostSet struct {
	priorities []priorityLevel
	load       []int // percent of the requests per priority
}

// priorityLevel is the hosts of one priority.
type priorityLevel struct {
	all, healthy balancer // nil when empty
	panicking    bool     // so few are healthy that all are used
}

// The defaults of Envoy.
const (
	defaultPanicThreshold   = 50.0 // percent
	defaultOverprovisioning = 140  // percent
)

func newHostSet(cfg *clusterConfig, endpoints []endpoint, hosts map[hostKey]*host, overprovisioning uint32) *hostSet {
	highest := -1
	for i := range endpoints {
		highest = max(highest, int(endpoints[i].priority))
	}
	s := &hostSet{priorities: make([]priorityLevel, highest+1), load: make([]int, highest+1)}
	if overprovisioning == 0 {
		overprovisioning = defaultOverprovisioning
	}
	availability := make([]int, highest+1)
	total := 0
	for p := range s.priorities {
		all, healthy := membersAt(endpoints, hosts, uint32(p), cfg.check != nil)
		s.priorities[p] = priorityLevel{all: newBalancer(cfg, all), healthy: newBalancer(cfg, healthy)}
		if len(all) == 0 {
			continue
		}
		availability[p] = min(100, len(healthy)*int(overprovisioning)/len(all))
		total = min(100, total+availability[p])
		// Panic is a matter of the whole cluster, decided below.
		s.priorities[p].panicking = float64(len(healthy))*100/float64(len(all)) < cfg.panicThreshold
	}
	if total >= 100 {
		for p := range s.priorities {
			s.priorities[p].panicking = false
		}
	}
	s.spread(availability, total)
	return s
}

// membersAt returns the hosts of a priority and those of them that are healthy. Where
// there are checks a host is not before it has passed one.
func membersAt(endpoints []endpoint, hosts map[hostKey]*host, priority uint32, checks bool) (all, healthy []member) {
	for i := range endpoints {
		e := &endpoints[i]
		if e.priority != priority {
			continue
		}
		h := hosts[e.hostKey]
		m := member{host: h, weight: max(e.weight, 1)}
		all = append(all, m)
		if !e.unhealthy && h.healthy() && !(checks && h.pending()) {
			healthy = append(healthy, m)
		}
	}
	return all, healthy
}

// spread gives the requests to the first priorities that can take them.
func (s *hostSet) spread(availability []int, total int) {
	left := 100
	for p, a := range availability {
		share := 0
		if total > 0 {
			share = min(left, a*100/total)
		}
		s.load[p] = share
		left -= share
	}
	if left == 0 {
		return
	}
	// Rounding, or nobody healthy at all: the first level that has hosts.
	for p := range s.priorities {
		if s.priorities[p].all != nil && (total == 0 || availability[p] > 0) {
			s.load[p] += left
			return
		}
	}
}

// pick returns a host, nil when there is none that may be used.
func (s *hostSet) pick(hash uint64, hashed bool, attempt int) *host {
	if len(s.priorities) == 0 {
		return nil
	}
	if !hashed {
		hash = rand.Uint64()
	}
	level := s.level(int(hash % 100))
	b := level.healthy
	if level.panicking {
		b = level.all
	}
	if b == nil {
		return nil
	}
	return b.pick(hash, attempt)
}

func (s *hostSet) level(percent int) *priorityLevel {
	for p := range s.priorities {
		if percent < s.load[p] {
			return &s.priorities[p]
		}
		percent -= s.load[p]
	}
	return &s.priorities[len(s.priorities)-1]
}
