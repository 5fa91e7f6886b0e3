package faultfs

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/bbolt"
)

func mount(t *testing.T) (*FS, string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("no /dev/fuse")
	}
	point := t.TempDir()
	f, err := Mount(t.TempDir(), point)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f, point
}

func write(t *testing.T, path string, data []byte, off int64, sync bool) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, off); err != nil {
		t.Fatal(err)
	}
	if sync {
		if err := f.Sync(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAPowerCutLosesOnlyWhatWasNotSynced(t *testing.T) {
	lostSome, tornSome := false, false
	for seed := range uint64(30) {
		f, point := mount(t)
		path := filepath.Join(point, "a")
		write(t, path, []byte("synced data"), 0, true)
		write(t, path, []byte("UNSYNC"), 0, false)
		write(t, path, []byte(" and a tail"), 11, false)
		if _, err := f.PowerCut(rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(filepath.Join(f.backing, "a"))
		if err != nil {
			t.Fatal(err)
		}
		switch s := string(got); {
		case s == "synced data":
			lostSome = true
		case s == "UNSYNC data", s == "UNSYNC data and a tail":
		case bytes.HasPrefix(got, []byte("U")), bytes.HasPrefix(got, []byte("UNSYNC data ")):
			tornSome = true
		default:
			t.Fatalf("seed %d: %q is neither old, new nor a torn mixture", seed, s)
		}
	}
	if !lostSome || !tornSome {
		t.Fatalf("lost %v, torn %v: in 30 cuts both must happen", lostSome, tornSome)
	}
}

func TestAHungDiskHoldsWritesUntilItResumes(t *testing.T) {
	f, point := mount(t)
	path := filepath.Join(point, "a")
	write(t, path, []byte("x"), 0, true)
	f.Hang()
	done := make(chan struct{})
	go func() { write(t, path, []byte("y"), 0, true); close(done) }()
	select {
	case <-done:
		t.Fatal("a write went through a hung disk")
	case <-time.After(200 * time.Millisecond):
	}
	f.Resume()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("the write did not end after the disk resumed")
	}
}

func TestAFileWithoutANameGoesOn(t *testing.T) {
	_, point := mount(t)
	f, err := os.Create(filepath.Join(point, "a"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString("text"); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Seek(0, 2); n != 4 || err != nil {
		t.Fatalf("the end is at %d, %v; want 4", n, err)
	}
}

func TestABreakpointStopsTheDiskJustBeforeTheOperation(t *testing.T) {
	f, point := mount(t)
	path := filepath.Join(point, "a")
	write(t, path, []byte("x"), 0, true)
	hit := f.Break(func(e Event) bool { return e.Op == OpRename && e.Path == "a" })
	write(t, path, []byte("y"), 0, true)
	done := make(chan error, 1)
	go func() { done <- os.Rename(path, filepath.Join(point, "b")) }()
	select {
	case <-hit:
	case <-time.After(5 * time.Second):
		t.Fatal("the breakpoint was not met")
	}
	if _, err := os.Stat(filepath.Join(f.backing, "b")); !os.IsNotExist(err) {
		t.Fatalf("the rename was carried out before Resume: %v", err)
	}
	f.Resume()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func TestAPowerCutLeavesAFileAloneThatCameUnderTheName(t *testing.T) {
	for seed := range uint64(8) {
		f, point := mount(t)
		path := filepath.Join(point, "a")
		write(t, path, []byte("an old file, unsynced"), 0, false)
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		write(t, path, []byte("new"), 0, true)
		if _, err := f.PowerCut(rand.New(rand.NewPCG(seed, 0))); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(f.backing, "a")); err != nil || string(got) != "new" {
			t.Fatalf("the new file holds %q, %v", got, err)
		}
	}
}

func TestAFullDiskRefusesWritesAndRecovers(t *testing.T) {
	f, point := mount(t)
	path := filepath.Join(point, "a")
	write(t, path, []byte("x"), 0, true)
	f.Fill()
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if _, err := file.WriteAt([]byte("y"), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("writing to a full disk: %v, want ENOSPC", err)
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(point, &st); err != nil || st.Bavail != 0 {
		t.Fatalf("statfs of a full disk: %d blocks free, %v", st.Bavail, err)
	}
	f.Free()
	if _, err := file.WriteAt([]byte("y"), 0); err != nil {
		t.Fatal(err)
	}
}

// boltChild names the database that a child process of this test fills.
const boltChild = "FAULTFS_BOLT_CHILD"

// TestMain lets the test binary be its own child. A process must not touch a
// mapped file of a mount that it serves itself: a page fault stops its thread
// where the garbage collector cannot, and both wait for each other.
func TestMain(m *testing.M) {
	if path := os.Getenv(boltChild); path != "" {
		if err := fillBolt(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func fillBolt(path string) error {
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true})
	if err != nil {
		return err
	}
	for i := range byte(20) {
		if err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			return b.Put([]byte{i}, bytes.Repeat([]byte{i}, 1000))
		}); err != nil {
			return err
		}
	}
	return db.Close()
}

func TestBoltWorksOnTheMountAndKeepsSyncedTransactions(t *testing.T) {
	f, point := mount(t)
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env = append(os.Environ(), boltChild+"="+filepath.Join(point, "bolt.db"))
	if out, err := child.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if _, err := f.PowerCut(rand.New(rand.NewPCG(1, 2))); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(f.backing, "bolt.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	err = db.View(func(tx *bbolt.Tx) error {
		for i := range byte(20) {
			if got := tx.Bucket([]byte("b")).Get([]byte{i}); len(got) != 1000 || got[0] != i {
				t.Errorf("key %d was lost", i)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
