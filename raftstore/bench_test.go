package raftstore

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// BenchmarkEntry is what one command of 1 KiB costs each server besides raft: its
// share of an entry of 64, decoded and carried out.
func BenchmarkEntry(b *testing.B) {
	f := newFSM(slog.New(slog.DiscardHandler), func() {}, func(err error) { b.Fatal(err) })
	create, err := encodeCommand(groupG())
	if err != nil {
		b.Fatal(err)
	}
	f.Apply(&raft.Log{Index: 1, Term: 1, Data: create})
	const batch = 64
	var batches [][]byte
	for round := range 8 {
		var entries [][]byte
		for i := range batch {
			entry, err := encodeCommand(putService("g", fmt.Sprintf("w%d", i), fmt.Sprintf("%08d", round)+strings.Repeat("x", 1000)))
			if err != nil {
				b.Fatal(err)
			}
			entries = append(entries, entry)
		}
		batches = append(batches, encodeBatch(entries))
	}
	b.ReportAllocs()
	n := uint64(1)
	for i := 0; i < b.N; i += batch {
		n++
		f.Apply(&raft.Log{Index: n, Term: 1, Data: batches[n%8]})
	}
	if g, _ := f.state.Load().Group("g"); g.Revision() < uint64(b.N) {
		b.Fatalf("revision %d after %d commands", g.Revision(), b.N)
	}
}
