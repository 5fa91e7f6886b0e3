package gateway

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// wire is a connection to the listener `http` that a test writes to by hand.
type wire struct {
	t *testing.T
	net.Conn
	*bufio.Reader
}

func (l *lab) dial() *wire {
	l.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(l.base, "http://"))
	if err != nil {
		l.Fatal(err)
	}
	l.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		l.Fatal(err)
	}
	return &wire{l.T, conn, bufio.NewReader(conn)}
}

func (w *wire) Read(b []byte) (int, error) { return w.Reader.Read(b) }

func (w *wire) send(s string) {
	w.t.Helper()
	if _, err := io.WriteString(w.Conn, s); err != nil {
		w.t.Fatal(err)
	}
}

// answer reads an answer; it fails the test when there is none.
func (w *wire) answer() answer {
	w.t.Helper()
	resp, err := http.ReadResponse(w.Reader, nil)
	if err != nil {
		w.t.Fatalf("no answer: %v", err)
	}
	a, err := read(resp)
	if err != nil {
		w.t.Fatal(err)
	}
	return a
}

// closed wants the gateway to have closed the connection, with nothing more sent.
func (w *wire) closed() {
	w.t.Helper()
	if rest, err := io.ReadAll(w.Reader); err != nil || len(rest) > 0 {
		w.t.Errorf("the connection is not closed: %q %v", rest, err)
	}
}

func TestARequestThatMayHaveReachedTheNodeIsNotSentAgain(t *testing.T) {
	for _, method := range []string{"GET", "HEAD", "OPTIONS", "TRACE", "POST"} {
		t.Run(method, func(t *testing.T) {
			var bad atomic.Int64
			up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/drop" {
					bad.Add(1)
					if c, _, err := w.(http.Hijacker).Hijack(); err == nil {
						_ = c.Close()
					}
				}
			}))
			t.Cleanup(up.Close)
			l := newLab(t, res("c", clusterOf("c", options(apiRetry))), assignmentOf("c", up.URL), catchAll(to("/", "c")))
			l.do(method, "/keep") // the connection is kept
			a := l.do(method, "/drop", header("X-Idempotency-Key", "1"))
			if a.status != 503 || bad.Load() != 1 {
				t.Errorf("%d after %d tries, want 503 after 1", a.status, bad.Load())
			}
		})
	}
}

func TestARequestIsSentOnAnotherConnectionWhenTheNodeHasClosedThisOne(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	for i := range 5 {
		if a := l.do("GET", "/"); a.status != 200 {
			t.Fatalf("request %d: %d", i, a.status)
		}
		up.CloseClientConnections()
		time.Sleep(20 * time.Millisecond) // the gateway has seen it
		if a := l.do("POST", "/", body("hello")); a.status != 200 || a.seen.Body != "hello" {
			t.Fatalf("request %d after the connections were closed: %d %q", i, a.status, a.body)
		}
		up.CloseClientConnections()
		time.Sleep(20 * time.Millisecond)
	}
}

func TestAConnectionThatEndedIsNotWrittenTo(t *testing.T) {
	near, far := net.Pipe()
	defer near.Close()
	c := &upstreamConn{Conn: near}
	var canceled error
	cancel := context.CancelCauseFunc(func(err error) { canceled = err })
	c.begin(&cancel)
	_ = far.Close()
	if _, err := c.Read(make([]byte, 1)); err == nil || canceled != nil {
		t.Errorf("nothing was written: read %v, canceled %v", err, canceled)
	}
	if n, err := c.Write([]byte("x")); n != 0 || !errors.Is(err, net.ErrClosed) {
		t.Errorf("written: %d %v", n, err)
	}
}

func TestAnAnswerDoesNotWaitForABodyThatNobodyReads(t *testing.T) {
	l := newLab(t, catchAll(`{"match":{"prefix":"/"},"directResponse":{"status":404}}`))
	for name, request := range map[string]string{
		"a length":     "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
		"chunks":       "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
		"a part of it": "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhello",
		"a bad method": "FOO / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			l := &lab{T: t, gw: l.gw, base: l.base}
			w := l.dial()
			w.send(request)
			if a := w.answer(); a.status/100 != 4 {
				t.Errorf("%d", a.status)
			}
			w.closed()
		})
	}
	w := l.dial()
	for range 2 {
		w.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
		if a := w.answer(); a.status != 404 {
			t.Errorf("a request that is whole: %d", a.status)
		}
	}
}

// earlyServer answers requests below a path before their bodies are there, others
// after.
func earlyServer(t *testing.T, prefix string) string {
	t.Helper()
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.URL.Path, prefix) {
			_ = http.NewResponseController(w).EnableFullDuplex()
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusTeapot)
			_ = http.NewResponseController(w).Flush()
			return
		}
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	s.Config.ErrorLog = discardLog // net/http is not fond of it
	s.Start()
	t.Cleanup(s.Close)
	return s.URL
}

func TestNothingOfAnAbandonedBodyIsTakenForARequest(t *testing.T) {
	l := newLab(t, append(edsCluster("c", earlyServer(t, "/early")), catchAll(tag("smuggled", `{"prefix":"/smuggled"}`), to("/", "c", `,"idleTimeout":"0.1s"`)))...)
	for _, target := range []string{"/", "/early", "/smuggled"} {
		w := l.dial()
		w.send("POST " + target + " HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhello")
		first := w.answer()
		_, _ = io.WriteString(w.Conn, "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n")
		if resp, err := http.ReadResponse(w.Reader, nil); err == nil {
			t.Errorf("%s: after %d the rest of the body was answered %d", target, first.status, resp.StatusCode)
			_ = resp.Body.Close()
		}
	}
}

func TestAConnectionGoesOnAfterATimeout(t *testing.T) {
	slow := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if r.URL.Path == "/slow" {
			sleep(r.Context(), 5*time.Second)
		}
	}))
	t.Cleanup(slow.Close)
	l := newLab(t, append(edsCluster("c", slow.URL), catchAll(to("/slow", "c", `,"idleTimeout":"0.1s"`), to("/", "c")))...)
	w := l.dial()
	for range 2 {
		w.send("POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
		if a := w.answer(); a.status != 504 {
			t.Errorf("slow: %d", a.status)
		}
		w.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
		if a := w.answer(); a.status != 200 {
			t.Errorf("the next: %d", a.status)
		}
	}
}

func TestAClientThatStallsItsBodyIsLetGo(t *testing.T) {
	l := newLab(t, append(edsCluster("c", earlyServer(t, "/")), catchAll(to("/", "c")))...)
	for range 5 {
		w := l.dial()
		w.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 500\r\n\r\nhello")
		if a := w.answer(); a.status != http.StatusTeapot {
			t.Errorf("%d", a.status)
		}
		w.closed()
	}
}

func TestAClientThatReadsNothingIsCutOff(t *testing.T) {
	endless := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		b := make([]byte, 1<<20)
		for {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	}))
	t.Cleanup(endless.Close)
	l := newLab(t, append(edsCluster("c", endless.URL), catchAll(to("/", "c", `,"idleTimeout":"1s"`)))...)
	w := l.dial()
	w.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if resp, err := http.ReadResponse(w.Reader, nil); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	h := l.hostOf("c", endless.URL)
	eventually(t, "the request ends", func() bool { return h.requests.Load() == 0 })
}

// hostOf returns the state of an endpoint.
func (l *lab) hostOf(cluster, url string) *host {
	l.Helper()
	c, _ := l.gw.table.Load().clusters.Get([]byte(cluster))
	c.mu.Lock()
	defer c.mu.Unlock()
	for k, h := range c.hosts {
		if k.address == strings.TrimPrefix(url, "http://") {
			return h
		}
	}
	l.Fatal("there is no such endpoint")
	return nil
}

func TestAMalformedBodyIsTheClientsFault(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, res("c", clusterOf("c", settings(`{"outlierDetection":{"splitExternalLocalOriginErrors":true,"consecutiveLocalOriginFailure":1,"consecutive5xx":1,"maxEjectionPercent":100,
		"enforcingSuccessRate":0,"enforcingLocalOriginSuccessRate":0,"enforcingConsecutiveGatewayFailure":0}}`))), assignmentOf("c", up.URL), catchAll(to("/", "c")))
	for range 3 {
		w := l.dial()
		w.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
		time.Sleep(20 * time.Millisecond) // the request is on its way
		w.send("zz\r\n\r\n")
		if a := w.answer(); a.status != 400 {
			t.Errorf("%d %q", a.status, a.body)
		}
		w.closed()
	}
	if l.hostOf("c", up.URL).ejected.Load() {
		t.Error("the endpoint was ejected for it")
	}
}

func TestAClientThatGoesAwayIsNotTheNodesFault(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, res("c", clusterOf("c", settings(`{"outlierDetection":{"splitExternalLocalOriginErrors":true,"consecutiveLocalOriginFailure":1,"consecutive5xx":1,"maxEjectionPercent":100,
		"enforcingSuccessRate":0,"enforcingLocalOriginSuccessRate":0,"enforcingConsecutiveGatewayFailure":0}}`))), assignmentOf("c", up.URL), catchAll(to("/", "c")))
	h := l.hostOf("c", up.URL)
	for range 10 {
		w := l.dial()
		w.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 50\r\n\r\nhello")
		eventually(t, "the request is on its way", func() bool { return h.requests.Load() == 1 })
		_ = w.Conn.Close()
		eventually(t, "the request ends", func() bool { return h.requests.Load() == 0 })
	}
	if h.ejected.Load() {
		t.Error("the endpoint was ejected for it")
	}
}

func TestTrailersOfHTTP1ClientsGoNowhere(t *testing.T) {
	var got atomic.Pointer[http.Header]
	up := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		got.Store(&r.Trailer)
	}))
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	w := l.dial()
	w.send("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-Consumer-Username\r\n\r\n5\r\nhello\r\n0\r\nX-Consumer-Username: root\r\n\r\n")
	if a := w.answer(); a.status != 200 {
		t.Errorf("%d", a.status)
	}
	if len(*got.Load()) > 0 {
		t.Errorf("trailers: %v", *got.Load())
	}
}

func TestAnUpstreamCannotSwitchProtocolsUnasked(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(io.Discard, rw)
	}))
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	a := l.raw("GET / HTTP/1.1\r\nHost: a\r\n\r\n")
	if a.status/100 != 5 {
		t.Errorf("%d %v", a.status, a.header)
	}
}

func TestManyHeadersAreRefused(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	for n, want := range map[int]int{98: 200, 200: 431} {
		a := l.raw("GET / HTTP/1.1\r\nHost: a\r\n" + strings.Repeat("X-A: 1\r\n", n) + "\r\n")
		if a.status != want {
			t.Errorf("%d headers: %d, want %d", n, a.status, want)
		}
	}
	if a := l.raw("GET / HTTP/1.1\r\nHost: a\r\nX-A: " + strings.Repeat("x", 70<<10) + "\r\n\r\n"); a.status != 431 {
		t.Errorf("long headers: %d", a.status)
	}
}

func TestAUpgradedConnectionEndsWithItsListener(t *testing.T) {
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		conn, rw, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		defer conn.Close()
		_, _ = rw.WriteString("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
		_ = rw.Flush()
		_, _ = io.Copy(conn, rw)
	}))
	t.Cleanup(up.Close)
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c", `,"idleTimeout":"60s","upgradeConfigs":[{"upgradeType":"websocket"}]`)))...)
	w := l.dial()
	w.send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if resp, err := http.ReadResponse(w.Reader, nil); err != nil || resp.StatusCode != 101 {
		t.Fatal(resp, err)
	}
	l.apply(gone("http", httpListener()))
	w.closed()
}

// h2 sends one request by hand on a connection of its own and returns the status.
func (l *lab) h2(pseudo ...string) string {
	l.Helper()
	w := l.dial()
	w.send(http2.ClientPreface)
	f := http2.NewFramer(w.Conn, w.Reader)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for i := 0; i < len(pseudo); i += 2 {
		_ = enc.WriteField(hpack.HeaderField{Name: pseudo[i], Value: pseudo[i+1]})
	}
	if err := errors.Join(f.WriteSettings(), f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true})); err != nil {
		l.Fatal(err)
	}
	for {
		frame, err := f.ReadFrame()
		if err != nil {
			return err.Error()
		}
		switch frame := frame.(type) {
		case *http2.MetaHeadersFrame:
			out := frame.PseudoValue("status")
			for _, h := range frame.Fields {
				if h.Name == "x-route" {
					out += " " + h.Value
				}
			}
			return out
		case *http2.RSTStreamFrame:
			return frame.ErrCode.String()
		case *http2.GoAwayFrame:
			return frame.ErrCode.String()
		}
	}
}

func TestAnHTTP2TargetIsAPathAndNothingElse(t *testing.T) {
	up := echo(t, "a")
	l := newLab(t, append(edsCluster("c", up.URL), catchAll(to("/", "c")))...)
	for path, want := range map[string]string{
		"/x?a b": "400", "/x?a HTTP/1.0": "400", "http://a.example/x": "400", "/x?a=b": "200", "/x\x7f": "PROTOCOL_ERROR",
	} {
		if got := l.h2(":method", "GET", ":scheme", "http", ":path", path, ":authority", "a.example"); got != want {
			t.Errorf("%q: %s, want %s", path, got, want)
		}
	}
}

func TestARefusedStreamLeavesItsConnectionAlone(t *testing.T) {
	l := newLab(t, catchAll(tag("it", `{"prefix":"/"}`)))
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	var dialed atomic.Int64
	rt := &http.Transport{Protocols: &protocols, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dialed.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	defer rt.CloseIdleConnections()
	for range 3 {
		req, err := http.NewRequestWithContext(t.Context(), "GET", l.base+"/a%00", nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := rt.RoundTrip(req)
		if err != nil || resp.StatusCode != 400 {
			t.Fatal(resp, err)
		}
		_ = resp.Body.Close()
	}
	if n := dialed.Load(); n != 1 {
		t.Errorf("%d connections", n)
	}
}

func TestAnHTTP2AuthorityCannotNameAPath(t *testing.T) {
	l := newLab(t,
		vhost("a|admin", []string{"a.example/admin", "a.example/admin/", "a.example/admin/*"}, tag("open", `{"prefix":"/"}`)),
		vhost("a|", []string{"a.example/", "a.example/*"}, tag("guarded", `{"prefix":"/"}`)),
		catchAll(tag("star", `{"prefix":"/"}`)))
	for authority, want := range map[string]string{
		"a.example": "200 guarded", "a.example:80": "200 guarded", "a.example/admin": "400", "a.example/admin?": "400", "a.example#": "400", `a.example\`: "400", "a example": "400",
		"": "400", "a.example|": "400",
	} {
		if got := l.h2(":method", "GET", ":scheme", "http", ":path", "/x", ":authority", authority); got != want {
			t.Errorf("%q: %s, want %s", authority, got, want)
		}
	}
}

func TestAddressesAreComparedWithoutTheirZone(t *testing.T) {
	for text, want := range map[string]string{
		"[fe80::1%eth0]:80": "[fe80::1]:80", "[::ffff:10.0.0.1]:80": "10.0.0.1:80", "10.0.0.1:80": "10.0.0.1:80", "[2001:db8::1]:80": "[2001:db8::1]:80",
	} {
		if got := addrPortOf(text).String(); got != want {
			t.Errorf("%s: %s, want %s", text, got, want)
		}
	}
}

func TestABodyReadAgainMissesNothingThatAClosedReaderGot(t *testing.T) {
	src, client := io.Pipe()
	body := &replay{src: src, limit: 100, progress: func() {}}
	first, err := body.reader()
	if err != nil {
		t.Fatal(err)
	}
	var late sync.WaitGroup
	late.Go(func() { _, _ = first.Read(make([]byte, 10)) })
	write := func(s string) {
		if _, err := io.WriteString(client, s); err != nil {
			t.Error(err)
		}
	}
	// The reader is closed while it waits, as the HTTP/2 transport does it.
	eventually(t, "it waits", func() bool {
		if body.reading.TryLock() {
			body.reading.Unlock()
			return false
		}
		return true
	})
	_ = first.Close()
	second, err := body.reader()
	if err != nil {
		t.Fatal(err)
	}
	late.Go(func() {
		write("he")
		write("llo")
		_ = client.Close()
	})
	if got, err := io.ReadAll(second); err != nil || string(got) != "hello" {
		t.Errorf("%q %v", got, err)
	}
	late.Wait()
}

// refusingServer speaks HTTP/2 and refuses every stream.
func refusingServer(t *testing.T, refused *atomic.Int64) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { _ = conn.Close() })
			serving.Go(func() {
				defer conn.Close()
				if _, err := io.ReadFull(conn, make([]byte, len(http2.ClientPreface))); err != nil {
					return
				}
				f := http2.NewFramer(conn, conn)
				_ = f.WriteSettings()
				for {
					frame, err := f.ReadFrame()
					if err != nil {
						return
					}
					if h, ok := frame.(*http2.HeadersFrame); ok {
						refused.Add(1)
						_ = f.WriteRSTStream(h.StreamID, http2.ErrCodeRefusedStream)
					}
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
	})
	return "http://" + ln.Addr().String()
}

func TestARefusedStreamGoesToAnotherNodeAtOnce(t *testing.T) {
	var refused atomic.Int64
	good := echo(t, "good")
	l := newLab(t, res("c", clusterOf("c", options(`{"explicitHttpConfig":{"http2ProtocolOptions":{}}}`), options(apiRetry))),
		assignmentOf("c", refusingServer(t, &refused), good.URL), catchAll(to("/", "c")))
	began := time.Now()
	for range 4 {
		if a := l.do("POST", "/", body("hello")); a.status != 200 || a.seen.Body != "hello" {
			t.Errorf("%d %q", a.status, a.body)
		}
	}
	if refused.Load() == 0 {
		t.Error("no stream was refused")
	}
	if took := time.Since(began); took > 900*time.Millisecond {
		t.Errorf("it took %v", took)
	}
}
