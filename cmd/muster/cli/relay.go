package cli

import (
	"crypto/ed25519"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/musterhq/muster/cmd/muster/bootstrap"
	"github.com/musterhq/muster/manifest"
	"github.com/musterhq/muster/relay"
	"github.com/musterhq/muster/server/auth"
	"github.com/spf13/cobra"
)

// relaySettings lists what `muster relay` understands.
func relaySettings() []setting {
	return append([]setting{
		{key: "relay_id", help: "the relay's stable name (default relay-HOSTNAME)"},
		{key: "upstream", help: "host:port of the xDS ports of servers or relays to follow, separated by commas (required)"},
		{key: "groups", help: "groups to carry, by id or name, separated by commas (default: all that selector selects)"},
		{key: "selector", help: "labels that a group must have to be carried, such as env=prod,region=eu"},
		{key: "data_dir", help: "directory for the last configuration of each group (required)"},
		{key: "xds_addr", help: "host:port for data planes and further relays", fallback: relay.DefaultAddr},
		{key: "xds_tls_cert_file", help: "PEM certificate of the xDS port"},
		{key: "xds_tls_key_file", help: "PEM key of the xDS port"},
		{key: "xds_tls_client_ca_file", help: "PEM CAs that data planes' certificates must chain to"},
		{key: "trust_domain", help: "SPIFFE trust domain of data planes' certificates"},
		{key: "upstream_ca_file", help: "PEM file that verifies the upstream"},
		{key: "upstream_cert_file", help: "PEM certificate of the relay, spiffe://DOMAIN/relay/ID"},
		{key: "upstream_key_file", help: "PEM key of the relay"},
		{key: "compression", help: "ask the upstream to compress what it sends", fallback: "true", kind: boolSetting},
		{key: "manifest_key_file", help: "PEM file of the public Ed25519 keys of which one must have signed each revision; empty trusts the connection"},
		{key: "cache_key_file", help: "file of a key, 16 bytes or more, that encrypts what is in data_dir (or the key itself in MUSTER_CACHE_KEY)"},
		{key: "ops_addr", help: "host:port for metrics and health; empty serves none"},
		{key: "insecure", help: "allow plaintext: on loopback addresses for data planes, to any upstream", fallback: "false", kind: boolSetting},
		{key: "shutdown_grace", help: "how long a stop waits for data planes to leave", fallback: "5s", kind: durationSetting},
		{key: "log_level", help: "debug, info, warn or error", fallback: "info"},
		{key: "log_format", help: "text or json", fallback: "text"},
	}, homeSettings()...)
}

func (a *app) relayCommand() *cobra.Command {
	var file string
	settings := relaySettings()
	cmd := &cobra.Command{
		Use:   "relay",
		Short: "Run a relay: groups over one connection to any number of data planes",
		Long: `Run a relay. It follows groups at --upstream over one compressed connection and
serves them to data planes as a server would, from its own memory and disk: with
the upstream gone, data planes go on, start and move as before. Relays may follow
relays. Each setting may stand in a file (--config), in the environment or in a
flag; a flag wins over the environment, the environment over the file.`,
		Example: `  muster relay --upstream a:7943,b:7943,c:7943 --groups edge --data-dir /var/lib/muster-relay \
      --upstream-ca-file ca.pem --upstream-cert-file relay.pem --upstream-key-file relay.key \
      --xds-addr 0.0.0.0:7943 --xds-tls-cert-file relay.pem --xds-tls-key-file relay.key \
      --xds-tls-client-ca-file ca.pem --trust-domain example.com
  muster relay --upstream 127.0.0.1:7943 --selector env=prod --xds-addr 127.0.0.1:7960 --data-dir ./relay --insecure`,
		Args: noArgs,
	}
	settingFlags(cmd, settings, &file)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		values, err := a.resolve(cmd, settings, file)
		if err != nil {
			return err
		}
		cfg, err := a.relayConfig(valuesOf(values))
		if err != nil {
			return err
		}
		return a.runRelay(cmd, cfg, "Relay %s on %s, below %s. Ctrl-C stops it.")
	}
	return cmd
}

func (a *app) relayConfig(v settingValues) (relay.Config, error) {
	cfg := relay.Config{
		ID: v["relay_id"], Upstream: v.list("upstream"), NoCompression: !v.bool("compression"),
		Groups: v.list("groups"), Addr: v["xds_addr"], OpsAddr: v["ops_addr"], TrustDomain: v["trust_domain"],
		TLS:      auth.TLSFiles{CertFile: a.file(v, "xds_tls_cert_file"), KeyFile: a.file(v, "xds_tls_key_file"), ClientCAFile: a.file(v, "xds_tls_client_ca_file")},
		Insecure: v.bool("insecure"), DataDir: a.file(v, "data_dir"),
		Version: readBuildVersion().Version, ShutdownGrace: v.duration("shutdown_grace"),
	}
	if len(cfg.Upstream) == 0 || cfg.DataDir == "" {
		return cfg, &usageError{err: fmt.Errorf("upstream and data_dir are required"), try: "muster relay --help"}
	}
	var err error
	if cfg.ID == "" {
		if cfg.ID, err = defaultNodeID("relay", 0); err != nil {
			return cfg, err
		}
	}
	if cfg.Logger, err = newLogger(a.env.Stderr, v["log_level"], v["log_format"]); err != nil {
		return cfg, err
	}
	if cfg.Labels, err = labelsOf(v.list("selector")); err != nil {
		return cfg, err
	}
	files := bootstrap.TLS{CAFile: v["upstream_ca_file"], CertFile: v["upstream_cert_file"], KeyFile: v["upstream_key_file"]}
	if cfg.UpstreamTLS, cfg.UpstreamInsecure, err = a.upstreamTLS(files, "upstream", cfg.Upstream, cfg.Insecure); err != nil {
		return cfg, err
	}
	if cfg.ManifestKeys, err = a.manifestKeys(v["manifest_key_file"]); err != nil {
		return cfg, err
	}
	if cfg.CacheKey, err = a.cacheKey(v["cache_key_file"]); err != nil {
		return cfg, err
	}
	cfg.SecondHome, err = a.secondHome(homeOf(v), cfg.ManifestKeys, true, cfg.Insecure || a.insecure)
	cfg.KeepInSecondHome = cfg.SecondHome != nil
	return cfg, err
}

// runRelay runs a relay until the command is interrupted.
func (a *app) runRelay(cmd *cobra.Command, cfg relay.Config, banner string) error {
	r, err := relay.New(cfg)
	if err != nil {
		return &failure{err: err, code: exitInvalid, try: cmd.CommandPath() + " --help"}
	}
	a.say(banner, cfg.ID, r.Addr(), strings.Join(cfg.Upstream, ", "))
	if err := r.Run(cmd.Context()); err != nil {
		return &failure{err: err, code: exitUnavailable}
	}
	return nil
}

// upstreamTLS reads the certificate for a connection upstream. Without one the
// connection is in plaintext, which is allowed on loopback, or if it is meant.
func (a *app) upstreamTLS(files bootstrap.TLS, prefix string, servers []string, insecure bool) (*tls.Config, bool, error) {
	config, err := a.dataPlaneTLSFor(files, prefix)
	if err != nil || config != nil {
		return config, false, err
	}
	for _, s := range servers {
		if host, _, _ := net.SplitHostPort(s); !loopback(host) && !insecure {
			return nil, false, &usageError{
				err: fmt.Errorf("%s would be asked in plaintext", s),
				try: fmt.Sprintf("--%s-ca-file, --%[1]s-cert-file and --%[1]s-key-file; or --insecure if you mean it", prefix),
			}
		}
	}
	return nil, true, nil
}

// labelsOf reads key=value pairs.
func labelsOf(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	labels := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usagef("selector %q is not of the form key=value", p)
		}
		labels[k] = v
	}
	return labels, nil
}

// manifestKeys reads the public keys of a file; none when no file is named.
func (a *app) manifestKeys(file string) ([]ed25519.PublicKey, error) {
	if file == "" {
		return nil, nil
	}
	text, err := os.ReadFile(a.env.path(file))
	if err != nil {
		return nil, fmt.Errorf("read the manifest keys: %w", err)
	}
	keys, err := manifest.ParsePublicKeys(text)
	if err != nil {
		return nil, usagef("%s: %s", file, err)
	}
	return keys, nil
}

// cacheKeyEnv holds the key for what is kept on disk, where no file does.
const cacheKeyEnv = "MUSTER_CACHE_KEY"

// cacheKey reads the key that encrypts what is kept on disk, from a file or the
// environment; nil when there is none.
func (a *app) cacheKey(file string) ([]byte, error) { return a.keyOf(file, cacheKeyEnv, "the cache") }

// keyOf reads the key of something from a file or the environment; nil when there
// is none.
func (a *app) keyOf(file, env, what string) ([]byte, error) {
	key := a.env.getenv(env)
	if file != "" {
		text, err := os.ReadFile(a.env.path(file))
		if err != nil {
			return nil, fmt.Errorf("read the key of %s: %w", what, err)
		}
		key = strings.TrimSpace(string(text))
		if key == "" {
			return nil, usagef("%s is empty", file)
		}
	}
	if key != "" && len(key) < 16 {
		return nil, usagef("the key of %s is shorter than 16 bytes", what)
	}
	return []byte(key), nil
}
