package gateway

import (
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"time"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	ratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/common/ratelimit/v3"
	localratelimitv3 "github.com/envoyproxy/go-control-plane/envoy/extensions/filters/http/local_ratelimit/v3"
	typev3 "github.com/envoyproxy/go-control-plane/envoy/type/v3"
)

// rateLimitFilter counts requests in token buckets, by the descriptors that the
// route's rate_limits (or the filter's own) make of a request.
type rateLimitFilter struct {
	status   int
	headers  bool // tell the client
	defaults *bucket
	always   bool // the default bucket counts also what a descriptor matched
	limits   []rateLimit
	fixed    map[string]*bucket // by descriptor key
	// Descriptors with entries that match any value, by the descriptor key with
	// those values empty; shapes are the sets of such entries, as bits.
	wildcard map[string]*wildcardDescriptors
	shapes   []uint64
}

// The default of max_dynamic_descriptors.
const defaultDynamicDescriptors = 20

func newRateLimitFilter(m *localratelimitv3.LocalRateLimit, old *rateLimitFilter, now func() time.Time) (*rateLimitFilter, error) {
	if err := enforcedAlways(m); err != nil {
		return nil, err
	}
	f := &rateLimitFilter{
		status:  int(m.GetStatus().GetCode()),
		headers: m.GetEnableXRatelimitHeaders() != 0,
		always:  m.GetAlwaysConsumeDefaultTokenBucket() == nil || m.GetAlwaysConsumeDefaultTokenBucket().GetValue(),
		fixed:   map[string]*bucket{}, wildcard: map[string]*wildcardDescriptors{},
	}
	if f.status < 400 {
		f.status = http.StatusTooManyRequests
	}
	if old == nil {
		old = &rateLimitFilter{}
	}
	var err error
	if f.limits, err = newRateLimits(m.GetRateLimits()); err != nil {
		return nil, err
	}
	if m.GetTokenBucket() != nil {
		if f.defaults, err = carryOver(old.defaults, m.GetTokenBucket(), now); err != nil {
			return nil, fmt.Errorf("token_bucket: %w", err)
		}
	}
	capacity := defaultDynamicDescriptors
	if m.GetMaxDynamicDescriptors() != nil {
		capacity = int(m.GetMaxDynamicDescriptors().GetValue())
	}
	for i, d := range m.GetDescriptors() {
		if err := f.addDescriptor(d, old, capacity, now); err != nil {
			return nil, fmt.Errorf("descriptors[%d]: %w", i, err)
		}
	}
	return f, nil
}

// enforcedAlways refuses limits that would act on a part of the requests only.
func enforcedAlways(m *localratelimitv3.LocalRateLimit) error {
	for name, f := range map[string]interface {
		GetDefaultValue() *typev3.FractionalPercent
	}{"filter_enabled": m.GetFilterEnabled(), "filter_enforced": m.GetFilterEnforced()} {
		v := f.GetDefaultValue()
		if v == nil || float64(v.GetNumerator()) < denominator(v) {
			return fmt.Errorf("%s: only 100%% is supported", name)
		}
	}
	return nil
}

func denominator(p *typev3.FractionalPercent) float64 {
	switch p.GetDenominator() {
	case typev3.FractionalPercent_TEN_THOUSAND:
		return 10_000
	case typev3.FractionalPercent_MILLION:
		return 1_000_000
	}
	return 100
}

func (f *rateLimitFilter) addDescriptor(d *ratelimitv3.LocalRateLimitDescriptor, old *rateLimitFilter, capacity int, now func() time.Time) error {
	if n := len(d.GetEntries()); n == 0 || n > maxEntries {
		return fmt.Errorf("it has %d entries, 1 to %d are supported", n, maxEntries)
	}
	var entries []descriptorEntry
	var shape uint64
	for i, e := range d.GetEntries() {
		entries = append(entries, descriptorEntry{key: e.GetKey(), value: e.GetValue()})
		if e.GetValue() == "" {
			shape |= 1 << i
		}
	}
	key := descriptorKey(entries)
	if _, ok := f.fixed[key]; ok || f.wildcard[key] != nil {
		return errors.New("it stands twice")
	}
	if shape == 0 {
		b, err := carryOver(old.fixed[key], d.GetTokenBucket(), now)
		f.fixed[key] = b
		return err
	}
	model, err := newBucket(d.GetTokenBucket(), now)
	if err != nil {
		return err
	}
	if !slices.Contains(f.shapes, shape) {
		f.shapes = append(f.shapes, shape)
	}
	if o := old.wildcard[key]; o != nil && o.model.same(model) {
		f.wildcard[key] = o.withCapacity(capacity)
		return nil
	}
	f.wildcard[key] = newWildcardDescriptors(model, capacity)
	return nil
}

// maxEntries bounds the entries of a descriptor.
const maxEntries = 16

// carryOver returns the old bucket when the new one has the same size and rate, so
// that a change of something else does not fill it.
func carryOver(old *bucket, tb *typev3.TokenBucket, now func() time.Time) (*bucket, error) {
	b, err := newBucket(tb, now)
	if err == nil && old != nil && old.same(b) {
		return old, nil
	}
	return b, err
}

func (f *rateLimitFilter) begin(any) activeFilter { return &rateLimitRequest{filter: f} }

type rateLimitRequest struct {
	filter *rateLimitFilter
	bucket *bucket // the one to tell the client about
}

func (r *rateLimitRequest) request(x *exchange) *reply {
	limits := r.filter.limits
	if limits == nil {
		limits = x.route.rateLimits
	}
	allowed := r.filter.take(x, limits, r)
	if allowed {
		return nil
	}
	return &reply{status: r.filter.status, body: "local_rate_limited"}
}

// take takes a token of each bucket that applies, the most restrictive first.
func (f *rateLimitFilter) take(x *exchange, limits []rateLimit, r *rateLimitRequest) bool {
	var matched []*bucket
	for i := range limits {
		entries, ok := limits[i].descriptor(x)
		if !ok {
			continue
		}
		if b := f.find(entries); b != nil {
			matched = append(matched, b)
		}
	}
	slices.SortStableFunc(matched, func(a, b *bucket) int {
		switch {
		case a.rate < b.rate:
			return -1
		case a.rate > b.rate:
			return 1
		}
		return 0
	})
	for _, b := range matched {
		if !b.take() {
			r.bucket = b
			return false
		}
	}
	if len(matched) > 0 {
		r.bucket = matched[0]
	}
	if f.defaults == nil || len(matched) > 0 && !f.always {
		return true
	}
	allowed := f.defaults.take()
	if !allowed || r.bucket == nil {
		r.bucket = f.defaults
	}
	return allowed
}

// find returns the bucket of a descriptor, nil when none is configured for it.
func (f *rateLimitFilter) find(entries []descriptorEntry) *bucket {
	if b, ok := f.fixed[descriptorKey(entries)]; ok {
		return b
	}
	for _, shape := range f.shapes {
		if shape>>len(entries) != 0 {
			continue
		}
		pattern := slices.Clone(entries)
		for i := range pattern {
			if shape>>i&1 == 1 {
				pattern[i].value = ""
			}
		}
		if w, ok := f.wildcard[descriptorKey(pattern)]; ok {
			return w.bucket(descriptorKey(entries))
		}
	}
	return nil
}

func (r *rateLimitRequest) response(_ *exchange, h http.Header) {
	if r.bucket == nil || !r.filter.headers {
		return
	}
	remaining, reset := r.bucket.remaining()
	h.Set("X-Ratelimit-Limit", strconv.Itoa(int(r.bucket.max)))
	h.Set("X-Ratelimit-Remaining", strconv.Itoa(remaining))
	h.Set("X-Ratelimit-Reset", strconv.Itoa(reset))
}

// rateLimit is a compiled RateLimit: actions that make one descriptor.
type rateLimit struct {
	actions []func(x *exchange) (entry descriptorEntry, skip, ok bool)
}

// descriptor returns the descriptor of a request, false when an action has no value.
func (l *rateLimit) descriptor(x *exchange) ([]descriptorEntry, bool) {
	out := make([]descriptorEntry, 0, len(l.actions))
	for _, action := range l.actions {
		e, skip, ok := action(x)
		if !ok {
			return nil, false
		}
		if !skip {
			out = append(out, e)
		}
	}
	return out, len(out) > 0
}

func newRateLimits(list []*routev3.RateLimit) ([]rateLimit, error) {
	var out []rateLimit
	for i, m := range list {
		var l rateLimit
		for j, a := range m.GetActions() {
			action, err := newRateLimitAction(a)
			if err != nil {
				return nil, fmt.Errorf("rate_limits[%d].actions[%d]: %w", i, j, err)
			}
			l.actions = append(l.actions, action)
		}
		out = append(out, l)
	}
	return out, nil
}
