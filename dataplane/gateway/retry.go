package gateway

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	previoushostsv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/retry/host/previous_hosts/v3"
)

// retryPolicy is a compiled RetryPolicy.
type retryPolicy struct {
	on            map[string]bool
	statuses      []uint32
	retries       int
	perTry        time.Duration
	base, longest time.Duration // of the back-off
	otherHost     bool          // a host that was tried is avoided
	attempts      int           // how often a host is picked again for that
}

// retryConditions are the conditions that the gateway knows.
var retryConditions = []string{
	"5xx", "gateway-error", "reset", "reset-before-request", "connect-failure", "refused-stream", "retriable-4xx",
	"retriable-status-codes", "envoy-ratelimited",
	"cancelled", "deadline-exceeded", "internal", "resource-exhausted", "unavailable", // of gRPC
}

func newRetryPolicy(m *routev3.RetryPolicy) (*retryPolicy, error) {
	if m == nil {
		return nil, nil
	}
	p := &retryPolicy{
		on: map[string]bool{}, statuses: m.GetRetriableStatusCodes(), retries: 1,
		perTry: m.GetPerTryTimeout().AsDuration(), base: 25 * time.Millisecond, longest: 250 * time.Millisecond, attempts: 1,
	}
	for c := range strings.SplitSeq(m.GetRetryOn(), ",") {
		if c = strings.TrimSpace(c); c == "" {
			continue
		}
		if !slices.Contains(retryConditions, c) {
			return nil, fmt.Errorf("retry_on: %q is not supported", c)
		}
		p.on[c] = true
	}
	if m.GetNumRetries() != nil {
		p.retries = int(m.GetNumRetries().GetValue())
	}
	if b := m.GetRetryBackOff(); b != nil {
		p.base = b.GetBaseInterval().AsDuration()
		p.longest = 10 * p.base
		if b.GetMaxInterval() != nil {
			p.longest = b.GetMaxInterval().AsDuration()
		}
		if p.base <= 0 || p.longest < p.base {
			return nil, errors.New("retry_back_off: the intervals are out of order")
		}
	}
	for _, predicate := range m.GetRetryHostPredicate() {
		if !predicate.GetTypedConfig().MessageIs((*previoushostsv3.PreviousHostsPredicate)(nil)) {
			return nil, fmt.Errorf("retry_host_predicate %q is not supported", predicate.GetName())
		}
		p.otherHost = true
	}
	if n := m.GetHostSelectionRetryMaxAttempts(); n > 0 {
		p.attempts = int(n)
	}
	return p, nil
}

// backOff is the wait before a retry: random, up to an exponentially growing bound.
func (p *retryPolicy) backOff(attempt int) time.Duration {
	bound := min(p.base<<min(attempt, 16), p.longest)
	return time.Duration(rand.Int64N(int64(bound)))
}

// wants reports whether the outcome of a try is to be retried.
func (p *retryPolicy) wants(o *outcome) bool {
	switch {
	case p == nil:
		return false
	case o.failure == errConnect:
		return p.on["connect-failure"] || p.on["5xx"] || p.on["gateway-error"] || p.on["reset"] || p.on["reset-before-request"]
	case o.failure == errRefused:
		return p.on["refused-stream"] || p.on["5xx"] || p.on["reset"] || p.on["reset-before-request"]
	case o.failure == errReset:
		return p.on["reset"] || p.on["5xx"] || p.on["gateway-error"] || p.on["reset-before-request"] && !o.sent
	case o.failure == errTry:
		return p.on["5xx"] || p.on["gateway-error"] || p.on["reset"]
	case o.failure != nil:
		return false
	}
	status := o.resp.StatusCode
	switch {
	case p.on["5xx"] && status >= 500:
		return true
	case p.on["gateway-error"] && (status == 502 || status == 503 || status == 504):
		return true
	case p.on["retriable-4xx"] && status == http.StatusConflict:
		return true
	case p.on["retriable-status-codes"] && slices.Contains(p.statuses, uint32(status)):
		return true
	case p.on["envoy-ratelimited"] && o.resp.Header.Get("X-Envoy-Ratelimited") != "":
		return true
	}
	return p.wantsGRPC(o.resp.Header.Get("Grpc-Status"))
}

// wantsGRPC looks at the status of an answer that is trailers only.
func (p *retryPolicy) wantsGRPC(status string) bool {
	condition := map[string]string{
		"1": "cancelled", "4": "deadline-exceeded", "13": "internal", "8": "resource-exhausted", "14": "unavailable",
	}[status]
	return condition != "" && p.on[condition]
}
