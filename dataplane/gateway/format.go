package gateway

import (
	"fmt"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
)

// format is a compiled substitution format, such as `id-%REQ(x-id)%`.
type format struct {
	literal string // when there are no operators
	parts   []func(x *exchange, resp http.Header) string
}

// newFormat compiles a format with the operators that the gateway knows.
func newFormat(text string) (format, error) {
	var f format
	var literal strings.Builder
	flush := func() {
		if s := literal.String(); s != "" {
			f.parts = append(f.parts, func(*exchange, http.Header) string { return s })
			literal.Reset()
		}
	}
	operators := 0
	for rest := text; rest != ""; {
		before, after, found := strings.Cut(rest, "%")
		literal.WriteString(before)
		if !found {
			break
		}
		if strings.HasPrefix(after, "%") {
			literal.WriteByte('%')
			rest = after[1:]
			continue
		}
		operator, tail, ok := strings.Cut(after, "%")
		if !ok {
			return f, fmt.Errorf("format %q: an operator is not closed", text)
		}
		part, err := newOperator(operator)
		if err != nil {
			return f, fmt.Errorf("format %q: %w", text, err)
		}
		flush()
		f.parts = append(f.parts, part)
		operators++
		rest = tail
	}
	if operators == 0 {
		f.literal, f.parts = literal.String(), nil
		return f, nil
	}
	flush()
	return f, nil
}

// eval returns the text for a request, and its answer when there is one.
func (f *format) eval(x *exchange, resp http.Header) string {
	switch len(f.parts) {
	case 0:
		return f.literal
	case 1:
		return f.parts[0](x, resp)
	}
	var b strings.Builder
	for _, p := range f.parts {
		b.WriteString(p(x, resp))
	}
	return b.String()
}

func newOperator(text string) (func(*exchange, http.Header) string, error) {
	name, rest, _ := strings.Cut(text, "(")
	arg, suffix := "", ""
	if rest != "" {
		end := strings.LastIndexByte(rest, ')')
		if end < 0 {
			return nil, fmt.Errorf("operator %%%s%%: a bracket is not closed", text)
		}
		arg, suffix = rest[:end], rest[end+1:]
	}
	limit := -1
	if suffix != "" {
		n, err := strconv.Atoi(strings.TrimPrefix(suffix, ":"))
		if err != nil || n < 0 {
			return nil, fmt.Errorf("operator %%%s%%: the length is no number", text)
		}
		limit = n
	}
	plain := func(get func(x *exchange) string) (func(*exchange, http.Header) string, error) {
		if arg != "" || suffix != "" {
			return nil, fmt.Errorf("operator %%%s%% takes no argument", text)
		}
		return func(x *exchange, _ http.Header) string { return get(x) }, nil
	}
	switch name {
	case "REQ":
		return headerOperator(arg, limit, func(x *exchange, _ http.Header, name string) (string, bool) {
			return x.headerValue(name)
		})
	case "QUERY_PARAM":
		return func(x *exchange, _ http.Header) string { return truncate(decodedQueryValue(x.query, arg), limit) }, nil
	case "RESP":
		return headerOperator(arg, limit, func(_ *exchange, resp http.Header, name string) (string, bool) {
			values := resp[name]
			return strings.Join(values, ","), len(values) > 0
		})
	case "PATH":
		return pathOperator(text, arg, limit)
	case "PROTOCOL":
		return plain(func(x *exchange) string { return protocolName(x.in) })
	case "RESPONSE_CODE":
		return plain(func(x *exchange) string { return strconv.Itoa(x.status) })
	case "DOWNSTREAM_REMOTE_ADDRESS":
		return plain(func(x *exchange) string { return netip.AddrPortFrom(x.client, x.clientPort()).String() })
	case "DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT":
		return plain(func(x *exchange) string { return x.client.String() })
	case "DOWNSTREAM_DIRECT_REMOTE_ADDRESS":
		return plain(func(x *exchange) string { return x.peer.String() })
	case "DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT":
		return plain(func(x *exchange) string { return x.peer.Addr().String() })
	case "DOWNSTREAM_LOCAL_ADDRESS":
		return plain(func(x *exchange) string { return x.local.String() })
	case "DOWNSTREAM_LOCAL_ADDRESS_WITHOUT_PORT":
		return plain(func(x *exchange) string { return x.local.Addr().String() })
	case "DOWNSTREAM_LOCAL_PORT":
		return plain(func(x *exchange) string { return strconv.Itoa(int(x.local.Port())) })
	}
	return nil, fmt.Errorf("operator %%%s%% is not supported", text)
}

// headerOperator is REQ and RESP: `X?Y` takes Y where X is missing.
func headerOperator(arg string, limit int, get func(*exchange, http.Header, string) (string, bool)) (func(*exchange, http.Header) string, error) {
	first, second, hasSecond := strings.Cut(arg, "?")
	if first == "" {
		return nil, fmt.Errorf("a header operator names no header")
	}
	first, second = headerName(first), headerName(second)
	return func(x *exchange, resp http.Header) string {
		v, ok := get(x, resp, first)
		if !ok && hasSecond {
			v, _ = get(x, resp, second)
		}
		return truncate(v, limit)
	}, nil
}

// pathOperator is PATH(X:Y): X is WQ or NQ, with or without the query; Y is PATH, or
// empty for the path before any rewriting.
func pathOperator(text, arg string, limit int) (func(*exchange, http.Header) string, error) {
	queryMode, source, _ := strings.Cut(arg, ":")
	if queryMode != "" && queryMode != "WQ" && queryMode != "NQ" || source != "" && source != "PATH" {
		return nil, fmt.Errorf("operator %%%s%% is not supported", text)
	}
	return func(x *exchange, _ http.Header) string {
		p := x.fullPath()
		if source != "PATH" && x.originalPath != "" {
			p = x.originalPath
		}
		if queryMode == "NQ" {
			p, _, _ = strings.Cut(p, "?")
		}
		return truncate(p, limit)
	}, nil
}

func truncate(s string, limit int) string {
	if limit >= 0 && len(s) > limit {
		return s[:limit]
	}
	return s
}

func protocolName(r *http.Request) string {
	if r.ProtoMajor == 2 {
		return "HTTP/2"
	}
	return "HTTP/1.1"
}

func (x *exchange) clientPort() uint16 {
	if x.client == x.peer.Addr() {
		return x.peer.Port()
	}
	return 0
}
