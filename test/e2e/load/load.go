package load

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Request is what is sent again and again.
type Request struct {
	// Name tells it apart in reports.
	Name string
	// Addr is where the data plane listens.
	Addr string
	// Host and Path make the URL.
	Host, Path string
	Header     http.Header
	// TLS makes it an https request.
	TLS *tls.Config
	// Want is the status that must come; 0 means 200.
	Want int
	// Or is another status that may come.
	Or int
}

// Report is what came of the requests.
type Report struct {
	Sent int
	// Failed counts the requests without the wanted answer.
	Failed int
	// Failures describes the first hundred of them.
	Failures []string
	// Connections counts the connections that were made.
	Connections int
	// Slowest is the longest time an answer took.
	Slowest time.Duration
}

// Load is running load. Its methods are safe for concurrent use.
type Load struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
	began  time.Time

	mu     sync.Mutex
	report Report
}

// Start sends each request an interval after the last answer, over one connection each, until
// Stop or the end of ctx.
func Start(ctx context.Context, interval time.Duration, requests ...Request) *Load {
	ctx, cancel := context.WithCancel(ctx)
	l := &Load{cancel: cancel, began: time.Now()}
	for _, r := range requests {
		l.wg.Go(func() { l.repeat(ctx, interval, r) })
	}
	return l
}

// Stop ends the load, waits for the requests under way and tells what came of all.
func (l *Load) Stop() Report {
	l.cancel()
	l.wg.Wait()
	return l.Report()
}

// Report tells what came of the requests so far.
func (l *Load) Report() Report {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.report
	r.Failures = append([]string(nil), r.Failures...)
	return r
}

func (l *Load) repeat(ctx context.Context, interval time.Duration, r Request) {
	var dialer net.Dialer
	transport := &http.Transport{
		TLSClientConfig: r.TLS,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			l.mu.Lock()
			l.report.Connections++
			l.mu.Unlock()
			return dialer.DialContext(ctx, network, r.Addr)
		},
		MaxIdleConnsPerHost: 1,
		// Another is made only when the last one was closed, not when it is merely late
		// in coming back among the idle ones.
		MaxConnsPerHost: 1,
	}
	defer transport.CloseIdleConnections()
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	want := r.Want
	if want == 0 {
		want = http.StatusOK
	}
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		began := time.Now()
		// A request under way when the load is stopped is still finished.
		err := once(context.WithoutCancel(ctx), transport, scheme+"://"+r.Host+r.Path, r.Header, want, r.Or)
		l.note(r, began, err)
		ticker.Reset(interval) // after a slow answer the next tick is due at once
	}
}

func once(ctx context.Context, transport *http.Transport, url string, header http.Header, want, or int) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if header != nil {
		req.Header = header.Clone()
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != want && (or == 0 || resp.StatusCode != or) {
		return fmt.Errorf("status %d, want %d: %.200s", resp.StatusCode, want, body)
	}
	if resp.Close {
		return errors.New("the data plane asked for the connection to be closed")
	}
	return nil
}

func (l *Load) note(r Request, began time.Time, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.report.Sent++
	l.report.Slowest = max(l.report.Slowest, time.Since(began))
	if err == nil {
		return
	}
	l.report.Failed++
	if len(l.report.Failures) < 100 {
		l.report.Failures = append(l.report.Failures, fmt.Sprintf("%s after %v: %v", r.Name, began.Sub(l.began).Round(time.Millisecond), err))
	}
}
