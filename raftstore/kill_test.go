package raftstore

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// childMain is the process that the test kills: it writes as fast as it can
// and prints the id of each write once that was acknowledged.
func childMain(dir string) int {
	s, err := Open(Config{DataDir: dir, Bootstrap: true, Logger: quiet(), SnapshotThreshold: 64, SnapshotInterval: 20 * time.Millisecond})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	ctx := context.Background() // vet:allow this is a process of its own, which is killed
	go s.Run(ctx)
	round := os.Getenv("RAFTSTORE_TEST_ROUND")
	if _, err := s.Apply(ctx, createGroup("g")); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for w := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				id := fmt.Sprintf("r%s-w%d-%d", round, w, i)
				result, err := s.Apply(ctx, putService("g", id, strings.Repeat("x", 1000)))
				if err != nil || result.Err != nil {
					fmt.Fprintln(os.Stderr, err, result.Err)
					return
				}
				mu.Lock()
				fmt.Println(id)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return 1
}

func TestNoAcknowledgedWriteIsLostWhenTheProcessIsKilled(t *testing.T) {
	dir := t.TempDir()
	var acknowledged []string
	for round := range 3 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "RAFTSTORE_TEST_CHILD="+dir, fmt.Sprint("RAFTSTORE_TEST_ROUND=", round))
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// What was printed before the kill was acknowledged, too; a torn last
		// line does not count.
		lines := bufio.NewReader(out)
		for n := 1; ; n++ {
			line, err := lines.ReadString('\n')
			if err != nil {
				break
			}
			acknowledged = append(acknowledged, strings.TrimSpace(line))
			if n == 400 {
				if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		}
		_ = cmd.Wait()
		if len(acknowledged) < 400*(round+1) {
			t.Fatalf("only %d writes in round %d", len(acknowledged), round)
		}

		s, stop := one(t, dir)
		if err := s.ReadIndex(testCtx(t)); err != nil {
			t.Fatal(err)
		}
		g, _ := s.State().Group("g")
		for _, id := range acknowledged {
			if _, found := g.View().Get(serviceKey(id)); !found {
				t.Errorf("acknowledged %s is lost", id)
			}
		}
		if g.Revision() < uint64(len(acknowledged)) {
			t.Errorf("revision %d after %d acknowledged writes", g.Revision(), len(acknowledged))
		}
		stop()
	}
}
