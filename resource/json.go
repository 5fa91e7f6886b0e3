package resource

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// syntaxError says why a text could not be read at all.
type syntaxError struct {
	at            span
	code          string
	message, hint string
}

func (e *syntaxError) Error() string { return e.message }

// parseJSON reads a JSON text into nodes. JSON has a reader of its own beside
// YAML's, although YAML claims to include it: this one is many times faster,
// and exact about numbers and escapes.
func parseJSON(data []byte) (*node, *syntaxError) {
	p := &jsonParser{data: data, dec: json.NewDecoder(bytes.NewReader(data))}
	p.dec.UseNumber()
	root, err := p.value(0)
	if err != nil {
		return nil, p.failure(err)
	}
	at := p.skip()
	if _, err := p.dec.Token(); !errors.Is(err, io.EOF) {
		return nil, &syntaxError{at: p.locate(at, at), code: CodeSyntax, message: "there is more text after the end of the JSON value"}
	}
	return root, nil
}

// jsonParser reads tokens and keeps count of where they stand.
type jsonParser struct {
	data  []byte
	dec   *json.Decoder
	nodes int
	// line and col are the place of the byte at offset, from 0.
	line, col, offset int
}

// skip returns the offset of the next token: past blanks, commas and colons.
func (p *jsonParser) skip() int {
	i := int(p.dec.InputOffset())
	for i < len(p.data) && strings.IndexByte(" \t\r\n,:", p.data[i]) >= 0 {
		i++
	}
	return i
}

// locate returns the span of the bytes from start up to end. It only moves
// forward: the place of a byte already passed is the place reached.
func (p *jsonParser) locate(start, end int) span {
	for ; p.offset < start && p.offset < len(p.data); p.offset++ {
		switch {
		case p.data[p.offset] == '\n':
			p.line, p.col = p.line+1, 0
		case utf8.RuneStart(p.data[p.offset]):
			p.col++
		}
	}
	at := span{line: int32(p.line + 1), col: int32(p.col + 1)}
	if end > start {
		at.end = at.col + int32(utf8.RuneCount(p.data[start:end]))
	}
	return at
}

// token reads one token and where it stands.
func (p *jsonParser) token() (json.Token, span, error) {
	start := p.skip()
	tok, err := p.dec.Token()
	if err != nil {
		return nil, span{}, err
	}
	return tok, p.locate(start, int(p.dec.InputOffset())), nil
}

func (p *jsonParser) value(depth int) (*node, error) {
	tok, at, err := p.token()
	if err != nil {
		return nil, err
	}
	if p.nodes++; p.nodes > maxNodes {
		return nil, tooManyNodes(at)
	}
	switch tok := tok.(type) {
	case json.Delim:
		if depth >= maxDepth {
			return nil, tooDeep(at)
		}
		if tok == '[' {
			return p.list(at, depth)
		}
		return p.object(at, depth)
	case string:
		return &node{kind: stringNode, text: tok, at: at}, nil
	case json.Number:
		return &node{kind: numberNode, text: tok.String(), at: at}, nil
	case bool:
		return &node{kind: boolNode, bool: tok, at: at}, nil
	}
	return &node{kind: nullNode, at: at}, nil
}

func (p *jsonParser) list(at span, depth int) (*node, error) {
	n := &node{kind: listNode, at: span{line: at.line, col: at.col}}
	for p.dec.More() {
		item, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.items = append(n.items, item)
	}
	_, _, err := p.token()
	return n, err
}

func (p *jsonParser) object(at span, depth int) (*node, error) {
	n := &node{kind: mapNode, at: span{line: at.line, col: at.col}}
	for p.dec.More() {
		tok, keyAt, err := p.token()
		if err != nil {
			return nil, err
		}
		key, isString := tok.(string)
		if !isString {
			return nil, &syntaxError{at: keyAt, code: CodeSyntax, message: "an object's key must be a string"}
		}
		value, err := p.value(depth + 1)
		if err != nil {
			return nil, err
		}
		n.fields = append(n.fields, field{key: key, at: keyAt, value: value})
	}
	_, _, err := p.token()
	return n, err
}

// failure turns an error of the reader into one with a place. The reader's own
// words are kept where they name a single character; they never hold a value.
func (p *jsonParser) failure(err error) *syntaxError {
	var own *syntaxError
	if errors.As(err, &own) {
		return own
	}
	offset := int(p.dec.InputOffset())
	message := "the JSON ends too early"
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		offset = max(offset, int(syntax.Offset)-1)
		message = "this is not JSON: " + syntax.Error()
	} else {
		offset = len(p.data)
	}
	return &syntaxError{at: p.locate(offset, offset), code: CodeSyntax, message: message}
}

func tooDeep(at span) *syntaxError {
	return &syntaxError{at: at, code: CodeTooLarge, message: fmt.Sprintf("lists and objects nest deeper than %d levels", maxDepth)}
}

func tooManyNodes(at span) *syntaxError {
	return &syntaxError{at: at, code: CodeTooLarge, message: fmt.Sprintf("the text holds more than %d values", maxNodes), hint: "split it"}
}

func tooManyRepeated(at span) *syntaxError {
	return &syntaxError{at: at, code: CodeTooLarge, message: fmt.Sprintf("YAML aliases repeat more than %d values", maxRepeated), hint: "write values out, or split the text"}
}
