package gateway

import (
	"fmt"
	"strings"

	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
)

// descriptorEntry is a key and value of a rate-limit descriptor.
type descriptorEntry struct {
	key, value string
}

// descriptorKey returns the entries as one string that differs for different ones.
func descriptorKey(entries []descriptorEntry) string {
	var b strings.Builder
	for _, e := range entries {
		fmt.Fprintf(&b, "%d:%s%d:%s", len(e.key), e.key, len(e.value), e.value)
	}
	return b.String()
}

type rateLimitAction = func(x *exchange) (entry descriptorEntry, skip, ok bool)

func newRateLimitAction(a *routev3.RateLimit_Action) (rateLimitAction, error) {
	switch s := a.GetActionSpecifier().(type) {
	case *routev3.RateLimit_Action_GenericKey_:
		e := descriptorEntry{orText(s.GenericKey.GetDescriptorKey(), "generic_key"), s.GenericKey.GetDescriptorValue()}
		return func(*exchange) (descriptorEntry, bool, bool) { return e, false, true }, nil
	case *routev3.RateLimit_Action_RemoteAddress_:
		return func(x *exchange) (descriptorEntry, bool, bool) {
			return descriptorEntry{"remote_address", x.client.String()}, false, true
		}, nil
	case *routev3.RateLimit_Action_RequestHeaders_:
		name, key, skip := headerName(s.RequestHeaders.GetHeaderName()), s.RequestHeaders.GetDescriptorKey(), s.RequestHeaders.GetSkipIfAbsent()
		return func(x *exchange) (descriptorEntry, bool, bool) {
			v, ok := x.headerValue(name)
			return descriptorEntry{key, v}, !ok, ok || skip
		}, nil
	case *routev3.RateLimit_Action_HeaderValueMatch_:
		return headerValueAction(s.HeaderValueMatch)
	}
	return nil, fmt.Errorf("action %T is not supported", a.GetActionSpecifier())
}

func headerValueAction(m *routev3.RateLimit_Action_HeaderValueMatch) (rateLimitAction, error) {
	matches, err := newHeaderMatches(m.GetHeaders())
	if err != nil {
		return nil, err
	}
	e := descriptorEntry{orText(m.GetDescriptorKey(), "header_match"), m.GetDescriptorValue()}
	expect := m.GetExpectMatch() == nil || m.GetExpectMatch().GetValue()
	return func(x *exchange) (descriptorEntry, bool, bool) {
		return e, false, allHeaders(matches, x) == expect
	}, nil
}

func allHeaders(matches []headerMatch, x *exchange) bool {
	for i := range matches {
		if !matches[i].matches(x) {
			return false
		}
	}
	return true
}

func orText(s, def string) string {
	if s == "" {
		return def
	}
	return s
}
