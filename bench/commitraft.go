package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	"go.etcd.io/bbolt"
)

// bareRaft is hashicorp/raft with its defaults, patience apart, and a state machine that does
// nothing, on the log store and with the log store's options that muster uses.
type bareRaft struct {
	nodes  []*raft.Raft
	stores []*raftboltdb.BoltStore
	trans  []*raft.NetworkTransport
	leader *raft.Raft
	body   []byte
}

func startBareRaft(_ context.Context, dir string) (committer, error) {
	c := &bareRaft{body: bytes.Repeat([]byte("x"), payloadSize)}
	var servers []raft.Server
	for i := range 3 {
		id := fmt.Sprintf("n%d", i)
		store, err := raftboltdb.New(raftboltdb.Options{
			Path:        filepath.Join(dir, id+".db"),
			BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType, Timeout: time.Second},
		})
		if err != nil {
			return nil, err
		}
		trans, err := raft.NewTCPTransport("127.0.0.1:0", nil, 4, 10*time.Second, io.Discard)
		if err != nil {
			return nil, err
		}
		conf := raft.DefaultConfig()
		conf.LocalID = raft.ServerID(id)
		conf.Logger = hclog.NewNullLogger()
		conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = heartbeat, heartbeat, heartbeat/2
		cache, err := raft.NewLogCache(512, store)
		if err != nil {
			return nil, err
		}
		r, err := raft.NewRaft(conf, nothing{}, cache, store, raft.NewInmemSnapshotStore(), trans)
		if err != nil {
			return nil, err
		}
		c.nodes, c.stores, c.trans = append(c.nodes, r), append(c.stores, store), append(c.trans, trans)
		servers = append(servers, raft.Server{ID: conf.LocalID, Address: trans.LocalAddr()})
	}
	if err := c.nodes[0].BootstrapCluster(raft.Configuration{Servers: servers}).Error(); err != nil {
		return nil, err
	}
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		for _, r := range c.nodes {
			if r.State() == raft.Leader {
				c.leader = r
				return c, nil
			}
		}
		if time.Now().After(deadline) {
			return nil, errors.New("no leader")
		}
	}
}

func (c *bareRaft) commit(context.Context, int, int) error {
	return c.leader.Apply(c.body, 20*time.Second).Error()
}

func (c *bareRaft) processes() []int { return nil }

func (c *bareRaft) close() {
	for i, r := range c.nodes {
		_ = r.Shutdown().Error()
		_ = c.trans[i].Close()
		_ = c.stores[i].Close()
	}
}

// nothing is a state machine.
type nothing struct{}

func (nothing) Apply(*raft.Log) any                 { return nil }
func (nothing) Snapshot() (raft.FSMSnapshot, error) { return nothing{}, nil }
func (nothing) Restore(r io.ReadCloser) error       { return r.Close() }
func (nothing) Persist(s raft.SnapshotSink) error   { return s.Close() }
func (nothing) Release()                            {}
