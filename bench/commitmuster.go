package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/server"
	"github.com/musterhq/muster/server/auth"
)

// object is what a writer puts: of 1 KiB, and each time another.
func object(writer, n int) *musterv1.Change {
	id := fmt.Sprintf("w%d", writer)
	return &musterv1.Change{Action: &musterv1.Change_Put{Put: &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
		Id: id, Name: id, Desc: fmt.Sprintf("%08d", n) + strings.Repeat("x", payloadSize-8),
		Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: "127.0.0.1", Port: 80}}},
	}}}}}
}

// running is what ends with a context.
type running struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

func (r *running) processes() []int { return nil }

func (r *running) close() {
	r.cancel()
	r.wg.Wait()
}

// heartbeat is how long leaders may be silent, in muster's arms and the bare one: a
// busy machine must not have elections, which this does not measure.
const heartbeat = 5 * time.Second

func quiet() *slog.Logger { return slog.New(slog.NewTextHandler(io.Discard, nil)) }

// musterStore is raftstore alone: log codec, batches, state machine.
type musterStore struct {
	running
	leader *raftstore.Store
}

func startMusterStore(ctx context.Context, dir string) (committer, error) {
	c := &musterStore{}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	for i := range 3 {
		conf := raftstore.Config{
			DataDir: filepath.Join(dir, fmt.Sprint(i)), ServerID: fmt.Sprintf("n%d", i), RaftAddr: "127.0.0.1:0", Insecure: true,
			Bootstrap: i == 0, Logger: quiet(), Autopilot: raftstore.Autopilot{Stabilize: 200 * time.Millisecond},
			HeartbeatTimeout: heartbeat, ElectionTimeout: heartbeat,
		}
		if i > 0 {
			st, err := c.leader.Status()
			if err != nil {
				return nil, err
			}
			conf.Join = []string{st.Address}
		}
		s, err := raftstore.Open(conf)
		if err != nil {
			return nil, err
		}
		c.wg.Go(func() { _ = s.Run(run) })
		if i == 0 {
			c.leader = s
			if err := s.WaitLeader(ctx); err != nil {
				return nil, err
			}
		}
	}
	err := eventually(ctx, func() bool {
		st, err := c.leader.Status()
		return err == nil && st.Voters == 3
	})
	if err == nil {
		_, err = c.leader.Apply(ctx, &musterv1.Command{Command: &musterv1.Command_CreateGroup{CreateGroup: &musterv1.Group{Id: "g"}}})
	}
	return c, err
}

func (c *musterStore) commit(ctx context.Context, writer, n int) error {
	res, err := c.leader.Apply(ctx, &musterv1.Command{Author: "bench", Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{
		Group: "g", Changes: []*musterv1.Change{object(writer, n)},
	}}})
	return errors.Join(err, res.Err)
}

func eventually(ctx context.Context, ok func() bool) error {
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) || ctx.Err() != nil {
			return errors.New("the cluster does not form")
		}
	}
	return nil
}

// musterAPI is whole servers, called over gRPC: validation, trial compilation
// and publication included. Writers share a group, or have one each.
type musterAPI struct {
	running
	conn   *grpc.ClientConn
	admin  musterv1.AdminServiceClient
	shared bool
}

const benchKey = "mst-bench"

// apiGroups is how many groups writers are spread over.
const apiGroups = 128

func startMusterAPI(ctx context.Context, dir string, shared bool) (committer, error) {
	c := &musterAPI{shared: shared}
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.cancel = cancel
	var first *server.Server
	var cluster musterv1.ClusterServiceClient
	raft := ""
	for i := range 3 {
		conf := server.Config{
			ServerID: fmt.Sprintf("n%d", i), DataDir: filepath.Join(dir, fmt.Sprint(i)), AdminAddr: "127.0.0.1:0", XDSAddr: "127.0.0.1:0",
			RaftAddr: "127.0.0.1:0", Insecure: true, Bootstrap: i == 0, Keys: auth.NewKeys(auth.NewKey("bench", auth.RoleAdmin, benchKey)),
			Logger: quiet(), Autopilot: raftstore.Autopilot{Stabilize: 200 * time.Millisecond},
			HeartbeatTimeout: heartbeat, ElectionTimeout: heartbeat,
		}
		if i > 0 {
			conf.Join = []string{raft}
		}
		s, err := server.New(conf)
		if err != nil {
			return nil, err
		}
		c.wg.Go(func() { _ = s.Run(run) })
		if i > 0 {
			continue
		}
		first = s
		if err := eventually(ctx, func() bool { return first.Ready() == nil }); err != nil {
			return nil, err
		}
		c.conn, err = grpc.NewClient("passthrough:///"+s.AdminAddr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			return nil, err
		}
		c.admin, cluster = musterv1.NewAdminServiceClient(c.conn), musterv1.NewClusterServiceClient(c.conn)
		peers, err := cluster.ListPeers(c.as(ctx), &musterv1.ListPeersRequest{})
		if err != nil {
			return nil, err
		}
		raft = peers.GetPeers()[0].GetAddress()
	}
	err := eventually(ctx, func() bool {
		st, err := cluster.GetClusterStatus(c.as(ctx), &musterv1.GetClusterStatusRequest{})
		return err == nil && st.GetVoters() == 3
	})
	for i := 0; i < apiGroups && err == nil; i++ {
		_, err = c.admin.CreateGroup(c.as(ctx), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: fmt.Sprintf("g%d", i)}})
	}
	return c, err
}

func (c *musterAPI) as(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", benchKey)
}

func (c *musterAPI) commit(ctx context.Context, writer, n int) error {
	group := "g0"
	if !c.shared {
		group = fmt.Sprintf("g%d", writer%apiGroups)
	}
	_, err := c.admin.Commit(c.as(ctx), &musterv1.CommitRequest{Group: group, Changes: []*musterv1.Change{object(writer, n)}})
	return err
}

func (c *musterAPI) close() {
	_ = c.conn.Close()
	c.running.close()
}
