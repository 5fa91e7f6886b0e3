package gateway

import (
	"errors"
	"io"
	"sync"
)

// Bounds on how much of a request's body is kept, so that it can be sent again.
const (
	keepForReconnect = 64 << 10 // the transport found its connection closed
	keepForRetry     = 1 << 20  // the route retries; Envoy's default too
)

var errNotReplayable = errors.New("the body is too long to be sent again")

// replay is a request body that can be read again from its beginning as long as
// little of it was read. It is safe for concurrent use.
type replay struct {
	src      io.ReadCloser
	limit    int
	progress func() // called when data came from the client

	mu   sync.Mutex
	kept []byte
	lost bool  // more than limit was read
	end  error // what src ended with
	last *replayReader
}

// replayReader reads the body once.
type replayReader struct {
	body   *replay
	off    int
	closed chan struct{}
	once   sync.Once
}

// reader returns the body from its beginning. The reader before must be closed.
func (b *replay) reader() (*replayReader, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lost {
		return nil, errNotReplayable
	}
	b.last = &replayReader{body: b, closed: make(chan struct{})}
	return b.last, nil
}

// replayable reports whether the body can be read again.
func (b *replay) replayable() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.lost
}

// complete reports whether the whole body has come from the client.
func (b *replay) complete() bool {
	if b == nil {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return errors.Is(b.end, io.EOF)
}

// Read implements io.Reader.
func (r *replayReader) Read(p []byte) (int, error) {
	b := r.body
	b.mu.Lock()
	if !b.lost && r.off < len(b.kept) {
		n := copy(p, b.kept[r.off:])
		r.off += n
		b.mu.Unlock()
		return n, nil
	}
	end := b.end
	b.mu.Unlock()
	if end != nil {
		return 0, end
	}
	select {
	case <-r.closed:
		return 0, io.ErrClosedPipe
	default:
	}
	n, err := b.src.Read(p) // only one reader gets here: the others are closed
	b.progress()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end = err
	r.off += n
	switch {
	case b.lost:
	case len(b.kept)+n > b.limit:
		b.lost, b.kept = true, nil
	default:
		b.kept = append(b.kept, p[:n]...)
	}
	return n, err
}

// Close ends this reading; the body itself stays open.
func (r *replayReader) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}

// closedNow waits for the transport to let go of the body, as it may still read
// after RoundTrip has returned.
func (b *replay) closedNow(done <-chan struct{}) bool {
	if b == nil || b.last == nil {
		return true
	}
	select {
	case <-b.last.closed:
		return true
	case <-done:
		return false
	}
}
