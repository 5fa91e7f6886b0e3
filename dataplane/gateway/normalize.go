package gateway

import (
	"net"
	"strings"
)

// cutQuery separates a path from its query.
func cutQuery(target string) (path, query string, hasQuery bool) {
	return strings.Cut(target, "?")
}

// stripPort removes the port of a Host, if it has a numeric one.
func stripPort(host string) string {
	colon := strings.LastIndexByte(host, ':')
	if colon < 0 || strings.LastIndexByte(host, ']') > colon {
		return host
	}
	if strings.IndexByte(host, ':') != colon && !strings.HasPrefix(host, "[") {
		return host // a bare IPv6 address
	}
	if colon == len(host)-1 {
		return host
	}
	for _, c := range host[colon+1:] {
		if c < '0' || c > '9' {
			return host
		}
	}
	return host[:colon]
}

// canonicalPath normalises a path as Envoy's normalize_path does: dot segments go,
// backslashes become slashes, encoded unreserved characters are decoded, and
// characters that may not stand in a path are encoded. It returns false for a path
// that cannot be normalised.
func canonicalPath(path string) (string, bool) {
	if isCanonical(path) {
		return path, true
	}
	path = dotSegmentsWithoutParameters(path)
	out := make([]byte, 0, len(path)+8)
	for i := 0; i < len(path); {
		c := path[i]
		switch {
		case c == '/' || c == '\\':
			out = append(out, '/')
			for i++; ; i++ { // over the slash behind a dot segment
				n, dots := dotSegment(path[i:])
				if dots == 2 {
					out = parent(out)
				}
				if i += n; dots == 0 || i == len(path) {
					break
				}
			}
		case c == '%':
			if i+2 >= len(path) || !isHex(path[i+1]) || !isHex(path[i+2]) {
				return "", false
			}
			d := unhex(path[i+1])<<4 | unhex(path[i+2])
			if d == 0 {
				return "", false
			}
			if isUnreserved(d) {
				out = append(out, d)
			} else {
				out = append(out, path[i:i+3]...)
			}
			i += 3
		case pathByte(c):
			out = append(out, c)
			i++
		default:
			const hexDigits = "0123456789ABCDEF"
			out = append(out, '%', hexDigits[c>>4], hexDigits[c&15])
			i++
		}
	}
	return string(out), true
}

// dotSegmentsWithoutParameters turns the segments `.;x` and `..;x` into `.` and `..`,
// so that nobody walks around a route by them.
func dotSegmentsWithoutParameters(path string) string {
	if !strings.Contains(path, ".;") {
		return path
	}
	segments := strings.Split(path, "/")
	for i, s := range segments {
		if name, _, ok := strings.Cut(s, ";"); ok && (name == "." || name == "..") {
			segments[i] = name
		}
	}
	return strings.Join(segments, "/")
}

// isCanonical is the common case: nothing to do.
func isCanonical(path string) bool {
	for i := range len(path) {
		c := path[i]
		if c == '%' || c == '\\' || c == '.' && i > 0 && path[i-1] == '/' || c != '/' && !pathByte(c) {
			return false
		}
	}
	return true
}

// dotSegment returns the length of a segment of one or two dots, encoded or not,
// that ends at a slash or the end, and the number of dots.
func dotSegment(s string) (length, dots int) {
	for dots < 3 {
		switch {
		case strings.HasPrefix(s[length:], "."):
			length++
		case len(s) >= length+3 && strings.EqualFold(s[length:length+3], "%2e"):
			length += 3
		default:
			if length == len(s) || s[length] == '/' || s[length] == '\\' {
				return length, dots
			}
			return 0, 0
		}
		dots++
	}
	return 0, 0
}

// parent removes the last segment: `/a/b/` becomes `/a/`.
func parent(out []byte) []byte {
	end := len(out) - 1 // the slash behind the segment
	for end > 0 && out[end-1] != '/' {
		end--
	}
	if end == 0 {
		return out[:1]
	}
	return out[:end]
}

// mergeSlashes turns runs of slashes into one, as Envoy does it.
func mergeSlashes(path string) string {
	if !strings.Contains(path, "//") {
		return path
	}
	var b strings.Builder
	if strings.HasPrefix(path, "/") {
		b.WriteByte('/')
	}
	first := true
	for part := range strings.SplitSeq(path, "/") {
		if part == "" {
			continue
		}
		if !first {
			b.WriteByte('/')
		}
		first = false
		b.WriteString(part)
	}
	if strings.HasSuffix(path, "/") {
		b.WriteByte('/')
	}
	return b.String()
}

// pathByte reports whether a byte may stand in a path as it is.
func pathByte(c byte) bool {
	if isUnreserved(c) {
		return true
	}
	return strings.IndexByte("!$&'()*+,:;=@[]", c) >= 0
}

func isUnreserved(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

func isHex(c byte) bool {
	return c >= '0' && c <= '9' || c >= 'a' && c <= 'f' || c >= 'A' && c <= 'F'
}

func unhex(c byte) byte {
	switch {
	case c <= '9':
		return c - '0'
	case c <= 'F':
		return c - 'A' + 10
	}
	return c - 'a' + 10
}

// localAddress returns an address of this machine that is no loopback one, as
// Envoy puts it into x-forwarded-for for requests from loopback.
func localAddress() string {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "127.0.0.1"
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && !n.IP.IsLoopback() {
			return n.IP.String()
		}
	}
	return "127.0.0.1"
}
