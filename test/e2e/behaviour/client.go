package behaviour

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/musterhq/muster/test/e2e/upstream"
)

// Gate is where a data plane listens.
type Gate struct{ HTTP, HTTPS string }

// answerTimeout bounds one request.
const answerTimeout = 20 * time.Second

// target is the parsed URL of a step.
type target struct {
	method string
	tls    bool
	host   string
	path   string // as written, query included
}

func (s Step) target() (target, error) {
	method, raw := http.MethodGet, s.WebSocket+s.GRPC
	if s.Send != "" {
		var ok bool
		if method, raw, ok = strings.Cut(s.Send, " "); !ok {
			return target{}, fmt.Errorf("send %q is not `METHOD URL`", s.Send)
		}
	}
	scheme, rest, ok := strings.Cut(raw, "://")
	if !ok || scheme != "http" && scheme != "https" {
		return target{}, fmt.Errorf("%q is no http or https URL", raw)
	}
	host, path := rest, "/"
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		host, path = rest[:i], rest[i:]
	}
	return target{method: method, tls: scheme == "https", host: host, path: path}, nil
}

// answer is what came of one request.
type answer struct {
	status  int
	header  http.Header
	body    string
	echo    upstream.Echo // when a backend answered
	grpc    string
	cert    string
	elapsed time.Duration
	err     error // no answer at all
}

func (w *World) tlsConfig(s Step, t target) (*tls.Config, error) {
	name := s.SNI
	if name == "" {
		name, _, _ = strings.Cut(t.host, ":")
	}
	cfg := &tls.Config{ServerName: name, RootCAs: w.authority.Pool(), MinVersion: tls.VersionTLS12}
	if s.ClientCert != "" {
		leaf, err := w.authority.Leaf(s.ClientCert)
		if err != nil {
			return nil, err
		}
		cfg.Certificates = []tls.Certificate{leaf.TLS}
	}
	return cfg, nil
}

// send makes the step's request once; n tells repeated requests apart.
func (w *World) send(ctx context.Context, gate Gate, s Step, n int) answer {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	began := time.Now()
	a := w.sendTimed(ctx, gate, s, n)
	a.elapsed = time.Since(began)
	if a.err == nil && a.header.Get("X-Backend") != "" {
		if err := json.Unmarshal([]byte(a.body), &a.echo); err != nil && a.body != "" {
			a.err = fmt.Errorf("the echo cannot be read: %w", err)
		}
		if a.body == "" {
			a.echo.From = a.header.Get("X-Backend")
		}
	}
	return a
}

func (w *World) sendTimed(ctx context.Context, gate Gate, s Step, n int) answer {
	t, err := s.target()
	if err != nil {
		return answer{err: err}
	}
	header := http.Header{}
	for name, values := range s.Headers {
		header[http.CanonicalHeaderKey(name)] = values
	}
	if where, name, ok := strings.Cut(s.Spread, ":"); ok {
		value := fmt.Sprintf("spread-%d", n)
		if where == "query" {
			sep := "?"
			if strings.Contains(t.path, "?") {
				sep = "&"
			}
			t.path += sep + name + "=" + value
		} else {
			header.Set(name, value)
		}
	}
	addr := gate.HTTP
	var tlsConfig *tls.Config
	if t.tls {
		addr = gate.HTTPS
		if tlsConfig, err = w.tlsConfig(s, t); err != nil {
			return answer{err: err}
		}
	}
	switch {
	case s.GRPC != "":
		return checkHealth(ctx, addr, t, tlsConfig, header)
	case s.HTTP2:
		return sendHTTP2(ctx, addr, t, tlsConfig, header, s.Body)
	}
	return sendHTTP1(ctx, addr, t, tlsConfig, header, s)
}

// sendHTTP1 writes the request by hand, so that the path goes out as written.
func sendHTTP1(ctx context.Context, addr string, t target, tlsConfig *tls.Config, header http.Header, s Step) answer {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "tcp", addr)
	if err != nil {
		return answer{err: err}
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	cert := ""
	if tlsConfig != nil {
		secure := tls.Client(conn, tlsConfig)
		if err := secure.HandshakeContext(ctx); err != nil {
			return answer{err: err}
		}
		cert = secure.ConnectionState().PeerCertificates[0].Subject.CommonName
		conn = secure
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\nHost: %s\r\n", t.method, t.path, t.host)
	if s.WebSocket != "" {
		b.WriteString("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n")
	}
	if s.Body != "" {
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(s.Body))
	}
	for name, values := range header {
		for _, v := range values {
			fmt.Fprintf(&b, "%s: %s\r\n", name, v)
		}
	}
	b.WriteString("\r\n" + s.Body)
	if _, err := io.WriteString(conn, b.String()); err != nil {
		return answer{err: err}
	}
	reader := bufio.NewReader(conn)
	resp, err := http.ReadResponse(reader, &http.Request{Method: t.method})
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	a := answer{status: resp.StatusCode, header: resp.Header, cert: cert}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		a.err = exchange(conn, reader)
		return a
	}
	body, err := io.ReadAll(resp.Body)
	a.body, a.err = string(body), err
	return a
}

// exchange sends bytes through an upgraded connection and wants them back.
func exchange(conn net.Conn, reader *bufio.Reader) error {
	const message = "there and back again"
	if _, err := io.WriteString(conn, message); err != nil {
		return err
	}
	back := make([]byte, len(message))
	if _, err := io.ReadFull(reader, back); err != nil {
		return fmt.Errorf("upgraded connection: %w", err)
	}
	if string(back) != message {
		return fmt.Errorf("upgraded connection: got back %q", back)
	}
	return nil
}

func sendHTTP2(ctx context.Context, addr string, t target, tlsConfig *tls.Config, header http.Header, body string) answer {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	protocols.SetUnencryptedHTTP2(true)
	transport := &http.Transport{
		Protocols:       protocols,
		TLSClientConfig: tlsConfig,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, network, addr)
		},
	}
	defer transport.CloseIdleConnections()
	u, err := url.Parse("http://" + t.host + t.path)
	if err != nil {
		return answer{err: err}
	}
	if t.tls {
		u.Scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, t.method, u.String(), strings.NewReader(body))
	if err != nil {
		return answer{err: err}
	}
	req.Header = header
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return answer{err: err}
	}
	defer resp.Body.Close()
	if resp.ProtoMajor != 2 {
		return answer{err: fmt.Errorf("answered by %s", resp.Proto)}
	}
	got, err := io.ReadAll(resp.Body)
	return answer{status: resp.StatusCode, header: resp.Header, body: string(got), err: err}
}

func checkHealth(ctx context.Context, addr string, t target, tlsConfig *tls.Config, header http.Header) answer {
	creds := insecure.NewCredentials()
	if tlsConfig != nil {
		creds = credentials.NewTLS(tlsConfig)
	}
	conn, err := grpc.NewClient("passthrough:///"+addr,
		grpc.WithTransportCredentials(creds), grpc.WithAuthority(t.host), grpc.WithNoProxy())
	if err != nil {
		return answer{err: err}
	}
	defer conn.Close()
	resp, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	if errors.Is(err, context.DeadlineExceeded) {
		return answer{err: err}
	}
	if err != nil {
		return answer{grpc: status.Code(err).String(), header: header}
	}
	return answer{grpc: resp.Status.String(), header: header}
}
