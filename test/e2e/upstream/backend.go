package upstream

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// HealthPath is where health checks look. Behaviour.Health answers it, not
// Behaviour.Status, and requests to it are not counted.
const HealthPath = "/healthz"

// Echo is a backend's answer: the request as it arrived.
type Echo struct {
	// From is the backend's name.
	From   string `json:"from"`
	Method string `json:"method"`
	// Path is the request target, query included, byte for byte.
	Path  string `json:"path"`
	Host  string `json:"host"`
	Proto string `json:"proto"`
	// Headers has lower-case names; repeated values are joined by ", ".
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body,omitempty"`
	// SNI and ClientCert (its common name) are set on TLS connections.
	SNI        string `json:"sni,omitempty"`
	ClientCert string `json:"client_cert,omitempty"`
}

// Behaviour is how a backend answers. The zero value echoes with 200.
type Behaviour struct {
	// Status replaces 200.
	Status int `yaml:"status"`
	// Delay passes before the answer.
	Delay time.Duration `yaml:"delay"`
	// Drop closes the connection instead of answering.
	Drop bool `yaml:"drop"`
	// Down stops listening and closes all connections.
	Down bool `yaml:"down"`
	// Health replaces 200 on HealthPath.
	Health int `yaml:"health"`
}

// Config describes a backend.
type Config struct {
	Name string
	// TLS makes it an https backend.
	TLS *tls.Config
	// Addr fixes the address; empty takes a free port of the loopback.
	Addr string
	// Handler replaces the echo.
	Handler http.Handler
}

// Backend is a server that a test controls. Its methods are safe for
// concurrent use.
type Backend struct {
	name    string
	addr    string
	tls     *tls.Config
	handler http.Handler

	mu        sync.Mutex
	behaviour Behaviour
	server    *http.Server // nil while down
	served    chan struct{}
	requests  int
}

// Start listens and serves until Close.
func Start(cfg Config) (*Backend, error) {
	b := &Backend{name: cfg.Name, addr: cfg.Addr, tls: cfg.TLS, handler: cfg.Handler}
	if b.addr == "" {
		b.addr = "127.0.0.1:0"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.listen(); err != nil {
		return nil, err
	}
	return b, nil
}

// listen is called with mu held and the backend down.
func (b *Backend) listen() error {
	lis, err := net.Listen("tcp", b.addr)
	if err != nil {
		return fmt.Errorf("backend %s: %w", b.name, err)
	}
	b.addr = lis.Addr().String()
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	server := &http.Server{
		Handler:           b,
		Protocols:         protocols,
		ReadHeaderTimeout: 10 * time.Second,
		ErrorLog:          log.New(io.Discard, "", 0),
	}
	if b.tls != nil {
		server.TLSConfig = b.tls.Clone()
	}
	served := make(chan struct{})
	b.server, b.served = server, served
	go func() {
		defer close(served)
		if server.TLSConfig != nil {
			_ = server.ServeTLS(lis, "", "")
		} else {
			_ = server.Serve(lis)
		}
	}()
	return nil
}

// Close stops the backend and waits for it.
func (b *Backend) Close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.stop()
}

func (b *Backend) stop() {
	if b.server != nil {
		_ = b.server.Close()
		<-b.served
		b.server = nil
	}
}

// Addr is host:port, the same while the backend is down.
func (b *Backend) Addr() string { return b.addr }

// Name is the backend's name.
func (b *Backend) Name() string { return b.name }

// Set changes how the backend answers from the next request on.
func (b *Backend) Set(behaviour Behaviour) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.behaviour = behaviour
	if behaviour.Down {
		b.stop()
		return nil
	}
	if b.server == nil {
		return b.listen()
	}
	return nil
}

// Requests is how many requests arrived, health checks apart.
func (b *Backend) Requests() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.requests
}

// ServeHTTP answers one request.
func (b *Backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	health := r.URL.Path == HealthPath
	b.mu.Lock()
	behaviour := b.behaviour
	if !health {
		b.requests++
	}
	b.mu.Unlock()

	if behaviour.Drop {
		drop(w)
	}
	if health {
		w.WriteHeader(orOK(behaviour.Health))
		return
	}
	if !pause(r.Context(), behaviour.Delay) {
		return
	}
	if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
		echoUpgraded(w)
		return
	}
	if b.handler != nil {
		b.handler.ServeHTTP(w, r)
		return
	}
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		return
	}
	echo := b.echo(r)
	echo.Body = string(body)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("X-Backend", b.name)
	w.WriteHeader(orOK(behaviour.Status))
	_ = json.NewEncoder(w).Encode(echo)
}

func (b *Backend) echo(r *http.Request) Echo {
	echo := Echo{
		From:    b.name,
		Method:  r.Method,
		Path:    r.RequestURI,
		Host:    r.Host,
		Proto:   r.Proto,
		Headers: map[string]string{},
	}
	for _, name := range slices.Sorted(maps.Keys(r.Header)) {
		echo.Headers[strings.ToLower(name)] = strings.Join(r.Header[name], ", ")
	}
	if r.TLS != nil {
		echo.SNI = r.TLS.ServerName
		if certs := r.TLS.PeerCertificates; len(certs) > 0 {
			echo.ClientCert = certs[0].Subject.CommonName
		}
	}
	return echo
}

func orOK(status int) int {
	if status == 0 {
		return http.StatusOK
	}
	return status
}

// drop ends the connection, or on HTTP/2 the stream, without an answer.
func drop(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if errors.Is(err, http.ErrNotSupported) {
		panic(http.ErrAbortHandler)
	}
	if err == nil {
		_ = conn.Close()
	}
	panic(http.ErrAbortHandler)
}

// pause reports false when the client left first.
func pause(ctx context.Context, d time.Duration) bool {
	if d == 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// echoUpgraded accepts the upgrade and sends every byte back. The bytes are
// not parsed as WebSocket frames: no data plane does either.
func echoUpgraded(w http.ResponseWriter) {
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = buffered.WriteString("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
	_ = buffered.Flush()
	_, _ = io.Copy(conn, buffered)
}
