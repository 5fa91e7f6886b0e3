package echo

import (
	"bytes"
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ask(t *testing.T, method, target, body string) (int, Answer) {
	t.Helper()
	req := httptest.NewRequest(method, target, strings.NewReader(body))
	req.Header.Set("X-Test", "yes")
	rec := httptest.NewRecorder()
	Handler("one").ServeHTTP(rec, req)
	var a Answer
	if err := json.Unmarshal(rec.Body.Bytes(), &a); err != nil {
		t.Fatalf("%v in %s", err, rec.Body)
	}
	return rec.Code, a
}

func TestTheAnswerIsWhatWasReceived(t *testing.T) {
	code, a := ask(t, "POST", "http://shop.example.com/a%20b?x=1&y=2", "hello")
	if code != http.StatusOK {
		t.Errorf("status %d", code)
	}
	if a.Upstream != "one" || a.Method != "POST" || a.Host != "shop.example.com" || a.Path != "/a%20b?x=1&y=2" || a.Body != "hello" || a.Headers["X-Test"][0] != "yes" {
		t.Errorf("answer %+v", a)
	}
}

func TestABodyThatIsNotTextComesInBase64(t *testing.T) {
	_, a := ask(t, "POST", "/", "\xff\xfe")
	if !a.BodyBase64 || a.Body != "//4=" {
		t.Errorf("body %q base64 %v", a.Body, a.BodyBase64)
	}
}

func TestAnEndlessBodyIsCut(t *testing.T) {
	_, a := ask(t, "POST", "/", strings.Repeat("x", maxBody+10))
	if len(a.Body) != maxBody {
		t.Errorf("%d bytes came back", len(a.Body))
	}
}

func TestTheStatusCanBeChosen(t *testing.T) {
	for query, want := range map[string]int{"status=503": 503, "status=99": 200, "status=x": 200, "": 200} {
		if code, _ := ask(t, "GET", "/?"+query, ""); code != want {
			t.Errorf("%q: status %d, want %d", query, code, want)
		}
	}
}

func TestServeFinishesRequestsUnderWayAndEnds(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- Serve(ctx, ln, "one") }()
	answer := make(chan error, 1)
	go func() {
		client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
		resp, err := client.Post("http://"+ln.Addr().String()+"/?delay=300ms", "text/plain", bytes.NewReader(nil))
		if err == nil {
			err = resp.Body.Close()
		}
		answer <- err
	}()
	time.Sleep(100 * time.Millisecond) // the request is under way
	cancel()
	if err := <-answer; err != nil {
		t.Errorf("the request under way: %v", err)
	}
	if err := <-done; err != nil {
		t.Errorf("Serve: %v", err)
	}
}
