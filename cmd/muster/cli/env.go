package cli

import (
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/mattn/go-isatty"
)

// Env is everything a command touches of the process it runs in.
type Env struct {
	Stdin  io.Reader
	Stdout io.Writer
	Stderr io.Writer
	// LookupEnv reads an environment variable.
	LookupEnv func(key string) (string, bool)
	// Dir is what relative paths are relative to; empty means the process's directory.
	Dir string
	// Now is the clock for ages in tables.
	Now func() time.Time

	// Whether each stream is a terminal: questions, colour and progress need one.
	StdinTTY, StdoutTTY, StderrTTY bool
}

// OSEnv is the environment of this process.
func OSEnv() Env {
	return Env{
		Stdin:     os.Stdin,
		Stdout:    os.Stdout,
		Stderr:    os.Stderr,
		LookupEnv: os.LookupEnv,
		Now:       time.Now,
		StdinTTY:  isatty.IsTerminal(os.Stdin.Fd()),
		StdoutTTY: isatty.IsTerminal(os.Stdout.Fd()),
		StderrTTY: isatty.IsTerminal(os.Stderr.Fd()),
	}
}

func (e Env) getenv(key string) string {
	v, _ := e.LookupEnv(key)
	return v
}

// path returns where a file lies that the user named.
func (e Env) path(name string) string {
	if e.Dir == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(e.Dir, name)
}

// colour reports whether to colour what goes to stdout (https://no-color.org).
func (e Env) colour() bool {
	return e.StdoutTTY && e.getenv("NO_COLOR") == "" && e.getenv("TERM") != "dumb"
}
