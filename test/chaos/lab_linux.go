package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"github.com/musterhq/muster/server/auth"
	"github.com/musterhq/muster/test/chaos/netlab"
	"github.com/musterhq/muster/test/e2e/pki"
)

// hostCount is how many hosts there are: three for the cluster, the rest for
// servers that join it.
const hostCount = 5

// lab is what outlives a cluster: namespaces, disks, certificates, the binary.
type lab struct {
	dir    string // in memory, gone with this process
	binary string
	net    *netlab.Lab
	ca     *pki.Authority
	secret string
	hosts  []*host
	wg     sync.WaitGroup // waits for the processes
	begin  time.Time
}

func newLab(binary string) (*lab, error) {
	// Outside these namespaces the directory stays empty.
	dir := filepath.Join(filepath.Dir(binary), "lab")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	err := netlab.Tmpfs(dir, 4096)
	if err != nil {
		return nil, err
	}
	l := &lab{dir: dir, binary: binary, secret: auth.GenerateKey(), begin: time.Now()}
	if l.net, err = netlab.New(); err != nil {
		return nil, err
	}
	if l.ca, err = pki.New("chaos"); err != nil {
		return nil, err
	}
	for i := 1; i <= hostCount; i++ {
		h, err := l.newHost(i)
		if err != nil {
			return nil, err
		}
		l.hosts = append(l.hosts, h)
	}
	return l, nil
}

// close unmounts the disks. The servers must have ended.
func (l *lab) close() error {
	l.wg.Wait()
	var errs []error
	for _, h := range l.hosts {
		errs = append(errs, h.disk.Close())
	}
	return errors.Join(errs...)
}

// now is the time since the run began.
func (l *lab) now() time.Duration { return time.Since(l.begin) }

// buildServer builds muster with failpoints.
func buildServer(ctx context.Context, dir string, race bool) (string, error) {
	binary := filepath.Join(dir, "muster")
	args := []string{"build", "-tags", "failpoints", "-o", binary}
	if race {
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, "github.com/musterhq/muster/cmd/muster")...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build muster: %w\n%s", err, out)
	}
	return binary, nil
}
