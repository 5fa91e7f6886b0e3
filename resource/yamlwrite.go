package resource

import (
	"regexp"
	"strings"
	"unicode"
)

// appendYAML appends the node as a YAML document in block style.
func appendYAML(b []byte, n *node) []byte {
	switch {
	case n.kind == mapNode && len(n.fields) > 0, n.kind == listNode && len(n.items) > 0:
		return appendBlock(b, n, 0)
	}
	return append(appendInline(b, n, 0), '\n')
}

// appendBlock appends a list or object that is not empty, one entry a line,
// each line indented.
func appendBlock(b []byte, n *node, indent int) []byte {
	for i, item := range n.items {
		b = appendIndent(b, indent, i == 0)
		b = append(b, "- "...)
		b = appendEntry(b, item, indent+2, true)
	}
	for i, f := range n.fields {
		b = appendIndent(b, indent, i == 0)
		b = appendScalar(b, f.key)
		b = append(b, ':')
		b = appendEntry(b, f.value, indent+2, false)
	}
	return b
}

// appendIndent begins a line. The first line of a block in a list has begun
// already, behind the dash.
func appendIndent(b []byte, indent int, first bool) []byte {
	if first && len(b) >= 2 && b[len(b)-1] == ' ' && b[len(b)-2] == '-' {
		return b
	}
	return append(b, strings.Repeat(" ", indent)...)
}

// appendEntry appends the value of a list's element (inList) or of a field.
func appendEntry(b []byte, n *node, indent int, inList bool) []byte {
	if n.kind == listNode && len(n.items) > 0 || n.kind == mapNode && len(n.fields) > 0 {
		if !inList {
			b = append(b, '\n')
		}
		return appendBlock(b, n, indent)
	}
	if !inList {
		b = append(b, ' ')
	}
	return append(appendInline(b, n, indent), '\n')
}

// appendInline appends a scalar or an empty list or object.
func appendInline(b []byte, n *node, indent int) []byte {
	if n.kind != stringNode {
		return appendJSON(b, n)
	}
	if lines, header, ok := literal(n.text); ok {
		b = append(b, header...)
		for _, line := range lines {
			b = append(b, '\n')
			b = append(b, strings.Repeat(" ", indent)...)
			b = append(b, line...)
		}
		return b
	}
	return appendScalar(b, n.text)
}

// literal splits a text of several lines, such as a certificate, for YAML's
// literal style, when it can be told back exactly.
func literal(text string) (lines []string, header string, ok bool) {
	header = "|"
	rest, ends := strings.CutSuffix(text, "\n")
	if !ends {
		header = "|-"
	}
	lines = strings.Split(rest, "\n")
	if len(lines) < 2 {
		return nil, "", false
	}
	for _, line := range lines {
		if line == "" || strings.TrimSpace(line) != line {
			return nil, "", false
		}
		for _, r := range line {
			if !unicode.IsPrint(r) {
				return nil, "", false
			}
		}
	}
	return lines, header, true
}

// plainScalar matches strings that YAML reads as themselves without quotes; of
// those a number may still be one, and a word a boolean.
var plainScalar = regexp.MustCompile(`^[A-Za-z_/][A-Za-z0-9_./+*-]*( [A-Za-z0-9_./+-]+)*$|^[0-9]+\.[0-9]+\.[0-9]+\.[0-9]+(/[0-9]+)?$`)

// appendScalar appends a string, in quotes where YAML could read it as anything else.
func appendScalar(b []byte, s string) []byte {
	if plainScalar.MatchString(s) {
		switch strings.ToLower(s) {
		case "true", "false", "yes", "no", "on", "off", "y", "n", "null":
		default:
			return append(b, s...)
		}
	}
	return appendString(b, s)
}
