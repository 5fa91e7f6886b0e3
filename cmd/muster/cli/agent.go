package cli

import (
	"net"

	"github.com/musterhq/muster/cmd/muster/bootstrap"
	"github.com/musterhq/muster/relay"
	"github.com/spf13/cobra"
)

func (a *app) agentCommand() *cobra.Command {
	var cfg relay.Config
	var files bootstrap.TLS
	var keyFile, manifestFile, level, format string
	var home homeFlags
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run a small relay beside one Envoy, so that it outlives the control plane",
		Long: `Run an agent: a relay of one group on the loopback of one Envoy. It keeps the last
configuration on disk, so that the Envoy can start and serve while no control
plane answers. Upstream it goes by the data plane's own certificate; the Envoy
should have the same --node-id.`,
		Example: `  muster agent -g edge --servers a:7943,b:7943 --data-dir /var/lib/muster-agent --node-id gw-1 \
      --xds-ca-file ca.pem --xds-cert-file dp.pem --xds-key-file dp.key
  muster bootstrap envoy -g edge --node-id gw-1 --xds-address 127.0.0.1:7943 > envoy.yaml`,
		Args: noArgs,
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&cfg.Upstream, "servers", nil, "host:port of the xDS ports of servers or relays, separated by commas (required)")
	fl.StringVar(&cfg.ID, "node-id", "", "the data plane's id (default envoy-HOSTNAME)")
	fl.StringVar(&cfg.Addr, "addr", relay.DefaultAddr, "loopback host:port for the Envoy")
	fl.StringVar(&cfg.DataDir, "data-dir", "", "directory for the last configuration (required)")
	fl.StringVar(&cfg.OpsAddr, "ops-addr", "", "loopback host:port for metrics and health; empty serves none")
	fl.StringVar(&files.CAFile, "xds-ca-file", "", "PEM file that verifies the servers")
	fl.StringVar(&files.CertFile, "xds-cert-file", "", "PEM file of the data plane's certificate")
	fl.StringVar(&files.KeyFile, "xds-key-file", "", "PEM file of the data plane's key")
	fl.StringVar(&manifestFile, "manifest-key-file", "", "PEM file of the public keys of which one must have signed each revision")
	fl.StringVar(&keyFile, "cache-key-file", "", "file of a key that encrypts what is in --data-dir (or the key itself in MUSTER_CACHE_KEY)")
	fl.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	fl.StringVar(&format, "log-format", "text", "text or json")
	home.register(fl)
	a.groupFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t, err := a.target()
		if err != nil {
			return err
		}
		if len(cfg.Upstream) == 0 || cfg.DataDir == "" {
			return &usageError{err: usagef("--servers and --data-dir are required"), try: "muster agent --help"}
		}
		if host, _, err := net.SplitHostPort(cfg.Addr); err != nil || !loopback(host) {
			return usagef("--addr %s is not host:port on loopback: an agent is for the Envoy beside it", cfg.Addr)
		}
		cfg.Groups, cfg.Insecure, cfg.Version = []string{t.group}, true, readBuildVersion().Version
		cfg.DataDir = a.env.path(cfg.DataDir)
		if cfg.ID == "" {
			if cfg.ID, err = defaultNodeID("envoy", 0); err != nil {
				return err
			}
		}
		if cfg.Logger, err = newLogger(a.env.Stderr, level, format); err != nil {
			return err
		}
		if cfg.UpstreamTLS, cfg.UpstreamInsecure, err = a.upstreamTLS(files, "xds", cfg.Upstream, a.insecure); err != nil {
			return err
		}
		if cfg.ManifestKeys, err = a.manifestKeys(manifestFile); err != nil {
			return err
		}
		if cfg.CacheKey, err = a.cacheKey(keyFile); err != nil {
			return err
		}
		if cfg.SecondHome, err = a.secondHome(home, cfg.ManifestKeys, false, a.insecure); err != nil {
			return err
		}
		return a.runRelay(cmd, cfg, "Agent %s on %s, below %s. Ctrl-C stops it.")
	}
	return cmd
}
