package server

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// startMux serves a plaintext mux of at most so many connections.
func startMux(t *testing.T, most int) *portMux {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := newPortMux(ln, nil)
	m.open = make(chan struct{}, most)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := m.serve(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { _ = m.close(); wg.Wait() })
	return m
}

func (m *portMux) dialTest(t *testing.T, says string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", m.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := io.WriteString(c, says); err != nil {
		t.Fatal(err)
	}
	return c
}

func acceptTest(t *testing.T, l *muxListener, want string) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		t.Fatalf("read %q, %v; want %q", got, err, want)
	}
	return c
}

func TestAPortTellsGRPCFromHTTPAndLosesNoByteOfEither(t *testing.T) {
	m := startMux(t, 10)
	m.dialTest(t, string(http2Preface))
	defer acceptTest(t, m.grpc, string(http2Preface)).Close()
	m.dialTest(t, "GET / HTTP/1.1\r\n")
	defer acceptTest(t, m.http, "GET / HTTP/1.1\r\n").Close()
}

func TestConnectionsBeyondTheLimitAreClosedUntilOthersAre(t *testing.T) {
	m := startMux(t, 2)
	var held []net.Conn
	for range 2 {
		m.dialTest(t, "GET / HTTP/1.1\r\n")
		held = append(held, acceptTest(t, m.http, "GET / HTTP/1.1\r\n"))
	}
	refused, err := net.Dial("tcp", m.ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer refused.Close()
	_ = refused.SetDeadline(time.Now().Add(5 * time.Second))
	var timeout net.Error
	if _, err := refused.Read(make([]byte, 1)); err == nil || errors.As(err, &timeout) && timeout.Timeout() {
		t.Fatalf("one too many was let in: %v", err)
	}
	_ = held[0].Close()
	_ = held[0].Close() // twice gives up one place only
	m.dialTest(t, "GET / HTTP/1.1\r\n")
	defer acceptTest(t, m.http, "GET / HTTP/1.1\r\n").Close()
	_ = held[1].Close()
}
