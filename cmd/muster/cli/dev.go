package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/musterhq/muster/cmd/muster/dev"
	"github.com/spf13/cobra"
)

func (a *app) devCommand() *cobra.Command {
	var cfg dev.Config
	var servers, relays, gateways, offset int
	var level string
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Run a whole muster on this machine: server, gateway, upstream, a first group",
		Long: `Run a one-node server, embedded gateways, an echo upstream and a group "default"
with one service, in one process and on loopback only. What you change is kept
in --data-dir and there again at the next start.

With --servers, a cluster of that many servers is run, each in a process of its
own and all on one console, and one that dies is started again after two seconds:
a place to kill the leader and watch.`,
		Example: `  muster dev
  muster dev --gateways 3
  muster dev --servers 3
  muster dev --relays 2 --gateways 4
  muster dev --gateways 0 --listen-offset 100 --data-dir /tmp/second`,
		Args: noArgs,
	}
	fl := cmd.Flags()
	fl.StringVar(&cfg.DataDir, "data-dir", "", "directory to keep everything in (default: muster/dev in the user's cache directory)")
	fl.IntVar(&servers, "servers", 1, "servers to run; more than one run in processes of their own")
	fl.IntVar(&relays, "relays", 0, "relays to run between the servers and the gateways")
	fl.IntVar(&gateways, "gateways", 1, "embedded gateways to run; 0 for none")
	fl.StringVar(&cfg.APIKey, "api-key", "", "key of the admin API (default: made once and kept in the data directory)")
	fl.IntVar(&offset, "listen-offset", 0, "number added to every port, so that several can run side by side")
	fl.StringVar(&level, "log-level", "warn", "debug, info, warn or error; of several servers' processes it is info unless given")
	_ = cmd.MarkFlagDirname("data-dir")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var err error
		if cfg.Logger, err = newLogger(a.env.Stderr, level, "text"); err != nil {
			return err
		}
		if err := cfg.Addresses(offset, servers, relays, gateways); err != nil {
			return usagef("%s", err)
		}
		if cfg.DataDir == "" {
			if cfg.DataDir, err = devDataDir(offset); err != nil {
				return err
			}
		}
		if cfg.DataDir, err = filepath.Abs(a.env.path(cfg.DataDir)); err != nil {
			return err
		}
		cfg.Version = readBuildVersion().Version
		cfg.Console, cfg.ServerLogLevel = a.env.Stderr, "info"
		if cmd.Flags().Changed("log-level") {
			cfg.ServerLogLevel = level
		}
		cfg.Ready = a.devBanner
		err = dev.Run(cmd.Context(), cfg)
		if errors.Is(err, syscall.EADDRINUSE) {
			return &failure{err: err, code: exitConflict, try: "muster dev --listen-offset " + strconv.Itoa(offset+100)}
		}
		if err != nil {
			return &failure{err: err, code: exitUnavailable}
		}
		a.say("Stopped.")
		return nil
	}
	return cmd
}

// devDataDir names the directory that is used unless another is asked for; each
// offset has its own, so that several can run side by side.
func devDataDir(offset int) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", &usageError{err: fmt.Errorf("no cache directory for this user: %w", err), try: "muster dev --data-dir DIR"}
	}
	name := "dev"
	if offset > 0 {
		name += "+" + strconv.Itoa(offset)
	}
	return filepath.Join(cache, "muster", name), nil
}

// devBanner tells where everything is and what to try.
func (a *app) devBanner(i dev.Info) {
	w := a.env.Stdout
	fmt.Fprintf(w, "muster dev is running. Ctrl-C stops it.\n\n")
	t := &table{}
	t.row("  admin API", strings.Join(i.AdminAddrs, "   "))
	t.row("  xDS", strings.Join(i.XDSAddrs, "   "))
	for n, addr := range i.Relays {
		t.row("  relay-"+strconv.Itoa(n+1), addr)
	}
	for _, g := range i.Gateways {
		t.row("  "+g.ID, "http://"+g.HTTP+"   https://"+g.HTTPS+"   http://"+g.Status+"/status")
	}
	t.row("  echo upstream", "http://"+i.EchoAddr)
	t.row("  data", i.DataDir)
	t.row("  API key", i.APIKey)
	if i.APIKeyFile != "" {
		t.row("", "kept in "+i.APIKeyFile)
	}
	_ = t.flush(w)
	if i.GroupIsNew {
		fmt.Fprintf(w, "\nGroup %q is new; it holds one service, the echo upstream.\n", i.Group)
	}
	if i.Behind {
		a.say("Not every gateway has caught up yet; see: muster dp status")
	}
	if len(i.Gateways) > 0 {
		fmt.Fprintf(w, "\nTry:\n\n  curl http://%s/echo/hello\n", i.Gateways[0].HTTP)
	}
	self := selfCommand()
	key := i.APIKey
	if i.APIKeyFile != "" {
		key = `"$(cat ` + shellQuote(i.APIKeyFile) + `)"`
	}
	fmt.Fprintf(w, "\nIn another terminal:\n\n  export MUSTER_ADDR=%s MUSTER_API_KEY=%s\n", strings.Join(i.AdminAddrs, ","), key)
	envoy := fmt.Sprintf("bootstrap envoy --http-port %d --https-port %d > envoy.yaml", i.FreeHTTPPort, i.FreeHTTPSPort)
	commands := []string{"get", "dp status", "apply -f examples/shop.yaml --wait", "history", envoy}
	if len(i.AdminAddrs) > 1 {
		commands = append(commands, "cluster peers")
	}
	for _, args := range commands {
		fmt.Fprintf(w, "  %s %s\n", self, args)
	}
	fmt.Fprintln(w)
}

// selfCommand is how this program was called: `go run` leaves it in a directory
// that is gone afterwards.
func selfCommand() string {
	exe, err := os.Executable()
	if err == nil && strings.Contains(exe, string(filepath.Separator)+"go-build") {
		return "go run ./cmd/muster"
	}
	if len(os.Args) > 0 && strings.ContainsRune(os.Args[0], filepath.Separator) {
		return shellQuote(os.Args[0])
	}
	return "muster"
}
