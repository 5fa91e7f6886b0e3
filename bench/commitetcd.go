package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protowire"
)

// etcdCluster is three etcd processes, written to through their leader.
type etcdCluster struct {
	cmds []*exec.Cmd
	conn *grpc.ClientConn
	body []byte
}

func startEtcd(ctx context.Context, dir string) (committer, error) {
	binary, err := exec.LookPath("etcd")
	if err != nil {
		return nil, fmt.Errorf("etcd is %w", errNotInstalled)
	}
	c := &etcdCluster{body: bytes.Repeat([]byte("x"), payloadSize)}
	var peers, clients, initial []string
	for i := range 3 {
		peer, client, err := twoPorts()
		if err != nil {
			return nil, err
		}
		peers, clients = append(peers, "http://"+peer), append(clients, client)
		initial = append(initial, fmt.Sprintf("n%d=http://%s", i, peer))
	}
	for i := range 3 {
		cmd := exec.Command(binary, "--name", fmt.Sprintf("n%d", i), "--data-dir", filepath.Join(dir, fmt.Sprint(i)),
			"--listen-peer-urls", peers[i], "--initial-advertise-peer-urls", peers[i],
			"--listen-client-urls", "http://"+clients[i], "--advertise-client-urls", "http://"+clients[i],
			"--initial-cluster", strings.Join(initial, ","), "--initial-cluster-state", "new", "--log-level", "error")
		if err := cmd.Start(); err != nil {
			c.close()
			return nil, err
		}
		c.cmds = append(c.cmds, cmd)
	}
	// The leader answers that it is: its id is the one that it names.
	err = eventually(ctx, func() bool {
		for _, addr := range clients {
			conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.ForceCodec(raw{})))
			if err != nil {
				return false
			}
			if member, leader, err := etcdStatus(ctx, conn); err == nil && leader != 0 && member == leader {
				c.conn = conn
				return true
			}
			_ = conn.Close()
		}
		return false
	})
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

func twoPorts() (a, b string, err error) {
	var lns [2]net.Listener
	for i := range lns {
		if lns[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			return "", "", err
		}
		defer lns[i].Close()
	}
	return lns[0].Addr().String(), lns[1].Addr().String(), nil
}

// etcdStatus reads two numbers of etcd's StatusResponse: member_id of its header
// (1.2), and leader (4).
func etcdStatus(ctx context.Context, conn *grpc.ClientConn) (member, leader uint64, err error) {
	var answer []byte
	if err := conn.Invoke(ctx, "/etcdserverpb.Maintenance/Status", []byte(nil), &answer); err != nil {
		return 0, 0, err
	}
	if header, ok := field(answer, 1); ok {
		member = number64(header, 2)
	}
	return member, number64(answer, 4), nil
}

func (c *etcdCluster) commit(ctx context.Context, writer, n int) error {
	// PutRequest: key 1, value 2.
	req := protowire.AppendTag(nil, 1, protowire.BytesType)
	req = protowire.AppendString(req, fmt.Sprintf("w%d", writer))
	req = protowire.AppendTag(req, 2, protowire.BytesType)
	req = protowire.AppendBytes(req, c.body)
	var answer []byte
	return c.conn.Invoke(ctx, "/etcdserverpb.KV/Put", req, &answer)
}

func (c *etcdCluster) processes() []int {
	var pids []int
	for _, cmd := range c.cmds {
		pids = append(pids, cmd.Process.Pid)
	}
	return pids
}

func (c *etcdCluster) close() {
	if c.conn != nil {
		_ = c.conn.Close()
	}
	for _, cmd := range c.cmds {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
}

// raw is a codec of bytes that are encoded already.
type raw struct{}

func (raw) Name() string { return "proto" }

func (raw) Marshal(v any) ([]byte, error) { return v.([]byte), nil }

func (raw) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

// field returns the bytes of a field of an encoded message.
func field(msg []byte, want protowire.Number) ([]byte, bool) {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return nil, false
		}
		msg = msg[n:]
		size := protowire.ConsumeFieldValue(num, typ, msg)
		if size < 0 {
			return nil, false
		}
		if num == want && typ == protowire.BytesType {
			b, _ := protowire.ConsumeBytes(msg)
			return b, true
		}
		msg = msg[size:]
	}
	return nil, false
}

func number64(msg []byte, want protowire.Number) uint64 {
	for len(msg) > 0 {
		num, typ, n := protowire.ConsumeTag(msg)
		if n < 0 {
			return 0
		}
		msg = msg[n:]
		size := protowire.ConsumeFieldValue(num, typ, msg)
		if size < 0 {
			return 0
		}
		if num == want && typ == protowire.VarintType {
			v, _ := protowire.ConsumeVarint(msg)
			return v
		}
		msg = msg[size:]
	}
	return 0
}
