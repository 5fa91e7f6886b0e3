// Package raftstore replicates muster's state through Raft and keeps it on disk.
//
// A Store is one server of the cluster. Writes go through Apply on any server
// and return once a majority has them on disk; State is the local state, free
// of locks; ReadIndex makes it linearizable. DESIGN.md tells how it works and
// why.
package raftstore
