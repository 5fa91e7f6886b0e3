package xds

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// stream is the I/O of one session. Its handler reads requests and works on them;
// wake-ups are worked on by the server's pool. Whoever works on the session holds
// mu and also sends, so that responses leave in order and one at a time.
type stream struct {
	srv    *Server
	ss     grpc.ServerStream
	method string
	delta  bool
	only   string
	conn   string      // the peer's address and port
	kill   func(error) // ends the stream with a status
	key    nodeKey     // in Server.nodes; guarded by Server.mu

	// woken: there is something for the pool to do. Whoever releases mu looks.
	woken  atomic.Bool
	reason atomic.Pointer[error]  // why the server ends the stream
	about  atomic.Pointer[Stream] // nil before the first request was accepted
	// The group's revision and the one that is synced, for metrics.
	newest, synced atomic.Uint64

	mu     sync.Mutex
	info   *Stream // as about
	sess   *session
	feed   Feed
	ended  bool
	timer  *time.Timer
	armed  time.Time // when the timer fires; zero when it does not
	resend outgoing
}

// serve is the handler of every discovery method.
func (s *Server) serve(ss grpc.ServerStream, method string, delta bool, typeURL string) error {
	st := &stream{srv: s, ss: ss, method: method, delta: delta, only: typeURL}
	if p, ok := peer.FromContext(ss.Context()); ok {
		st.conn = p.Addr.String()
	}
	if err := s.admit(st); err != nil {
		return err
	}
	defer s.leave(st)
	if st.kill = killer(ss.Context()); st.kill != nil {
		return st.handle()
	}
	return st.handleApart()
}

// handleApart is handle for a transport whose streams cannot be ended but by the
// return of their handler.
func (st *stream) handleApart() error {
	ctx, cancel := context.WithCancel(st.ss.Context())
	defer cancel()
	st.kill = func(error) { cancel() }
	done := make(chan error, 1)
	st.srv.pool.detach(func() { done <- st.handle() })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return st.result(ctx.Err())
	}
}

// handle reads requests until the stream ends.
func (st *stream) handle() error {
	late := time.AfterFunc(positive(st.srv.cfg.Limits.FirstMessage), func() {
		st.srv.metrics.refused(reasonFirstMessage)
		st.end(status.Error(codes.DeadlineExceeded, "no request came on the new stream"))
	})
	defer late.Stop()
	var in incoming
	for first := true; ; first = false {
		err := st.ss.RecvMsg(&in)
		if err == nil {
			if first {
				late.Stop()
				err = st.begin(in.buffer.ReadOnlyData())
			} else {
				err = st.next(in.buffer.ReadOnlyData())
			}
			in.buffer.Free()
		} else if status.Code(err) == codes.ResourceExhausted {
			st.srv.metrics.refused(reasonMessageSize)
		}
		if err != nil {
			err = st.result(err)
			var limit *limitError
			if errors.As(err, &limit) {
				st.srv.metrics.refused(limit.reason)
			}
			st.finish(err)
			return err
		}
	}
}

// result is what the stream ends with when its handler got an error.
func (st *stream) result(err error) error {
	if reason := st.reason.Load(); reason != nil {
		return *reason
	}
	if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled {
		return nil // the data plane went away
	}
	return err
}

// end makes the stream end with a status. It does not wait.
func (st *stream) end(err error) {
	st.reason.CompareAndSwap(nil, &err)
	st.kill(err)
}

// parse decodes a request.
func (st *stream) parse(b []byte) (request, error) {
	parse := parseSotW
	if st.delta {
		parse = parseDelta
	}
	r, err := parse(b)
	if err != nil {
		return r, status.Error(codes.InvalidArgument, err.Error())
	}
	return r, nil
}

// begin works on the first request of the stream: who is it?
func (st *stream) begin(b []byte) error {
	r, err := st.parse(b)
	if err != nil {
		return err
	}
	if r.node == nil {
		return status.Error(codes.InvalidArgument, "the first request of a stream must have a node")
	}
	node := &corev3.Node{}
	// Lenient: a client may be newer than this server, [P].
	if err := (proto.UnmarshalOptions{DiscardUnknown: true, AllowPartial: true}).Unmarshal(r.node, node); err != nil {
		return status.Errorf(codes.InvalidArgument, "node: %v", err)
	}
	c, err := clientOf(node, st.delta)
	if err != nil {
		return err
	}
	group, err := st.srv.cfg.Authorize(st.ss.Context(), node)
	if err != nil {
		st.srv.metrics.refused(reasonDenied)
		return err
	}
	info := &Stream{
		ID: st.srv.ids.Add(1), Group: group, Node: node.GetId(), UserAgent: c.agent,
		Protocol: "sotw", TypeURL: st.only, Relay: c.view.Relay, Address: st.conn, ConnectedAt: time.Now(),
	}
	if st.delta {
		info.Protocol = "delta"
	}
	feed, err := st.srv.cfg.Source.Subscribe(group, node, st.wake)
	if err != nil {
		if _, ok := status.FromError(err); !ok {
			err = status.Error(codes.Unavailable, err.Error())
		}
		return err
	}
	if feed.Current() == nil {
		feed.Close()
		st.srv.metrics.refused(reasonNotReady)
		return errNotReady
	}
	if info.Relay && Proxyless(node) {
		st.method += " " + RelayedGRPC // beside the relay's stream for all others
	}
	if err := st.srv.enter(st, info, c.family); err != nil {
		feed.Close()
		return err
	}
	st.mu.Lock()
	st.info, st.feed = info, feed
	st.about.Store(info)
	// Read again, with the lock: a wake-up before this moment found no session.
	if current := feed.Current(); current != nil {
		st.sess = newSession(&st.srv.session, time.Now(), c, st.delta, st.only, current)
		st.newest.Store(current.Version().Revision)
	}
	ready := st.sess != nil
	st.srv.cfg.Observer.Connected(info)
	st.srv.metrics.opened(info.Protocol, 1)
	st.mu.Unlock()
	if !ready {
		return errNotReady
	}
	return st.request(&r)
}

// next works on a further request.
func (st *stream) next(b []byte) error {
	r, err := st.parse(b)
	if err != nil {
		return err
	}
	return st.request(&r)
}

func (st *stream) request(r *request) error {
	st.mu.Lock()
	cold := r.subscribe+r.initial > coldNames
	if cold {
		st.srv.coldWaiting.Add(1)
		st.srv.cold <- struct{}{}
		st.srv.coldWaiting.Add(-1)
	}
	now := time.Now()
	err := st.sess.request(now, r)
	if cold {
		<-st.srv.cold
	}
	st.flush(true)
	st.arm(now)
	st.release()
	return err
}

// coldNames is the number of names and versions in a request above which it is
// worked on as a cold start, of which only a few run at a time.
const coldNames = 256

// wake tells that there is a new snapshot. It does not block.
func (st *stream) wake() {
	if !st.woken.Swap(true) {
		st.srv.pool.add(st)
	}
}

// run works on a wake-up, unless somebody works on the session already: then that
// one will, before it leaves.
func (st *stream) run() {
	if st.mu.TryLock() && st.step() {
		st.release()
	}
}

// release gives the session up, and works on what came up meanwhile.
func (st *stream) release() {
	for {
		st.mu.Unlock()
		if !st.woken.Load() || !st.mu.TryLock() || !st.step() {
			return
		}
	}
}

// step feeds the session what came up. It reports whether mu is still held: a
// step that would have to wait for the data plane goes on on its own goroutine.
func (st *stream) step() (held bool) {
	if !st.woken.Swap(false) || st.ended || st.sess == nil {
		return true
	}
	now := time.Now()
	current := st.feed.Current()
	if current != nil {
		st.newest.Store(current.Version().Revision)
	}
	err := st.sess.feed(now, current)
	if err == nil && !st.armed.IsZero() && !now.Before(st.armed) {
		st.armed = time.Time{}
		err = st.sess.tick(now)
	}
	if err != nil {
		st.end(err)
	}
	if !st.flush(false) {
		st.srv.pool.detach(func() {
			st.flush(true)
			st.arm(time.Now())
			st.release()
		})
		return false
	}
	st.arm(now)
	return true
}

// arm sets the timer for the session's next deadline.
func (st *stream) arm(now time.Time) {
	at := st.sess.deadline()
	if at.IsZero() || st.ended || !st.armed.IsZero() && !at.Before(st.armed) {
		return
	}
	st.armed = at
	d := max(at.Sub(now), 0)
	if st.timer == nil {
		st.timer = time.AfterFunc(d, st.wake)
	} else {
		st.timer.Reset(d)
	}
}

// sendAhead is how much may be sent and not answered before a further send could
// have to wait for the data plane: less than gRPC's write quota of a stream.
const sendAhead = 60000

// flush carries out the session's effects. Unless it may wait, it stops where it
// might have to and reports false.
func (st *stream) flush(wait bool) (done bool) {
	effects := st.sess.effects
	ahead := 0
	if !wait {
		ahead = st.sess.unanswered()
		for i := range effects {
			if f := effects[i].frame; f != nil {
				ahead -= len(f.Bytes)
			}
		}
	}
	for i := range effects {
		e := &effects[i]
		if e.frame != nil {
			if !wait {
				if ahead > sendAhead {
					st.sess.effects = effects[i:]
					return false
				}
				ahead += len(e.frame.Bytes)
			}
			st.resend = outgoing{e.frame.Bytes, e.nonce}
			if err := st.ss.SendMsg(&st.resend); err != nil {
				st.end(err)
				break
			}
		}
		st.observe(e)
	}
	st.sess.effects = nil
	return true
}

// observe reports an effect.
func (st *stream) observe(e *effect) {
	o, m := st.srv.cfg.Observer, st.srv.metrics
	switch {
	case e.frame != nil:
		m.sent(e.track.rank, e.sent)
		o.Sent(st.info, e.sent)
	case e.acked != nil:
		m.acked(e.track.rank, e.acked)
		o.Acked(st.info, *e.acked)
	case e.refusedFrame:
		m.nacked(e.track.rank)
	case e.nacked != nil:
		m.quarantined(e.track.rank, len(e.nacked.Refused)+e.nacked.Truncated)
		o.Nacked(st.info, *e.nacked)
	case e.subscribed != nil:
		o.Subscribed(st.info, *e.subscribed)
	default:
		st.synced.Store(e.synced.Revision)
		o.Synced(st.info, e.synced)
	}
}

// finish ends the session.
func (st *stream) finish(err error) {
	st.kill(err) // a send that waits for the data plane gives up
	st.mu.Lock()
	st.ended = true
	if st.timer != nil {
		st.timer.Stop()
	}
	feed, info := st.feed, st.info
	st.feed, st.sess = nil, nil
	st.mu.Unlock()
	if feed != nil {
		feed.Close()
	}
	if info != nil {
		st.srv.metrics.opened(info.Protocol, -1)
		st.srv.cfg.Observer.Disconnected(info, err)
	}
}

// address returns the IP address of a peer's address.
func address(addr net.Addr) string {
	host, _, err := net.SplitHostPort(addr.String())
	if err != nil {
		return addr.String()
	}
	return host
}

// positive returns a duration, and for none a very long one.
func positive(d time.Duration) time.Duration {
	if d <= 0 {
		return 1 << 60
	}
	return d
}
