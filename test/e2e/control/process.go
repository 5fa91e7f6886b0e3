package control

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

// Build compiles cmd/muster into dir and returns the binary's path.
func Build(ctx context.Context, dir string) (string, error) {
	binary := filepath.Join(dir, "muster")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", binary, "github.com/musterhq/muster/cmd/muster")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build muster: %w\n%s", err, out)
	}
	return binary, nil
}

// Process is a running muster process. Its methods are safe for concurrent use.
type Process struct {
	cmd    *exec.Cmd
	output *tail
	exited chan struct{}
	mu     sync.Mutex
	err    error
}

// Start runs the binary with arguments. The caller must Stop or Kill it.
func Start(binary string, args ...string) (*Process, error) {
	return startProcess(binary, nil, args...)
}

func startProcess(binary string, env []string, args ...string) (*Process, error) {
	cmd := exec.Command(binary, args...)
	cmd.Env = append(os.Environ(), env...)
	p := &Process{cmd: cmd, output: &tail{limit: 64 << 10}, exited: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.output, p.output
	// It must not outlive a test that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start muster: %w", err)
	}
	go func() {
		defer close(p.exited)
		err := cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.err = err
	}()
	return p, nil
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Output returns the last 64 KiB that the process printed.
func (p *Process) Output() string { return p.output.String() }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Stop interrupts the process as Ctrl-C does and waits for it. It returns an
// error unless the process ends by itself, successfully, within ten seconds.
func (p *Process) Stop() error {
	_ = p.cmd.Process.Signal(os.Interrupt)
	timer := time.NewTimer(10 * time.Second)
	defer timer.Stop()
	select {
	case <-p.exited:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.err
	case <-timer.C:
		p.Kill()
		return errors.New("muster did not stop within 10 s of an interrupt")
	}
}

// Kill ends the process as kill -9 does and waits for it.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.exited
}

// tail keeps the last bytes written to it.
type tail struct {
	mu    sync.Mutex
	buf   bytes.Buffer
	limit int
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b)
	if over := t.buf.Len() - t.limit; over > 0 {
		t.buf.Next(over)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.buf.String()
}
