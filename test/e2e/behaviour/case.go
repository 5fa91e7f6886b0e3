package behaviour

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/musterhq/muster/test/e2e/upstream"
)

// Case is one promise with the configuration and the steps that show it.
type Case struct {
	Name    string
	Promise string
	// Configs holds config.yaml and the further configurations, not yet expanded.
	Configs map[string]string
	Steps   []Step
}

// FirstConfig is the configuration a case begins with.
const FirstConfig = "config.yaml"

const stepsFile = "steps.yaml"

// Step is one thing to do; exactly one of its actions is set.
type Step struct {
	// Send is `METHOD URL`. The URL's scheme chooses the data plane's port, and
	// its host is the Host header and the SNI; the path is sent as it is written.
	Send string `yaml:"send"`
	// WebSocket is a URL to upgrade; after 101 bytes must come back.
	WebSocket string `yaml:"websocket"`
	// GRPC is a URL whose host is asked for its health over HTTP/2.
	GRPC string `yaml:"grpc"`
	// Set changes backends. Those not named stay as they are.
	Set map[string]upstream.Behaviour `yaml:"set"`
	// Wait lets time pass.
	Wait time.Duration `yaml:"wait"`
	// Apply names a configuration that replaces the present one.
	Apply string `yaml:"apply"`

	// Headers are sent; a list sends the header several times.
	Headers map[string]Values `yaml:"headers"`
	Body    string            `yaml:"body"`
	// HTTP2 speaks HTTP/2, by prior knowledge or ALPN.
	HTTP2 bool `yaml:"http2"`
	// SNI replaces the URL's host in the TLS handshake.
	SNI string `yaml:"sni"`
	// ClientCert names the certificate to present.
	ClientCert string `yaml:"client_cert"`
	// Times repeats the request; 0 means once.
	Times int `yaml:"times"`
	// Parallel is how many of the repeated requests are under way at once; 0 means one.
	Parallel int `yaml:"parallel"`
	// Spread adds a header or query value that differs each time: `header:x-user` or `query:id`.
	Spread string `yaml:"spread"`
	// Eventually repeats the step until it meets Expect or the time is over.
	Eventually time.Duration `yaml:"eventually"`

	Expect Expect `yaml:"expect"`
}

// Expect is what must come of a request. What is not set is not looked at.
type Expect struct {
	Status int `yaml:"status"`
	// Statuses are the statuses of repeated requests, in order.
	Statuses []int `yaml:"statuses"`
	// From names the backend that answered.
	From string `yaml:"from"`
	// Share is the part of repeated requests each backend answered, in percent: `40-60`.
	Share map[string]string `yaml:"share"`
	// OneBackend says that one and the same backend answered all.
	OneBackend bool `yaml:"one_backend"`
	// Tries counts the requests that reached each backend.
	Tries map[string]int `yaml:"tries"`
	// Seen is the request as the backend saw it.
	Seen Seen `yaml:"seen"`
	// Headers of the answer: null for absent, `~` and a regular expression, or the value.
	Headers map[string]*string `yaml:"headers"`
	Body    *string            `yaml:"body"`
	// BodyContains is part of the answer's body.
	BodyContains string `yaml:"body_contains"`
	// Fails says that there is no answer at all: no connection, no handshake.
	Fails bool `yaml:"fails"`
	// Within and After bound the time the answer takes.
	Within time.Duration `yaml:"within"`
	After  time.Duration `yaml:"after"`
	// GRPC is the health status, or the status code of a failed call.
	GRPC string `yaml:"grpc"`
	// ServedCert is the common name of the certificate that was presented.
	ServedCert string `yaml:"served_cert"`
}

// Seen is what a backend saw of a request.
type Seen struct {
	Method     string             `yaml:"method"`
	Path       string             `yaml:"path"`
	Host       string             `yaml:"host"`
	Proto      string             `yaml:"proto"`
	Headers    map[string]*string `yaml:"headers"`
	Body       string             `yaml:"body"`
	SNI        string             `yaml:"sni"`
	ClientCert string             `yaml:"client_cert"`
}

// Values is one string or a list of them.
type Values []string

// UnmarshalYAML accepts a scalar for a list of one.
func (v *Values) UnmarshalYAML(data []byte) error {
	var one string
	if err := yaml.Unmarshal(data, &one); err == nil {
		*v = Values{one}
		return nil
	}
	var many []string
	if err := yaml.Unmarshal(data, &many); err != nil {
		return err
	}
	*v = many
	return nil
}

// Load reads all the cases of a directory, by name.
func Load(dir string) ([]*Case, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.txtar"))
	if err != nil {
		return nil, err
	}
	var all []*Case
	var problems []error
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		c, err := Parse(strings.TrimSuffix(filepath.Base(file), ".txtar"), data)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		all = append(all, c)
	}
	return all, errors.Join(problems...)
}

// Parse reads one case and refuses what it does not know.
func Parse(name string, data []byte) (*Case, error) {
	fail := func(format string, args ...any) (*Case, error) {
		return nil, fmt.Errorf("case %s: %w", name, fmt.Errorf(format, args...))
	}
	archive := txtar.Parse(data)
	c := &Case{
		Name:    name,
		Promise: strings.TrimSpace(string(archive.Comment)),
		Configs: map[string]string{},
	}
	var steps []byte
	for _, f := range archive.Files {
		if f.Name == stepsFile {
			steps = f.Data
		} else {
			c.Configs[f.Name] = string(f.Data)
		}
	}
	if c.Promise == "" {
		return fail("no promise before the first file")
	}
	if _, ok := c.Configs[FirstConfig]; !ok {
		return fail("no %s", FirstConfig)
	}
	if err := yaml.UnmarshalWithOptions(steps, &c.Steps, yaml.Strict()); err != nil {
		return fail("%s: %w", stepsFile, err)
	}
	demands := false
	for i, s := range c.Steps {
		if err := s.check(c); err != nil {
			return fail("step %d: %w", i+1, err)
		}
		demands = demands || s.request()
	}
	if !demands {
		return fail("no step sends a request")
	}
	return c, nil
}

func (s Step) request() bool { return s.Send != "" || s.WebSocket != "" || s.GRPC != "" }

func (s Step) check(c *Case) error {
	actions := 0
	for _, set := range []bool{s.Send != "", s.WebSocket != "", s.GRPC != "", s.Set != nil, s.Wait != 0, s.Apply != ""} {
		if set {
			actions++
		}
	}
	if actions != 1 {
		return fmt.Errorf("has %d actions, must have one", actions)
	}
	if s.Apply != "" {
		if _, ok := c.Configs[s.Apply]; !ok {
			return fmt.Errorf("applies %q, which is not in the archive", s.Apply)
		}
	}
	if !s.request() {
		return nil
	}
	if s.Expect.empty() {
		return errors.New("expects nothing, so it cannot fail")
	}
	if n := len(s.Expect.Statuses); n > 0 && n != max(s.Times, 1) {
		return fmt.Errorf("lists %d statuses for %d requests", n, max(s.Times, 1))
	}
	for name := range s.Set {
		if !slices.Contains(backendNames, name) {
			return fmt.Errorf("sets %q, which is no backend", name)
		}
	}
	_, err := s.target()
	return err
}

func (e Expect) empty() bool {
	return e.Status == 0 && e.Statuses == nil && e.From == "" && e.Share == nil && !e.OneBackend &&
		e.Tries == nil && e.Seen.empty() && e.Headers == nil && e.Body == nil && e.BodyContains == "" &&
		!e.Fails && e.GRPC == "" && e.ServedCert == ""
}

func (s Seen) empty() bool {
	return s.Method == "" && s.Path == "" && s.Host == "" && s.Proto == "" && s.Headers == nil &&
		s.Body == "" && s.SNI == "" && s.ClientCert == ""
}
