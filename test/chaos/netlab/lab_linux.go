package netlab

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// HubIP is the address of this process's own namespace, where the clients are.
const HubIP = "10.77.0.254"

// Lab is a bridge with hosts on it. Its methods are safe for concurrent use.
type Lab struct {
	mu    sync.Mutex
	hosts map[string]*host
}

type host struct {
	ip string
	ns *os.File
}

// Rules say what a host's network does to it. Addresses are IPs.
type Rules struct {
	// DropIn and DropOut name hosts of which nothing arrives, and to which
	// nothing leaves.
	DropIn, DropOut []string
	// Redirect sends new connections to an address (ip:port) somewhere else.
	Redirect map[string]string
	// Reset breaks connections to these addresses (ip:port).
	Reset []string
}

// New makes the bridge. Call it once, after Enter.
func New() (*Lab, error) {
	for _, args := range [][]string{
		{"link", "add", "br0", "type", "bridge"},
		{"addr", "add", HubIP + "/24", "dev", "br0"},
		{"link", "set", "br0", "up"},
	} {
		if err := run("ip", args...); err != nil {
			return nil, err
		}
	}
	return &Lab{hosts: map[string]*host{}}, nil
}

// Add makes a host with a namespace of its own.
func (l *Lab) Add(name, ip string) error {
	for _, args := range [][]string{
		{"netns", "add", name},
		{"link", "add", "v-" + name, "type", "veth", "peer", "name", "eth0", "netns", name},
		{"link", "set", "v-" + name, "master", "br0"},
		{"link", "set", "v-" + name, "up"},
		{"-n", name, "addr", "add", ip + "/24", "dev", "eth0"},
		{"-n", name, "link", "set", "eth0", "up"},
		{"-n", name, "link", "set", "lo", "up"},
	} {
		if err := run("ip", args...); err != nil {
			return err
		}
	}
	ns, err := os.Open("/run/netns/" + name)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hosts[name] = &host{ip: ip, ns: ns}
	return nil
}

// Start starts a command on a host.
func (l *Lab) Start(name string, cmd *exec.Cmd) error {
	l.mu.Lock()
	h := l.hosts[name]
	l.mu.Unlock()
	if h == nil {
		return fmt.Errorf("netlab: no host %q", name)
	}
	runtime.LockOSThread()
	home, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	if err := unix.Setns(int(h.ns.Fd()), unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("netlab: enter %s: %w", name, err)
	}
	startErr := cmd.Start()
	if err := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); err != nil {
		// The thread stays locked, so that nothing else runs on it.
		return fmt.Errorf("netlab: leave %s: %w", name, err)
	}
	runtime.UnlockOSThread()
	return startErr
}

// exec runs a command on a host to its end.
func (l *Lab) exec(name, stdin string, argv ...string) error {
	cmd := exec.Command(argv[0], argv[1:]...)
	var out strings.Builder
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &out
	if err := l.Start(name, cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("netlab: %s on %s: %w: %s", strings.Join(argv, " "), name, err, &out)
	}
	return nil
}

// Set replaces a host's rules; the zero value has none.
func (l *Lab) Set(name string, r Rules) error {
	return l.exec(name, r.script(), "nft", "-f", "-")
}

func (r Rules) script() string {
	var b strings.Builder
	// A table is made before it is deleted, so that the first time works too;
	// the whole script is one transaction.
	b.WriteString("table ip chaos {\n}\ndelete table ip chaos\ntable ip chaos {\n")
	chain := func(name, spec string, lines []string) {
		fmt.Fprintf(&b, " chain %s {\n  type %s; policy accept;\n  %s\n }\n", name, spec, strings.Join(lines, "\n  "))
	}
	var in, out, nat []string
	for _, ip := range r.DropIn {
		in = append(in, "ip saddr "+ip+" drop")
	}
	for _, ip := range r.DropOut {
		out = append(out, "ip daddr "+ip+" drop")
	}
	for _, to := range r.Reset {
		ip, port, _ := strings.Cut(to, ":")
		out = append(out, fmt.Sprintf("ip daddr %s tcp dport %s reject with tcp reset", ip, port))
	}
	for from, to := range r.Redirect {
		ip, port, _ := strings.Cut(from, ":")
		nat = append(nat, fmt.Sprintf("ip daddr %s tcp dport %s dnat to %s", ip, port, to))
	}
	if len(in) > 0 {
		chain("in", "filter hook input priority 0", in)
	}
	if len(out) > 0 {
		chain("out", "filter hook output priority 0", out)
	}
	if len(nat) > 0 {
		chain("nat", "nat hook output priority -100", nat)
	}
	b.WriteString("}\n")
	return b.String()
}

// Lose makes a host lose a share of the packets that arrive, 0 to 1.
func (l *Lab) Lose(name string, share float64) error {
	if err := l.exec(name, "", "iptables", "-F", "INPUT"); err != nil {
		return err
	}
	if share == 0 {
		return nil
	}
	return l.exec(name, "", "iptables", "-A", "INPUT", "-i", "eth0", "-m", "statistic",
		"--mode", "random", "--probability", fmt.Sprintf("%.3f", share), "-j", "DROP")
}
