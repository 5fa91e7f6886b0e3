package cli

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
)

// invalidError is input that does not pass, from this program or the server.
type invalidError struct {
	problems resource.Problems
}

// inOrder sorts problems as a reader meets them; those without a place go last.
func inOrder(ps resource.Problems) resource.Problems {
	slices.SortStableFunc(ps, func(a, b resource.Problem) int {
		return cmp.Or(cmp.Compare(unplaced(a), unplaced(b)), cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	return ps
}

func unplaced(p resource.Problem) int {
	if p.Line > 0 {
		return 0
	}
	return 1
}

func (e *invalidError) Error() string {
	return plural(len(e.problems), "problem") + "; nothing was changed"
}

// fieldProblems turns the violations that a server found in a request that came
// from flags into problems. Other errors pass.
func fieldProblems(err error) error { return (&source{}).explain(err, nil) }

// problemJSON is a problem as `lint -o json` prints it.
type problemJSON struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Object  string `json:"object"`
	Path    string `json:"path"`
	Code    string `json:"code"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
}

func problemsJSON(ps resource.Problems) []problemJSON {
	out := make([]problemJSON, len(ps))
	for i, p := range ps {
		out[i] = problemJSON{
			File: p.File, Line: p.Line, Column: p.Column, Object: objectName(p.Object),
			Path: p.Path, Code: p.Code, Message: p.Message, Hint: p.Hint,
		}
	}
	return out
}

func objectName(k resource.Key) string {
	if k == (resource.Key{}) {
		return ""
	}
	return k.String()
}

// printProblems writes each problem as `routes.yaml:14:9: path: message (hint)`,
// followed by the text it is about.
func (a *app) printProblems(w io.Writer, ps resource.Problems) {
	for _, p := range ps {
		var b strings.Builder
		switch {
		case p.Line > 0:
			fmt.Fprintf(&b, "%s:%d:%d: ", p.File, p.Line, p.Column)
		case p.File != "":
			fmt.Fprintf(&b, "%s: ", p.File)
		case p.Object != (resource.Key{}):
			fmt.Fprintf(&b, "%s: ", p.Object)
		}
		if p.Path != "" {
			fmt.Fprintf(&b, "%s: ", p.Path)
		}
		b.WriteString(p.Message)
		if p.Hint != "" {
			fmt.Fprintf(&b, " (%s)", p.Hint)
		}
		fmt.Fprintln(w, b.String())
		if excerpt := strings.Trim(p.Excerpt, "\n"); excerpt != "" {
			fmt.Fprintln(w, excerpt)
		}
	}
}

// violation is a field of a transaction: `changes[3].put.route.uris[0]`.
var violation = regexp.MustCompile(`^changes\[(\d+)\](?:\.(?:put|delete))?(?:\.(.*))?$`)

// explain turns the violations that a server found in a transaction into
// problems of the files that the transaction was made from. Other errors pass.
func (s *source) explain(err error, changes []*musterv1.Change) error {
	bad, ok := detail[*errdetails.BadRequest](err)
	if !ok {
		return err
	}
	var problems resource.Problems
	for _, v := range bad.GetFieldViolations() {
		p := resource.Problem{Path: v.GetField(), Code: v.GetReason(), Message: v.GetDescription(), Hint: v.GetLocalizedMessage().GetMessage()}
		m := violation.FindStringSubmatch(v.GetField())
		if m == nil {
			problems = append(problems, p)
			continue
		}
		i, err := strconv.Atoi(m[1])
		if err != nil || i >= len(changes) {
			problems = append(problems, p)
			continue
		}
		key := changeKey(changes[i])
		p.Path = strings.TrimPrefix(strings.TrimPrefix(m[2], resource.KindName(key.Kind)), ".")
		problems = append(problems, at(p, s.places[key], key))
	}
	if len(problems) == 0 {
		return err
	}
	return &invalidError{problems: inOrder(problems)}
}

func changeKey(c *musterv1.Change) resource.Key {
	if d := c.GetDelete(); d != nil {
		return resource.KeyFromProto(d)
	}
	return resource.KeyOf(c.GetPut())
}
