package behaviour

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Run does the case's steps at a data plane that has config.yaml, and returns
// how the first step that failed did. Apply replaces the configuration, as
// expanded, and returns when the data plane has it.
func (c *Case) Run(ctx context.Context, w *World, gate Gate, apply func(ctx context.Context, config string) error) error {
	if err := w.Reset(); err != nil {
		return err
	}
	for i, s := range c.Steps {
		if err := w.step(ctx, c, gate, s, apply); err != nil {
			return fmt.Errorf("step %d (%s): %w", i+1, s, err)
		}
	}
	return nil
}

// String says what a step does, for error messages.
func (s Step) String() string {
	switch {
	case s.Send != "":
		return s.Send
	case s.WebSocket != "":
		return "websocket " + s.WebSocket
	case s.GRPC != "":
		return "grpc " + s.GRPC
	case s.Set != nil:
		return "set " + strings.Join(slices.Sorted(maps.Keys(s.Set)), ", ")
	case s.Apply != "":
		return "apply " + s.Apply
	}
	return "wait " + s.Wait.String()
}

func (w *World) step(ctx context.Context, c *Case, gate Gate, s Step, apply func(context.Context, string) error) error {
	switch {
	case s.Set != nil:
		for name, behaviour := range s.Set {
			b, ok := w.backends[name]
			if !ok {
				return fmt.Errorf("backend %q is not in the configuration", name)
			}
			if err := b.Set(behaviour); err != nil {
				return err
			}
		}
		return nil
	case s.Apply != "":
		config, err := w.Expand(c.Configs[s.Apply])
		if err != nil {
			return err
		}
		return apply(ctx, config)
	case s.Wait != 0:
		return sleep(ctx, s.Wait)
	}
	deadline := time.Now().Add(s.Eventually)
	for {
		err := w.request(ctx, gate, s)
		if err == nil || !time.Now().Before(deadline) {
			return err
		}
		if err := sleep(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// request sends the step's requests and compares what came of them.
func (w *World) request(ctx context.Context, gate Gate, s Step) error {
	before := w.tries()
	answers := w.sendAll(ctx, gate, s)
	from := map[string]int{}
	for i, a := range answers {
		want := s.Expect
		if len(want.Statuses) > 0 {
			want.Status = want.Statuses[i]
		}
		// A backend's own port may be wanted in what it saw.
		host, err := w.Expand(want.Seen.Host)
		if err != nil {
			return err
		}
		want.Seen.Host = host
		if err := want.compare(a); err != nil {
			if len(answers) > 1 {
				err = fmt.Errorf("request %d of %d: %w", i+1, len(answers), err)
			}
			return err
		}
		from[a.echo.From]++
	}
	return errors.Join(s.Expect.compareShares(from, len(answers)), s.Expect.compareTries(before, w.tries()))
}

func (w *World) sendAll(ctx context.Context, gate Gate, s Step) []answer {
	answers := make([]answer, max(s.Times, 1))
	var group errgroup.Group
	group.SetLimit(max(s.Parallel, 1))
	for i := range answers {
		group.Go(func() error {
			answers[i] = w.send(ctx, gate, s, i)
			return nil
		})
	}
	_ = group.Wait() // no request returns an error here; compare finds them
	return answers
}

// compare lists all that is not as expected, and the whole answer.
func (e Expect) compare(a answer) error {
	if e.Fails {
		if a.err == nil {
			return fmt.Errorf("was answered %d, should have had no answer", a.status)
		}
		return nil
	}
	if a.err != nil {
		return fmt.Errorf("no answer: %w", a.err)
	}
	var d differences
	if e.Status != 0 && a.status != e.Status {
		d.add("status", strconv.Itoa(a.status), strconv.Itoa(e.Status))
	}
	d.text("from", a.echo.From, e.From)
	d.text("grpc", a.grpc, e.GRPC)
	d.text("served_cert", a.cert, e.ServedCert)
	d.text("seen.method", a.echo.Method, e.Seen.Method)
	d.text("seen.path", a.echo.Path, e.Seen.Path)
	d.text("seen.host", a.echo.Host, e.Seen.Host)
	d.text("seen.proto", a.echo.Proto, e.Seen.Proto)
	d.text("seen.body", a.echo.Body, e.Seen.Body)
	d.text("seen.sni", a.echo.SNI, e.Seen.SNI)
	d.text("seen.client_cert", a.echo.ClientCert, e.Seen.ClientCert)
	for name, want := range e.Headers {
		values := a.header.Values(name)
		d.header("headers."+name, strings.Join(values, ", "), len(values) > 0, want)
	}
	for name, want := range e.Seen.Headers {
		value, there := a.echo.Headers[strings.ToLower(name)]
		d.header("seen.headers."+name, value, there, want)
	}
	if e.Body != nil && a.body != *e.Body {
		d.add("body", a.body, *e.Body)
	}
	if !strings.Contains(a.body, e.BodyContains) {
		d.add("body", a.body, "something with "+e.BodyContains)
	}
	if e.Within != 0 && a.elapsed > e.Within {
		d.add("time", a.elapsed.String(), "within "+e.Within.String())
	}
	if e.After != 0 && a.elapsed < e.After {
		d.add("time", a.elapsed.String(), "after "+e.After.String())
	}
	if len(d) == 0 {
		return nil
	}
	slices.Sort(d)
	return fmt.Errorf("%s\n  the answer: %d %v %s", strings.Join(d, "; "), a.status, a.header, strings.TrimSpace(a.body))
}

type differences []string

func (d *differences) add(what, got, want string) {
	*d = append(*d, fmt.Sprintf("%s is %q, want %q", what, got, want))
}

// text compares unless nothing is wanted.
func (d *differences) text(what, got, want string) {
	if want != "" && got != want {
		d.add(what, got, want)
	}
}

func (d *differences) header(what, got string, there bool, want *string) {
	switch {
	case want == nil:
		if there {
			d.add(what, got, "absent")
		}
	case !there:
		*d = append(*d, fmt.Sprintf("%s is absent, want %q", what, *want))
	case strings.HasPrefix(*want, "~"):
		re, err := regexp.Compile(strings.TrimSpace((*want)[1:]))
		if err != nil {
			*d = append(*d, fmt.Sprintf("%s: %v", what, err))
		} else if !re.MatchString(got) {
			d.add(what, got, *want)
		}
	case got != *want:
		d.add(what, got, *want)
	}
}

func (e Expect) compareShares(from map[string]int, n int) error {
	if e.OneBackend && len(from) != 1 {
		return fmt.Errorf("answered by several: %v", from)
	}
	var problems []error
	for name, percent := range e.Share {
		low, high, err := parseRange(percent)
		if err != nil {
			return err
		}
		if got := float64(from[name]) * 100 / float64(n); got < low || got > high {
			problems = append(problems, fmt.Errorf("%s answered %.0f%%, want %s%% (all: %v)", name, got, percent, from))
		}
	}
	return errors.Join(problems...)
}

func parseRange(s string) (low, high float64, err error) {
	from, to, ok := strings.Cut(s, "-")
	if !ok {
		to = from
	}
	if low, err = strconv.ParseFloat(from, 64); err == nil {
		high, err = strconv.ParseFloat(to, 64)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("share %q is not `low-high`: %w", s, err)
	}
	return low, high, nil
}

func (e Expect) compareTries(before, after map[string]int) error {
	var problems []error
	for name, want := range e.Tries {
		if got := after[name] - before[name]; got != want {
			problems = append(problems, fmt.Errorf("%d requests reached %s, want %d", got, name, want))
		}
	}
	return errors.Join(problems...)
}
