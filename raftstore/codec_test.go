package raftstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
)

var rewrite = flag.Bool("rewrite", false, "write the golden log entries of this version")

// examples holds one command of every type. Never change one: add another.
func examples() map[string]*musterv1.Command {
	expected := uint64(4)
	at := &timestamppb.Timestamp{Seconds: 1_800_000_000, Nanos: 5}
	group := &musterv1.Group{Id: "g", Name: "prod", Labels: map[string]string{"a": "1", "b": "2"}, Type: "api7_gateway", ControlPlaneKeyPrefix: "/p", HistoryLimit: 7}
	route := &musterv1.Resource{Kind: &musterv1.Resource_Route{Route: &musterv1.Route{Id: "r", ServiceId: "s", Uris: []string{"/x/*"}}}}
	commit := &musterv1.CommitCommand{
		Group: "g", ExpectedRevision: &expected, Message: "why",
		Changes: []*musterv1.Change{
			{Action: &musterv1.Change_Put{Put: route}},
			{Action: &musterv1.Change_Delete{Delete: &musterv1.ResourceKey{Kind: musterv1.Kind_KIND_SSL, Id: "c"}}},
		},
	}
	large := proto.CloneOf(commit)
	large.Changes[0].GetPut().GetRoute().Desc = strings.Repeat("0123456789", 1000)
	judged, on := proto.CloneOf(commit), uint64(0x1122334455667788)
	judged.Mark, judged.JudgedOn = 0x8877665544332211, &on
	return map[string]*musterv1.Command{
		"create_group":  {Author: "alice", Time: at, RequestId: "r1", Command: &musterv1.Command_CreateGroup{CreateGroup: group}},
		"update_group":  {Author: "alice", Time: at, Command: &musterv1.Command_UpdateGroup{UpdateGroup: group}},
		"delete_group":  {Author: "bob", Time: at, Command: &musterv1.Command_DeleteGroup{DeleteGroup: &musterv1.DeleteGroupCommand{Id: "g", Force: true}}},
		"commit":        {Author: "bob", Time: at, RequestId: "r2", Command: &musterv1.Command_Commit{Commit: commit}},
		"commit_judged": {Author: "bob", Time: at, RequestId: "r3", Command: &musterv1.Command_Commit{Commit: judged}},
		"commit_large":  {Author: "bob", Time: at, Command: &musterv1.Command_Commit{Commit: large}},
		"rollback":      {Author: "bob", Time: at, Command: &musterv1.Command_Commit{Commit: &musterv1.CommitCommand{Group: "g", RollbackTo: 3}}},
		"change_group":  {Author: "alice", Time: at, Command: &musterv1.Command_ChangeGroup{ChangeGroup: &musterv1.ChangeGroupCommand{Group: group, Fields: []string{"labels", "name"}}}},
		"raise_epoch":   {Author: "muster", Time: at, Command: &musterv1.Command_RaiseEpoch{RaiseEpoch: &musterv1.RaiseEpochCommand{AtLeast: 9}}},
	}
}

// TestEveryEntryEverWrittenIsStillRead reads the golden entries, which are
// never rewritten once released: a server must read the log of its predecessor.
func TestEveryEntryEverWrittenIsStillRead(t *testing.T) {
	for name, want := range examples() {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("testdata", "entries", "v1", name+".hex")
			if *rewrite {
				entry, err := encodeCommand(want)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(wrapHex(entry)), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			entry, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
			if err != nil {
				t.Fatal(err)
			}
			got, err := decodeCommand(entry)
			if err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(got, want) {
				t.Errorf("read %v, want %v", got, want)
			}
		})
	}
}

func wrapHex(data []byte) string {
	var out strings.Builder
	for len(data) > 0 {
		n := min(32, len(data))
		out.WriteString(hex.EncodeToString(data[:n]) + "\n")
		data = data[n:]
	}
	return out.String()
}

func TestEveryTypeOfCommandHasAGoldenEntry(t *testing.T) {
	seen := map[uint16]bool{}
	for _, cmd := range examples() {
		seen[commandType(cmd)] = true
	}
	fields := (&musterv1.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("command").Fields()
	for i := range fields.Len() {
		if f := fields.Get(i); !seen[uint16(f.Number())] {
			t.Errorf("no golden entry of type %d, %s", f.Number(), f.Name())
		}
	}
}

func TestWhatAServerDoesNotKnowStopsItOrIsSkipped(t *testing.T) {
	body := []byte("whatever")
	for _, c := range []struct {
		name  string
		entry []byte
		want  error
	}{
		{"an unknown type that is required", sealEntry(codecVersion, flagRequired, 99, body), ErrIncompatible},
		{"an unknown type that is ignorable", sealEntry(codecVersion, 0, 99, body), errSkip},
		{"a later codec that is required", sealEntry(codecVersion+1, flagRequired, typeCommit, body), ErrIncompatible},
		{"a later codec that is ignorable", sealEntry(codecVersion+1, 0, typeCommit, body), errSkip},
		{"an unknown flag", sealEntry(codecVersion, flagRequired|0x40, typeCommit, body), ErrIncompatible},
		{"a body that does not decode", sealEntry(codecVersion, flagRequired, typeCommit, []byte{0xff}), ErrPoison},
		{"a body of another type", sealEntry(codecVersion, flagRequired, typeCommit, nil), ErrPoison},
		{"a body that does not inflate", sealEntry(codecVersion, flagRequired|flagDeflate, typeCommit, []byte{0xff}), ErrPoison},
		{"something else", []byte("hello, world"), errDamaged},
		{"nothing", nil, errDamaged},
	} {
		t.Run(c.name, func(t *testing.T) {
			if _, err := decodeCommand(c.entry); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// TestEveryBatchEverWrittenIsStillRead is the same for several entries in one.
func TestEveryBatchEverWrittenIsStillRead(t *testing.T) {
	path := filepath.Join("testdata", "entries", "v1", "batch.hex")
	names := []string{"create_group", "commit", "commit_large"}
	if *rewrite {
		var entries [][]byte
		for _, name := range names {
			entry, err := encodeCommand(examples()[name])
			if err != nil {
				t.Fatal(err)
			}
			entries = append(entries, entry)
		}
		if err := os.WriteFile(path, []byte(wrapHex(encodeBatch(entries))), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	batch, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	entries, err := splitBatch(batch)
	if err != nil || len(entries) != len(names) {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	for i, name := range names {
		if got, err := decodeCommand(entries[i]); err != nil || !proto.Equal(got, examples()[name]) {
			t.Errorf("%s: read %v, %v", name, got, err)
		}
	}
	for bit := range len(batch) * 8 {
		damaged := bytes.Clone(batch)
		damaged[bit/8] ^= 1 << (bit % 8)
		inner, err := splitBatch(damaged)
		if err == nil && len(inner) == 1 {
			_, err = decodeCommand(inner[0]) // it no longer passes for a batch
		}
		if err == nil {
			t.Fatalf("bit %d went unnoticed", bit)
		}
	}
}

func FuzzSplitBatch(f *testing.F) {
	f.Add([]byte{3, 1, 2, 3, 0})
	f.Fuzz(func(t *testing.T, body []byte) {
		entries, err := splitBatch(sealEntry(codecVersion, flagRequired, typeBatch, body))
		if err != nil {
			if !errors.Is(err, errDamaged) {
				t.Errorf("got %v", err)
			}
			return
		}
		again, err := splitBatch(encodeBatch(entries))
		if err != nil || len(again) != len(entries) {
			t.Errorf("%d entries became %d, %v", len(entries), len(again), err)
		}
	})
}

func TestInflatingIsBounded(t *testing.T) {
	data := deflate(make([]byte, 1001))
	if _, err := inflate(data, 1000); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v", err)
	}
	if out, err := inflate(data, 1001); err != nil || len(out) != 1001 {
		t.Errorf("%d bytes, %v", len(out), err)
	}
}

func TestEveryFlippedBitIsNoticed(t *testing.T) {
	entry, err := encodeCommand(examples()["commit"])
	if err != nil {
		t.Fatal(err)
	}
	for bit := range len(entry) * 8 {
		damaged := bytes.Clone(entry)
		damaged[bit/8] ^= 1 << (bit % 8)
		if _, err := decodeCommand(damaged); !errors.Is(err, errDamaged) {
			t.Fatalf("bit %d: got %v", bit, err)
		}
	}
}

func TestLargeCommandsAreCompressed(t *testing.T) {
	cmd := examples()["commit_large"]
	entry, err := encodeCommand(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if len(entry) > proto.Size(cmd)/2 {
		t.Errorf("%d bytes for a command of %d", len(entry), proto.Size(cmd))
	}
}

func FuzzDecodeCommand(f *testing.F) {
	for _, cmd := range examples() {
		entry, err := encodeCommand(cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(entry[2], entry[3], uint16(entry[4])<<8|uint16(entry[5]), entry[headerSize:])
	}
	f.Fuzz(func(t *testing.T, version, flags byte, typ uint16, body []byte) {
		cmd, err := decodeCommand(sealEntry(version, flags, typ, body))
		if err != nil {
			if !errors.Is(err, errSkip) && !errors.Is(err, ErrIncompatible) && !errors.Is(err, ErrPoison) {
				t.Errorf("got %v", err)
			}
			return
		}
		entry, err := encodeCommand(cmd)
		if err != nil {
			t.Fatal(err)
		}
		again, err := decodeCommand(entry)
		if err != nil || !proto.Equal(cmd, again) {
			t.Errorf("%v became %v, %v", cmd, again, err)
		}
	})
}
