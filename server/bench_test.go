package server

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore/state"
	"github.com/musterhq/muster/server/admin"
	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/server/compile/plugin"
	"github.com/musterhq/muster/server/fleet"
)

// applyStore is a memoryStore that takes commands.
type applyStore struct{ *memoryStore }

func (s applyStore) Apply(_ context.Context, cmd *musterv1.Command) (res state.Result, err error) {
	s.set(func(m *memoryStore) { m.st, res = m.st.Apply(cmd) })
	return res, nil
}

func (s applyStore) Begin(ctx context.Context, cmd *musterv1.Command) func() (state.Result, error) {
	res, err := s.Apply(ctx, cmd)
	return func() (state.Result, error) { return res, err }
}

func (s applyStore) ReadIndex(context.Context) error        { return nil }
func (s applyStore) Leader() (id, addr string, isSelf bool) { return "srv-1", "", true }

// BenchmarkCommit is everything that a write costs besides the log: validation,
// preview, trial compilation, the state machine, and then the publication. It
// must not grow with the group.
func BenchmarkCommit(b *testing.B) {
	for _, size := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("services=%d", size), func(b *testing.B) { benchmarkCommit(b, size) })
	}
}

func benchmarkCommit(b *testing.B, size int) {
	store := &memoryStore{st: state.New(), watch: make(chan struct{}, 1)}
	sink := fleet.New(fleet.Config{Server: "srv-1", Now: time.Now})
	pub := newPublisher(store, sink, newMetrics(), slog.New(slog.NewTextHandler(io.Discard, nil)), time.Now)
	var changes []*musterv1.Change
	for i := range size {
		id := fmt.Sprintf("s%05d", i)
		s := serviceOf(id, 8080)
		s.GetService().Hosts = []string{"api.example.com"}
		s.GetService().PathPrefix = "/" + id
		changes = append(changes, put(s), put(routeOf("r"+id, id, "/*")))
	}
	for _, cmd := range []*musterv1.Command{createGroup("g", 0), commit("g", changes...)} {
		cmd.Time = timestamppb.Now()
		next, res := store.st.Apply(cmd)
		if res.Err != nil {
			b.Fatal(res.Err)
		}
		store.st = next
	}
	pub.publishAll(store.State())
	svc := admin.New(admin.Config{
		Store: applyStore{store}, Compiler: pub, Fleet: sink, Plugins: plugin.Set(), Now: time.Now,
		Refresh: func(context.Context) {}, Logger: slog.New(slog.DiscardHandler),
	})
	ctx := auth.WithIdentity(b.Context(), auth.Identity{Name: "ann", Role: auth.RoleAdmin})
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		id := fmt.Sprintf("s%05d", n%size)
		r := routeOf("r"+id, id, "/*")
		r.GetRoute().Methods = []string{"GET", "POST", "PUT", "DELETE"}[:1+n/size%4]
		r.GetRoute().Desc = fmt.Sprint(n)
		if _, err := svc.Commit(ctx, &musterv1.CommitRequest{Group: "g", Changes: []*musterv1.Change{put(r)}}); err != nil {
			b.Fatal(err)
		}
		pub.publishAll(store.State())
	}
}
