package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"google.golang.org/protobuf/types/known/structpb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/test/chaos/oracle"
)

const contSignal = syscall.SIGCONT

// canary is a secret that must not be seen where secrets do not belong.
const canary = "canary-5b1f0c2e9d"

const (
	// healLimit is how long a cluster may take to be whole again after a fault
	// has ended, and convergeLimit how long its data planes may take from then. How
	// long it took is in the tally. The limits are long, so that a machine that is
	// busy with other work proves nothing.
	healLimit     = time.Minute
	convergeLimit = 30 * time.Second
	judgeLimit    = 20 * time.Second
)

// world is one cluster with its clients and its oracle: what a schedule runs on.
type world struct {
	*cluster
	writers *writers
	fleet   *fleet
	cancel  context.CancelFunc
	wgw     sync.WaitGroup
	// healed is when the cluster was whole again after the last fault.
	healed time.Duration
	// damaged are the servers whose data was damaged on purpose: they may refuse
	// to start, saying so.
	damaged map[*node]bool
	// reseeded counts servers that were given new data because theirs was damaged.
	reseeded int
	// restarted counts servers that ended by themselves and were started again.
	restarted int
	// strangers counts the data planes that were new.
	strangers int
	// mayEnd are the reasons for which a server may end by itself during the fault
	// at hand.
	mayEnd []string
	// undecided counts histories that were too large to judge.
	undecided int
}

// violation is a broken promise.
type violation struct{ what []string }

func (v *violation) Error() string { return strings.Join(v.what, "\n") }

func violated(format string, args ...any) error {
	return &violation{[]string{fmt.Sprintf(format, args...)}}
}

// newWorld forms a cluster, fills it and starts its clients.
func newWorld(ctx context.Context, l *lab, seed uint64) (_ *world, err error) {
	c, err := newCluster(ctx, l)
	if err != nil {
		return nil, err
	}
	w := &world{cluster: c, writers: &writers{c: c, history: map[string]*oracle.History{}}, damaged: map[*node]bool{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	if err := w.fill(ctx); err != nil {
		return nil, err
	}
	caches := filepath.Join(l.dir, "caches")
	if err := os.RemoveAll(caches); err != nil {
		return nil, err
	}
	if w.fleet, err = newFleet(c, caches); err != nil {
		return nil, err
	}
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	w.wgw.Go(func() { w.writers.run(work, seed) })
	return w, nil
}

// close ends everything.
func (w *world) close() {
	if w.cancel != nil {
		w.cancel()
	}
	w.wgw.Wait()
	if w.fleet != nil {
		w.fleet.close()
	}
	w.cluster.close()
}

// fill makes the groups, with a value in each slot and a secret.
func (w *world) fill(ctx context.Context) error {
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return err
	}
	conn, err := w.conn(leader)
	if err != nil {
		return err
	}
	client := musterv1.NewAdminServiceClient(conn)
	ctx, cancel := context.WithTimeout(w.auth(ctx), healLimit)
	defer cancel()
	for g, group := range groups {
		if _, err := client.CreateGroup(ctx, &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: group}, RequestId: "make-" + group}); err != nil {
			return fmt.Errorf("make group %s: %w", group, err)
		}
		req := &musterv1.CommitRequest{Group: group}
		for slot := range oracle.Slots {
			req.Changes = append(req.Changes, slotChanges(group, slot, w.writers.value(g))...)
		}
		req.Changes = append(req.Changes, secretChanges(group)...)
		req.Changes = append(req.Changes, ballast(group, rand.New(rand.NewPCG(uint64(g), 5)))...)
		if _, err := client.Commit(ctx, req); err != nil {
			return fmt.Errorf("fill group %s: %w", group, err)
		}
		if err := w.rebase(ctx, group); err != nil {
			return err
		}
	}
	return nil
}

// rebase begins a group's history anew with what it holds: after a restore or a
// recovery, which take writes back on purpose.
func (w *world) rebase(ctx context.Context, group string) error {
	now, err := w.writers.readAll(ctx, group)
	if err != nil {
		return err
	}
	w.writers.history[group] = oracle.NewHistory(group, now.Revision, now.Values)
	return nil
}

// repair undoes everything that was done to the members, and starts those that
// do not run.
func (w *world) repair() error {
	var errs []error
	for _, n := range w.members() {
		errs = append(errs, w.clear(n.host))
		if n.runs() {
			_ = n.signal(contSignal)
			continue
		}
		errs = append(errs, w.start(n))
	}
	return errors.Join(errs...)
}

// recovery is how long it took until all was well after the end of a fault.
type recovery struct {
	whole     time.Duration // until all servers are ready and agree on a leader
	converged time.Duration // from then, until all data planes hold the newest revision
}

// check repairs the cluster and holds it to all its promises.
func (w *world) check(ctx context.Context) (rec recovery, err error) {
	if err := w.repair(); err != nil {
		return rec, err
	}
	began := time.Now()
	if err := w.heal(ctx); err != nil {
		return rec, err
	}
	rec.whole = time.Since(began)
	w.healed = w.now()
	if err := w.deaths(); err != nil {
		return rec, err
	}
	resume := w.writers.quiesce()
	defer resume()
	return rec, w.inspect(ctx, &rec)
}

// deaths checks that no server ended by itself, but for what the fault at hand
// allows.
func (w *world) deaths() error {
	defer func() { w.mayEnd = nil }()
	for _, n := range w.members() {
		for _, death := range n.takeDeaths() {
			if !slices.ContainsFunc(w.mayEnd, func(reason string) bool { return strings.Contains(death, reason) }) {
				return violated("%s", death)
			}
			w.restarted++
		}
	}
	return nil
}

// heal waits for the cluster, and starts again what the fault still made end: a
// server may notice only now that its disk failed it.
func (w *world) heal(ctx context.Context) error {
	deadline := time.Now().Add(healLimit)
	for {
		err := w.settle(ctx, 500*time.Millisecond)
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return violated("I4: %v, %s after the end of the fault", err, healLimit)
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for _, n := range w.members() {
			if err := w.revive(ctx, n); err != nil {
				return err
			}
		}
	}
}

// revive starts a server that ended by itself. One that refuses its damaged
// data is seeded anew, as its error says to.
func (w *world) revive(ctx context.Context, n *node) error {
	if n.runs() {
		return nil
	}
	says := strings.Contains(n.lastRun(), corrupt)
	switch {
	case says && !w.damaged[n]:
		return violated("%s finds its data corrupt, which nobody damaged: %s", n.id, n.logTail(500))
	case says:
		// Damage may be met long after it was done.
		w.mayEnd = append(w.mayEnd, corrupt)
		return w.reseed(ctx, n)
	}
	return w.start(n)
}

// reseed removes a server from the cluster and lets it join again without data.
func (w *world) reseed(ctx context.Context, n *node) error {
	delete(w.damaged, n)
	w.reseeded++
	if err := w.remove(ctx, n); err != nil {
		return err
	}
	n.boot, n.join = false, w.raftAddrs(n)
	return errors.Join(n.wipe(), w.start(n))
}

// remove takes a server out of the configuration, by asking the leader.
func (w *world) remove(ctx context.Context, n *node) error {
	leader, err := w.leader(ctx, healLimit)
	if err != nil {
		return violated("%v", err)
	}
	conn, err := w.conn(leader)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(w.auth(ctx), 30*time.Second)
	defer cancel()
	_, err = musterv1.NewClusterServiceClient(conn).RemovePeer(ctx, &musterv1.RemovePeerRequest{Id: n.id})
	if err != nil {
		return violated("%s could not be removed: %v", n.id, err)
	}
	return nil
}

// inspect checks the promises while nobody writes.
func (w *world) inspect(ctx context.Context, rec *recovery) error {
	if err := w.still(ctx); err != nil {
		return err
	}
	var broken []string
	last := map[string]oracle.Op{}
	for _, g := range groups {
		op, err := w.writers.readAll(ctx, g)
		if err != nil {
			return violated("I4: %v", err)
		}
		last[g] = op
		ops := w.writers.history[g].Ops()
		violations, decided := w.writers.history[g].Check(op, judgeLimit)
		if len(violations) > 0 {
			for _, o := range ops {
				violations = append(violations, "  "+o.String())
			}
			violations = append(violations, "  "+op.String())
		}
		if !decided {
			w.undecided++
		}
		broken = append(broken, violations...)
		w.fleet.saw.Acknowledged(ops)
	}
	began := time.Now()
	for {
		behind := w.fleet.behind(last)
		if behind == "" {
			break
		}
		if time.Since(began) > convergeLimit {
			broken = append(broken, fmt.Sprintf("I4: %s, %s after the cluster was whole", behind, convergeLimit))
			break
		}
		if !sleep(ctx, 10*time.Millisecond) {
			return ctx.Err()
		}
	}
	rec.converged = time.Since(began)
	broken = append(broken, w.fleet.saw.Take()...)
	if differ, err := w.differ(ctx); err != nil {
		return violated("I4: %v", err)
	} else if differ != "" {
		broken = append(broken, "I4: "+differ)
	}
	if len(broken) > 0 {
		return &violation{broken}
	}
	return nil
}

// still waits until nothing is under way in the cluster: all servers have the
// same log, carried out, twice in a row.
func (w *world) still(ctx context.Context) error {
	deadline := time.Now().Add(healLimit)
	var before uint64
	for {
		var commit uint64
		equal := true
		for _, st := range w.statuses(ctx) {
			if st == nil || (commit != 0 && st.GetCommitIndex() != commit) {
				equal = false
				break
			}
			commit = st.GetCommitIndex()
		}
		if equal && commit == before && commit > 0 {
			return nil
		}
		if before = 0; equal {
			before = commit
		}
		if time.Now().After(deadline) {
			return violated("I4: the servers do not come to the same commit index")
		}
		if !sleep(ctx, 70*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// differ compares the states of all servers by their checksums.
func (w *world) differ(ctx context.Context) (string, error) {
	first, from := "", ""
	for _, n := range w.members() {
		_, info, err := w.backup(ctx, n)
		if err != nil {
			return "", fmt.Errorf("save a snapshot of %s: %w", n.id, err)
		}
		sum := hex.EncodeToString(info.GetChecksum())
		if first != "" && sum != first {
			return fmt.Sprintf("the states of %s and %s differ", from, n.id), nil
		}
		first, from = sum, n.id
	}
	return "", nil
}

// backup saves a server's state.
func (w *world) backup(ctx context.Context, n *node) ([]byte, *musterv1.SnapshotInfo, error) {
	conn, err := w.conn(n)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithTimeout(w.auth(ctx), 30*time.Second)
	defer cancel()
	stream, err := musterv1.NewClusterServiceClient(conn).SaveSnapshot(ctx, &musterv1.SaveSnapshotRequest{})
	if err != nil {
		return nil, nil, err
	}
	var data []byte
	var info *musterv1.SnapshotInfo
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, nil, err
		}
		data = append(data, m.GetChunk()...)
		if m.GetInfo() != nil {
			info = m.GetInfo()
		}
	}
	if info == nil {
		return nil, nil, errors.New("the snapshot was cut short")
	}
	return data, info, nil
}

// leaked looks for the secret where none belongs: in logs, metrics, and on the
// servers' disks.
func (w *world) leaked(ctx context.Context) (string, error) {
	for _, n := range w.members() {
		page, err := w.metrics(ctx, n)
		if err != nil {
			return "", fmt.Errorf("metrics of %s: %w", n.id, err)
		}
		if strings.Contains(page, canary) {
			return "I8: the metrics of " + n.id + " hold a secret", nil
		}
	}
	logs, err := filepath.Glob(filepath.Join(w.dir, "*.log"))
	if err != nil {
		return "", err
	}
	for _, path := range logs {
		data, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		if strings.Contains(string(data), canary) {
			return "I8: the log of " + filepath.Base(path) + " holds a secret", nil
		}
	}
	return w.leakedToDisk()
}

// leakedToDisk looks at what lies below the mounts, so that no fault is in the way.
func (w *world) leakedToDisk() (leak string, err error) {
	for _, n := range w.members() {
		err = filepath.WalkDir(n.backingDir(), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, fs.ErrNotExist) {
				return nil // snapshots come and go
			}
			if err != nil || d.IsDir() {
				return err
			}
			data, err := os.ReadFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			if bytes.Contains(data, []byte(canary)) {
				leak = "I8: " + path + " holds a secret"
			}
			return err
		})
		if err != nil {
			return "", err
		}
	}
	return leak, nil
}

// metrics returns a server's metrics.
func (w *world) metrics(ctx context.Context, n *node) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+n.host.addr(adminPort)+"/metrics", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("X-API-Key", w.secret)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.ca.Pool()}, DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	page, err := io.ReadAll(resp.Body)
	if err == nil && (resp.StatusCode != http.StatusOK || len(page) == 0) {
		err = fmt.Errorf("%s, %d bytes", resp.Status, len(page))
	}
	return string(page), err
}

// ballast puts consumers without keys and with long descriptions: they reach no
// data plane, but make a snapshot large enough to be sent in many pieces.
func ballast(group string, random *rand.Rand) []*musterv1.Change {
	var out []*musterv1.Change
	for i := range ballastCount {
		text := make([]byte, ballastBytes/2)
		for i := range text {
			text[i] = byte(random.Uint32())
		}
		out = append(out, &musterv1.Change{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Consumer{
			Consumer: &musterv1.Consumer{Username: fmt.Sprintf("%s_ballast_%d", group, i), Desc: hex.EncodeToString(text)},
		}}}})
	}
	return out
}

const (
	ballastCount = 80
	ballastBytes = 4 << 10
)

// secretChanges put a consumer whose key is the canary.
func secretChanges(group string) []*musterv1.Change {
	key := &structpb.Struct{Fields: map[string]*structpb.Value{"key": structpb.NewStringValue(canary + group)}}
	return []*musterv1.Change{{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Consumer{Consumer: &musterv1.Consumer{
		Username: group + "_caller", Plugins: map[string]*structpb.Struct{"key-auth": key},
	}}}}}}
}
