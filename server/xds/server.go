package xds

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/server/snapshot"
)

// Server serves xDS. Make it with NewServer, register it on a gRPC server that
// was made with its ServerOptions, and end it with Shutdown. All methods are safe
// for concurrent use.
type Server struct {
	cfg     Config
	session sessionConfig
	metrics *metrics
	pool    pool
	ids     atomic.Uint64
	cold    chan struct{} // holds a token per cold start that is worked on
	// coldWaiting counts those that wait for a token.
	coldWaiting atomic.Int64

	mu       sync.Mutex
	streams  map[*stream]struct{}
	perConn  map[string]int
	nodes    map[nodeKey]*liveNode
	stopping bool
	idle     chan struct{} // closed when stopping and the last stream has left
}

// nodeKey names what a data plane has one live stream of.
type nodeKey struct{ group, node, method string }

// liveNode is the live stream of a data plane.
type liveNode struct {
	stream *stream
	// replaced counts how often the stream was replaced since the time.
	replaced int
	since    time.Time
}

// NewServer returns a Server that serves nothing yet. It starts no goroutine.
func NewServer(cfg Config) *Server {
	cfg = cfg.withDefaults()
	s := &Server{
		cfg: cfg,
		session: sessionConfig{
			encoder: cfg.Encoder, mortal: snapshot.NewEncoder(snapshot.EncoderConfig{TTL: cfg.Timing.TTL}),
			errors: cfg.ResourceErrors, limits: cfg.Limits, timing: cfg.Timing,
		},
		pool:    pool{limit: max(4, runtime.GOMAXPROCS(0))},
		cold:    make(chan struct{}, max(cfg.Limits.ColdStarts, 1)),
		streams: map[*stream]struct{}{},
		perConn: map[string]int{},
		nodes:   map[nodeKey]*liveNode{},
		idle:    make(chan struct{}),
	}
	if cfg.Limits.ColdStarts < 0 {
		s.cold = make(chan struct{}, 1<<16)
	}
	s.metrics = newMetrics(s)
	if cfg.Metrics != nil {
		s.metrics.register(cfg.Metrics)
	}
	return s
}

// ServerOptions returns what the gRPC server must be made with: the codec that
// sends shared bytes, and message and keepalive limits. Other services on the same
// gRPC server work as usual; do not add another codec.
func (s *Server) ServerOptions() []grpc.ServerOption {
	l := s.cfg.Limits
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(newCodec()),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: l.MinPing, PermitWithoutStream: true}),
	}
	params := keepalive.ServerParameters{Time: positive(l.Keepalive), Timeout: positive(l.KeepaliveTimeout)}
	if l.ConnectionAge > 0 {
		params.MaxConnectionAge, params.MaxConnectionAgeGrace = l.ConnectionAge, positive(l.ConnectionAgeGrace)
	}
	opts = append(opts, grpc.KeepaliveParams(params))
	if l.MessageSize > 0 {
		opts = append(opts, grpc.MaxRecvMsgSize(l.MessageSize))
	}
	return opts
}

// Shutdown asks every data plane to go elsewhere, spread over the time that ctx
// has left, and returns after the last stream has ended; when ctx ends first, the
// streams that are left are cut off. Begin GracefulStop of the gRPC server before
// it, so that no stream comes back here. It returns the error of ctx when streams
// had to be cut off.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.stopping = true
	left := make([]*stream, 0, len(s.streams))
	for st := range s.streams {
		left = append(left, st)
	}
	s.closeIdle()
	s.mu.Unlock()

	var spread time.Duration
	if deadline, ok := ctx.Deadline(); ok {
		spread = time.Until(deadline) / 2
	}
	rand.Shuffle(len(left), func(i, j int) { left[i], left[j] = left[j], left[i] })
	goAway := status.Error(codes.Unavailable, "this server is shutting down")
	pause := time.NewTimer(0)
	defer pause.Stop()
	var err error
	for _, st := range left {
		if err == nil && spread > 0 {
			pause.Reset(spread / time.Duration(len(left)))
			select {
			case <-pause.C:
			case <-s.idle:
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		st.end(goAway)
	}
	<-s.idle
	s.pool.wait()
	return err
}

func (s *Server) closeIdle() {
	if !s.stopping || len(s.streams) > 0 {
		return
	}
	select {
	case <-s.idle:
	default:
		close(s.idle)
	}
}

// admit takes a new stream in, or says why not.
func (s *Server) admit(st *stream) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return status.Error(codes.Unavailable, "this server is shutting down")
	}
	if l := s.cfg.Limits.StreamsPerConnection; l > 0 && s.perConn[st.conn] >= l {
		s.metrics.refused(reasonStreams)
		return status.Errorf(codes.ResourceExhausted, "more than %d streams on one connection", l)
	}
	s.perConn[st.conn]++
	s.streams[st] = struct{}{}
	return nil
}

// enter makes a stream the live one of its data plane; the newest wins.
func (s *Server) enter(st *stream, info *Stream, f family) error {
	if f == grpcClient || !info.Sole() {
		return nil // has a stream per target or resource, of one node id
	}
	key := nodeKey{info.Group, info.Node, st.method}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := st.ss.Context().Err(); err != nil {
		return err // the client has gone, perhaps to the stream that is there
	}
	now := time.Now()
	n := s.nodes[key]
	if n == nil {
		st.key = key
		s.nodes[key] = &liveNode{stream: st, since: now}
		return nil
	}
	if now.Sub(n.since) > time.Minute {
		n.replaced, n.since = 0, now
	}
	if l := s.cfg.Limits.Replacements; l > 0 && n.replaced >= l {
		s.metrics.refused(reasonDuplicate)
		return status.Errorf(codes.AlreadyExists,
			"node id %q is connected already and was replaced %d times within a minute: two data planes must not share a node id", info.Node, n.replaced)
	}
	n.replaced++
	s.metrics.replaced()
	n.stream.end(status.Error(codes.Aborted, "replaced by a newer stream of the same node id"))
	n.stream, st.key = st, key
	return nil
}

// leave takes a stream out.
func (s *Server) leave(st *stream) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.streams, st)
	if s.perConn[st.conn]--; s.perConn[st.conn] <= 0 {
		delete(s.perConn, st.conn)
	}
	if n := s.nodes[st.key]; n != nil && n.stream == st {
		delete(s.nodes, st.key)
	}
	s.closeIdle()
}
