package echo

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
	"unicode/utf8"
)

// maxBody bounds how much of a request's body is kept and sent back.
const maxBody = 64 << 10

// Answer is what the upstream says.
type Answer struct {
	// Upstream names the upstream that answered.
	Upstream string `json:"upstream"`
	Method   string `json:"method"`
	Host     string `json:"host"`
	// Path includes the query. What may not stand in a URL is percent-encoded.
	Path     string              `json:"path"`
	Protocol string              `json:"protocol"`
	Client   string              `json:"client"`
	Headers  map[string][]string `json:"headers"`
	// Body holds the first 64 KiB; in base64 when they are not UTF-8.
	Body       string `json:"body,omitempty"`
	BodyBase64 bool   `json:"body_base64,omitempty"`
}

// Handler answers every request with what it received. The query parameter
// status (200 to 599) sets the status, delay (at most a minute) makes it wait.
// The handler may be called concurrently.
func Handler(name string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(io.LimitReader(r.Body, maxBody))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a := Answer{
			Upstream: name, Method: r.Method, Host: r.Host, Path: r.URL.RequestURI(),
			Protocol: r.Proto, Client: r.RemoteAddr, Headers: r.Header, Body: string(body),
		}
		if !utf8.Valid(body) {
			a.Body, a.BodyBase64 = base64.StdEncoding.EncodeToString(body), true
		}
		if delay, err := time.ParseDuration(r.URL.Query().Get("delay")); err == nil && delay > 0 {
			timer := time.NewTimer(min(delay, time.Minute))
			defer timer.Stop()
			select {
			case <-timer.C:
			case <-r.Context().Done():
				return
			}
		}
		status, err := strconv.Atoi(r.URL.Query().Get("status"))
		if err != nil || status < 200 || status > 599 {
			status = http.StatusOK
		}
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		_ = enc.Encode(a) // the client is gone; there is nobody to tell
	})
}

// Serve answers on ln until ctx ends, then waits for the requests under way, five
// seconds at most. It closes ln. HTTP/1.1 and plaintext HTTP/2 are understood.
func Serve(ctx context.Context, ln net.Listener, name string) error {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: Handler(name), ReadHeaderTimeout: 10 * time.Second, Protocols: &protocols}
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		err := srv.Shutdown(grace)
		if err != nil {
			err = errors.Join(err, srv.Close())
		}
		done <- err
	})
	err := srv.Serve(ln)
	if !errors.Is(err, http.ErrServerClosed) {
		stop()
		return err
	}
	return <-done
}
