package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	corev3 "github.com/envoyproxy/go-control-plane/envoy/config/core/v3"
	"google.golang.org/grpc"

	"github.com/musterhq/muster/cmd/muster/bootstrap"
	"github.com/musterhq/muster/server/xds"
)

// gateway is an Envoy of a group of some services on one host. Every request is
// answered by Envoy itself, with 403: what it costs is routing.
type gateway struct {
	services int
	server   *grpc.Server
	envoy    *exec.Cmd
	addr     string
	conn     net.Conn
	in       *bufio.Reader
}

// startGateway runs an Envoy and returns when it serves every service.
func startGateway(ctx context.Context, binary, dir string, services int) (*gateway, error) {
	g, err := newGroup()
	if err != nil {
		return nil, err
	}
	if err := g.services(services, true); err != nil {
		return nil, err
	}
	hub := xds.NewHub()
	hub.Publish(g.snap)
	srv := xds.NewServer(xds.Config{
		Source:    hub,
		Authorize: func(context.Context, *corev3.Node) (string, error) { return "group", nil },
	})
	gw := &gateway{services: services, server: grpc.NewServer(srv.ServerOptions()...)}
	srv.Register(gw.server)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	go func() { _ = gw.server.Serve(lis) }() // ends with Stop
	port, err := freePort()
	if err != nil {
		return nil, errors.Join(err, gw.stop())
	}
	gw.addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	text, err := bootstrap.Envoy{
		Group: "group", NodeID: fmt.Sprint("bench-", services), Servers: []string{lis.Addr().String()},
		ListenAddress: "127.0.0.1", HTTPPort: port,
	}.YAML()
	if err != nil {
		return nil, errors.Join(err, gw.stop())
	}
	file := filepath.Join(dir, fmt.Sprintf("envoy-%d.yaml", services))
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, errors.Join(err, gw.stop())
	}
	gw.envoy = exec.CommandContext(ctx, binary, "-c", file, "--concurrency", "1", "--disable-hot-restart", "--log-level", "error")
	if err := gw.envoy.Start(); err != nil {
		gw.envoy = nil
		return nil, errors.Join(err, gw.stop())
	}
	for deadline := time.Now().Add(2 * time.Minute); ; {
		if err = gw.answers(services - 1); err == nil {
			return gw, nil
		}
		if time.Now().After(deadline) {
			return nil, errors.Join(fmt.Errorf("Envoy does not serve %d services: %w", services, err), gw.stop())
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func freePort() (int, error) {
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer lis.Close()
	return lis.Addr().(*net.TCPAddr).Port, nil
}

// answers sends one request to a service, over the connection that is kept.
func (g *gateway) answers(service int) error {
	if g.conn == nil {
		conn, err := net.Dial("tcp", g.addr)
		if err != nil {
			return err
		}
		g.conn, g.in = conn, bufio.NewReader(conn)
	}
	_, err := fmt.Fprintf(g.conn, "GET /%s/x HTTP/1.1\r\nHost: %s\r\n\r\n", serviceID(service), gatewayHost)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(g.in, nil)
	}
	if err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		_ = resp.Body.Close()
		if err == nil && resp.StatusCode != http.StatusForbidden {
			err = fmt.Errorf("service %d answered %s, want 403", service, resp.Status)
		}
	}
	if err != nil {
		_ = g.conn.Close()
		g.conn = nil
	}
	return err
}

// sample sends n requests to random services and returns Envoy's CPU time of one.
func (g *gateway) sample(n int) (float64, error) {
	before, err := cpuOf(g.envoy.Process.Pid)
	if err != nil {
		return 0, err
	}
	for range n {
		if err := g.answers(rand.IntN(g.services)); err != nil {
			return 0, err
		}
	}
	after, err := cpuOf(g.envoy.Process.Pid)
	return (after - before) / float64(n), err
}

func (g *gateway) stop() error {
	if g.conn != nil {
		_ = g.conn.Close()
	}
	if g.envoy != nil {
		_ = g.envoy.Process.Kill()
		_ = g.envoy.Wait()
	}
	g.server.Stop()
	return nil
}

// clockTicks is USER_HZ, which is 100 on every Linux that Envoy is built for.
const clockTicks = 100

// cpuOf returns the CPU time of a process in seconds.
func cpuOf(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may hold anything; utime and stime are the 12th and
	// 13th field after it.
	fields := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+1:]))
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat has %d fields", pid, len(fields))
	}
	user, err1 := strconv.ParseFloat(fields[11], 64)
	system, err2 := strconv.ParseFloat(fields[12], 64)
	return (user + system) / clockTicks, errors.Join(err1, err2)
}

// routing is B16: what a request costs Envoy must not grow with the services of a host.
func (r *runner) routing(ctx context.Context) error {
	if r.envoy == "" {
		fmt.Fprintln(os.Stderr, "B16 is left out: -envoy names no Envoy")
		return nil
	}
	dir, err := os.MkdirTemp("", "muster-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	few, err := startGateway(ctx, r.envoy, dir, 10)
	if err != nil {
		return err
	}
	defer few.stop()
	many, err := startGateway(ctx, r.envoy, dir, r.size(10000, 1000))
	if err != nil {
		return err
	}
	defer many.stop()
	requests := r.size(10000, 3000)
	cpu := map[*gateway][]float64{}
	for s := range r.samples + 1 {
		for _, g := range []*gateway{few, many} {
			got, err := g.sample(requests)
			if err != nil {
				return err
			}
			if s >= 1 {
				cpu[g] = append(cpu[g], got*1e6)
			}
		}
	}
	r.report.row("B16", fmt.Sprintf("Envoy's CPU per request, %d services on one host against 10 (in place of the floor)", many.services), "µs", cpu[many], cpu[few], nil)
	r.report.gate("B16 flat", median(cpu[many])/median(cpu[few]), 1.5)
	return nil
}

// groupMemory states what a group costs a server's memory.
func (r *runner) groupMemory(ctx context.Context) error {
	services, revisions := r.size(10000, 1000), 20
	p, err := spawn(ctx, "memory", "-resources", strconv.Itoa(services), "-revisions", strconv.Itoa(revisions))
	if err != nil {
		return err
	}
	defer p.stop()
	got, err := p.call(request{Do: "measure"})
	if err != nil {
		return err
	}
	r.report.row("memory", fmt.Sprintf("RSS of one group of %d services and routes, %d revisions back", services, revisions), "MB", []float64{float64(got.RSS) / (1 << 20)}, nil, nil)
	r.report.heap = got.Heap
	return nil
}
