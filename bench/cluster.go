package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/server"
	"github.com/musterhq/muster/server/auth"
)

// cluster is three muster servers, each a process that can be killed, with one
// group of raw virtual hosts, and data planes in another process.
type cluster struct {
	dir    string
	nodes  [3]*node
	planes *child

	mu   sync.Mutex
	want []uint64 // hash by resource index, of what was acknowledged last
}

// node is one server of it.
type node struct {
	id, raft, admin, xds string
	proc                 *child
	conn                 *grpc.ClientConn
	api                  musterv1.AdminServiceClient
	ops                  musterv1.ClusterServiceClient
}

func startCluster(ctx context.Context) (_ *cluster, err error) {
	c := &cluster{}
	defer func() {
		if err != nil {
			c.stop()
		}
	}()
	if c.dir, err = os.MkdirTemp("", "muster-bench-"); err != nil {
		return nil, err
	}
	for i := range c.nodes {
		n := &node{id: fmt.Sprintf("n%d", i)}
		c.nodes[i] = n
		if n.raft, n.admin, err = twoPorts(); err != nil {
			return nil, err
		}
		if n.xds, _, err = twoPorts(); err != nil {
			return nil, err
		}
		// A server that comes back must be found at once.
		n.conn, err = grpc.NewClient("passthrough:///"+n.admin, grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.5, MaxDelay: 200 * time.Millisecond}, MinConnectTimeout: time.Second}))
		if err != nil {
			return nil, err
		}
		n.api, n.ops = musterv1.NewAdminServiceClient(n.conn), musterv1.NewClusterServiceClient(n.conn)
		if err := c.startNode(ctx, i); err != nil {
			return nil, err
		}
	}
	return c, until(ctx, "the cluster has three voters", func() bool {
		st, err := c.nodes[0].ops.GetClusterStatus(asBench(ctx), &musterv1.GetClusterStatusRequest{})
		return err == nil && st.GetVoters() == 3
	})
}

// startNode starts a server, for the first time or again, and waits until it serves.
func (c *cluster) startNode(ctx context.Context, i int) (err error) {
	n := c.nodes[i]
	args := []string{"node", "-id", n.id, "-dir", filepath.Join(c.dir, n.id), "-raft", n.raft, "-admin", n.admin, "-addr", n.xds}
	if i > 0 {
		args = append(args, "-join", c.nodes[0].raft)
	}
	if n.proc, err = spawn(ctx, args...); err != nil {
		return err
	}
	_, err = n.proc.call(request{Do: "addr"})
	return err
}

func (c *cluster) stop() {
	if c.planes != nil {
		c.planes.stop()
	}
	for _, n := range c.nodes {
		if n != nil && n.proc != nil {
			n.proc.stop()
		}
		if n != nil && n.conn != nil {
			_ = n.conn.Close()
		}
	}
	_ = os.RemoveAll(c.dir)
}

// load makes the group with its resources, and connects the data planes.
func (c *cluster) load(ctx context.Context, streams, resources int) error {
	if _, err := c.nodes[0].api.CreateGroup(asBench(ctx), &musterv1.CreateGroupRequest{Group: &musterv1.Group{Id: "group", Name: "group"}}); err != nil {
		return err
	}
	c.want = make([]uint64, resources)
	const each = 2500 // what a transaction may hold, in bytes, is the limit
	for from := 0; from < resources; from += each {
		var indices []int
		for i := from; i < min(from+each, resources); i++ {
			indices = append(indices, i)
		}
		if err := c.write(ctx, 0, "", time.Time{}, indices...); err != nil {
			return err
		}
	}
	var addrs []string
	for _, n := range c.nodes {
		addrs = append(addrs, n.xds)
	}
	var err error
	c.planes, err = spawn(ctx, "planes", "-addr", strings.Join(addrs, ","), "-streams", strconv.Itoa(streams), "-resources", strconv.Itoa(resources))
	if err == nil {
		_, err = c.planes.call(request{Do: "connect"})
	}
	return err
}

// write commits newly stamped virtual hosts as one transaction, at a server or,
// where that cannot, at the next. With a request id it is certain in the end.
func (c *cluster) write(ctx context.Context, at int, requestID string, stamp time.Time, indices ...int) error {
	req := &musterv1.CommitRequest{Group: "group", RequestId: requestID}
	hashes := make([]uint64, len(indices))
	for k, i := range indices {
		body := virtualHostBytes(i, stamp)
		hashes[k] = bodyHash(body)
		req.Changes = append(req.Changes, &musterv1.Change{Action: &musterv1.Change_Put{Put: &musterv1.Resource{
			Kind: &musterv1.Resource_XdsResource{XdsResource: &musterv1.XdsResource{
				Id: fmt.Sprintf("s%d", i), Resource: &anypb.Any{TypeUrl: typeURL, Value: body},
			}},
		}}})
	}
	for ; ; at++ {
		call, cancel := context.WithTimeout(asBench(ctx), 5*time.Second)
		_, err := c.nodes[at%len(c.nodes)].api.Commit(call, req)
		cancel()
		if err == nil {
			c.mu.Lock()
			defer c.mu.Unlock()
			for k, i := range indices {
				c.want[i] = hashes[k]
			}
			return nil
		}
		again := status.Code(err) == codes.Unavailable || status.Code(err) == codes.Unknown || status.Code(err) == codes.DeadlineExceeded
		if requestID == "" || !again || ctx.Err() != nil {
			return err
		}
		time.Sleep(2 * time.Millisecond)
	}
}

// oracle demands that every data plane and, asked by a linearizable read, the
// cluster hold what was acknowledged, and nothing else. It returns what the data
// planes say.
func (c *cluster) oracle(ctx context.Context) (reply, error) {
	c.mu.Lock()
	want := digestOf(c.want)
	c.mu.Unlock()
	var got reply
	for try := 0; ; try++ {
		var err error
		if got, err = c.planes.call(request{Do: "digest"}); err == nil && got.Digest == want {
			break
		}
		if try == 300 {
			return got, errors.Join(errors.New("the data planes do not hold what was acknowledged"), err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	lost, err := c.lost(ctx)
	if err == nil && lost > 0 {
		err = fmt.Errorf("%d resources are not as they were acknowledged", lost)
	}
	return got, err
}

// lost counts the resources that are not as they were acknowledged.
func (c *cluster) lost(ctx context.Context) (int, error) {
	got := make([]uint64, len(c.want))
	stream := &musterv1.ListResourcesRequest{Group: "group", Kinds: []musterv1.Kind{musterv1.Kind_KIND_XDS_RESOURCE}, RevealSecrets: true}
	for {
		page, err := c.nodes[0].api.ListResources(asBench(ctx), stream, grpc.MaxCallRecvMsgSize(64<<20))
		if err != nil {
			return 0, err
		}
		for _, r := range page.GetResources() {
			x := r.GetResource().GetXdsResource()
			i, err := strconv.Atoi(strings.TrimPrefix(x.GetId(), "s"))
			if err != nil || i >= len(got) {
				return 0, fmt.Errorf("unknown resource %q", x.GetId())
			}
			got[i] = bodyHash(x.GetResource().GetValue())
		}
		if stream.PageToken = page.GetNextPageToken(); stream.PageToken == "" {
			break
		}
	}
	lost := 0
	for i, hash := range c.want {
		if got[i] != hash {
			lost++
		}
	}
	return lost, nil
}

func asBench(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", benchKey)
}

// nodeProcess is the process of one server.
func nodeProcess(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("node", flag.ContinueOnError)
	conf := server.Config{
		Insecure: true, XDSLimits: everyAddress, Logger: quiet(), Autopilot: raftstore.Autopilot{Stabilize: 200 * time.Millisecond},
		Keys: auth.NewKeys(auth.NewKey("bench", auth.RoleAdmin, benchKey)),
	}
	fs.StringVar(&conf.ServerID, "id", "", "")
	fs.StringVar(&conf.DataDir, "dir", "", "")
	fs.StringVar(&conf.RaftAddr, "raft", "", "")
	fs.StringVar(&conf.AdminAddr, "admin", "", "")
	fs.StringVar(&conf.XDSAddr, "addr", "", "")
	join := fs.String("join", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if conf.Bootstrap = *join == ""; !conf.Bootstrap {
		conf.Join = []string{*join}
	}
	srv, err := server.New(conf)
	if err != nil {
		return err
	}
	run, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	ended := make(chan error, 1)
	wg.Go(func() { ended <- srv.Run(run) })
	defer wg.Wait()
	defer cancel()
	stop, err := profiling(conf.ServerID)
	if err != nil {
		return err
	}
	defer stop()
	return answer(func(r request) (reply, error) {
		if r.Do == "addr" {
			err := until(ctx, "the server is ready", func() bool { return srv.Ready() == nil || len(ended) > 0 })
			return reply{Addr: srv.XDSAddr().String()}, errors.Join(err, srv.Ready())
		}
		return processState(r)
	})
}
