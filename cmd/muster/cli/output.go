package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/goccy/go-yaml"
	"google.golang.org/protobuf/proto"
)

// print writes data to stdout in the chosen form. data is an API message, a
// slice of them, or a value with JSON tags; fill makes its table.
func (a *app) print(data any, fill func(*table)) error {
	if a.output == "table" || a.output == "" {
		t := &table{colour: a.env.colour()}
		fill(t)
		return t.flush(a.env.Stdout)
	}
	raw, err := encode(data)
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	if a.output == "yaml" {
		if raw, err = yaml.JSONToYAML(raw); err != nil {
			return fmt.Errorf("encode the output: %w", err)
		}
	} else {
		var indented bytes.Buffer
		if err := json.Indent(&indented, raw, "", "  "); err != nil {
			return fmt.Errorf("encode the output: %w", err)
		}
		indented.WriteByte('\n')
		raw = indented.Bytes()
	}
	_, err = a.env.Stdout.Write(raw)
	return err
}

// messages turns a slice of one message type into what print takes.
func messages[M proto.Message](ms []M) []proto.Message {
	out := make([]proto.Message, len(ms))
	for i, m := range ms {
		out[i] = m
	}
	return out
}

func encode(data any) ([]byte, error) {
	switch d := data.(type) {
	case proto.Message:
		return messageJSON(d)
	case []proto.Message:
		var b bytes.Buffer
		b.WriteByte('[')
		for i, m := range d {
			if i > 0 {
				b.WriteByte(',')
			}
			one, err := messageJSON(m)
			if err != nil {
				return nil, err
			}
			b.Write(one)
		}
		b.WriteByte(']')
		return b.Bytes(), nil
	default:
		return json.Marshal(d)
	}
}

// say writes one line to stderr: talk, never data.
func (a *app) say(format string, args ...any) {
	fmt.Fprintf(a.env.Stderr, format+"\n", args...)
}

// table collects aligned rows and free lines for people to read.
type table struct {
	colour bool
	lines  []string // cells are separated by tabs; a line without tabs stands alone
	blocks []string // finished blocks of aligned lines
}

func (t *table) header(cells ...string) { t.row(cells...) }

// row adds a row. Tabs and line ends inside cells become spaces.
func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = strings.Map(func(r rune) rune {
			switch r {
			case '\t', '\n', '\r':
				return ' '
			}
			return r
		}, c)
	}
	t.lines = append(t.lines, strings.Join(cells, "\t"))
}

// text ends the block of rows and adds lines that are not aligned.
func (t *table) text(format string, args ...any) {
	t.endBlock()
	t.blocks = append(t.blocks, fmt.Sprintf(format, args...)+"\n")
}

func (t *table) endBlock() {
	if len(t.lines) == 0 {
		return
	}
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, l := range t.lines {
		fmt.Fprintln(w, l)
	}
	_ = w.Flush() // a strings.Builder does not fail
	for line := range strings.Lines(b.String()) {
		t.blocks = append(t.blocks, strings.TrimRight(line, " \n")+"\n")
	}
	t.lines = nil
}

func (t *table) flush(w io.Writer) error {
	t.endBlock()
	_, err := io.WriteString(w, strings.Join(t.blocks, ""))
	return err
}

// The colours of a terminal; every code has the same length, so that coloured
// cells of a column stay aligned.
const (
	plain  = "\x1b[39m"
	red    = "\x1b[31m"
	green  = "\x1b[32m"
	yellow = "\x1b[33m"
	reset  = "\x1b[0m"
)

func (t *table) paint(colour, s string) string {
	if !t.colour {
		return s
	}
	return colour + s + reset
}

// shortDuration writes a duration as people say it: 850ms, 3s, 12m, 5h, 3d.
func shortDuration(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	default:
		return fmt.Sprintf("%dd", int(d.Hours()/24))
	}
}

// plural writes 1 route, 2 routes.
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}
