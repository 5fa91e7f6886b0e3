package netlab

import (
	"context"
	"io"
	"net"
	"sync"
	"time"
)

// Shape is what a slow link does to each direction of a connection.
type Shape struct {
	Delay time.Duration
	Rate  int // bytes a second; 0 is no limit
}

// Link is a TCP proxy in front of one address that delays what it passes on.
// Its methods are safe for concurrent use.
type Link struct {
	to    string
	ln    net.Listener
	shape Shape

	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// NewLink listens on an address of this namespace and passes connections on to
// another.
func NewLink(listen, to string, shape Shape) (*Link, error) {
	ln, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, err
	}
	l := &Link{to: to, ln: ln, shape: shape}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.wg.Go(l.accept)
	return l, nil
}

// Addr is where the link listens.
func (l *Link) Addr() string { return l.ln.Addr().String() }

// Close breaks all connections and waits for their end.
func (l *Link) Close() {
	l.cancel()
	_ = l.ln.Close()
	l.wg.Wait()
}

func (l *Link) accept() {
	for {
		conn, err := l.ln.Accept()
		if err != nil {
			return
		}
		l.wg.Go(func() { l.serve(conn) })
	}
}

func (l *Link) serve(near net.Conn) {
	defer near.Close()
	far, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(l.ctx, "tcp", l.to)
	if err != nil {
		return
	}
	defer far.Close()
	ctx, cancel := context.WithCancel(l.ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = near.Close(); _ = far.Close() })
	defer stop()
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, pair := range [2][2]net.Conn{{near, far}, {far, near}} {
		pipe := make(chan chunk, 256)
		wg.Go(func() { defer close(pipe); l.read(ctx, pair[0], pipe) })
		wg.Go(func() { defer cancel(); l.write(ctx, pair[1], pipe) })
	}
}

// chunk is data on its way, and when it arrives.
type chunk struct {
	data []byte
	due  time.Time
}

func (l *Link) read(ctx context.Context, from io.Reader, to chan<- chunk) {
	for {
		buf := make([]byte, 4<<10)
		n, err := from.Read(buf)
		if n > 0 {
			select {
			case to <- chunk{buf[:n], time.Now().Add(l.shape.Delay)}:
			case <-ctx.Done():
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *Link) write(ctx context.Context, to io.Writer, from <-chan chunk) {
	for c := range from {
		wait := time.Until(c.due)
		if l.shape.Rate > 0 {
			wait = max(wait, 0) + time.Duration(len(c.data))*time.Second/time.Duration(l.shape.Rate)
		}
		if !sleep(ctx, wait) {
			return
		}
		if _, err := to.Write(c.data); err != nil {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
