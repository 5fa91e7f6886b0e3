package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// request and reply are the lines that the orchestrator and its processes
// exchange on standard input and output.
type request struct {
	Do      string  `json:"do"`
	Indices []int   `json:"indices,omitempty"`
	Acks    int64   `json:"acks,omitempty"`
	Seconds float64 `json:"seconds,omitempty"`
	Rate    float64 `json:"rate,omitempty"`
	Known   bool    `json:"known,omitempty"`
	Stalled int     `json:"stalled,omitempty"`
	Writers int     `json:"writers,omitempty"`
}

type reply struct {
	Error   string  `json:"error,omitempty"`
	Addr    string  `json:"addr,omitempty"`
	Wall    float64 `json:"wall,omitempty"` // seconds
	CPU     float64 `json:"cpu,omitempty"`  // seconds, user and system
	RSS     int64   `json:"rss,omitempty"`  // bytes
	Digest  uint64  `json:"digest,omitempty"`
	Bytes   int64   `json:"bytes,omitempty"`
	Sent    int64   `json:"sent,omitempty"`
	P50     float64 `json:"p50,omitempty"` // seconds
	P99     float64 `json:"p99,omitempty"`
	Count   int64   `json:"count,omitempty"`
	Pushes  int64   `json:"pushes,omitempty"`
	Streams int     `json:"streams,omitempty"`

	Backwards  int64 `json:"backwards,omitempty"`
	Reconnects int64 `json:"reconnects,omitempty"`

	Heap []holder `json:"heap,omitempty"`
}

// child is one process of a scenario.
type child struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func spawn(ctx context.Context, args ...string) (*child, error) {
	cmd := exec.CommandContext(ctx, os.Args[0], args...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &child{cmd: cmd, in: in, out: bufio.NewScanner(out)}, nil
}

func (c *child) call(r request) (reply, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return reply{}, err
	}
	if _, err := c.in.Write(append(b, '\n')); err != nil {
		return reply{}, err
	}
	if !c.out.Scan() {
		return reply{}, fmt.Errorf("%s ended during %q", c.cmd.Args[1], r.Do)
	}
	var p reply
	if err := json.Unmarshal(c.out.Bytes(), &p); err != nil {
		return reply{}, err
	}
	if p.Error != "" {
		return p, fmt.Errorf("%s %v: %s", r.Do, c.cmd.Args[1:], p.Error)
	}
	return p, nil
}

// stop ends the process and waits for it.
func (c *child) stop() {
	_ = c.in.Close()
	done := make(chan struct{})
	go func() { _ = c.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		_ = c.cmd.Process.Kill()
		<-done
	}
}

// answer serves requests from standard input until it closes.
func answer(handle func(request) (reply, error)) error {
	in := bufio.NewScanner(os.Stdin)
	in.Buffer(nil, 1<<20)
	out := json.NewEncoder(os.Stdout)
	for in.Scan() {
		var r request
		if err := json.Unmarshal(in.Bytes(), &r); err != nil {
			return err
		}
		p, err := handle(r)
		if err != nil {
			p.Error = err.Error()
		}
		if err := out.Encode(p); err != nil {
			return err
		}
	}
	return in.Err()
}

// profileEnv names the files to which server processes write CPU profiles, for
// working on the product; each process adds its arm and id.
const profileEnv = "MUSTER_BENCH_PROFILE"

func profile(file string) (stop func(), err error) {
	f, err := os.Create(file)
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, nil
}

// serveProcess is the server process of one arm.
func serveProcess(armName string, resources int, serverTLS *tls.Config) error {
	s, err := startArm(armName, resources, serverTLS)
	if err != nil {
		return err
	}
	if file := os.Getenv(profileEnv); file != "" {
		stop, err := profile(fmt.Sprintf("%s.%s.%d", file, armName, os.Getpid()))
		if err != nil {
			return err
		}
		defer stop()
	}
	next := 0
	return answer(func(r request) (reply, error) {
		switch r.Do {
		case "addr":
			return reply{Addr: s.addr}, nil
		case "usage":
			runtime.GC()
			debug.FreeOSMemory()
			return reply{RSS: rss(), CPU: cpuSeconds()}, nil
		case "digest":
			return reply{Digest: digestOf(s.want)}, nil
		case "cpu":
			return reply{CPU: cpuSeconds()}, nil
		case "push":
			before, cpu, start := s.received.Load(), cpuSeconds(), time.Now()
			s.change(start, r.Indices...)
			for s.received.Load()-before < r.Acks {
				if time.Since(start) > 300*time.Second {
					return reply{}, fmt.Errorf("%d of %d acknowledgements after 300 s", s.received.Load()-before, r.Acks)
				}
				time.Sleep(100 * time.Microsecond)
			}
			return reply{Wall: time.Since(start).Seconds(), CPU: cpuSeconds() - cpu}, nil
		case "churn":
			before, cpu, start := s.received.Load(), cpuSeconds(), time.Now()
			period := time.Duration(float64(time.Second) / r.Rate)
			tick := time.NewTicker(period)
			defer tick.Stop()
			changes := int64(0)
			for time.Since(start).Seconds() < r.Seconds {
				<-tick.C
				s.change(time.Now(), next%resources)
				next++
				changes++
			}
			return reply{Wall: time.Since(start).Seconds(), CPU: cpuSeconds() - cpu,
				Count: changes, Pushes: s.received.Load() - before}, nil
		}
		return reply{}, errors.New("unknown request " + strconv.Quote(r.Do))
	})
}

// loadProcess is the client process of one arm.
func loadProcess(ctx context.Context, id, agent, addr string, streams, resources int, clientTLS *tls.Config) error {
	f := newFleet(id, agent, addr, streams, resources, clientTLS)
	defer f.disconnect()
	return answer(func(r request) (reply, error) {
		wctx, cancel := context.WithTimeout(ctx, 600*time.Second)
		defer cancel()
		switch r.Do {
		case "connect":
			f.stalled = r.Stalled
			f.bytes.Store(0)
			start := time.Now()
			if err := f.connect(ctx); err != nil {
				return reply{}, err
			}
			if err := f.full(wctx); err != nil {
				return reply{}, err
			}
			return reply{Wall: time.Since(start).Seconds(), Bytes: f.bytes.Load(), Streams: streams}, nil
		case "settle":
			// A reconnected stream already holds everything: wait for silence.
			last := int64(-1)
			for f.bytes.Load() != last {
				last = f.bytes.Load()
				time.Sleep(500 * time.Millisecond)
			}
			return reply{Bytes: f.bytes.Load()}, nil
		case "disconnect":
			f.disconnect()
			if !r.Known {
				f.known = nil
				for _, cs := range f.streams {
					clear(cs.hashes)
					cs.held.Store(0)
				}
			}
			return reply{Bytes: int64(len(f.known))}, nil
		case "reset":
			f.stale.reset()
			f.bytes.Store(0)
			return reply{}, nil
		case "arrive":
			// Each stream gets one changed resource: how old it was then.
			for deadline := time.Now().Add(time.Minute); f.stale.count() < r.Acks; time.Sleep(time.Millisecond) {
				if time.Now().After(deadline) {
					return reply{}, fmt.Errorf("%d of %d streams have the change", f.stale.count(), r.Acks)
				}
			}
			return reply{P50: f.stale.quantile(0.5).Seconds(), Wall: f.stale.quantile(1).Seconds()}, nil
		case "digest":
			var d uint64
			err := f.wait(wctx, func(*clientStream) bool { return true })
			if err == nil {
				d, err = f.settledDigest(wctx)
			}
			return reply{Digest: d, Bytes: f.bytes.Load(), P50: f.stale.quantile(0.5).Seconds(),
				P99: f.stale.quantile(0.99).Seconds(), Count: f.stale.count()}, err
		}
		return processState(r)
	})
}

// settledDigest retries while responses may still be in flight.
func (f *fleet) settledDigest(ctx context.Context) (uint64, error) {
	for {
		d, err := f.digest()
		if err == nil || ctx.Err() != nil {
			return d, err
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func cpuSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// rss is this process's resident memory in bytes.
func rss() int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			return n << 10
		}
	}
	return 0
}

// pair is one arm's server and client processes.
type pair struct {
	arm            string
	server, client *child
	streams        int
}
