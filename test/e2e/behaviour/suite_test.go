package behaviour

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/musterhq/muster/resource"
	"github.com/musterhq/muster/test/e2e/pki"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestEveryCaseCanBeReadAndExpanded(t *testing.T) {
	cases, err := Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	if len(cases) < 60 {
		t.Errorf("%d cases, the suite has at least 60", len(cases))
	}
	authority, err := pki.New("test")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		w, err := NewWorld(c, authority)
		if err != nil {
			t.Fatal(err)
		}
		for name, config := range c.Configs {
			expanded, err := w.Expand(config)
			if err != nil {
				t.Errorf("case %s: %s: %v", c.Name, name, err)
			}
			if _, problems := resource.DecodeFile(name, []byte(expanded)); len(problems) > 0 {
				t.Errorf("case %s: %v", c.Name, problems)
			}
		}
		w.Close()
	}
}

const minimal = `Says something.

-- config.yaml --
services:
- upstream: {nodes: [{host: 127.0.0.1, port: $a}]}
-- steps.yaml --
`

func TestParseRefusesWhatCannotFail(t *testing.T) {
	for name, test := range map[string]struct{ steps, want string }{
		"no steps":           {"", "no step sends a request"},
		"nothing expected":   {"- send: GET http://x/\n", "expects nothing"},
		"unknown field":      {"- send: GET http://x/\n  expects: {status: 200}\n", "unknown field"},
		"two actions":        {"- send: GET http://x/\n  wait: 1s\n", "2 actions"},
		"no such config":     {"- apply: other.yaml\n- send: GET http://x/\n  expect: {status: 200}\n", "not in the archive"},
		"no URL":             {"- send: GET x/\n  expect: {status: 200}\n", "no http or https URL"},
		"statuses and times": {"- send: GET http://x/\n  expect: {statuses: [200, 200]}\n", "2 statuses for 1 requests"},
	} {
		if _, err := Parse("case", []byte(minimal+test.steps)); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
	}
}

// TestRunTellsWhatDiffers runs steps straight at a backend, which is a data
// plane that passes everything on.
func TestRunTellsWhatDiffers(t *testing.T) {
	authority, err := pki.New("test")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ steps, want string }{
		"as expected": {`
- send: POST http://x.test/a//b?c
  headers: {x-one: [a, b]}
  body: hello
  expect: {status: 200, from: a, seen: {path: "/a//b?c", host: x.test, body: hello, headers: {x-one: "~a, b", x-two: null}}}
- set: {a: {status: 503}}
- send: GET http://x.test/
  times: 3
  expect: {status: 503, share: {a: 100}, tries: {a: 3}, one_backend: true}
- set: {a: {drop: true}}
- send: GET http://x.test/
  expect: {fails: true}
- set: {a: {}}
- websocket: http://x.test/
  expect: {status: 101}
- send: GET http://x.test/
  http2: true
  expect: {status: 200, seen: {proto: HTTP/2.0}}
`, ""},
		"status": {"- send: GET http://x/\n  expect: {status: 404}\n", `status is "200", want "404"`},
		"header": {"- send: GET http://x/\n  expect: {headers: {x-no: v}}\n", `headers.x-no is absent, want "v"`},
		"seen":   {"- send: GET http://x/\n  expect: {seen: {path: /y}}\n", `seen.path is "/", want "/y"`},
		"tries":  {"- send: GET http://x/\n  expect: {tries: {a: 0}}\n", "1 requests reached a, want 0"},
		"share":  {"- send: GET http://x/\n  expect: {share: {a: 10-20}}\n", "a answered 100%, want 10-20%"},
		"fails":  {"- send: GET http://x/\n  expect: {fails: true}\n", "was answered 200"},
		"late":   {"- send: GET http://x/\n  expect: {status: 200, after: 10s}\n", "want \"after 10s\""},
		"apply":  {"- apply: config.yaml\n- send: GET http://x/\n  expect: {status: 200}\n", "cannot apply"},
	} {
		c, err := Parse("case", []byte(minimal+test.steps))
		if err != nil {
			t.Fatal(err)
		}
		w, err := NewWorld(c, authority)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		err = c.Run(ctx, w, Gate{HTTP: w.backends["a"].Addr()}, func(context.Context, string) error {
			return errors.New("cannot apply")
		})
		switch {
		case test.want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)):
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		}
		cancel()
		w.Close()
	}
}
