package dataplane_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/dataplane"
)

func cluster(name string, kind clusterv3.Cluster_DiscoveryType) *clusterv3.Cluster {
	return &clusterv3.Cluster{Name: name, ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: kind}}
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// A data plane that follows a group, and is told of each revision as a whole.
func Example() {
	server := startUpstream(cluster("shop", clusterv3.Cluster_EDS), cluster("auth", clusterv3.Cluster_EDS))
	defer server.stop()

	revisions := make(chan string)
	ctx, stop := context.WithCancel(context.Background()) // vet:allow an example has no testing.T
	var running sync.WaitGroup
	running.Go(func() {
		err := dataplane.Subscribe(ctx, dataplane.Config{
			Servers:  []string{server.addr}, // several: one that fails is left for another
			Insecure: true,                  // on loopback; use TLS elsewhere
			Group:    "edge",
			NodeID:   "example-1",
			TypeURLs: []string{dataplane.ClusterType},
			Logger:   quiet,
			Handler: dataplane.HandlerFunc(func(_ context.Context, u *dataplane.Update) error {
				change := u.Types[dataplane.ClusterType]
				revisions <- fmt.Sprintf("revision %d: + %v - %v", u.Revision, slices.Sorted(maps.Keys(change.Upsert)), change.Remove)
				return nil
			}),
		})
		if err != nil {
			log.Fatal(err)
		}
	})
	fmt.Println(<-revisions)
	server.commit(cluster("shop", clusterv3.Cluster_EDS), cluster("search", clusterv3.Cluster_EDS))
	fmt.Println(<-revisions)
	stop()
	running.Wait()
	// Output:
	// revision 1: + [auth shop] - []
	// revision 2: + [search] - [auth]
}

// routing is what a gateway serves from: never changed, replaced as a whole.
type routing struct {
	clusters map[string]*clusterv3.Cluster
}

// gateway serves from the newest routing that could be provisioned.
type gateway struct {
	serving atomic.Pointer[routing]
}

// Apply decodes, provisions, validates, swaps and cleans up. Until the swap nothing
// that serves has been touched, so that it can give up at any line.
func (g *gateway) Apply(_ context.Context, u *dataplane.Update) error {
	before := g.serving.Load()
	next := &routing{clusters: maps.Clone(before.clusters)}
	var refused dataplane.Refused
	change := u.Types[dataplane.ClusterType]
	for _, name := range slices.Sorted(maps.Keys(change.Upsert)) {
		c := &clusterv3.Cluster{}
		if err := change.Upsert[name].UnmarshalTo(c); err != nil { // decode
			refused.Add(dataplane.ClusterType, name, err.Error())
			continue
		}
		if c.GetType() != clusterv3.Cluster_EDS { // provision: here connections would be opened
			refused.Add(dataplane.ClusterType, name, fmt.Sprintf("type: %s is not supported", c.GetType()))
			continue // it stays as it is in service
		}
		next.clusters[name] = c
	}
	for _, name := range change.Remove {
		delete(next.clusters, name)
	}
	if len(next.clusters) == 0 { // validate the whole
		return errors.New("no cluster would be left")
	}
	g.serving.Store(next) // swap
	// Clean up: here what only before had would be closed.
	return refused.Err()
}

// What a handler is given, and what it answers for a resource that it cannot
// honour: that one keeps its last good version, and all others are in service.
func ExampleHandler() {
	body, err := anypb.New(cluster("legacy", clusterv3.Cluster_ORIGINAL_DST))
	if err != nil {
		log.Fatal(err)
	}
	g := &gateway{}
	g.serving.Store(&routing{clusters: map[string]*clusterv3.Cluster{"shop": cluster("shop", clusterv3.Cluster_EDS)}})
	err = g.Apply(context.Background(), &dataplane.Update{
		Epoch: 1, Revision: 7, Whole: true,
		Types: map[string]dataplane.TypeUpdate{
			dataplane.ClusterType: {Upsert: map[string]*anypb.Any{"legacy": body}},
		},
	})
	fmt.Println(err)
	fmt.Println(len(g.serving.Load().clusters), "cluster in service")

	err = g.Apply(context.Background(), &dataplane.Update{
		Epoch: 1, Revision: 8, Whole: true,
		Types: map[string]dataplane.TypeUpdate{dataplane.ClusterType: {Remove: []string{"shop"}}},
	})
	fmt.Println(err)
	fmt.Println(len(g.serving.Load().clusters), "cluster in service")
	// Output:
	// Cluster "legacy": type: ORIGINAL_DST is not supported
	// 1 cluster in service
	// no cluster would be left
	// 1 cluster in service
}

// follow runs a client until it has something in service, and returns what.
func follow(cfg dataplane.Config) dataplane.Status {
	cfg.Group, cfg.NodeID, cfg.Insecure, cfg.TypeURLs, cfg.Logger = "edge", "example-1", true, []string{dataplane.ClusterType}, quiet
	done := make(chan struct{})
	cfg.Handler = dataplane.HandlerFunc(func(context.Context, *dataplane.Update) error { return nil })
	applied := cfg.Hooks.Applied
	cfg.Hooks.Applied = func(a dataplane.Applied) {
		if applied != nil {
			applied(a)
		}
		close(done)
	}
	client, err := dataplane.New(cfg)
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background()) // vet:allow an example has no testing.T
	var running sync.WaitGroup
	running.Go(func() {
		if err := client.Run(ctx); err != nil {
			log.Fatal(err)
		}
	})
	<-done
	stop()
	running.Wait()
	return client.Status()
}

// With a directory for the last known good configuration a data plane starts
// without any server.
func ExampleConfig_cacheDir() {
	dir, err := os.MkdirTemp("", "example-*")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	server := startUpstream(cluster("shop", clusterv3.Cluster_EDS))
	follow(dataplane.Config{Servers: []string{server.addr}, CacheDir: dir})
	server.stop()

	status := follow(dataplane.Config{Servers: []string{server.addr}, CacheDir: dir})
	fmt.Printf("revision %d in service, from disk: %v\n", status.Revision, status.Cached)
	files, err := filepath.Glob(filepath.Join(dir, "edge.*.base"))
	if err != nil {
		log.Fatal(err)
	}
	info, err := os.Stat(files[0])
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(info.Mode())
	// Output:
	// revision 1 in service, from disk: true
	// -rw-------
}

// A backup gateway keeps what it has in a second home, and another, with neither a
// server nor a file of its own, starts from there. Package bucket has a store for S3.
func ExampleSecondHome() {
	home, err := dataplane.NewSecondHome(dataplane.SecondHomeConfig{
		Store: &memory{objects: map[string][]byte{}},
		Key:   []byte("key material of 16 bytes or more"),
	})
	if err != nil {
		log.Fatal(err)
	}
	server := startUpstream(cluster("shop", clusterv3.Cluster_EDS))
	kept := make(chan struct{})
	backup, err := dataplane.New(dataplane.Config{
		Servers: []string{server.addr}, Insecure: true, Group: "edge", NodeID: "backup-1", TypeURLs: []string{dataplane.ClusterType}, Logger: quiet,
		SecondHome: home, KeepInSecondHome: true,
		Hooks:   dataplane.Hooks{SecondHomeWritten: func(dataplane.SecondHomeWritten) { close(kept) }},
		Handler: dataplane.HandlerFunc(func(context.Context, *dataplane.Update) error { return nil }),
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background()) // vet:allow an example has no testing.T
	var running sync.WaitGroup
	running.Go(func() {
		if err := backup.Run(ctx); err != nil {
			log.Fatal(err)
		}
	})
	<-kept
	stop()
	running.Wait()
	server.stop()

	status := follow(dataplane.Config{Servers: []string{server.addr}, SecondHome: home})
	fmt.Printf("revision %d in service\n", status.Revision)
	// Output: revision 1 in service
}

// Hooks feed metrics of whatever library a gateway uses.
func ExampleHooks() {
	server := startUpstream(cluster("shop", clusterv3.Cluster_EDS), cluster("auth", clusterv3.Cluster_EDS))
	defer server.stop()
	follow(dataplane.Config{
		Servers: []string{server.addr},
		Hooks: dataplane.Hooks{
			Connected: func(string) { fmt.Println("connected") },
			Received: func(r dataplane.Received) {
				fmt.Printf("received %d of %s\n", r.Resources, r.TypeURL[strings.LastIndexByte(r.TypeURL, '.')+1:])
			},
			Applied: func(a dataplane.Applied) {
				fmt.Printf("revision %d applied: %d resources, error %v\n", a.Revision, a.Upserted, a.Err)
			},
		},
	})
	// Output:
	// connected
	// received 2 of Cluster
	// received 1 of Manifest
	// revision 1 applied: 2 resources, error <nil>
}

// The format of the file on disk, for a home of another kind.
func ExampleWriteSnapshot() {
	client, err := dataplane.New(dataplane.Config{
		Servers: []string{"127.0.0.1:7943"}, Insecure: true, Group: "default", NodeID: "backup-1",
		Handler: dataplane.HandlerFunc(func(context.Context, *dataplane.Update) error { return nil }),
	})
	if err != nil {
		log.Fatal(err)
	}
	var file bytes.Buffer
	if err := dataplane.WriteSnapshot(&file, "default", client.State(), []byte("key material of 16 bytes or more")); err != nil {
		log.Fatal(err)
	}
	_, err = dataplane.ReadSnapshot(&file, "default", []byte("another key than it was written with"))
	fmt.Println(err)
	// Output: snapshot of group "default" refused: it was encrypted with another key, or changed
}
