package xds

import "sync"

// pool runs woken streams on a few goroutines, which live only while there are
// some. It does what a goroutine per stream would do, without their memory and
// the switches between them. No stream blocks it: see stream.flush.
type pool struct {
	limit int

	mu      sync.Mutex
	queue   []*stream // from head on
	head    int
	workers int
	wg      sync.WaitGroup
}

// add queues a stream to be run.
func (p *pool) add(st *stream) {
	p.mu.Lock()
	p.queue = append(p.queue, st)
	start := p.workers < p.limit && p.workers < len(p.queue)-p.head
	if start {
		p.workers++
		p.wg.Add(1)
	}
	p.mu.Unlock()
	if start {
		go p.work()
	}
}

func (p *pool) work() {
	defer p.wg.Done()
	for {
		p.mu.Lock()
		if p.head == len(p.queue) {
			p.queue, p.head = p.queue[:0], 0
			if cap(p.queue) > 4096 {
				p.queue = nil
			}
			p.workers--
			p.mu.Unlock()
			return
		}
		st := p.queue[p.head]
		p.queue[p.head] = nil
		p.head++
		p.mu.Unlock()
		st.run()
	}
}

// detach runs f on a goroutine of its own.
func (p *pool) detach(f func()) { p.wg.Go(f) }

// wait returns when nothing runs and nothing is queued.
func (p *pool) wait() { p.wg.Wait() }
