package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// listenerServer is a bound listener.
type listenerServer struct {
	gw      *Gateway
	name    string
	socket  net.Listener
	http    *http.Server
	closing atomic.Bool   // drain has begun
	done    chan struct{} // closed when Serve has returned

	requests inFlight           // those being answered, upgraded connections included
	upgrades context.Context    // ends upgraded connections, which net/http does not know any more
	cut      context.CancelFunc // of upgrades
}

// Bounds on what a client may take its time with, as Envoy has them.
const (
	maxHeaderBytes  = 60 << 10
	clientIdle      = time.Hour
	headerTimeout   = time.Minute
	maxConcurrentH2 = 1024
)

var errNoServerName = errors.New("no filter chain matches the server name")

// bind binds a listener. It serves from start on.
func (g *Gateway) bind(name string) (*listenerServer, error) {
	addr := g.cfg.HTTPAddr
	if name == listenerHTTPS {
		addr = g.cfg.HTTPSAddr
	}
	if addr == "" {
		return nil, nil
	}
	socket, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("it cannot be bound: %w", err)
	}
	s := &listenerServer{gw: g, name: name, socket: socket, done: make(chan struct{})}
	s.upgrades, s.cut = context.WithCancel(g.ctx)
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler: s, Protocols: &protocols, MaxHeaderBytes: maxHeaderBytes,
		ReadHeaderTimeout: headerTimeout, IdleTimeout: clientIdle,
		ErrorLog: slog.NewLogLogger(g.log.With("listener", name).Handler(), slog.LevelDebug),
		HTTP2:    &http.HTTP2Config{MaxConcurrentStreams: maxConcurrentH2},
		// `OPTIONS *` is a request like any other.
		DisableGeneralOptionsHandler: true,
	}
	if name == listenerHTTPS {
		s.http.TLSConfig = &tls.Config{GetConfigForClient: s.tlsConfig, NextProtos: []string{"h2", "http/1.1"}}
	}
	return s, nil
}

// start serves in the background until the listener is drained.
func (s *listenerServer) start() {
	s.gw.tasks.Go(func() {
		defer close(s.done)
		var err error
		if s.http.TLSConfig != nil {
			err = s.http.ServeTLS(s.socket, "", "")
		} else {
			err = s.http.Serve(s.socket)
		}
		if !errors.Is(err, http.ErrServerClosed) && !s.closing.Load() {
			s.gw.log.Error("listener ended", "listener", s.name, "error", err)
		}
	})
	s.gw.log.Info("listener bound", "listener", s.name, "address", s.socket.Addr().String())
}

// tlsConfig returns the configuration of the filter chain for a client's SNI.
func (s *listenerServer) tlsConfig(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	t := s.gw.table.Load()
	l, ok := t.listeners[s.name]
	if !ok {
		return nil, errNoServerName
	}
	chain := l.find(hello.ServerName)
	if chain == nil || chain.tls == nil {
		return nil, errNoServerName
	}
	return chain.tls.configFor(t)
}

// drain closes a listener's socket, so that the address is free, and in the
// background its connections: requests in flight may end in time.
func (g *Gateway) drain(s *listenerServer) {
	s.closing.Store(true)
	_ = s.socket.Close() // Shutdown does it again
	g.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), g.cfg.DrainTimeout)
		defer cancel()
		if err := s.http.Shutdown(ctx); err != nil && !errors.Is(err, net.ErrClosed) {
			g.log.Warn("requests were cut off", "listener", s.name, "error", err)
			_ = s.http.Close() // after Shutdown it only closes what is left
		}
		s.cut()
		<-s.done
		s.requests.wait()
	})
}

// inFlight counts requests. The zero value counts none.
type inFlight struct {
	mu   sync.Mutex
	n    int
	none chan struct{} // closed when the last has ended; nil before wait
}

// begin counts one more; false when no more are taken.
func (f *inFlight) begin() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.none != nil {
		return false
	}
	f.n++
	return true
}

func (f *inFlight) end() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.n--
	if f.n == 0 && f.none != nil {
		close(f.none)
	}
}

// wait takes no more and returns when all have ended. It is called once.
func (f *inFlight) wait() {
	f.mu.Lock()
	f.none = make(chan struct{})
	if f.n == 0 {
		close(f.none)
	}
	none := f.none
	f.mu.Unlock()
	<-none
}
