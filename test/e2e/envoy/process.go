package envoy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Binary is an Envoy that is there to be run.
type Binary struct {
	Version, Path string
	// SotW says that it is to speak the state-of-the-world protocol, PerType that it
	// is to have a stream of each type in place of one of ADS.
	SotW, PerType bool
}

// Name is the version, with the protocol when it is not delta.
func (b Binary) Name() string {
	name := b.Version
	if b.SotW {
		name += sotwSuffix
	}
	if b.PerType {
		name += perTypeSuffix
	}
	return name
}

const sotwSuffix, perTypeSuffix = "-sotw", "-pertype"

// BinariesVariable names what `make e2e` sets: version=path pairs, separated by
// spaces. A version that ends in -sotw speaks the state-of-the-world protocol, one that
// ends in -pertype has a stream of each type.
const BinariesVariable = "MUSTER_E2E_ENVOYS"

// Binaries reads BinariesVariable; the first is the one for tests that need only one.
func Binaries() ([]Binary, error) {
	var all []Binary
	for pair := range strings.FieldsSeq(os.Getenv(BinariesVariable)) {
		version, path, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, fmt.Errorf("%s: %q is not version=path", BinariesVariable, pair)
		}
		if _, err := os.Stat(path); err != nil {
			return nil, fmt.Errorf("envoy %s: %w", version, err)
		}
		version, perType := strings.CutSuffix(version, perTypeSuffix)
		version, sotw := strings.CutSuffix(version, sotwSuffix)
		all = append(all, Binary{Version: version, Path: path, SotW: sotw, PerType: perType})
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("%s is not set: run these tests by make e2e", BinariesVariable)
	}
	return all, nil
}

// Config describes an Envoy to start.
type Config struct {
	Binary Binary
	// Bootstrap is the configuration, YAML or JSON.
	Bootstrap []byte
	// Admin is the address of the admin interface in Bootstrap.
	Admin string
	// Dir takes the bootstrap and the log.
	Dir string
	// Concurrency is the number of worker threads; 0 means 1.
	Concurrency int
}

// Process is a running Envoy.
type Process struct {
	Admin
	Version string

	cmd     *exec.Cmd
	logPath string
	exited  chan struct{}
	mu      sync.Mutex
	err     error // why it exited
}

// Start runs an Envoy and returns when its admin interface answers, which is
// before it has any configuration; see Admin.WaitReady. The caller must Stop it.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	bootstrap := filepath.Join(cfg.Dir, "bootstrap.yaml")
	if err := os.WriteFile(bootstrap, cfg.Bootstrap, 0o600); err != nil {
		return nil, err
	}
	logPath := filepath.Join(cfg.Dir, "envoy.log")
	log, err := os.Create(logPath)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	concurrency := max(cfg.Concurrency, 1)
	cmd := exec.Command(cfg.Binary.Path,
		"-c", bootstrap,
		"--concurrency", fmt.Sprint(concurrency),
		"--disable-hot-restart",
		"--drain-time-s", "1",
		"--parent-shutdown-time-s", "2",
		"--log-level", "warning",
		// api_key_auth is work in progress upstream, and says so for every message.
		"--component-log-level", "misc:error",
	)
	cmd.Stdout, cmd.Stderr = log, log
	// An Envoy must not outlive a test that was killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start envoy %s: %w", cfg.Binary.Version, err)
	}
	p := &Process{
		Admin:   Admin{Addr: cfg.Admin},
		Version: cfg.Binary.Version,
		cmd:     cmd,
		logPath: logPath,
		exited:  make(chan struct{}),
	}
	go func() {
		defer close(p.exited)
		err := cmd.Wait()
		p.mu.Lock()
		defer p.mu.Unlock()
		p.err = err
	}()
	if err := p.waitAdmin(ctx); err != nil {
		p.Stop()
		return nil, fmt.Errorf("envoy %s: %w\n%s", p.Version, err, p.LogTail(2000))
	}
	return p, nil
}

func (p *Process) waitAdmin(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for {
		if _, err := p.Get(ctx, "/server_info"); err == nil {
			return nil
		}
		select {
		case <-p.exited:
			p.mu.Lock()
			defer p.mu.Unlock()
			return fmt.Errorf("exited at once: %w", errors.Join(p.err))
		case <-ctx.Done():
			return fmt.Errorf("admin interface did not answer: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Running reports whether the process has not exited.
func (p *Process) Running() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// Pid is the process's id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Stop ends the process and waits for it. It may be called twice.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.exited:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.exited
	}
}

// LogTail returns the last n bytes of the log.
func (p *Process) LogTail(n int) string {
	log, err := os.ReadFile(p.logPath)
	if err != nil {
		return err.Error()
	}
	return string(bytes.TrimSpace(log[max(0, len(log)-n):]))
}
