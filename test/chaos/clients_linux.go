package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/server/admin"
	"github.com/musterhq/muster/test/chaos/oracle"
)

// groups are the gateway groups under test. Their names are in the names of all
// that belongs to them.
var groups = []string{"alpha", "omega"}

// opTimeout is how long a client waits for a call.
const opTimeout = 4 * time.Second

// writers are the clients of the admin API: one for each host, which calls only
// the server there, and two that go from server to server until one answers,
// repeating their request id.
type writers struct {
	c       *cluster
	history map[string]*oracle.History
	values  atomic.Uint32
	epoch   atomic.Uint64 // the newest that was seen

	// gate is held shared during each call, exclusively while the oracle looks.
	gate sync.RWMutex
	// paused makes writers wait before their next call.
	paused atomic.Bool

	mu   sync.Mutex
	acks []time.Duration // when writes were acknowledged, ascending
	ops  int
}

// value makes a value for a group that was never used before: the group's
// number above a counter.
func (w *writers) value(group int) uint32 {
	return uint32(group+1)<<20 | w.values.Add(1)&0xfffff
}

// nodeHost writes a value as an IP address, which is what is compiled.
func nodeHost(value uint32) string {
	return fmt.Sprintf("10.%d.%d.%d", value>>16&0xff, value>>8&0xff, value&0xff)
}

func valueOf(host string) (uint32, bool) {
	parts := strings.Split(host, ".")
	if len(parts) != 4 || parts[0] != "10" {
		return 0, false
	}
	v := uint32(0)
	for _, p := range parts[1:] {
		n, err := strconv.ParseUint(p, 10, 8)
		if err != nil {
			return 0, false
		}
		v = v<<8 | uint32(n)
	}
	return v, true
}

func slotID(group string, slot int) string { return fmt.Sprintf("%s-%d", group, slot) }

// slotChanges put a value into a slot: into a service, which becomes a cluster
// and its endpoints, and into a route, which becomes a virtual host.
func slotChanges(group string, slot int, value uint32) []*musterv1.Change {
	id := slotID(group, slot)
	return []*musterv1.Change{
		{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
			Id: id, Name: id, Hosts: []string{id + ".test"},
			Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: nodeHost(value), Port: 80}}},
		}}}}},
		{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{
			Id: id, Name: id, ServiceId: id, Uris: []string{fmt.Sprintf("/v/%d", value)},
		}}}}},
	}
}

// run lets the clients call until ctx ends.
func (w *writers) run(ctx context.Context, seed uint64) {
	var wg sync.WaitGroup
	for i := range 5 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(i)))
			for ctx.Err() == nil {
				if w.paused.Load() || !w.step(ctx, random, i) {
					sleep(ctx, 20*time.Millisecond)
				}
				sleep(ctx, time.Duration(2+random.IntN(16))*time.Millisecond)
			}
		})
	}
	wg.Wait()
}

// step makes one call. It returns false when there was nobody to call.
func (w *writers) step(ctx context.Context, random *rand.Rand, client int) bool {
	w.gate.RLock()
	defer w.gate.RUnlock()
	if w.paused.Load() {
		return false
	}
	members := w.c.members()
	if len(members) == 0 {
		return false
	}
	g := random.IntN(len(groups))
	op := oracle.Op{Client: client, Group: groups[g], Slot: random.IntN(oracle.Slots)}
	targets := []*node{members[client%len(members)]}
	if client >= 3 {
		targets = members
	}
	switch kind := random.IntN(10); {
	case client >= 3 || kind < 3:
		op.Kind, op.Value = oracle.Put, w.value(g)
		w.put(ctx, &op, targets)
	case kind < 6:
		op.Kind, op.Value = oracle.Put, w.value(g)
		if rev, ok := w.revision(ctx, targets[0], op.Group); ok {
			op.Expected = &rev
			w.put(ctx, &op, targets)
		} else {
			return false
		}
	default:
		op.Kind = oracle.Read
		w.read(ctx, &op, targets[0])
	}
	if ctx.Err() != nil && op.Kind == oracle.Put && op.Outcome == oracle.Failed {
		// The end of the run says nothing about the cluster.
		op.Outcome = oracle.Unknown
	}
	w.record(op)
	return op.Outcome == oracle.OK || op.Outcome == oracle.Conflict
}

// burst makes n more writes, as fast as they go.
func (w *writers) burst(ctx context.Context, random *rand.Rand, n int) {
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for i := range 8 {
		seed := random.Uint64()
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, 4))
			for left.Add(-1) >= 0 && ctx.Err() == nil {
				g := random.IntN(len(groups))
				op := oracle.Op{Client: 10 + i, Group: groups[g], Slot: random.IntN(oracle.Slots), Kind: oracle.Put, Value: w.value(g)}
				w.put(ctx, &op, w.c.members())
				w.record(op)
			}
		})
	}
	wg.Wait()
}

func (w *writers) record(op oracle.Op) {
	w.history[op.Group].Record(op)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ops++
	if op.Kind == oracle.Put && op.Outcome == oracle.OK {
		w.acks = append(w.acks, op.Return)
		for e := w.epoch.Load(); op.Epoch > e && !w.epoch.CompareAndSwap(e, op.Epoch); e = w.epoch.Load() {
		}
	}
}

// revision is a group's revision by a server's own state, perhaps an old one.
func (w *writers) revision(ctx context.Context, n *node, group string) (uint64, bool) {
	conn, err := w.c.conn(n)
	if err != nil {
		return 0, false
	}
	ctx, cancel := context.WithTimeout(w.c.auth(ctx), time.Second)
	defer cancel()
	resp, err := musterv1.NewAdminServiceClient(conn).GetGroup(ctx, &musterv1.GetGroupRequest{Group: group, Stale: true})
	return resp.GetGroup().GetRevision(), err == nil
}

// put writes, going through the targets until one answers. The request id makes
// it one write.
func (w *writers) put(ctx context.Context, op *oracle.Op, targets []*node) {
	op.Call = w.c.now()
	defer func() { op.Return = w.c.now() }()
	req := &musterv1.CommitRequest{Group: op.Group, Changes: slotChanges(op.Group, op.Slot, op.Value), ExpectedRevision: op.Expected}
	if len(targets) > 1 {
		req.RequestId = fmt.Sprintf("v%d", op.Value)
	}
	ctx, cancel := context.WithTimeout(w.c.auth(ctx), opTimeout)
	defer cancel()
	op.Outcome = oracle.Failed
	for i := 0; ; i++ {
		conn, err := w.c.conn(targets[(op.Client+i)%len(targets)])
		if err != nil {
			op.Err = err.Error()
			return
		}
		try, sent := withSent(ctx)
		stop := context.CancelFunc(func() {})
		if len(targets) > 1 {
			try, stop = context.WithTimeout(try, 1500*time.Millisecond)
		}
		resp, err := musterv1.NewAdminServiceClient(conn).Commit(try, req)
		stop()
		if err == nil {
			op.Outcome, op.Epoch, op.Revision, op.Err = oracle.OK, resp.GetEpoch(), resp.GetRevision(), ""
			return
		}
		op.Err = err.Error()
		info := reason(err)
		switch {
		case info.GetReason() == admin.ReasonRevisionConflict:
			op.Outcome = oracle.Conflict
			op.Revision, _ = strconv.ParseUint(info.GetMetadata()["actual"], 10, 64)
			return
		case nothingDone(info.GetReason()) || !sent.Load():
		default:
			op.Outcome = oracle.Unknown
		}
		if len(targets) == 1 || ctx.Err() != nil {
			return
		}
		if (i+1)%len(targets) == 0 && !sleep(ctx, 10*time.Millisecond) {
			return
		}
	}
}

// reason is what a server said of an error; nil when it was not a server's.
func reason(err error) *errdetails.ErrorInfo {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == admin.Domain {
			return info
		}
	}
	return nil
}

// nothingDone tells whether a server's reason rules out that a write happened.
func nothingDone(reason string) bool {
	switch reason {
	case admin.ReasonNoLeader, admin.ReasonNotLeader, admin.ReasonNotReady, admin.ReasonDiskFull, admin.ReasonInvalid, admin.ReasonGroupNotFound:
		return true
	}
	return false
}

func (w *writers) read(ctx context.Context, op *oracle.Op, n *node) {
	op.Call = w.c.now()
	defer func() { op.Return = w.c.now() }()
	op.Outcome = oracle.Failed
	conn, err := w.c.conn(n)
	if err != nil {
		op.Err = err.Error()
		return
	}
	ctx, cancel := context.WithTimeout(w.c.auth(ctx), opTimeout)
	defer cancel()
	resp, err := musterv1.NewAdminServiceClient(conn).GetResource(ctx, &musterv1.GetResourceRequest{
		Group: op.Group, Key: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SERVICE, Id: slotID(op.Group, op.Slot)},
	})
	if err != nil {
		op.Err = err.Error()
		return
	}
	op.Outcome, op.Revision = oracle.OK, resp.GetRevision()
	op.Values[op.Slot], _ = valueOf(resp.GetResource().GetResource().GetService().GetUpstream().GetNodes()[0].GetHost())
}

// readAll reads a group whole, from any server that answers.
func (w *writers) readAll(ctx context.Context, group string) (oracle.Op, error) {
	op := oracle.Op{Client: 99, Group: group, Kind: oracle.ReadAll, Call: w.c.now()}
	var last error
	for range 20 {
		for _, n := range w.c.members() {
			conn, err := w.c.conn(n)
			if err != nil {
				return op, err
			}
			call, cancel := context.WithTimeout(w.c.auth(ctx), 2*time.Second)
			admin := musterv1.NewAdminServiceClient(conn)
			resp, err := admin.ListResources(call, &musterv1.ListResourcesRequest{Group: group, Kinds: []musterv1.Kind{musterv1.Kind_KIND_SERVICE}})
			var g *musterv1.GetGroupResponse
			if err == nil {
				g, err = admin.GetGroup(call, &musterv1.GetGroupRequest{Group: group})
			}
			cancel()
			if err != nil {
				last = err
				continue
			}
			if g.GetGroup().GetRevision() != resp.GetRevision() {
				last = fmt.Errorf("group %s is still written to", group)
				continue
			}
			for _, r := range resp.GetResources() {
				s := r.GetResource().GetService()
				if i := strings.LastIndexByte(s.GetId(), '-'); strings.HasPrefix(s.GetId(), group+"-") && i > 0 {
					slot, err := strconv.Atoi(s.GetId()[i+1:])
					if err == nil && slot < oracle.Slots {
						op.Values[slot], _ = valueOf(s.GetUpstream().GetNodes()[0].GetHost())
					}
				}
			}
			op.Revision, op.Epoch, op.Return = resp.GetRevision(), g.GetGroup().GetEpoch(), w.c.now()
			return op, nil
		}
		if !sleep(ctx, 100*time.Millisecond) {
			break
		}
	}
	return op, fmt.Errorf("group %s cannot be read: %w", group, last)
}

// gap is the longest time without an acknowledged write that overlaps with
// what happened since a moment, up to now.
func (w *writers) gap(since, until time.Duration) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest, last := time.Duration(0), time.Duration(0)
	for _, at := range w.acks {
		if at > since && last > 0 {
			longest = max(longest, min(at, until)-last)
		}
		if at > until {
			return longest
		}
		last = at
	}
	return max(longest, until-last)
}

// quiesce makes the writers stop, and waits for the calls under way. The
// returned function lets them go on.
func (w *writers) quiesce() (resume func()) {
	w.paused.Store(true)
	w.gate.Lock()
	return func() {
		w.paused.Store(false)
		w.gate.Unlock()
	}
}

// sentHandler notes whether a request was handed to the network.
type sentHandler struct{}

type sentKey struct{}

func withSent(ctx context.Context) (context.Context, *atomic.Bool) {
	sent := &atomic.Bool{}
	return context.WithValue(ctx, sentKey{}, sent), sent
}

func (sentHandler) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context { return ctx }
func (sentHandler) HandleRPC(ctx context.Context, s stats.RPCStats) {
	if _, ok := s.(*stats.OutPayload); ok {
		if sent, ok := ctx.Value(sentKey{}).(*atomic.Bool); ok {
			sent.Store(true)
		}
	}
}
func (sentHandler) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }
func (sentHandler) HandleConn(context.Context, stats.ConnStats)                       {}
