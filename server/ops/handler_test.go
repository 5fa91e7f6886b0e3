package ops

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestWhatAProcessTellsTheMachinesOfOperators(t *testing.T) {
	var unready error
	h := Handler(func() error { return unready }, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = w.Write([]byte("metrics\n"))
	}))
	for _, c := range []struct {
		method, path string
		unready      error
		code         int
		body         string
	}{
		{"GET", "/healthz", nil, 200, `{"status":"ok"}`},
		{"GET", "/healthz", errors.New("no leader"), 200, `{"status":"ok"}`},
		{"GET", "/readyz", nil, 200, `{"status":"ready"}`},
		{"GET", "/readyz", errors.New("no leader"), 503, `{"status":"not ready","reason":"no leader"}`},
		{"GET", "/metrics", nil, 200, "metrics"},
		{"POST", "/healthz", nil, 405, "Method Not Allowed"},
		{"GET", "/", nil, 404, "404 page not found"},
	} {
		unready = c.unready
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(c.method, c.path, nil))
		if w.Code != c.code || w.Body.String() != c.body+"\n" {
			t.Errorf("%s %s, ready %v: %d %q", c.method, c.path, c.unready, w.Code, w.Body)
		}
	}
}
