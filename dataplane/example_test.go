package dataplane_test

import (
	"bytes"
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/musterhq/muster/dataplane"
)

// clusters is the smallest useful handler: it keeps the clusters of the group by
// name. A real one would build what it serves from them, aside, and then swap.
type clusters struct {
	byName map[string]*clusterv3.Cluster
}

func (c *clusters) Apply(_ context.Context, u *dataplane.Update) error {
	var refused dataplane.Refused
	change := u.Types[dataplane.ClusterType]
	for name, body := range change.Upsert {
		m := &clusterv3.Cluster{}
		if err := body.UnmarshalTo(m); err != nil {
			refused.Add(dataplane.ClusterType, name, err.Error())
			continue
		}
		if m.GetType() != clusterv3.Cluster_EDS {
			refused.Add(dataplane.ClusterType, name, fmt.Sprintf("type: %s is not supported", m.GetType()))
			continue
		}
		c.byName[name] = m
	}
	for _, name := range change.Remove {
		delete(c.byName, name)
	}
	return refused.Err()
}

// A data plane that follows a group until it is interrupted, and serves the last
// configuration it had when no server answers.
func Example() {
	client, err := dataplane.New(dataplane.Config{
		Servers:  []string{"127.0.0.1:7943"},
		Insecure: true, // on loopback; use TLS elsewhere
		Group:    "default",
		NodeID:   "example-1",
		TypeURLs: []string{dataplane.ClusterType},
		CacheDir: os.TempDir(),
		Handler:  &clusters{byName: map[string]*clusterv3.Cluster{}},
	})
	if err != nil {
		log.Fatal(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := client.Run(ctx); err != nil {
		log.Fatal(err)
	}
}

// What a handler is given, and what it answers for a resource that it cannot honour.
func ExampleHandler() {
	body, err := anypb.New(&clusterv3.Cluster{Name: "legacy", ClusterDiscoveryType: &clusterv3.Cluster_Type{Type: clusterv3.Cluster_ORIGINAL_DST}})
	if err != nil {
		log.Fatal(err)
	}
	handler := &clusters{byName: map[string]*clusterv3.Cluster{}}
	err = handler.Apply(context.Background(), &dataplane.Update{
		Epoch: 1, Revision: 7, Whole: true,
		Types: map[string]dataplane.TypeUpdate{
			dataplane.ClusterType: {Upsert: map[string]*anypb.Any{"legacy": body}},
		},
	})
	fmt.Println(err)
	// Output: Cluster "legacy": type: ORIGINAL_DST is not supported
}

// A second home for the last known good configuration, for example a bucket.
func ExampleWriteSnapshot() {
	client, err := dataplane.New(dataplane.Config{
		Servers: []string{"127.0.0.1:7943"}, Insecure: true, Group: "default", NodeID: "backup-1",
		Handler: dataplane.HandlerFunc(func(context.Context, *dataplane.Update) error { return nil }),
	})
	if err != nil {
		log.Fatal(err)
	}
	var bucket bytes.Buffer
	if err := dataplane.WriteSnapshot(&bucket, "default", client.State(), []byte("key material of 16 bytes or more")); err != nil {
		log.Fatal(err)
	}
	_, err = dataplane.ReadSnapshot(&bucket, "default", []byte("another key than it was written with"))
	fmt.Println(err)
	// Output: snapshot of group "default" refused: it was encrypted with another key, or changed
}
