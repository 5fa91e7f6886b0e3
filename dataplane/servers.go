package dataplane

import (
	"hash/fnv"
	"math/rand/v2"
	"time"
)

// picker chooses the server to try next and remembers which ones failed. It is
// used from one goroutine.
type picker struct {
	servers    []serverHealth // in order of preference
	min, max   time.Duration  // bounds of the back-off
	randomness func() float64 // in [0, 1)
}

type serverHealth struct {
	address  string
	failures int
	retryAt  time.Time // not before
}

func newPicker(servers []string, order Order, nodeID string, t Timing) *picker {
	p := &picker{min: t.BackoffMin, max: t.BackoffMax, randomness: rand.Float64}
	first := 0
	if order == OrderSpread {
		h := fnv.New32a()
		_, _ = h.Write([]byte(nodeID)) // never fails
		first = int(h.Sum32() % uint32(len(servers)))
	}
	for i := range servers {
		p.servers = append(p.servers, serverHealth{address: servers[(first+i)%len(servers)]})
	}
	return p
}

// next returns the server to try and how long to wait before: the first one that
// is not held back, or the one that is held back the shortest.
func (p *picker) next(now time.Time) (server string, wait time.Duration) {
	best := &p.servers[0]
	for i := range p.servers {
		s := &p.servers[i]
		if !s.retryAt.After(now) {
			return s.address, 0
		}
		if s.retryAt.Before(best.retryAt) {
			best = s
		}
	}
	return best.address, best.retryAt.Sub(now)
}

// failed holds a server back, twice as long for each failure in a row. Half of
// the time is random, so that data planes which lost a server together do not
// come back together.
func (p *picker) failed(server string, now time.Time) {
	s := p.server(server)
	d := p.min << min(s.failures, 20)
	if d > p.max || d <= 0 {
		d = p.max
	}
	s.failures++
	s.retryAt = now.Add(d/2 + time.Duration(p.randomness()*float64(d/2)))
}

// worked forgets the failures of a server.
func (p *picker) worked(server string) {
	s := p.server(server)
	s.failures, s.retryAt = 0, time.Time{}
}

// spread is the wait before moving from a server that had worked to another.
func (p *picker) spread() time.Duration {
	return time.Duration(p.randomness() * float64(p.min))
}

func (p *picker) server(address string) *serverHealth {
	for i := range p.servers {
		if p.servers[i].address == address {
			return &p.servers[i]
		}
	}
	return &serverHealth{}
}
