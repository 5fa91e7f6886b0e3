package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
)

// inside marks the process that lives in the namespaces.
const inside = "MUSTER_CHAOS_INSIDE"

// Needs lists the programs that the lab calls, with the Debian package of each.
var needs = [][2]string{{"ip", "iproute2"}, {"nft", "nftables"}, {"iptables", "iptables"}}

// Check says what is missing on this machine, all at once.
func Check() error {
	var missing []string
	if os.Getuid() != 0 {
		missing = append(missing, "it does not run as root")
	}
	for _, n := range needs {
		if _, err := exec.LookPath(n[0]); err != nil {
			missing = append(missing, fmt.Sprintf("there is no %s (Debian package %s)", n[0], n[1]))
		}
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		missing = append(missing, "there is no /dev/fuse")
	}
	if len(missing) == 0 {
		probe := exec.Command("/bin/true")
		probe.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
		if err := probe.Run(); err != nil {
			missing = append(missing, fmt.Sprintf("it may not make namespaces (%v)", err))
		}
	}
	if len(missing) > 0 {
		return errors.New("the fault tests cannot run here: " + strings.Join(missing, "; "))
	}
	return nil
}

// namespaces are those that the tests live in.
const namespaces = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID

// Enter runs this program again, with the same arguments, in network, mount and
// process namespaces of its own, and returns its exit code. In that process it
// returns entered, with private mounts and an empty network.
func Enter() (entered bool, code int, err error) {
	if os.Getenv(inside) != "" {
		return true, 0, prepare()
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = nil, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: namespaces,
		Pdeathsig:  syscall.SIGKILL,
		// A group of its own: an interrupt reaches it once, passed on below.
		Setpgid: true,
	}
	// Signals are the inner process's to handle: this one only passes them on.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	if err := cmd.Start(); err != nil {
		return false, 1, fmt.Errorf("the fault tests cannot make namespaces here: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for {
		select {
		case s := <-signals:
			_ = cmd.Process.Signal(s)
		case err := <-done:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return false, max(exit.ExitCode(), 1), nil
			}
			if err != nil {
				return false, 1, err
			}
			return false, 0, nil
		}
	}
}

// prepare makes the mounts private and mounts what must be of these namespaces.
func prepare() error {
	if err := syscall.Mount("none", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := syscall.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	if err := syscall.Mount("tmpfs", "/run/netns", "tmpfs", 0, ""); err != nil {
		return fmt.Errorf("mount /run/netns: %w", err)
	}
	return run("ip", "link", "set", "lo", "up")
}

// Tmpfs mounts an empty file system in memory, of so many MiB.
func Tmpfs(dir string, mib int) error {
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%dm,mode=0700", mib)); err != nil {
		return fmt.Errorf("mount %s: %w", dir, err)
	}
	return nil
}

func run(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}
