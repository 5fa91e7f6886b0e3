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
	case *routev3.RateLimit_Action_MaskedRemoteAddress_:
		return maskedAddressAction(s.MaskedRemoteAddress)
	case *routev3.RateLimit_Action_RequestHeaders_:
		name, key, skip := headerName(s.RequestHeaders.GetHeaderName()), s.RequestHeaders.GetDescriptorKey(), s.RequestHeaders.GetSkipIfAbsent()
		return func(x *exchange) (descriptorEntry, bool, bool) {
			v, ok := x.headerValue(name)
			return descriptorEntry{key, v}, !ok, ok || skip
		}, nil
	case *routev3.RateLimit_Action_QueryParameters_:
		name, key, skip := s.QueryParameters.GetQueryParameterName(), s.QueryParameters.GetDescriptorKey(), s.QueryParameters.GetSkipIfAbsent()
		return func(x *exchange) (descriptorEntry, bool, bool) {
			v := decodedQueryValue(x.query, name)
			return descriptorEntry{key, v}, v == "", v != "" || skip
		}, nil
	case *routev3.RateLimit_Action_HeaderValueMatch_:
		return headerValueAction(s.HeaderValueMatch)
	case *routev3.RateLimit_Action_QueryParameterValueMatch_:
		return queryValueAction(s.QueryParameterValueMatch)
	}
	return nil, fmt.Errorf("action %T is not supported", a.GetActionSpecifier())
}

func maskedAddressAction(m *routev3.RateLimit_Action_MaskedRemoteAddress) (rateLimitAction, error) {
	v4, v6 := 32, 128
	if m.GetV4PrefixMaskLen() != nil {
		v4 = int(m.GetV4PrefixMaskLen().GetValue())
	}
	if m.GetV6PrefixMaskLen() != nil {
		v6 = int(m.GetV6PrefixMaskLen().GetValue())
	}
	if v4 > 32 || v6 > 128 {
		return nil, fmt.Errorf("masked_remote_address: the mask is too long")
	}
	return func(x *exchange) (descriptorEntry, bool, bool) {
		bits := v6
		if x.client.Is4() {
			bits = v4
		}
		p, err := x.client.Prefix(bits)
		return descriptorEntry{"masked_remote_address", p.String()}, false, err == nil
	}, nil
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

func queryValueAction(m *routev3.RateLimit_Action_QueryParameterValueMatch) (rateLimitAction, error) {
	matches, err := newQueryMatches(m.GetQueryParameters())
	if err != nil {
		return nil, err
	}
	e := descriptorEntry{orText(m.GetDescriptorKey(), "query_match"), m.GetDescriptorValue()}
	expect := m.GetExpectMatch() == nil || m.GetExpectMatch().GetValue()
	return func(x *exchange) (descriptorEntry, bool, bool) {
		all := true
		for i := range matches {
			all = all && matches[i].matches(x.query)
		}
		return e, false, all == expect
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
