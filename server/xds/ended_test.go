package xds

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/musterhq/muster/server/compile"
)

// wire is a client's connection that a test can break.
type wire struct {
	net.Conn
	frozen chan struct{} // closed: nothing is read any more
	closed chan struct{}
}

func (w *wire) Read(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	select {
	case <-w.frozen:
		<-w.closed
		return 0, net.ErrClosed
	default:
		return n, err
	}
}

func (w *wire) Close() error {
	select {
	case <-w.closed:
	default:
		close(w.closed)
	}
	return w.Conn.Close()
}

// peerClient is a grpc-go client with a stream of its own on one connection.
type peerClient struct {
	cc     *grpc.ClientConn
	stream deltaStream
	wire   *wire
}

func (f *fixture) client() *peerClient {
	f.t.Helper()
	c := &peerClient{}
	cc, err := grpc.NewClient("passthrough:///"+f.addr, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			if c.wire != nil {
				return nil, errors.New("one connection is enough")
			}
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
			if err == nil {
				c.wire = &wire{conn, make(chan struct{}), make(chan struct{})}
				conn = c.wire
			}
			return conn, err
		}))
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { _ = cc.Close() })
	c.cc, c.stream = cc, f.delta(cc)
	send(f.t, c.stream, &discoveryv3.DeltaDiscoveryRequest{Node: node("a"), TypeUrl: compile.ListenerType})
	recv(f.t, c.stream)
	return c
}

// logged is a log that a test reads while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

func TestWhatEndedAConnectionIsCountedAndLogged(t *testing.T) {
	cases := map[ending]struct {
		limits Limits
		end    func(*fixture, *peerClient)
	}{
		endPeer: {Limits{}, func(_ *fixture, c *peerClient) { _ = c.cc.Close() }},
		endAge: {Limits{ConnectionAge: 50 * time.Millisecond, ConnectionAgeGrace: 50 * time.Millisecond}, func(*fixture, *peerClient) {
		}},
		endShutdown: {Limits{}, func(f *fixture, _ *peerClient) {
			go f.grpc.GracefulStop() // ends with the server, which the fixture awaits
			eventually(f.t, "the port is closed", func() bool {
				c, err := net.Dial("tcp", f.addr)
				if err == nil {
					_ = c.Close()
				}
				return err != nil
			})
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			defer cancel()
			if err := f.srv.Shutdown(ctx); err != nil {
				f.t.Error(err)
			}
		}},
		// A second is the least that gRPC allows.
		endDead: {Limits{Keepalive: time.Second, KeepaliveTimeout: 100 * time.Millisecond}, func(_ *fixture, c *peerClient) {
			close(c.wire.frozen)
		}},
		endViolation: {Limits{}, func(_ *fixture, c *peerClient) {
			// A frame of data for stream 0 breaks HTTP/2.
			_, _ = c.wire.Write([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0})
		}},
	}
	for why, tc := range cases {
		t.Run(string(why), func(t *testing.T) {
			var log logged
			f := serve(t, Config{Limits: tc.limits, Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))})
			f.publish(compile.ListenerType, map[string]string{"l": "1"})
			c := f.client()
			addr := c.wire.LocalAddr().String()
			tc.end(f, c)
			line := `msg="connection ended" address=` + addr + " reason=" + string(why) + " "
			eventually(t, "the end is logged", func() bool { return strings.Contains(log.String(), "connection ended") })
			if !strings.Contains(log.String(), line) {
				t.Errorf("the log lacks %q:\n%s", line, log.String())
			}
			for other := range cases {
				want := 0.0
				if other == why {
					want = 1
				}
				// The shutdown's own look at the port is a connection of its own.
				if got := f.ended(other); got != want && !(why == endShutdown && other == endPeer) {
					t.Errorf("%v connections ended by %s, not %v", got, other, want)
				}
			}
		})
	}
}

func (f *fixture) ended(why ending) float64 {
	return valueOf(f.srv.metrics.ended.WithLabelValues(string(why)))
}

// endless is a connection of an address that reads what a test says.
type endless struct {
	net.Conn
	err error
}

func (e endless) Read([]byte) (int, error) { return 0, e.err }
func (endless) Close() error               { return nil }
func (endless) RemoteAddr() net.Addr       { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1} }

func TestAPeerThatTheKernelGaveUpIsDead(t *testing.T) {
	srv := NewServer(Config{})
	l := &limited{srv: srv, open: map[string]int{"192.0.2.1": 1}, total: 1}
	c := newLimitedConn(endless{err: &net.OpError{Op: "read", Err: syscall.ETIMEDOUT}}, l)
	if _, err := c.Read(nil); err == nil {
		t.Fatal("no error")
	}
	for range 2 { // gRPC closes twice at times
		_ = c.Close()
	}
	if got := valueOf(srv.metrics.ended.WithLabelValues(string(endDead))); got != 1 || l.total != 0 {
		t.Errorf("counted %v times, %d are left", got, l.total)
	}
}
