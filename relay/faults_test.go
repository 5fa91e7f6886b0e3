package relay

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/xds"
)

var (
	faults    = flag.Int("faults", 2, "how often each fault of TestNothingOlderAndNothingLost happens")
	faultSeed = flag.Uint64("fault-seed", 1, "what the faults' details are drawn from")
)

// relayEnv makes this test's binary a relay: the kill must be of a process.
const relayEnv = "MUSTER_TEST_RELAY"

type relayProcess struct {
	ID, Addr, Dir string
	Upstream      []string
}

func TestMain(m *testing.M) {
	if spec := os.Getenv(relayEnv); spec != "" {
		os.Exit(runRelayProcess(spec))
	}
	goleak.VerifyTestMain(m)
}

func runRelayProcess(spec string) int {
	var p relayProcess
	if err := json.Unmarshal([]byte(spec), &p); err != nil {
		return 2
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer cancel()
	r, err := New(Config{
		ID: p.ID, Upstream: p.Upstream, UpstreamInsecure: true, Insecure: true, Addr: p.Addr, DataDir: p.Dir,
		Upstreaming: quick, Timing: xds.Timing{CatchUp: 300 * time.Millisecond, Settle: 50 * time.Millisecond},
		Limits: xds.Limits{Replacements: -1}, ShutdownGrace: time.Second,
		Logger: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError})),
	})
	if err == nil {
		err = r.Run(ctx)
	}
	if err != nil {
		_, _ = fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// victim is a relay in a process of its own, on a fixed address.
type victim struct {
	t    testing.TB
	spec relayProcess
	cmd  *exec.Cmd
	log  *logTail
}

// logTail keeps the end of what a process says.
type logTail struct{ lines []byte }

func (l *logTail) Write(b []byte) (int, error) {
	l.lines = append(l.lines, b...)
	if over := len(l.lines) - 16<<10; over > 0 {
		l.lines = l.lines[over:]
	}
	return len(b), nil
}

func (v *victim) start() {
	v.t.Helper()
	spec, err := json.Marshal(v.spec)
	if err != nil {
		v.t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		v.t.Fatal(err)
	}
	v.cmd = exec.Command(exe)
	v.cmd.Env = append(os.Environ(), relayEnv+"="+string(spec))
	v.cmd.Stderr = v.log
	if err := v.cmd.Start(); err != nil {
		v.t.Fatal(err)
	}
}

func (v *victim) kill() {
	v.t.Helper()
	if err := v.cmd.Process.Kill(); err != nil {
		v.t.Fatalf("the relay was gone already: %v\n%s", err, v.log.lines)
	}
	_ = v.cmd.Wait()
}

// world is a centre, two relays behind links, and stock data planes.
type world struct {
	t      *testing.T
	rng    *rand.Rand
	centre *centre
	up     []*link // from each relay to the centre
	relays []*victim
	planes []*stockPlane
	count  int
	dirs   string // copies of the first relay's disk
	kept   int
}

func newWorld(t *testing.T) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(*faultSeed, 16)), dirs: t.TempDir()}
	w.centre = newCentre(t)
	w.centre.group("edge", nil)
	var stable []string
	for i := range 20 {
		w.centre.service("edge", fmt.Sprintf("s%d", i), 80)
		stable = append(stable, fmt.Sprintf("service/s%d", i))
	}
	w.change()
	var addrs []string
	for i := range 2 {
		w.up = append(w.up, newLink(t, w.centre.addr()))
		v := &victim{t: t, log: &logTail{}, spec: relayProcess{
			ID: fmt.Sprintf("relay-%d", i), Addr: freeAddr(t), Dir: t.TempDir(), Upstream: []string{w.up[i].addr()},
		}}
		v.start()
		t.Cleanup(func() { _ = v.cmd.Process.Kill(); _ = v.cmd.Wait() })
		w.relays = append(w.relays, v)
		addrs = append(addrs, v.spec.Addr)
	}
	a, b, c := addrs[0], addrs[1], w.centre.addr()
	for i, targets := range [][]string{{a}, {b}, {a, b}, {b, a}, {a, c}, {c, a}, {a, b, c}} {
		w.planes = append(w.planes,
			newStockPlane(t, fmt.Sprintf("delta-%d", i), false, stable, targets...),
			newStockPlane(t, fmt.Sprintf("sotw-%d", i), true, stable, targets...))
	}
	w.settle("the start")
	return w
}

// freeAddr returns a loopback address that nobody listens on.
func freeAddr(t testing.TB) string {
	l := newLink(t, "")
	addr := l.addr()
	_ = l.ln.Close()
	return addr
}

// change commits a change of the counter, and sometimes adds or removes a service.
func (w *world) change() {
	w.t.Helper()
	w.count++
	w.centre.counterTo(w.count)
	switch name := fmt.Sprintf("t%d", w.count%7); w.rng.IntN(4) {
	case 0:
		w.centre.service("edge", name, int32(1000+w.count%1000))
	case 1:
		// Not there, or there: both are well.
		_, _ = w.centre.srv.Admin().Commit(w.centre.as(), &musterv1.CommitRequest{Group: "edge", Changes: []*musterv1.Change{
			{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_ROUTE, Id: name}}},
			{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SERVICE, Id: name}}},
		}})
	}
}

// settle waits until every data plane has the newest counter, and looks for breaches.
func (w *world) settle(after string) {
	w.t.Helper()
	// Less what is lost between seconds as the API has them and nanoseconds.
	want := time.Duration(w.count)*time.Millisecond - time.Microsecond
	for deadline := time.Now().Add(60 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		var behind []string
		for _, p := range w.planes {
			if !p.at(want) {
				p.mu.Lock()
				behind = append(behind, fmt.Sprintf("%s (at %v, from %s)", p.id, p.counter, p.targets[(p.next+len(p.targets)-1)%len(p.targets)]))
				p.mu.Unlock()
			}
		}
		if len(behind) == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Fatalf("after %s: change %d does not get to %v; the relays are %s and %s, the first said:\n%s",
				after, w.count, behind, w.relays[0].spec.Addr, w.relays[1].spec.Addr, w.relays[0].log.lines)
		}
	}
	for _, p := range w.planes {
		p.mu.Lock()
		if len(p.breach) > 0 {
			w.t.Errorf("after %s: %s: %s", after, p.id, strings.Join(p.breach, "; "))
			p.breach = nil
		}
		p.mu.Unlock()
	}
}

func (w *world) pause(most time.Duration) { time.Sleep(time.Duration(w.rng.Int64N(int64(most)))) }

// keep copies the first relay's disk.
func (w *world) keep() {
	w.kept++
	copyDir(w.t, w.relays[0].spec.Dir, filepath.Join(w.dirs, fmt.Sprint(w.kept)))
	if w.kept > 4 {
		_ = os.RemoveAll(filepath.Join(w.dirs, fmt.Sprint(w.kept-4)))
	}
}

func copyDir(t testing.TB, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	// Files come and go while a relay runs; a copy that misses some is a disk, too.
	if err := os.CopyFS(to, os.DirFS(from)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
}

// The faults. Each leaves everything working but for time.
func (w *world) kill() {
	w.relays[0].kill()
	w.change()
	w.pause(50 * time.Millisecond)
	w.relays[0].start()
	w.change()
}

func (w *world) killWithPartition() {
	w.up[0].set(true, false)
	w.change()
	w.relays[0].kill()
	w.change()
	w.relays[0].start()
	w.pause(400 * time.Millisecond)
	w.up[0].set(false, false)
}

func (w *world) stall() {
	_ = w.relays[0].cmd.Process.Signal(syscall.SIGSTOP)
	for range 3 {
		w.change()
		w.pause(50 * time.Millisecond)
	}
	_ = w.relays[0].cmd.Process.Signal(syscall.SIGCONT)
}

func (w *world) stale() {
	w.keep()
	old := max(1, w.kept-w.rng.IntN(3))
	w.change()
	w.settle("a change")
	w.relays[0].kill()
	copyDir(w.t, filepath.Join(w.dirs, fmt.Sprint(old)), w.relays[0].spec.Dir)
	w.up[0].set(w.rng.IntN(2) == 0, false)
	w.change()
	w.relays[0].start()
	w.pause(400 * time.Millisecond)
	w.up[0].set(false, false)
}

func (w *world) corrupt() {
	w.relays[0].kill()
	var files []string
	_ = filepath.WalkDir(w.relays[0].spec.Dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && !strings.HasSuffix(path, ".lock") {
			files = append(files, path)
		}
		return nil
	})
	slices.Sort(files)
	for range 1 + w.rng.IntN(2) {
		path := files[w.rng.IntN(len(files))]
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			continue
		}
		at := w.rng.IntN(len(data))
		switch w.rng.IntN(3) {
		case 0:
			data = data[:at]
		case 1:
			data[at] ^= 1 << w.rng.IntN(8)
		default:
			clear(data[at:])
		}
		if err := os.WriteFile(path, data, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	w.up[0].set(w.rng.IntN(2) == 0, false)
	w.change()
	w.relays[0].start()
	w.pause(400 * time.Millisecond)
	w.up[0].set(false, false)
}

func (w *world) partition() {
	i := w.rng.IntN(2)
	cut := w.rng.IntN(2) == 0
	w.up[i].set(cut, !cut)
	for range 3 {
		w.change()
		w.pause(100 * time.Millisecond)
	}
	w.up[i].set(false, false)
}

func (w *world) move() {
	for range 3 {
		for _, p := range w.planes {
			p.mu.Lock()
			target := p.targets[w.rng.IntN(len(p.targets))]
			p.mu.Unlock()
			if w.rng.IntN(2) == 0 {
				p.move(target)
			}
		}
		w.change()
		w.pause(30 * time.Millisecond)
	}
}

// TestNothingOlderAndNothingLost holds the promises of a relay against faults, with
// data planes that believe everything: whatever happens to relays, their disks and
// links, no data plane is ever given something older than it had, and none loses
// what was there all the time. `make relay-faults` runs each fault a hundred times.
func TestNothingOlderAndNothingLost(t *testing.T) {
	w := newWorld(t)
	kinds := []struct {
		name  string
		fault func()
	}{
		{"a killed relay", w.kill}, {"a relay killed while partitioned", w.killWithPartition},
		{"a stalled relay", w.stall}, {"a stale disk", w.stale}, {"a corrupt disk", w.corrupt},
		{"a partition", w.partition}, {"moving data planes", w.move},
	}
	var rounds []int
	for i := range kinds {
		for range *faults {
			rounds = append(rounds, i)
		}
	}
	w.rng.Shuffle(len(rounds), func(i, j int) { rounds[i], rounds[j] = rounds[j], rounds[i] })
	started := time.Now()
	for n, i := range rounds {
		kinds[i].fault()
		w.settle(kinds[i].name)
		if t.Failed() {
			t.Fatalf("round %d of %d, -fault-seed %d", n+1, len(rounds), *faultSeed)
		}
	}
	streams := 0
	for _, p := range w.planes {
		p.mu.Lock()
		streams += p.streams
		p.mu.Unlock()
	}
	t.Logf("%d faults, %d changes and %d responses to %d data planes in %v", len(rounds), w.count, streams, len(w.planes), time.Since(started).Round(time.Second))
}
