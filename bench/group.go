package main

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/server/compile"
	"github.com/musterhq/muster/server/snapshot"
)

// gatewayHost is the one host that all services of a benchmark's group share.
const gatewayHost = "api.example.com"

// group is a gateway group as a server holds it: the state machine's history, and
// for each of the last revisions what was compiled and the snapshot.
type group struct {
	state    *state.State
	compiled *compile.Compiled
	snap     *snapshot.Snapshot
	recent   []publication // as the publisher keeps them
}

type publication struct {
	group    *state.Group
	compiled *compile.Compiled
	snap     *snapshot.Snapshot
}

func newGroup() (*group, error) {
	g := &group{state: state.New(), snap: snapshot.Empty("group", 1)}
	return g, g.apply(&musterv1.Command{Command: &musterv1.Command_CreateGroup{CreateGroup: &musterv1.Group{Id: "group"}}})
}

func (g *group) apply(cmd *musterv1.Command) error {
	cmd.Time = timestamppb.Now()
	next, res := g.state.Apply(cmd)
	if res.Err != nil {
		return res.Err
	}
	g.state = next
	return nil
}

// commit makes the next revision and all that a server makes of it.
func (g *group) commit(changes ...*musterv1.Change) error {
	before, _ := g.state.Group("group")
	if err := g.apply(&musterv1.Command{Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: "group", Changes: changes}}}); err != nil {
		return err
	}
	now, _ := g.state.Group("group")
	var delta compile.Delta
	if g.compiled == nil {
		g.compiled, delta, _ = compile.Full(now.View())
	} else {
		between, ok := now.Changes(before.Revision(), now.Revision())
		if !ok {
			return fmt.Errorf("revision %d has no changes", now.Revision())
		}
		g.compiled, delta, _ = g.compiled.Next(now.View(), between)
	}
	g.snap = g.snap.Next(snapshot.Version{Epoch: 1, Revision: now.Revision()}, delta)
	g.recent = append(g.recent, publication{now, g.compiled, g.snap})
	return nil
}

// services adds n services, each with a route and a node, in transactions of a
// thousand. Denied services answer by themselves, 403, and reach no node.
func (g *group) services(n int, denied bool) error {
	var changes []*musterv1.Change
	for i := range n {
		changes = append(changes, serviceChanges(i, 8080, denied)...)
		if len(changes) >= 2000 || i == n-1 {
			if err := g.commit(changes...); err != nil {
				return err
			}
			changes = nil
		}
	}
	return nil
}

func serviceID(i int) string { return fmt.Sprintf("s%d", i) }

func serviceChanges(i int, port int32, denied bool) []*musterv1.Change {
	id := serviceID(i)
	s := &musterv1.Service{
		Id: id, Name: id, Hosts: []string{gatewayHost}, PathPrefix: "/" + id,
		Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: "127.0.0.1", Port: port}}},
	}
	if denied {
		config, _ := structpb.NewStruct(map[string]any{"blacklist": []any{"127.0.0.0/8"}}) // of values that are allowed
		s.Plugins = map[string]*structpb.Struct{"ip-restriction": config}
	}
	put := func(r *musterv1.Resource) *musterv1.Change {
		return &musterv1.Change{Action: &musterv1.Change_Put{Put: r}}
	}
	return []*musterv1.Change{
		put(&musterv1.Resource{Kind: &musterv1.Resource_Service{Service: s}}),
		put(&musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{Id: id, Name: id, ServiceId: id, Uris: []string{"/*"}}}}),
	}
}

// holder is one line of a heap profile.
type holder struct {
	Package string
	Bytes   int64
}

// memoryProcess measures a group of n services and revisions more: what it adds to
// the memory of a process, and which packages hold it.
func memoryProcess(n, revisions int) (reply, error) {
	before := settledRSS()
	g, err := newGroup()
	if err != nil {
		return reply{}, err
	}
	if err := g.services(n, false); err != nil {
		return reply{}, err
	}
	for rev := range revisions {
		if err := g.commit(serviceChanges(rev*7919%n, 9090, false)...); err != nil {
			return reply{}, err
		}
	}
	g.recent = g.recent[len(g.recent)-min(len(g.recent), revisions+1):]
	after := settledRSS()
	heap := heapByPackage()
	if sets := g.snap.Set(compile.VirtualHostType, snapshot.View{Client: compile.ViewDelta}); sets.Len() < n {
		return reply{}, fmt.Errorf("the group has %d virtual hosts for %d services", sets.Len(), n)
	}
	runtime.KeepAlive(g)
	return reply{RSS: after - before, Heap: heap}, nil
}

func settledRSS() int64 {
	runtime.GC()
	debug.FreeOSMemory()
	time.Sleep(100 * time.Millisecond)
	return rss()
}

// heapByPackage sums up what is in use by the package that asked for it: the first
// one on the stack that is not the runtime or the standard library.
func heapByPackage() []holder {
	runtime.GC()
	records := make([]runtime.MemProfileRecord, 1<<16)
	n, ok := runtime.MemProfile(records, false)
	if !ok {
		return nil // more call sites than anyone has
	}
	sums := map[string]int64{}
	for _, r := range records[:n] {
		frames := runtime.CallersFrames(r.Stack())
		name := "runtime"
		for {
			f, more := frames.Next()
			// The path of a package that is not the standard library's begins with a host.
			if host, _, ok := strings.Cut(f.Function, "/"); ok && strings.Contains(host, ".") {
				name = packageOf(f.Function)
				break
			}
			if !more {
				break
			}
		}
		sums[name] += scaled(r)
	}
	var out []holder
	for name, b := range sums {
		out = append(out, holder{name, b})
	}
	slices.SortFunc(out, func(a, b holder) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Package, b.Package))
	})
	return out[:min(len(out), 10)]
}

// scaled undoes the sampling of the heap profile, as pprof does.
func scaled(r runtime.MemProfileRecord) int64 {
	if r.InUseObjects() == 0 {
		return 0
	}
	average := float64(r.InUseBytes()) / float64(r.InUseObjects())
	return int64(float64(r.InUseBytes()) / (1 - math.Exp(-average/float64(runtime.MemProfileRate))))
}

// packageOf is the path of the package of a function.
func packageOf(function string) string {
	slash := strings.LastIndexByte(function, '/')
	dot := strings.IndexByte(function[slash+1:], '.')
	if dot < 0 {
		return function
	}
	name := function[:slash+1+dot]
	return strings.TrimPrefix(name, "github.com/musterhq/muster/")
}
