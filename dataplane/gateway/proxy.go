package gateway

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// clusterUse is a request's hold on a cluster.
type clusterUse struct {
	*cluster
	name     string
	weighted *weightedCluster // the choice, when there was one
	held     bool
}

// acquire takes hold of the cluster's connections; false when it was closed.
func (u *clusterUse) acquire() bool {
	if u.cluster == nil {
		return true
	}
	u.held = u.transport.acquire()
	return u.held
}

func (u *clusterUse) release() {
	if u.held {
		u.transport.release()
	}
}

// Why a try got no answer.
var (
	errConnect  = errors.New("remote connection failure")
	errTimeout  = errors.New("connection timeout")
	errReset    = errors.New("connection termination")
	errRefused  = errors.New("remote refused stream reset")
	errProtocol = errors.New("protocol error")
	errTry      = errors.New("per try timeout")
	errClient   = errors.New("the client is gone")
	errOverall  = errors.New("request timeout")
	errIdle     = errors.New("stream timeout")
	errBody     = errors.New("the request's body is malformed")
)

// outcome is the result of one try.
type outcome struct {
	host    *host
	resp    *http.Response
	failure error // one of the above
	sent    bool  // something of the request was sent
	cancel  context.CancelFunc
}

// forward sends the request to the route's cluster and the answer back.
func (x *exchange) forward() {
	if x.cluster.cluster == nil {
		x.answer(&reply{status: http.StatusServiceUnavailable})
		return
	}
	if limit := x.cluster.cfg.maxRequests; limit > 0 && x.cluster.inFlight.Add(1) > limit {
		x.cluster.inFlight.Add(-1)
		x.answer(&reply{status: http.StatusServiceUnavailable, body: resetText("overflow", 0)})
		return
	} else if limit > 0 {
		defer x.cluster.inFlight.Add(-1)
	}
	ctx, cancel := context.WithCancelCause(x.in.Context())
	defer cancel(nil)
	x.ctx = ctx
	x.startTimers(cancel)
	defer x.stopTimers()

	x.finalizeRequest()
	defer x.prepareBody()()
	o, attempts := x.tryUntilDone()
	if o == nil {
		x.answer(&reply{status: http.StatusServiceUnavailable, body: "no healthy upstream"})
		return
	}
	defer o.host.requests.Add(-1)
	defer o.cancel()
	if o.failure != nil {
		x.answerFailure(o.failure, attempts)
		return
	}
	defer o.resp.Body.Close()
	if o.resp.StatusCode == http.StatusSwitchingProtocols {
		x.switchProtocols(o.resp)
		return
	}
	x.relay(o.resp)
}

// startTimers arms the route's timeouts.
func (x *exchange) startTimers(cancel context.CancelCauseFunc) {
	f := x.route.forward
	idle := x.chain.streamIdle
	if f.hasIdle {
		idle = f.idleTimeout
	}
	if idle > 0 {
		x.idle = idle
		x.idleTimer = time.AfterFunc(idle, func() { cancel(errIdle) })
	}
	if f.timeout > 0 && x.upgrade == "" {
		x.overall = time.AfterFunc(f.timeout, func() { cancel(errOverall) })
	}
}

func (x *exchange) stopTimers() {
	if x.idleTimer != nil {
		x.idleTimer.Stop()
	}
	if x.overall != nil {
		x.overall.Stop()
	}
}

// progress puts the idle timeout off.
func (x *exchange) progress() {
	if x.idleTimer != nil && x.ctx.Err() == nil {
		x.idleTimer.Reset(x.idle)
	}
}

// finalizeRequest applies the route's changes to the request.
func (x *exchange) finalizeRequest() {
	h := x.in.Header
	if w := x.cluster.weighted; w != nil {
		w.onRequest.apply(x, h, nil)
	}
	x.route.onRequest.apply(x, h, nil)
	x.vhost.onRequest.apply(x, h, nil)
	x.routeConfig.onRequest.apply(x, h, nil)
	f := x.route.forward
	host := x.host
	if f.hostLiteral != "" {
		x.host = f.hostLiteral
	}
	path := x.fullPath()
	x.route.rewritePath(x)
	if x.upgrade != "" {
		h["Connection"], h["Upgrade"] = []string{"Upgrade"}, []string{x.upgrade}
	}
	if x.chain.router.suppressEnvoyHeaders {
		return
	}
	if x.fullPath() != path {
		h["X-Envoy-Original-Path"] = []string{path}
	}
	if x.host != host || f.autoHost {
		h["X-Envoy-Original-Host"] = []string{host}
	}
	if f.timeout > 0 {
		h["X-Envoy-Expected-Rq-Timeout-Ms"] = []string{strconv.FormatInt(f.timeout.Milliseconds(), 10)}
	}
}

// prepareBody makes the body one that can be sent again. What it returns is to be
// called when the exchange is over.
func (x *exchange) prepareBody() (done func()) {
	if x.in.Body == nil || x.in.Body == http.NoBody || x.in.ContentLength == 0 {
		return func() {}
	}
	limit := keepForReconnect
	if x.retryPolicy() != nil {
		limit = keepForRetry
	}
	x.body = &replay{src: x.in.Body, limit: limit, progress: x.progress}
	// The transport does not give up while it waits for more of the body.
	stop := context.AfterFunc(x.ctx, func() {
		if !x.body.complete() {
			x.cutBody()
		}
	})
	return func() { stop() }
}

// tryUntilDone sends the request until it has an answer that is not to be retried.
// It returns nil when there is no host for it.
func (x *exchange) tryUntilDone() (*outcome, int) {
	policy := x.retryPolicy()
	hash, hashed := hashOf(x.hashPolicies(), x)
	var last *outcome
	var tried []*host
	for attempt := 0; ; attempt++ {
		h := x.pickHost(policy, hash, hashed, attempt, tried)
		if h == nil {
			if last != nil {
				return last, attempt - 1
			}
			return nil, 0
		}
		if last != nil {
			x.discard(last)
		}
		tried = append(tried, h)
		last = x.try(h, policy)
		x.observe(last)
		if policy == nil || attempt >= policy.retries || !policy.wants(last) || !x.retryAllowed() {
			return last, attempt
		}
		if !sleep(x.ctx, policy.backOff(attempt)) || !x.body.closedNow(x.ctx.Done()) {
			last.failure = x.whyCanceled()
			return last, attempt
		}
	}
}

// retryPolicy is the route's or else the cluster's.
func (x *exchange) retryPolicy() *retryPolicy {
	if p := x.route.forward.retry; p != nil {
		return p
	}
	return x.cluster.cfg.retry
}

// hashPolicies are the route's or else the cluster's.
func (x *exchange) hashPolicies() []hashPolicy {
	if p := x.route.forward.hash; p != nil {
		return p
	}
	return x.cluster.cfg.hash
}

// pickHost picks a host, another than those tried where the policy wants it.
func (x *exchange) pickHost(policy *retryPolicy, hash uint64, hashed bool, attempt int, tried []*host) *host {
	set := x.cluster.set.Load()
	h := set.pick(hash, hashed, 0)
	if policy == nil || !policy.otherHost || attempt == 0 {
		return h
	}
	for again := 1; again < policy.attempts && contains(tried, h); again++ {
		h = set.pick(hash, hashed, again)
	}
	return h
}

func contains(hosts []*host, h *host) bool {
	for _, other := range hosts {
		if other == h {
			return true
		}
	}
	return false
}

// retryAllowed reports whether the request may be sent again.
func (x *exchange) retryAllowed() bool {
	return x.ctx.Err() == nil && x.body.replayable() && x.upgrade == ""
}

// discard ends a try whose answer is not used.
func (x *exchange) discard(o *outcome) {
	if o.resp != nil {
		_, _ = io.CopyN(io.Discard, o.resp.Body, 64<<10) // for the connection's sake
		_ = o.resp.Body.Close()                          // its end is of no interest
	}
	o.cancel()
	o.host.requests.Add(-1)
}

// observe feeds outlier detection.
func (x *exchange) observe(o *outcome) {
	switch {
	case o.failure == nil:
		x.cluster.observe(o.host, o.resp.StatusCode)
	case errors.Is(o.failure, errClient), errors.Is(o.failure, errIdle), errors.Is(o.failure, errBody):
	case errors.Is(o.failure, errOverall), errors.Is(o.failure, errTry):
		x.cluster.observeFailure(o.host, http.StatusGatewayTimeout)
	default:
		x.cluster.observeFailure(o.host, http.StatusServiceUnavailable)
	}
}

// try sends the request to one host.
func (x *exchange) try(h *host, policy *retryPolicy) *outcome {
	ctx, cancel := context.WithCancelCause(x.ctx)
	o := &outcome{host: h, cancel: func() { cancel(nil) }}
	h.requests.Add(1)
	if policy != nil && policy.perTry > 0 {
		t := time.AfterFunc(policy.perTry, func() { cancel(errTry) })
		defer t.Stop()
	}
	req, err := x.outgoing(ctx, h)
	if err != nil {
		o.failure = errReset
		return o
	}
	resp, err := x.cluster.transport.roundTrip(req, cancel)
	x.progress()
	if err != nil {
		o.failure, o.sent = x.classify(ctx, err)
		return o
	}
	o.resp, o.sent = resp, true
	return o
}

// outgoing builds the request for a host.
func (x *exchange) outgoing(ctx context.Context, h *host) (*http.Request, error) {
	cfg := &x.cluster.cfg.transport
	u := &url.URL{Scheme: "http", Host: h.address, Opaque: x.path, RawQuery: x.query, ForceQuery: x.hasQuery && x.query == ""}
	if strings.HasPrefix(x.path, "//") {
		// net/http would take what follows for a host.
		u.Opaque = ""
		u.Path, u.RawPath = x.path, x.path
		if p, err := url.PathUnescape(x.path); err == nil {
			u.Path = p
		}
	}
	host := x.host
	if x.route.forward.autoHost && h.hostname != "" {
		host = h.hostname
	}
	if cfg.tls != nil {
		u.Scheme = "https"
		t := target{address: h.address}
		switch {
		case cfg.tls.autoSNI:
			t.serverName = serverNameOf(host)
		case cfg.tls.autoHost:
			t.serverName = serverNameOf(h.hostname)
		}
		if t.serverName != "" {
			// The pool keeps connections by this name: an address and an SNI.
			u.Host = poolName(h.address, t.serverName)
			ctx = withTarget(ctx, t)
		}
	}
	req := (&http.Request{
		Method: x.method, URL: u, Header: x.in.Header, Host: host, ContentLength: 0,
	}).WithContext(ctx)
	if x.in.ProtoMajor > 1 && cfg.http2 {
		req.Trailer = x.in.Trailer // over HTTP/1.1, like Envoy, none
	}
	if _, ok := req.Header["User-Agent"]; !ok {
		req.Header["User-Agent"] = []string{""} // none, rather than net/http's own
	}
	if x.body != nil {
		body, err := x.body.reader()
		if err != nil {
			return nil, err
		}
		req.Body, req.ContentLength = body, x.in.ContentLength
		req.GetBody = x.bodyAgain(cfg.http2)
	}
	return req, nil
}

// bodyAgain returns what net/http's transport calls before it sends a request again
// that the endpoint has surely not taken. Over HTTP/2 it would try for a minute, always
// the same endpoint: once has to do, for a connection that was going away.
func (x *exchange) bodyAgain(http2 bool) func() (io.ReadCloser, error) {
	again := 0
	return func() (io.ReadCloser, error) {
		if again++; http2 && again > 1 {
			return nil, errRefused
		}
		return x.body.reader()
	}
}

// poolName returns a host:port that stands for an address and a server name.
func poolName(address, serverName string) string {
	colon := strings.LastIndexByte(address, ':')
	ip := strings.NewReplacer(":", "-", "[", "", "]", "", "%", "-").Replace(address[:colon])
	return ip + "." + serverName + address[colon:]
}

// classify finds out why a try got no answer.
func (x *exchange) classify(ctx context.Context, err error) (failure error, sent bool) {
	switch {
	case x.ctx.Err() != nil:
		return x.whyCanceled(), true
	case x.body.fault() != nil:
		return errBody, true
	case ctx.Err() != nil: // errTry, or errReset of the connection
		return context.Cause(ctx), true
	}
	var de *dialError
	if errors.As(err, &de) {
		if de.timeout {
			return errTimeout, false
		}
		return errConnect, false
	}
	text := err.Error()
	switch {
	case errors.Is(err, errRefused), strings.Contains(text, "REFUSED_STREAM"):
		return errRefused, false
	case strings.Contains(text, "malformed"), strings.Contains(text, "PROTOCOL_ERROR"):
		return errProtocol, true
	}
	return errReset, true
}

// whyCanceled returns why the exchange's own context has ended.
func (x *exchange) whyCanceled() error {
	switch cause := context.Cause(x.ctx); {
	case errors.Is(cause, errIdle), errors.Is(cause, errOverall):
		return cause
	}
	return errClient
}

// answerFailure answers in the place of an upstream that did not.
func (x *exchange) answerFailure(failure error, retried int) {
	switch {
	case errors.Is(failure, errClient):
		x.abort() // nobody is there to hear
	case errors.Is(failure, errBody):
		x.answer(badRequest)
	case errors.Is(failure, errOverall), errors.Is(failure, errTry):
		x.answer(&reply{status: http.StatusGatewayTimeout, body: "upstream request timeout"})
	case errors.Is(failure, errIdle):
		status := http.StatusGatewayTimeout
		if !x.body.complete() {
			status = http.StatusRequestTimeout
		}
		x.answer(&reply{status: status, body: "stream timeout"})
	case errors.Is(failure, errProtocol):
		x.answer(&reply{status: http.StatusBadGateway, body: resetText(failure.Error(), retried)})
	default:
		x.answer(&reply{status: http.StatusServiceUnavailable, body: resetText(failure.Error(), retried)})
	}
}

// resetText is Envoy's text for an upstream that gave no answer.
func resetText(reason string, retried int) string {
	const begin = "upstream connect error or disconnect/reset before headers. "
	if retried > 0 {
		return begin + "retried and the latest reset reason: " + reason
	}
	return begin + "reset reason: " + reason
}
