package dev

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// group is the one that muster dev makes.
const group = "default"

// api is the admin API as an operator sees it.
type api struct {
	admin   musterv1.AdminServiceClient
	fleet   musterv1.FleetServiceClient
	cluster musterv1.ClusterServiceClient
	conn    *grpc.ClientConn
	key     string
}

func dial(addr, key string) (*api, error) {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to the admin API: %w", err)
	}
	return &api{
		admin: musterv1.NewAdminServiceClient(conn), fleet: musterv1.NewFleetServiceClient(conn), cluster: musterv1.NewClusterServiceClient(conn),
		conn: conn, key: key,
	}, nil
}

func (a *api) close() { _ = a.conn.Close() }

func (a *api) as(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "x-api-key", a.key)
}

// defaultGroup returns the group; it waits until the server has a leader, and
// makes the group when there is none.
func (a *api) defaultGroup(ctx context.Context) (*musterv1.Group, error) {
	for {
		resp, err := a.admin.GetGroup(a.as(ctx), &musterv1.GetGroupRequest{Group: group})
		switch status.Code(err) {
		case codes.OK:
			return resp.GetGroup(), nil
		case codes.NotFound:
			made, err := a.admin.CreateGroup(a.as(ctx), &musterv1.CreateGroupRequest{
				Group: &musterv1.Group{Id: group, Description: "Made by muster dev."},
			})
			if err != nil {
				return nil, fmt.Errorf("create group %s: %w", group, err)
			}
			return made.GetGroup(), nil
		case codes.Unavailable:
			if err := sleep(ctx, 20*time.Millisecond); err != nil {
				return nil, fmt.Errorf("wait for the server: %w", err)
			}
		default:
			return nil, fmt.Errorf("get group %s: %w", group, err)
		}
	}
}

// seed gives a new group the echo service. Only revision 0 is seeded: what the
// user made of the group afterwards is the user's.
func (a *api) seed(ctx context.Context, echoAddr string) error {
	host, portText, err := net.SplitHostPort(echoAddr)
	if err != nil {
		return fmt.Errorf("echo address: %w", err)
	}
	port, err := strconv.ParseInt(portText, 10, 32)
	if err != nil {
		return fmt.Errorf("echo address: %w", err)
	}
	service := &musterv1.Resource{Kind: &musterv1.Resource_Service{Service: &musterv1.Service{
		Id: "echo", Name: "echo", Desc: "Answers with what it received.",
		Upstream: &musterv1.Upstream{Nodes: []*musterv1.Node{{Host: host, Port: int32(port)}}},
	}}}
	route := &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{
		Id: "echo", Name: "echo", ServiceId: "echo", Uris: []string{"/echo/*"},
	}}}
	var zero uint64
	_, err = a.admin.Commit(a.as(ctx), &musterv1.CommitRequest{
		Group:            group,
		ExpectedRevision: &zero,
		Message:          "the first service, by muster dev",
		Changes: []*musterv1.Change{
			{Action: &musterv1.Change_Put{Put: service}},
			{Action: &musterv1.Change_Put{Put: route}},
		},
	})
	if err != nil {
		return fmt.Errorf("add the echo service: %w", err)
	}
	return nil
}

// caughtUp waits until so many data planes have acknowledged the group's
// current revision; false when they take too long.
func (a *api) caughtUp(ctx context.Context, dataPlanes int) bool {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	n := uint32(dataPlanes)
	stream, err := a.fleet.Wait(a.as(ctx), &musterv1.WaitRequest{Group: group, MinDataPlanes: &n})
	if err != nil {
		return false
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return false
		}
		if resp.GetDone() {
			return true
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
