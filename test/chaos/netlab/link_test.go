package netlab

import (
	"io"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// echo answers what it is sent, until the test ends.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = io.Copy(conn, conn)
			_ = conn.Close()
		}
	}()
	t.Cleanup(func() { _ = ln.Close(); <-done })
	return ln.Addr().String()
}

// roundTrip sends bytes through a link and returns how long the answer took.
func roundTrip(t *testing.T, shape Shape, n int) time.Duration {
	t.Helper()
	l, err := NewLink("127.0.0.1:0", echo(t), shape)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	began := time.Now()
	if _, err := conn.Write(make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(conn, make([]byte, n)); err != nil {
		t.Fatal(err)
	}
	return time.Since(began)
}

func TestALinkDelaysEachDirection(t *testing.T) {
	if took := roundTrip(t, Shape{Delay: 60 * time.Millisecond}, 10); took < 120*time.Millisecond {
		t.Errorf("the round trip took %s, want 120 ms at least", took)
	}
}

func TestALinkIsAsNarrowAsItSays(t *testing.T) {
	if took := roundTrip(t, Shape{Rate: 100 << 10}, 20<<10); took < 200*time.Millisecond {
		t.Errorf("20 KiB at 100 KiB/s took %s, want 200 ms at least", took)
	}
}

func TestClosingALinkBreaksItsConnections(t *testing.T) {
	l, err := NewLink("127.0.0.1:0", echo(t), Shape{Delay: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.Dial("tcp", l.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	l.Close()
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err == nil || isTimeout(err) {
		t.Fatalf("the connection is still there: %v", err)
	}
}

func isTimeout(err error) bool {
	e, ok := err.(net.Error)
	return ok && e.Timeout()
}
