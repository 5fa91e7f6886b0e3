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

	reading sync.Mutex // held while src is read: a closed reader may still wait for it

	mu   sync.Mutex
	kept []byte
	read int   // of src, by all readers
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

// fault returns why the body cannot be read to its end, nil as long as it can.
func (b *replay) fault() error {
	if b == nil {
		return nil
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if errors.Is(b.end, io.EOF) {
		return nil
	}
	return b.end
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
	if n, err := r.again(p); n > 0 || err != nil {
		return n, err
	}
	b := r.body
	b.reading.Lock()
	defer b.reading.Unlock()
	// A reader before this one may have read on after it was closed.
	if n, err := r.again(p); n > 0 || err != nil {
		return n, err
	}
	n, err := b.src.Read(p)
	b.progress()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.end = err
	r.off += n
	b.read += n
	switch {
	case b.lost:
	case len(b.kept)+n > b.limit:
		b.lost, b.kept = true, nil
	default:
		b.kept = append(b.kept, p[:n]...)
	}
	return n, err
}

// again returns what was read before, or why there is nothing more to read.
func (r *replayReader) again(p []byte) (int, error) {
	select {
	case <-r.closed:
		return 0, io.ErrClosedPipe
	default:
	}
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case r.off == b.read:
		return 0, b.end
	case b.lost:
		return 0, errNotReplayable
	}
	n := copy(p, b.kept[r.off:])
	r.off += n
	return n, nil
}

// Close ends this reading; the body itself stays open.
func (r *replayReader) Close() error {
	r.once.Do(func() { close(r.closed) })
	return nil
}

// waitClosed waits for the transport to let go of the body, which it does when a read
// ends.
func (b *replay) waitClosed() {
	if b != nil && b.last != nil {
		<-b.last.closed
	}
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
