package resource

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// The codes of problems. They are stable: programs may decide by them.
const (
	CodeSyntax      = "syntax"      // the text is not YAML or JSON
	CodeTooLarge    = "too_large"   // a limit of this package is exceeded
	CodeUnknown     = "unknown"     // a field, kind or plugin that does not exist
	CodeType        = "type"        // a value of the wrong type
	CodeRequired    = "required"    // a field that must be there is not
	CodeInvalid     = "invalid"     // a value that is not allowed
	CodeConflict    = "conflict"    // fields or objects that exclude each other
	CodeReference   = "reference"   // an object that refers to one that does not fit, or to none
	CodeReferenced  = "referenced"  // a deleted object that others still refer to
	CodeUnsupported = "unsupported" // API7 knows it, muster cannot honour it
	CodeDuplicate   = "duplicate"   // the same key or id twice
)

// Problem is one thing wrong with a resource.
type Problem struct {
	// Object is the resource at fault, when it is known.
	Object Key
	// Within is where the object stands in its file, `services[0].routes[2]`, when
	// it came from one.
	Within string
	// Path is the field, `routes[2].uris[0]` style: relative to the object, or to
	// the file if Object is not set. Empty means the whole.
	Path string
	// Code is one of the constants Code….
	Code string
	// Message says what is wrong, without the path. It never holds a secret.
	Message string
	// Hint says what to do about it. May be empty.
	Hint string
	// File, Line and Column say where in the text; Line is 0 when that is not
	// known. Both count from 1.
	File         string
	Line, Column int
	// Excerpt is the source around the place, with secrets masked. May be empty.
	Excerpt string
}

// String returns the problem on one line, without the excerpt:
// `name:14:9: services[0].routes[2].uris[0]: message (hint)`, or without a file
// `route/foo: uris[0]: message (hint)`.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File + ":")
	}
	if p.Line > 0 {
		fmt.Fprintf(&b, "%d:%d:", p.Line, p.Column)
	}
	if b.Len() > 0 {
		b.WriteByte(' ')
	}
	path := p.Path
	if p.Within != "" {
		path = joinPath(p.Within, path)
	} else if p.Object != (Key{}) {
		b.WriteString(p.Object.String() + ": ")
	}
	if path != "" {
		b.WriteString(path + ": ")
	}
	b.WriteString(p.Message)
	if p.Hint != "" {
		b.WriteString(" (" + p.Hint + ")")
	}
	return b.String()
}

// Problems is a list of problems, in the order in which they were found. It is
// an error; an empty list is not a failure, so return it as one through Err.
type Problems []Problem

// Error lists all problems, one a line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.String()
	}
	return strings.Join(lines, "\n")
}

// Sort puts the problems into the order of the texts that they are about, those
// without a place last. Problems at the same place keep their order.
func (ps Problems) Sort() {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		if (a.Line == 0) != (b.Line == 0) {
			return b.Line - a.Line
		}
		return cmp.Or(strings.Compare(a.File, b.File), a.Line-b.Line, a.Column-b.Column)
	})
}

// Err returns the problems as an error, nil when there are none.
func (ps Problems) Err() error {
	if len(ps) == 0 {
		return nil
	}
	return ps
}
