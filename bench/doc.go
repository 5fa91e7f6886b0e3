// Command bench measures muster's xDS server against two others that send the
// same resources: a floor (bare grpc-go streaming pre-encoded bytes, no xDS
// logic) and a peer (go-control-plane, LinearCache and SnapshotCache).
//
// Every arm runs as a server process and a client process of its own; the arms
// of a scenario are alive together and their samples interleave, so that a
// drift of the machine hits all alike. Ratios between arms are the result;
// absolute times say little about another machine. Each scenario ends with an
// oracle: every stream must hold exactly the server's resources.
//
//	go run . run                # all scenarios, table to standard output
//	go run . run -only B1,B3    # some
//	go run . run -smoke         # small sizes, gates on ratios, for CI
//	go run . run -only B16 -envoy PATH
//	go run . run -only tree     # 20,000 data planes below ten relays
//
// B8, B9 and B15 measure clusters: commits against bare hashicorp/raft and etcd, from
// the API to the last acknowledgement, and the leader killed. `go run . commit` is B8
// in more detail, with the CPU of a commit.
//
// B16 runs Envoys against muster's xDS server, and the memory of a group is measured
// in a process that holds nothing else.
package main
