package resource

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// source is a text that was decoded, and its tree.
type source struct {
	name string
	data []byte
	root *node

	once sync.Once
	// lines and shown are built by once: the text by line, and for each line the
	// spans that an excerpt may show.
	lines [][]byte
	shown map[int32][]span
	// opaque are long lines in which characters are not bytes: finding a place in
	// them takes too long to be worth an excerpt.
	opaque map[int32]bool
}

// parseSource reads a text of at most limit bytes, as JSON when it is JSON and
// as YAML otherwise.
func parseSource(name string, data []byte, limit int) (*source, *syntaxError) {
	s := &source{name: name, data: data}
	if len(data) > limit {
		return s, &syntaxError{at: span{line: 1, col: 1}, code: CodeTooLarge,
			message: fmt.Sprintf("the text has %d bytes; at most %d are read", len(data), limit), hint: "split it"}
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	s.data = data
	if at, valid := firstInvalid(data); !valid {
		return s, &syntaxError{at: at, code: CodeSyntax, message: "the text is not UTF-8"}
	}
	read := parseYAML
	if trimmed := bytes.TrimLeft(data, blanks); bytes.HasPrefix(trimmed, []byte("{")) {
		// YAML would take most of what JSON refuses for something else than was
		// meant: what begins as JSON must be JSON. An object without quotes is YAML.
		if rest := bytes.TrimLeft(trimmed[1:], blanks); len(rest) == 0 || rest[0] == '"' || rest[0] == '}' {
			read = parseJSON
		}
	}
	root, failure := read(data)
	s.root = root
	return s, failure
}

// blanks are the blanks of JSON.
const blanks = " \t\r\n"

// firstInvalid returns the place of the first byte that is not UTF-8.
func firstInvalid(data []byte) (span, bool) {
	if utf8.Valid(data) {
		return span{}, true
	}
	at := span{line: 1, col: 1}
	for len(data) > 0 {
		r, size := utf8.DecodeRune(data)
		switch {
		case r == utf8.RuneError && size == 1:
			return at, false
		case r == '\n':
			at.line, at.col = at.line+1, 1
		default:
			at.col++
		}
		data = data[size:]
	}
	return at, false
}

// index notes what excerpts may show: keys, and values that the decoder found
// to be public and nowhere to be secret.
func (s *source) index() {
	s.lines = bytes.Split(s.data, []byte("\n"))
	s.shown, s.opaque = map[int32][]span{}, map[int32]bool{}
	for i, line := range s.lines {
		if len(line) > maxLine && utf8.RuneCount(line) != len(line) {
			s.opaque[int32(i+1)] = true
		}
	}
	if s.root == nil {
		return
	}
	seen := map[*node]bool{}
	var visit func(n *node)
	visit = func(n *node) {
		if seen[n] {
			return
		}
		seen[n] = true
		if n.isScalar() {
			if n.public && !n.secret && n.at.end > 0 && !swallows(n.text) {
				s.shown[n.at.line] = append(s.shown[n.at.line], n.at)
			}
			return
		}
		for _, item := range n.items {
			visit(item)
		}
		for _, f := range n.fields {
			if f.at.end > 0 && !f.hidden && isName(f.key) {
				s.shown[f.at.line] = append(s.shown[f.at.line], f.at)
			}
			visit(f.value)
		}
	}
	visit(s.root)
	for _, spans := range s.shown {
		slices.SortFunc(spans, func(a, b span) int { return int(a.col - b.col) })
	}
}

// excerptLines is how many lines an excerpt shows before the one that it is about.
const excerptLines = 2

const (
	// maxExcerptWidth bounds a shown line, in characters.
	maxExcerptWidth = 120
	// maxLine bounds the lines that are looked at whole, in bytes.
	maxLine = 4 << 10
)

// excerpt shows the line, those before it and a caret below the column. What may
// be secret is masked: every value and comment that is not known to be public.
func (s *source) excerpt(at span) string {
	s.once.Do(s.index)
	if at.line < 1 || int(at.line) > len(s.lines) {
		return ""
	}
	var b strings.Builder
	width := len(fmt.Sprint(at.line))
	first := max(1, at.line-excerptLines)
	for line := first; line <= at.line; line++ {
		text, caret := s.mask(line, at.col)
		marker := " "
		if line == at.line {
			marker = ">"
		}
		fmt.Fprintf(&b, "%s %*d | %s\n", marker, width, line, text)
		if line == at.line {
			fmt.Fprintf(&b, "  %*s | %*s^", width, "", caret, "")
		}
	}
	return b.String()
}

// window returns the line, or of a long one what surrounds the column, and how
// many characters stand before it.
func (s *source) window(number, col int32) (line string, from int32) {
	whole := s.lines[number-1]
	switch {
	case s.opaque[number]:
		return "", 0
	case len(whole) <= maxLine:
		return string(whole), 0
	}
	low := min(max(0, int(col)-maxLine/2), len(whole))
	return string(whole[low:min(low+maxLine, len(whole))]), int32(low)
}

// mask returns the line as it may be shown and how many characters of it stand
// before the column col. Spans that may be shown are copied; of what lies
// between them blanks and punctuation stay and the rest becomes `***`.
func (s *source) mask(number, col int32) (string, int) {
	line, from := s.window(number, col)
	text := []rune(strings.TrimRight(strings.ReplaceAll(line, "\t", " "), "\r\n"))
	col -= from
	allowed := make([]bool, len(text))
	spans := s.shown[number]
	first, _ := slices.BinarySearchFunc(spans, from+1, func(s span, col int32) int { return int(s.end - col) })
	for _, span := range spans[first:] {
		if int(span.col-1-from) >= len(text) {
			break
		}
		for i := max(0, span.col-1-from); i < span.end-1-from && int(i) < len(text); i++ {
			allowed[i] = true
		}
	}
	var out []rune
	caret := -1
	for i := 0; i < len(text); {
		if caret < 0 && i >= int(col)-1 {
			caret = len(out)
		}
		if allowed[i] {
			out = append(out, text[i])
			i++
			continue
		}
		end := i
		for end < len(text) && !allowed[end] {
			end++
		}
		// The gap text[i:end]: keep the punctuation at both of its ends.
		head := i
		for head < end && isPunctuation(text[head]) {
			head++
		}
		tail := end
		for tail > head && isPunctuation(text[tail-1]) {
			tail--
		}
		if caret < 0 && int(col)-1 < end {
			switch at := int(col) - 1; {
			case at <= head:
				caret = len(out) + at - i
			case at < tail:
				caret = len(out) + head - i
			}
		}
		out = append(out, text[i:head]...)
		if head < tail {
			out = append(out, '*', '*', '*')
		}
		if caret < 0 && int(col)-1 < end {
			caret = len(out) + int(col) - 1 - tail
		}
		out = append(out, text[tail:end]...)
		i = end
	}
	if caret < 0 {
		caret = len(out)
	}
	if len(out) > maxExcerptWidth {
		// A long line, such as JSON in one: show what surrounds the place.
		from := max(0, min(caret-maxExcerptWidth/2, len(out)-maxExcerptWidth))
		out = out[from : from+maxExcerptWidth]
		caret = min(caret-from, maxExcerptWidth)
	}
	return string(out), caret
}

// isPunctuation tells the characters that structure a line from those that may
// belong to a value.
func isPunctuation(r rune) bool { return strings.ContainsRune(" \t-:,[]{}", r) }
