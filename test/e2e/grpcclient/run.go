package grpcclient

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Config describes a run.
type Config struct {
	// Bootstrap is the text of the file that GRPC_XDS_BOOTSTRAP names.
	Bootstrap string
	// Target is xds:///service.
	Target string
	// Rate is the number of calls a second.
	Rate int
	// Timeout is how long a call may take.
	Timeout time.Duration
	// Header is sent with each call, key=value; may be empty.
	Header string
	// CSDS is the loopback port of the client's own status service; 0 for none.
	CSDS int
	// Dir takes the bootstrap.
	Dir string
}

// Result is what became of one call.
type Result struct {
	N       int     `json:"n"`
	Code    string  `json:"code"` // as a client of its language names it
	Millis  float64 `json:"ms"`
	Backend string  `json:"backend"`
	Detail  string  `json:"detail"`
}

// OK reports whether the call succeeded.
func (r Result) OK() bool { return r.Code == "OK" }

// Run is a client at work. Its methods are safe for concurrent use.
type Run struct {
	cmd    *exec.Cmd
	stderr *tail
	ended  chan struct{}

	mu      sync.Mutex
	results []Result
	grown   chan struct{} // closed and replaced with each result
	err     error
}

// Start runs the client until Stop.
func (c Client) Start(cfg Config) (*Run, error) {
	bootstrap := filepath.Join(cfg.Dir, "xds.json")
	if err := os.WriteFile(bootstrap, []byte(cfg.Bootstrap), 0o600); err != nil {
		return nil, err
	}
	const hours = 3600
	args := append(c.argv[1:len(c.argv):len(c.argv)],
		"--target="+cfg.Target, fmt.Sprintf("--rate=%d", cfg.Rate), fmt.Sprintf("--duration=%d", hours),
		fmt.Sprintf("--timeout=%g", cfg.Timeout.Seconds()))
	if cfg.Header != "" {
		args = append(args, "--header="+cfg.Header)
	}
	if cfg.CSDS != 0 {
		args = append(args, fmt.Sprintf("--csds=%d", cfg.CSDS))
	}
	cmd := exec.Command(c.argv[0], args...)
	cmd.Env = append(os.Environ(), "GRPC_XDS_BOOTSTRAP="+bootstrap)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	r := &Run{cmd: cmd, stderr: &tail{}, ended: make(chan struct{}), grown: make(chan struct{})}
	cmd.Stderr = r.stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("%s client: %w", c.Name, err)
	}
	go func() {
		defer close(r.ended)
		r.read(out)
		err := cmd.Wait()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.err = errors.Join(r.err, err)
	}()
	return r, nil
}

func (r *Run) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var res Result
		err := json.Unmarshal(lines.Bytes(), &res)
		r.mu.Lock()
		if err != nil {
			r.err = fmt.Errorf("%q: %w", lines.Text(), err)
		} else {
			r.results = append(r.results, res)
			close(r.grown)
			r.grown = make(chan struct{})
		}
		r.mu.Unlock()
	}
}

// Mark returns the number of calls that have ended so far.
func (r *Run) Mark() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.results)
}

// Since returns the calls that ended since a mark.
func (r *Run) Since(mark int) []Result {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Result(nil), r.results[mark:]...)
}

// Next waits for calls to end after a mark until enough tells that those suffice.
func (r *Run) Next(ctx context.Context, mark int, enough func([]Result) bool) ([]Result, error) {
	for {
		r.mu.Lock()
		since, grown := r.results[mark:len(r.results):len(r.results)], r.grown
		r.mu.Unlock()
		if enough(since) {
			return since, nil
		}
		select {
		case <-grown:
		case <-r.ended:
			return since, fmt.Errorf("the client ended by itself: %w", r.Err())
		case <-ctx.Done():
			return since, fmt.Errorf("%w after %d calls; the last: %s", ctx.Err(), len(since), last(since))
		}
	}
}

func last(results []Result) string {
	if len(results) == 0 {
		return "none"
	}
	return fmt.Sprintf("%+v", results[len(results)-1])
}

// Err is what went wrong with the process itself.
func (r *Run) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.err, errors.New(strings.TrimSpace(r.stderr.String())))
}

// Running reports whether the client has not ended.
func (r *Run) Running() bool {
	select {
	case <-r.ended:
		return false
	default:
		return true
	}
}

// Stderr returns the end of what the client said.
func (r *Run) Stderr() string { return r.stderr.String() }

// Stop ends the client and waits for it.
func (r *Run) Stop() {
	_ = r.cmd.Process.Kill()
	<-r.ended
}

// tail keeps the last bytes written to it.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b)
	if over := t.buf.Len() - 8<<10; over > 0 {
		t.buf.Next(over)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
