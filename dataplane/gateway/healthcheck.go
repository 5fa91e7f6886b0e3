package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
)

// healthCheck is a compiled HealthCheck.
type healthCheck struct {
	timeout, interval, unhealthyInterval time.Duration
	unhealthyAfter, healthyAfter         int
	http                                 *httpCheck // else tcp
}

type httpCheck struct {
	host, path, method string
	expected           [][2]int64 // half-open ranges; 200 when empty
	retriable          [][2]int64 // other statuses count as a failure at once
	headers            mutations
}

func newHealthCheck(list []*corev3.HealthCheck) (*healthCheck, error) {
	switch len(list) {
	case 0:
		return nil, nil
	case 1:
	default:
		return nil, errors.New("only one is supported")
	}
	m := list[0]
	c := &healthCheck{
		timeout: m.GetTimeout().AsDuration(), interval: m.GetInterval().AsDuration(),
		unhealthyAfter: int(m.GetUnhealthyThreshold().GetValue()), healthyAfter: int(m.GetHealthyThreshold().GetValue()),
	}
	c.unhealthyInterval = c.interval
	if m.GetUnhealthyInterval() != nil {
		c.unhealthyInterval = m.GetUnhealthyInterval().AsDuration()
	}
	if c.timeout <= 0 || c.interval <= 0 || c.unhealthyInterval <= 0 {
		return nil, errors.New("timeout and intervals have to be above 0")
	}
	c.unhealthyAfter, c.healthyAfter = max(c.unhealthyAfter, 1), max(c.healthyAfter, 1)
	switch k := m.GetHealthChecker().(type) {
	case *corev3.HealthCheck_HttpHealthCheck_:
		h := k.HttpHealthCheck
		c.http = &httpCheck{host: h.GetHost(), path: h.GetPath(), method: http.MethodGet}
		if h.GetMethod() != corev3.RequestMethod_METHOD_UNSPECIFIED {
			c.http.method = h.GetMethod().String()
		}
		for _, r := range h.GetExpectedStatuses() {
			c.http.expected = append(c.http.expected, [2]int64{r.GetStart(), r.GetEnd()})
		}
		for _, r := range h.GetRetriableStatuses() {
			c.http.retriable = append(c.http.retriable, [2]int64{r.GetStart(), r.GetEnd()})
		}
		headers, err := newHeaderOptions(nil, h.GetRequestHeadersToAdd())
		c.http.headers = headers
		return c, err
	case *corev3.HealthCheck_TcpHealthCheck_:
		return c, nil
	}
	return nil, fmt.Errorf("checker %T is not supported", m.GetHealthChecker())
}

// checkHosts starts a checker for each host that has none and stops those of hosts
// that are gone; the caller holds mu.
func (c *cluster) checkHosts() {
	if c.cfg.check == nil {
		return
	}
	for key, stop := range c.checkers {
		if _, ok := c.hosts[key]; !ok {
			stop()
			delete(c.checkers, key)
		}
	}
	for _, e := range c.resolved {
		if _, ok := c.checkers[e.hostKey]; ok {
			continue
		}
		ctx, stop := context.WithCancel(c.ctx)
		c.checkers[e.hostKey] = stop
		first := c.hosts[e.hostKey].pending() && !c.isReady()
		if first {
			c.waiting++
		}
		h := c.hosts[e.hostKey]
		c.tasks.Go(func() { c.checkHost(ctx, e, h, first) })
	}
}

func (c *cluster) isReady() bool {
	select {
	case <-c.ready:
		return true
	default:
		return false
	}
}

// checkHost checks one host until ctx ends.
func (c *cluster) checkHost(ctx context.Context, e endpoint, h *host, first bool) {
	hc := c.cfg.check
	good, bad := 0, 0
	for {
		err := hc.run(ctx, c, &e)
		if ctx.Err() != nil {
			if first {
				c.answered()
			}
			return
		}
		if err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
			if errors.Is(err, errCheckFinal) {
				bad = max(bad, hc.unhealthyAfter)
			}
		}
		c.judge(h, e, good, bad, err)
		if first {
			c.answered()
			first = false
		}
		wait := hc.interval
		if h.failed.Load() {
			wait = hc.unhealthyInterval
		}
		// A tenth of jitter keeps the checks of many gateways apart.
		wait += time.Duration(rand.Int64N(int64(wait)/10 + 1))
		if !sleep(ctx, wait) {
			return
		}
	}
}

// judge takes the result of a check. The first result counts at once.
func (c *cluster) judge(h *host, e endpoint, good, bad int, err error) {
	was, first := h.failed.Load(), !h.checked.Swap(true)
	now := was
	switch {
	case good > 0 && (first || good >= c.cfg.check.healthyAfter):
		now = false
	case bad > 0 && (first || bad >= c.cfg.check.unhealthyAfter):
		now = true
	}
	h.failed.Store(now)
	// A host that passive checks took out is back once an active check succeeds.
	back := good > 0 && c.cfg.outlier != nil && c.cfg.outlier.unejectOnCheck && h.ejected.Swap(false)
	if now != was || first || back {
		c.healthChanged()
	}
	if now != was {
		c.gw.log.Info("endpoint health changed", "cluster", c.cfg.name, "endpoint", e.address, "healthy", !now, "error", err)
	}
}

// run makes one check.
func (hc *healthCheck) run(ctx context.Context, c *cluster, e *endpoint) error {
	ctx, cancel := context.WithTimeout(ctx, hc.timeout)
	defer cancel()
	address := e.checkAddress()
	if hc.http == nil {
		return hc.checkTCP(ctx, c, address)
	}
	return hc.checkHTTP(ctx, c, e, address)
}

var (
	errCheck      = errors.New("health check failed")
	errCheckFinal = fmt.Errorf("%w at once", errCheck)
)

func (hc *healthCheck) checkTCP(ctx context.Context, c *cluster, address string) error {
	d := dialer{gw: c.gw, lifetime: c.ctx, timeout: hc.timeout, tls: c.cfg.transport.tls}
	conn, err := d.dial(ctx, "tcp", address)
	if err != nil {
		return err
	}
	return conn.Close()
}

func (hc *healthCheck) checkHTTP(ctx context.Context, c *cluster, e *endpoint, address string) error {
	h := hc.http
	scheme := "http"
	if c.cfg.transport.tls != nil {
		scheme = "https"
	}
	path, query, _ := cutQuery(orText(h.path, "/"))
	u := &url.URL{Scheme: scheme, Host: address, Opaque: path, RawQuery: query}
	req := (&http.Request{Method: h.method, URL: u, Header: http.Header{"User-Agent": {"muster-gateway/hc"}}, Host: address}).WithContext(ctx)
	switch {
	case e.checkHost != "":
		req.Host = e.checkHost
	case h.host != "":
		req.Host = h.host
	case e.hostname != "":
		req.Host = e.hostname
	default:
		req.Host = c.cfg.name // as Envoy does
	}
	for _, m := range h.headers {
		req.Header[m.name] = []string{m.value.literal}
	}
	resp, err := c.transport.checks.RoundTrip(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	// Read a little, so that the connection can be used again.
	if _, err := io.CopyN(io.Discard, resp.Body, 1<<16); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	switch status := int64(resp.StatusCode); {
	case h.expects(status):
		return nil
	case inRanges(h.retriable, status):
		return fmt.Errorf("%w: status %d", errCheck, status)
	default:
		return fmt.Errorf("%w: status %d", errCheckFinal, status)
	}
}

func (h *httpCheck) expects(status int64) bool {
	if len(h.expected) == 0 {
		return status == http.StatusOK
	}
	return inRanges(h.expected, status)
}

func inRanges(ranges [][2]int64, n int64) bool {
	for _, r := range ranges {
		if n >= r[0] && n < r[1] {
			return true
		}
	}
	return false
}
