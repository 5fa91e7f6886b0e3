package cli

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/musterhq/muster/test/e2e/ports"
)

// member is one server of a cluster that is run from the command line.
type member struct {
	id, admin string
	said      *lines
	stop      func() int
}

// testCluster is servers that share an API key.
type testCluster struct {
	t       *testing.T
	dir     string
	vars    map[string]string // all addresses, and the key
	members map[string]member
}

// startCluster starts so many servers and waits until all have a vote.
func startCluster(t *testing.T, servers int) *testCluster {
	t.Helper()
	c := &testCluster{t: t, dir: t.TempDir(), vars: map[string]string{}, members: map[string]member{}}
	for i := range servers {
		id := string(rune('a' + i))
		if i == 0 {
			c.start(id, "--bootstrap")
			continue
		}
		c.start(id, "--join", c.peers("a")[0].Address)
	}
	c.voters(servers)
	return c
}

func (c *testCluster) start(id string, args ...string) {
	c.t.Helper()
	args = append([]string{"server", "--server-id", id, "--data-dir", id, "--api-keys-file", "keys.json", "--insecure", "--log-level", "error",
		"--admin-addr", "127.0.0.1:0", "--xds-addr", "127.0.0.1:0", "--raft-addr", "127.0.0.1:0", "--promote-after", "200ms"}, args...)
	_, said, stop := background(c.t, c.dir, nil, args...)
	if _, ok := c.vars["MUSTER_API_KEY"]; !ok {
		c.vars["MUSTER_API_KEY"] = said.await(c.t, `shown once[^\n]*\n  (mst-\S+)`)[1]
	}
	c.members[id] = member{id, said.await(c.t, `admin on (\S+),`)[1], said, stop}
	var addrs []string
	for _, m := range c.members {
		addrs = append(addrs, m.admin)
	}
	c.vars["MUSTER_ADDR"] = strings.Join(addrs, ",")
	if !slices.Contains(args, "--join") {
		return
	}
	c.eventually(id+" is a member", func() bool {
		return slices.ContainsFunc(c.peers(id), func(p peerJSON) bool { return p.ID == id })
	})
}

func (c *testCluster) eventually(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			c.t.Fatalf("waited in vain: %s", what)
		}
	}
}

// muster runs a command that must succeed and returns what it wrote to stdout.
func (c *testCluster) muster(args ...string) string {
	c.t.Helper()
	code, out, said := run(c.t, c.dir, c.vars, args...)
	if code != 0 {
		c.t.Fatalf("muster %s: %d\n%s%s", strings.Join(args, " "), code, out, said)
	}
	return out
}

// fails runs a command that must exit with a code and returns what it said.
func (c *testCluster) fails(want int, args ...string) string {
	c.t.Helper()
	code, out, said := run(c.t, c.dir, c.vars, args...)
	if code != want {
		c.t.Fatalf("muster %s: %d, want %d\n%s%s", strings.Join(args, " "), code, want, out, said)
	}
	return said
}

type peerJSON struct {
	ID      string `json:"id"`
	Address string `json:"address"`
	Leader  bool   `json:"leader"`
	Voter   bool   `json:"voter"`
}

// peers asks one server.
func (c *testCluster) peers(id string) []peerJSON {
	c.t.Helper()
	out := c.muster("cluster", "peers", "-o", "json", "--addr", c.members[id].admin)
	var peers []peerJSON
	if err := json.Unmarshal([]byte(out), &peers); err != nil {
		c.t.Fatalf("%v in %s", err, out)
	}
	return peers
}

func (c *testCluster) voters(n int) {
	c.t.Helper()
	c.eventually(fmt.Sprintf("%d servers have a vote", n), func() bool {
		voters := 0
		for _, p := range c.peers("a") {
			if p.Voter {
				voters++
			}
		}
		return voters == n
	})
}

func (c *testCluster) leader() string {
	c.t.Helper()
	leader := ""
	c.eventually("there is a leader", func() bool {
		for _, p := range c.peers("a") {
			if p.Leader {
				leader = p.ID
			}
		}
		return leader != ""
	})
	return leader
}

func (c *testCluster) epoch() uint64 {
	c.t.Helper()
	var st struct {
		Epoch uint64 `json:"epoch"`
	}
	out := c.muster("cluster", "status", "-o", "json")
	if err := json.Unmarshal([]byte(out), &st); err != nil {
		c.t.Fatalf("%v in %s", err, out)
	}
	return st.Epoch
}

func (c *testCluster) write(name, text string) {
	c.t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, name), []byte(text), 0o600); err != nil {
		c.t.Fatal(err)
	}
}

func TestThreeServersFormAClusterWhoseLeaderMovesAndWhoseMembersGo(t *testing.T) {
	c := startCluster(t, 3)
	for id := range c.members {
		peers := c.peers(id)
		if len(peers) != 3 || peers[0].ID != "a" || peers[0].Address == "" || !peers[2].Voter {
			t.Fatalf("peers by %s: %+v", id, peers)
		}
	}
	if out := c.muster("cluster", "peers"); !strings.Contains(out, "ID") || strings.Count(out, "READY") != 3 {
		t.Errorf("peers:\n%s", out)
	}
	if out := c.muster("cluster", "status"); !strings.Contains(out, "3 voters; 1 may fail") {
		t.Errorf("status:\n%s", out)
	}

	next := map[string]string{"a": "b", "b": "c", "c": "a"}[c.leader()]
	// On a busy machine leadership may be lost again at once.
	c.eventually(next+" leads", func() bool {
		return c.muster("cluster", "transfer-leader", next) == "server/"+next+" leads\n" && c.leader() == next
	})
	if said := c.fails(exitNotFound, "cluster", "transfer-leader", "nobody"); !strings.Contains(said, "nobody") {
		t.Errorf("transfer to nobody: %s", said)
	}
	c.muster("cluster", "transfer-leader")

	if said := c.fails(exitInvalid, "cluster", "remove", "c"); !strings.Contains(said, "without a confirmation") || !strings.Contains(said, "2 voters remain") {
		t.Errorf("remove without --yes: %s", said)
	}
	if said := c.fails(exitNotFound, "cluster", "remove", "nobody", "--yes"); !strings.Contains(said, "muster cluster peers") {
		t.Errorf("remove nobody: %s", said)
	}
	// With b away, only a would be left of a and b.
	if code := c.members["b"].stop(); code != 0 {
		t.Fatalf("b: %d\n%s", code, c.members["b"].said)
	}
	if said := c.fails(exitConflict, "cluster", "remove", "c", "--yes"); !strings.Contains(said, "only 1 of 2 voters") || !strings.Contains(said, "--force") {
		t.Errorf("remove that costs the quorum: %s", said)
	}
	if out := c.muster("cluster", "remove", "b", "--yes"); out != "server/b removed\n" {
		t.Errorf("remove: %s", out)
	}
	c.voters(2)

	// A server that was started without being told of a cluster joins by hand.
	c.start("d")
	if said := c.fails(exitInvalid, "cluster", "join", "127.0.0.1:1"); !strings.Contains(said, "which server is to join") {
		t.Errorf("join with several addresses: %s", said)
	}
	c.muster("cluster", "join", c.peers("a")[0].Address, "--addr", c.members["d"].admin)
	c.voters(3)
}

func TestABackupIsRestoredAndADamagedOneChangesNothing(t *testing.T) {
	c := startCluster(t, 3)
	c.muster("group", "create", "default")
	c.write("one.yaml", "consumers:\n- username: kept\n")
	c.write("two.yaml", "consumers:\n- username: late\n")
	c.muster("apply", "-f", "one.yaml")
	if out := c.muster("snapshot", "save", "a.snap"); !strings.Contains(out, "1 group, 1 resource of epoch 1") {
		t.Errorf("save: %s", out)
	}
	file := filepath.Join(c.dir, "a.snap")
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the backup is %v, %v", info, err)
	}
	if said := c.fails(exitConflict, "snapshot", "save", "a.snap"); !strings.Contains(said, "--overwrite") {
		t.Errorf("save over a file: %s", said)
	}
	c.muster("snapshot", "save", "a.snap", "--overwrite")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if out := c.muster("snapshot", "save", "-"); out != string(good) {
		t.Errorf("stdout holds %d bytes, the file %d", len(out), len(good))
	}
	if out := c.muster("snapshot", "inspect", "a.snap"); !strings.Contains(out, "resources") || !strings.Contains(out, "checksum") {
		t.Errorf("inspect: %s", out)
	}
	// A save that fails leaves nothing behind.
	c.fails(exitInvalid, "snapshot", "save", "nowhere/a.snap")
	c.muster("apply", "-f", "two.yaml")

	for name, data := range map[string][]byte{
		"cut.snap":   good[:len(good)-7],
		"bit.snap":   bytes.Replace(good, []byte("kept"), []byte("kepu"), 1),
		"other.snap": []byte("PK\x03\x04"),
		"empty.snap": nil,
		"long.snap":  append(bytes.Clone(good), 0),
	} {
		c.write(name, string(data))
		c.fails(exitInvalid, "snapshot", "inspect", name)
		c.fails(exitInvalid, "snapshot", "restore", name, "--yes")
	}
	if got := c.epoch(); got != 1 {
		t.Fatalf("a refused restore made epoch %d", got)
	}
	c.muster("get", "consumer/late")
	if said := c.fails(exitInvalid, "snapshot", "restore", "a.snap"); !strings.Contains(said, "without a confirmation") || !strings.Contains(said, "epoch 1") {
		t.Errorf("restore without --yes: %s", said)
	}

	if out := c.muster("snapshot", "restore", "a.snap", "--yes"); out != "restored 1 group, 1 resource; the epoch is now 2\n" {
		t.Errorf("restore: %s", out)
	}
	c.muster("get", "consumer/kept")
	c.fails(exitNotFound, "get", "consumer/late")
	if got := c.epoch(); got != 2 {
		t.Errorf("epoch %d after a restore", got)
	}
	c.muster("apply", "-f", "two.yaml")

	fresh := startCluster(t, 1)
	fresh.write("a.snap", string(good))
	fresh.muster("snapshot", "restore", "a.snap", "--yes")
	fresh.muster("get", "consumer/kept")
	if got := fresh.epoch(); got < 2 {
		t.Errorf("epoch %d in a fresh cluster, the backup is of epoch 1", got)
	}
	left, err := filepath.Glob(filepath.Join(c.dir, ".*.snap*"))
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestOfSeveralServersOneThatCanServeIsFound(t *testing.T) {
	c := startCluster(t, 3)
	c.muster("group", "create", "default")
	c.write("one.yaml", "consumers:\n- username: kept\n")
	// One that is not there at all, one that belongs to no cluster, then the rest.
	c.start("lonely")
	c.vars["MUSTER_ADDR"] = strings.Join([]string{"127.0.0.1:1", c.members["lonely"].admin, c.members["a"].admin, c.members["b"].admin}, ",")
	began := time.Now()
	c.muster("apply", "-f", "one.yaml")
	c.muster("get", "consumer/kept")
	took := time.Since(began)
	t.Logf("two commands took %s", took)
	if took > 12*time.Second {
		t.Errorf("that took %s", took)
	}
}

// The runbook of docs/operations.md, "A majority is lost for good".
func TestTheSurvivorOfALostMajorityIsRecoveredByPeersJSON(t *testing.T) {
	c := &testCluster{t: t, dir: t.TempDir(), vars: map[string]string{}, members: map[string]member{}}
	raft, err := ports.Free()
	if err != nil {
		t.Fatal(err)
	}
	addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(raft))
	c.start("a", "--bootstrap", "--raft-addr", addr)
	c.start("b", "--join", addr)
	c.start("d", "--join", addr)
	c.voters(3)
	c.muster("group", "create", "default")
	c.write("one.yaml", "consumers:\n- username: kept\n")
	c.muster("apply", "-f", "one.yaml")
	for _, m := range c.members {
		m.stop()
	}
	file := filepath.Join(c.dir, "a", "raft", "peers.json")
	if err := os.WriteFile(file, fmt.Appendf(nil, `[{"id": "a", "address": %q, "non_voter": false}]`, addr), 0o600); err != nil {
		t.Fatal(err)
	}
	c.members = map[string]member{}
	c.start("a", "--bootstrap", "--raft-addr", addr)
	c.muster("get", "consumer/kept")
	if got := c.epoch(); got != 2 {
		t.Errorf("epoch %d after a recovery", got)
	}
	if peers := c.peers("a"); len(peers) != 1 || !peers[0].Leader {
		t.Errorf("peers %+v", peers)
	}
	if _, err := os.Stat(file + ".done"); err != nil {
		t.Error(err)
	}
	c.start("e", "--join", addr)
	c.voters(2)
}
