package gateway

import (
	"container/list"
	"errors"
	"math"
	"sync"
	"time"

	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// bucket is a token bucket that refills continuously. It is safe for concurrent use.
type bucket struct {
	max, rate float64 // tokens; tokens a second
	now       func() time.Time

	mu     sync.Mutex
	tokens float64
	at     time.Time
}

func newBucket(tb *typev3.TokenBucket, now func() time.Time) (*bucket, error) {
	perFill := 1.0
	if tb.GetTokensPerFill() != nil {
		perFill = float64(tb.GetTokensPerFill().GetValue())
	}
	interval := tb.GetFillInterval().AsDuration()
	if tb.GetMaxTokens() == 0 || perFill == 0 || interval <= 0 {
		return nil, errors.New("a token bucket needs max_tokens, tokens_per_fill and fill_interval above 0")
	}
	limit := float64(tb.GetMaxTokens())
	return &bucket{max: limit, rate: perFill / interval.Seconds(), now: now, tokens: limit, at: now()}, nil
}

// like returns a full bucket of the same size and rate.
func (b *bucket) like() *bucket {
	return &bucket{max: b.max, rate: b.rate, now: b.now, tokens: b.max, at: b.now()}
}

func (b *bucket) same(o *bucket) bool { return b.max == o.max && b.rate == o.rate }

// take takes a token, if there is one.
func (b *bucket) take() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill()
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// remaining returns the whole tokens that are left, and when there are none the
// seconds until the next.
func (b *bucket) remaining() (tokens, reset int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.refill()
	if b.tokens < 1 {
		return 0, int(math.Ceil((1 - b.tokens) / b.rate))
	}
	return int(b.tokens), 0
}

func (b *bucket) refill() {
	now := b.now()
	if d := now.Sub(b.at); d > 0 {
		b.tokens = min(b.max, b.tokens+d.Seconds()*b.rate)
		b.at = now
	}
}

// wildcardDescriptors is a descriptor with entries that match any value: each
// combination of values has a bucket of its own, the least recently used of which
// are forgotten. It is safe for concurrent use.
type wildcardDescriptors struct {
	model *bucket // a full one

	mu       sync.Mutex
	capacity int
	buckets  map[string]*list.Element // of wildcardBucket
	recent   *list.List               // most recently used first
}

type wildcardBucket struct {
	key    string
	bucket *bucket
}

func newWildcardDescriptors(model *bucket, capacity int) *wildcardDescriptors {
	return &wildcardDescriptors{
		model: model, capacity: max(capacity, 1),
		buckets: map[string]*list.Element{}, recent: list.New(),
	}
}

func (w *wildcardDescriptors) withCapacity(capacity int) *wildcardDescriptors {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.capacity = max(capacity, 1)
	return w
}

// bucket returns the bucket of a combination of values.
func (w *wildcardDescriptors) bucket(key string) *bucket {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e, ok := w.buckets[key]; ok {
		w.recent.MoveToFront(e)
		return e.Value.(wildcardBucket).bucket
	}
	for w.recent.Len() >= w.capacity {
		oldest := w.recent.Back()
		w.recent.Remove(oldest)
		delete(w.buckets, oldest.Value.(wildcardBucket).key)
	}
	b := w.model.like()
	w.buckets[key] = w.recent.PushFront(wildcardBucket{key, b})
	return b
}
