package behaviour

import (
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/musterhq/muster/test/e2e/pki"
	"github.com/musterhq/muster/test/e2e/ports"
	"github.com/musterhq/muster/test/e2e/upstream"
)

var backendNames = []string{"a", "b", "c", "tls", "mtls", "grpc"}

// World is what a case's configuration points at: its backends and the
// certificates. It serves one case, not concurrently.
type World struct {
	authority *pki.Authority
	backends  map[string]*upstream.Backend
	dead      string
}

// NewWorld starts the backends that the case names.
func NewWorld(c *Case, authority *pki.Authority) (*World, error) {
	w := &World{authority: authority, backends: map[string]*upstream.Backend{}}
	for _, config := range c.Configs {
		for _, m := range placeholder.FindAllStringSubmatch(config, -1) {
			name := m[1]
			if !slices.Contains(backendNames, name) || w.backends[name] != nil {
				continue
			}
			b, err := w.start(name)
			if err != nil {
				w.Close()
				return nil, err
			}
			w.backends[name] = b
		}
	}
	dead, err := ports.Free()
	if err != nil {
		w.Close()
		return nil, err
	}
	w.dead = strconv.Itoa(dead)
	return w, nil
}

func (w *World) start(name string) (*upstream.Backend, error) {
	cfg := upstream.Config{Name: name}
	switch name {
	case "tls", "mtls":
		leaf, err := w.authority.Leaf("backend.test")
		if err != nil {
			return nil, err
		}
		cfg.TLS = &tls.Config{Certificates: []tls.Certificate{leaf.TLS}}
		if name == "mtls" {
			cfg.TLS.ClientAuth = tls.RequireAndVerifyClientCert
			cfg.TLS.ClientCAs = w.authority.Pool()
		}
	case "grpc":
		cfg.Handler = upstream.GRPCHealth()
	}
	return upstream.Start(cfg)
}

// Close stops the backends.
func (w *World) Close() {
	for _, b := range w.backends {
		b.Close()
	}
}

// Reset makes all backends behave.
func (w *World) Reset() error {
	var problems []error
	for _, b := range w.backends {
		problems = append(problems, b.Set(upstream.Behaviour{}))
	}
	return errors.Join(problems...)
}

func (w *World) tries() map[string]int {
	all := map[string]int{}
	for name, b := range w.backends {
		all[name] = b.Requests()
	}
	return all
}

// A `$` before anything but a lower-case letter is left alone, as in regular
// expressions and in `$1`.
var placeholder = regexp.MustCompile(`\$([a-z]+)(?:\(([^)]*)\))?`)

// Expand replaces the placeholders of a configuration.
func (w *World) Expand(config string) (string, error) {
	var problems []error
	expanded := placeholder.ReplaceAllStringFunc(config, func(found string) string {
		m := placeholder.FindStringSubmatch(found)
		value, err := w.value(m[1], m[2])
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", found, err))
		}
		return value
	})
	return expanded, errors.Join(problems...)
}

func (w *World) value(name, arg string) (string, error) {
	switch name {
	case "dead":
		return w.dead, nil
	case "ca":
		return quoted(w.authority.CertPEM)
	case "cert", "key":
		leaf, err := w.authority.Leaf(arg)
		if err != nil {
			return "", err
		}
		if name == "key" {
			return quoted(leaf.KeyPEM)
		}
		return quoted(leaf.CertPEM)
	}
	if b, ok := w.backends[name]; ok {
		_, port, err := net.SplitHostPort(b.Addr())
		return port, err
	}
	return "", errors.New("no such placeholder")
}

// quoted is a string as a JSON literal, which is also a YAML one.
func quoted(s string) (string, error) {
	out, err := json.Marshal(strings.TrimSpace(s) + "\n")
	return string(out), err
}
