package resource

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// maxIndent bounds the column at which a line of YAML may begin. Together with
// the count of nested entries on a line and of open brackets it bounds how deep
// the parser recurses, which must be known before it runs.
const maxIndent = 1000

// parseYAML reads a YAML text of one document into nodes: anchors, aliases and
// merge keys are resolved, and of tags only those that say what a plain value is
// anyway are accepted. An empty text is a null.
func parseYAML(data []byte) (root *node, failure *syntaxError) {
	// The parser is not ours and reads what anyone sends: whatever makes it
	// panic is a text that it cannot read.
	defer func() {
		if recover() != nil {
			root, failure = nil, &syntaxError{at: span{line: 1, col: 1}, code: CodeSyntax, message: "this is not YAML that can be read"}
		}
	}()
	tokens := lexer.Tokenize(string(data))
	if n := len(tokens); n >= 2 && tokens[n-2].Type == token.FoldedType && !bytes.HasSuffix(data, []byte("\n")) {
		// The lexer does not fold a scalar that the end of the text cuts off.
		tokens = lexer.Tokenize(string(data) + "\n")
	}
	if err := checkDepth(tokens); err != nil {
		return nil, err
	}
	file, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, yamlFailure(err)
	}
	var body ast.Node
	for _, doc := range file.Docs {
		if doc.Body == nil {
			continue
		}
		if doc.Body.Type() == ast.DirectiveType || doc.Body.Type() == ast.CommentType {
			continue
		}
		if body != nil {
			return nil, &syntaxError{at: tokenSpan(cmp.Or(doc.Start, doc.Body.GetToken())), code: CodeSyntax,
				message: "the text holds more than one YAML document", hint: "put each into a file of its own, or join them and remove the `---`"}
		}
		body = doc.Body
	}
	if body == nil {
		return &node{kind: nullNode, at: span{line: 1, col: 1}}, nil
	}
	c := &yamlConverter{anchors: map[string]*node{}, lines: strings.Split(string(data), "\n")}
	root = c.convert(body, 0)
	if c.failure != nil {
		return nil, c.failure
	}
	return root, nil
}

// checkDepth refuses tokens that nest too deep for the recursive parser.
func checkDepth(tokens token.Tokens) *syntaxError {
	brackets, entries, line := 0, 0, 0
	for _, tk := range tokens {
		if tk.Position.Line != line {
			line, entries = tk.Position.Line, 0
			if brackets == 0 && tk.Position.Column > maxIndent {
				return tooDeep(tokenSpan(tk))
			}
		}
		switch tk.Type {
		case token.MappingStartType, token.SequenceStartType:
			brackets++
		case token.MappingEndType, token.SequenceEndType:
			brackets--
		case token.SequenceEntryType, token.MappingKeyType, token.AnchorType, token.TagType, token.MappingValueType:
			entries++
		case token.CollectEntryType:
			entries = 0
		}
		if brackets > maxDepth || entries > 2*maxDepth {
			return tooDeep(tokenSpan(tk))
		}
	}
	return nil
}

// yamlFailure keeps the parser's words and place, and leaves out the source that
// it would show: it may hold secrets.
func yamlFailure(err error) *syntaxError {
	var syntax *yaml.SyntaxError
	if errors.As(err, &syntax) {
		return &syntaxError{at: tokenSpan(syntax.Token), code: CodeSyntax, message: "this is not YAML: " + syntax.Message}
	}
	return &syntaxError{at: span{line: 1, col: 1}, code: CodeSyntax, message: "this is not YAML"}
}

// tokenSpan returns where a token stands. The parser gives the content of a
// block scalar column 0; it has no end on its first line in any case.
func tokenSpan(tk *token.Token) span {
	if tk == nil || tk.Position == nil {
		return span{line: 1, col: 1}
	}
	at := span{line: int32(max(1, tk.Position.Line)), col: int32(max(1, tk.Position.Column))}
	if text := strings.TrimSpace(tk.Origin); tk.Position.Column > 0 && !strings.Contains(text, "\n") {
		at.end = at.col + int32(utf8.RuneCountInString(text))
	}
	return at
}

// yamlConverter turns the parser's tree into nodes.
type yamlConverter struct {
	lines   []string
	anchors map[string]*node
	// open holds the anchors whose value is being read, which must not refer to
	// themselves.
	open []string
	// nodes counts the values written out, repeated those that aliases repeat.
	nodes, repeated int
	failure         *syntaxError
}

func (c *yamlConverter) fail(at *token.Token, code, message, hint string) *node {
	if c.failure == nil {
		c.failure = &syntaxError{at: tokenSpan(at), code: code, message: message, hint: hint}
	}
	return &node{kind: nullNode, at: tokenSpan(at)}
}

// span is tokenSpan for what an excerpt may show: it has an end only if the
// token's text is really there. The parser is at times mistaken about columns,
// and what stands beside the text may be a secret.
func (c *yamlConverter) span(tk *token.Token) span {
	at := tokenSpan(tk)
	if at.end == 0 || int(at.line) > len(c.lines) {
		at.end = 0
		return at
	}
	line, text := c.lines[at.line-1], strings.TrimSpace(tk.Origin)
	if len(line) > maxLine || text == "" {
		at.end = 0
		return at
	}
	offset := 0
	for range at.col - 1 {
		_, size := utf8.DecodeRuneInString(line[offset:])
		offset += size
	}
	if !strings.HasPrefix(line[offset:], text) {
		at.end = 0
	}
	return at
}

// convert returns the node for n. Once it failed it returns nulls, quickly.
func (c *yamlConverter) convert(n ast.Node, depth int) *node {
	if n == nil {
		return &node{kind: nullNode, at: span{line: 1, col: 1}}
	}
	tk := n.GetToken()
	if c.failure != nil {
		return &node{kind: nullNode}
	}
	if depth > maxDepth {
		c.failure = tooDeep(tokenSpan(tk))
		return &node{kind: nullNode}
	}
	if c.nodes++; c.nodes > maxNodes {
		c.failure = tooManyNodes(tokenSpan(tk))
		return &node{kind: nullNode}
	}
	switch n := n.(type) {
	case *ast.MappingNode:
		at := tokenSpan(tk)
		if len(n.Values) > 0 && !n.IsFlowStyle {
			at = tokenSpan(n.Values[0].Key.GetToken())
		}
		return c.mapping(n.Values, at, depth)
	case *ast.MappingValueNode:
		return c.mapping([]*ast.MappingValueNode{n}, tokenSpan(n.Key.GetToken()), depth)
	case *ast.SequenceNode:
		list := &node{kind: listNode, at: tokenSpan(tk)}
		list.at.end = 0
		for _, value := range n.Values {
			list.items = append(list.items, c.convert(value, depth+1))
		}
		return list
	case *ast.AnchorNode:
		return c.anchor(n, depth)
	case *ast.AliasNode:
		return c.alias(n, depth)
	case *ast.TagNode:
		return c.tag(n, depth)
	}
	return c.scalar(n)
}

// mapping reads the fields, the merged ones after those that are written out.
func (c *yamlConverter) mapping(values []*ast.MappingValueNode, at span, depth int) *node {
	at.end = 0
	m := &node{kind: mapNode, at: at}
	var merges []*node
	for _, pair := range values {
		if pair.Key.IsMergeKey() {
			merges = append(merges, c.convert(pair.Value, depth+1))
			continue
		}
		key := c.key(pair.Key)
		value := c.convert(pair.Value, depth+1)
		if value.kind == nullNode && value.at.col <= 1 {
			// The parser says of a value that is not there that it begins the line.
			value.at = span{line: key.at.line, col: key.at.col}
		}
		m.fields = append(m.fields, field{key: key.text, at: key.at, value: value})
	}
	for _, merge := range merges {
		c.merge(m, merge)
	}
	return m
}

// merge adds the fields of an object, or of each in a list, that m lacks.
func (c *yamlConverter) merge(m, from *node) {
	switch {
	case c.failure != nil:
	case from.kind == mapNode:
		have := make(map[string]bool, len(m.fields))
		for _, f := range m.fields {
			have[f.key] = true
		}
		for _, f := range from.fields {
			if !have[f.key] {
				m.fields = append(m.fields, f)
			}
		}
		if c.repeated += len(from.fields); c.repeated > maxRepeated {
			c.failure = tooManyRepeated(m.at)
		}
	case from.kind == listNode:
		for _, item := range from.items {
			if item.kind != mapNode {
				from = item
				break
			}
			c.merge(m, item)
		}
		if from.kind == listNode {
			return
		}
		fallthrough
	default:
		c.failure = &syntaxError{at: from.at, code: CodeSyntax, message: "`<<` merges objects only", hint: "refer to an anchor that holds an object"}
	}
}

// key returns a mapping's key as a string node: numbers and booleans as they are written.
func (c *yamlConverter) key(key ast.MapKeyNode) *node {
	var n ast.Node = key
	if explicit, ok := key.(*ast.MappingKeyNode); ok {
		n = explicit.Value
	}
	if anchor, ok := n.(*ast.AnchorNode); ok {
		n = anchor.Value
	}
	if _, ok := n.(ast.ScalarNode); !ok || n.GetToken() == nil {
		return c.fail(key.GetToken(), CodeType, "an object's key must be a string", "")
	}
	if _, ok := n.(*ast.LiteralNode); ok {
		return c.fail(key.GetToken(), CodeType, "an object's key must fit on one line", "")
	}
	return &node{kind: stringNode, text: n.GetToken().Value, at: c.span(n.GetToken())}
}

func (c *yamlConverter) anchor(n *ast.AnchorNode, depth int) *node {
	name := n.Name.GetToken().Value
	c.open = append(c.open, name)
	value := c.convert(n.Value, depth)
	c.open = c.open[:len(c.open)-1]
	c.anchors[name] = value
	return value
}

// alias returns the anchored node itself: the tree becomes a graph without
// cycles. What it would hold if it were written out is counted.
func (c *yamlConverter) alias(n *ast.AliasNode, depth int) *node {
	name := n.Value.GetToken().Value
	for _, open := range c.open {
		if open == name {
			return c.fail(n.Value.GetToken(), CodeSyntax, "the alias is inside the value that it names", "")
		}
	}
	target, found := c.anchors[name]
	if !found {
		return c.fail(n.Value.GetToken(), CodeSyntax, "the alias names no anchor before it", "write `&name` before the value that `*name` repeats")
	}
	if !c.count(target, depth) {
		return &node{kind: nullNode}
	}
	return target
}

// count adds a repeated tree to the number of values and checks its depth.
func (c *yamlConverter) count(n *node, depth int) bool {
	if c.repeated++; c.repeated > maxRepeated {
		c.failure = tooManyRepeated(n.at)
		return false
	}
	if depth > maxDepth {
		c.failure = tooDeep(n.at)
		return false
	}
	for _, item := range n.items {
		if !c.count(item, depth+1) {
			return false
		}
	}
	for _, f := range n.fields {
		if !c.count(f.value, depth+1) {
			return false
		}
	}
	return true
}

// tag accepts the tags that say no more than the value itself, and `!!str`,
// which makes a string of any scalar.
func (c *yamlConverter) tag(n *ast.TagNode, depth int) *node {
	name := n.Start.Value
	value := c.convert(n.Value, depth)
	want := map[string]nodeKind{"!!str": stringNode, "!!int": numberNode, "!!float": numberNode, "!!bool": boolNode, "!!seq": listNode, "!!map": mapNode, "!!null": nullNode}
	kind, known := want[name]
	switch {
	case c.failure != nil:
	case known && value.kind == kind:
	case name == "!!str" && value.isScalar() && n.Value != nil:
		return &node{kind: stringNode, text: n.Value.GetToken().Value, at: value.at}
	default:
		return c.fail(n.Start, CodeSyntax, "this YAML tag is not supported", "remove it; of tags only those of the core schema that fit the value are read")
	}
	return value
}

// plainNumber matches numbers of YAML 1.2 that the parser takes for strings when
// they have an exponent or are large.
var plainNumber = regexp.MustCompile(`^[-+]?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?$`)

// leadingZero matches numbers that YAML 1.1 reads as octal and YAML 1.2 as decimal.
var leadingZero = regexp.MustCompile(`^[-+]?0[0-9_]+$`)

func (c *yamlConverter) scalar(n ast.Node) *node {
	tk := n.GetToken()
	at := c.span(tk)
	switch n := n.(type) {
	case *ast.NullNode:
		return &node{kind: nullNode, at: at}
	case *ast.BoolNode:
		return &node{kind: boolNode, bool: n.Value, at: at}
	case *ast.IntegerNode:
		if leadingZero.MatchString(tk.Value) {
			return c.fail(tk, CodeInvalid, "a number that begins with 0 is read as octal by some and as decimal by others", "remove the 0, or quote the value if it is a string")
		}
		return &node{kind: numberNode, text: fmt.Sprint(n.Value), at: at}
	case *ast.FloatNode:
		return &node{kind: numberNode, text: formatNumber(n.Value), at: at}
	case *ast.StringNode:
		if tk.Type == token.StringType && plainNumber.MatchString(tk.Value) {
			return &node{kind: numberNode, text: strings.TrimPrefix(tk.Value, "+"), at: at}
		}
		return &node{kind: stringNode, text: n.Value, at: at}
	case *ast.LiteralNode:
		at.end = 0
		return &node{kind: stringNode, text: n.Value.Value, at: at}
	case *ast.InfinityNode, *ast.NanNode:
		return c.fail(tk, CodeInvalid, "infinity and NaN are not numbers here", "")
	}
	return c.fail(tk, CodeSyntax, "this YAML cannot be read here", "")
}

// formatNumber writes a finite number as JSON: integers in full and exactly,
// exponents only for the very large and very small.
func formatNumber(value float64) string {
	switch abs := math.Abs(value); {
	case value == 0:
		return "0"
	case value == math.Trunc(value) && abs < 1e21:
		return strconv.FormatFloat(value, 'f', 0, 64)
	case abs < 1e-6 || abs >= 1e21:
		return strconv.FormatFloat(value, 'e', -1, 64)
	}
	return strconv.FormatFloat(value, 'f', -1, 64)
}
