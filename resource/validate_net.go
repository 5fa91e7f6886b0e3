package resource

import (
	"fmt"
	"net/netip"
	"regexp/syntax"
	"strings"
	"unicode"
)

// hosts checks a list of exact and wildcard hosts.
func (c *checker) hosts(path string, hosts []string) {
	for i, host := range hosts {
		c.host(joinPath(path, indexSegment(i)), host, true)
	}
	folded := make([]string, len(hosts))
	for i, host := range hosts {
		folded[i] = foldHost(host)
	}
	c.duplicates(path, folded)
}

// host checks a DNS name or IP address; with wildcard it may begin with `*.`.
func (c *checker) host(path, host string, wildcard bool) {
	reason, hint := hostFault(host, wildcard)
	if reason != "" {
		c.add(path, CodeInvalid, fmt.Sprintf("%s %s", quote(host), reason), hint)
	}
}

func hostFault(host string, wildcard bool) (reason, hint string) {
	name := host
	if literal, ok := strings.CutPrefix(host, "["); ok {
		literal, closed := strings.CutSuffix(literal, "]")
		if addr, err := netip.ParseAddr(literal); closed && err == nil && addr.Is6() {
			return "", ""
		}
		return "is not a host", "an IPv6 address stands in brackets, without a port"
	}
	switch {
	case host == "":
		return "is not a host", "remove the empty entry"
	case host == "*" && wildcard:
		return "is not a host", "leave hosts out to match every host"
	case strings.HasPrefix(host, "*.") && wildcard:
		name = host[2:]
	case strings.Contains(host, "*"):
		if !wildcard {
			return "is not a host", "a wildcard cannot stand here"
		}
		return "is not a host", "a wildcard is `*.` at the beginning, for one whole label or more"
	case strings.Contains(host, "://"):
		return "is not a host", "write the name only, without scheme and path"
	case strings.Contains(host, "/"):
		return "is not a host", "write the name only, without a path"
	case strings.Contains(host, ":"):
		return "is not a host", "write it without a port"
	}
	if len(name) > 253 {
		return "is not a host", "a host has at most 253 characters"
	}
	for _, label := range strings.Split(strings.TrimSuffix(name, "."), ".") {
		if len(label) == 0 || len(label) > 63 {
			return "is not a host", "between dots stand 1 to 63 characters"
		}
		for _, r := range label {
			if !(r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z') {
				return "is not a host", "a host has letters, digits, `-` and `_` between dots; write others in their xn-- form"
			}
		}
	}
	return "", ""
}

// uri checks the exact path or path prefix of a route.
func (c *checker) uri(path, uri string) {
	switch star := strings.IndexByte(uri, '*'); {
	case !strings.HasPrefix(uri, "/"):
		c.add(path, CodeInvalid, fmt.Sprintf("%s does not begin with /", quote(uri)), "")
	case star >= 0 && star != len(uri)-1:
		c.add(path, CodeInvalid, fmt.Sprintf("%s has a * that is not at its end", quote(uri)), "a prefix ends with `/*`; for patterns use vars: [[\"uri\", \"~~\", \"...\"]]")
	default:
		c.pathText(path, uri)
	}
}

func (c *checker) pathPrefix(path, prefix string) {
	switch {
	case prefix == "":
	case !strings.HasPrefix(prefix, "/"):
		c.add(path, CodeInvalid, fmt.Sprintf("%s does not begin with /", quote(prefix)), "")
	case strings.Contains(prefix, "*"):
		c.add(path, CodeInvalid, fmt.Sprintf("%s holds a *", quote(prefix)), "write the prefix alone; what follows it is up to the routes")
	default:
		c.pathText(path, prefix)
	}
}

// pathText checks the characters of a path.
func (c *checker) pathText(path, text string) {
	switch {
	case len(text) > maxPath:
		c.add(path, CodeTooLarge, fmt.Sprintf("the path has %d bytes; at most %d are allowed", len(text), maxPath), "")
	case strings.ContainsAny(text, "?#"):
		c.add(path, CodeInvalid, fmt.Sprintf("%s holds a ? or #", quote(text)), "match the query with vars: [[\"arg_name\", \"==\", \"...\"]]")
	case strings.ContainsFunc(text, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }):
		c.add(path, CodeInvalid, fmt.Sprintf("%s holds a blank or control character", quote(text)), "")
	}
}

// address checks an IP address.
func (c *checker) address(path, addr string) {
	if _, err := netip.ParseAddr(addr); err != nil {
		c.add(path, CodeInvalid, fmt.Sprintf("%s is not an IP address", quote(addr)), "")
	}
}

// addresses checks an IP address or a CIDR range.
func (c *checker) addresses(path, addr string) {
	if !isAddressRange(addr) {
		c.add(path, CodeInvalid, fmt.Sprintf("%s is neither an IP address nor a CIDR range", quote(addr)), "for example 10.0.0.0/8")
	}
}

func isAddressRange(addr string) bool {
	if _, err := netip.ParseAddr(addr); err == nil && !strings.Contains(addr, "%") {
		return true
	}
	_, err := netip.ParsePrefix(addr)
	return err == nil
}

// duplicates reports values that stand in a list more than once.
func (c *checker) duplicates(path string, values []string) {
	if len(values) < 2 {
		return
	}
	seen := make(map[string]int, len(values))
	for i, value := range values {
		if first, taken := seen[value]; taken {
			c.add(joinPath(path, indexSegment(i)), CodeDuplicate, fmt.Sprintf("%s is in the list already, at %s", quote(value), indexSegment(first)), "remove one")
			continue
		}
		seen[value] = i
	}
}

// regexFault says what is wrong with a regular expression of RE2's syntax.
func regexFault(expression string) string {
	if _, err := syntax.Parse(expression, syntax.Perl); err != nil {
		fault, _ := err.(*syntax.Error)
		if fault == nil {
			return "is not a regular expression"
		}
		return "is not a regular expression: " + string(fault.Code)
	}
	return ""
}

// foldHost is the form in which hosts are compared.
func foldHost(host string) string { return strings.TrimSuffix(strings.ToLower(host), ".") }
