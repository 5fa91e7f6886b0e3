package cli

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/musterhq/muster/raftstore"
	"github.com/musterhq/muster/server"
	"github.com/musterhq/muster/server/auth"
	"github.com/spf13/cobra"
)

func (a *app) serverCommand() *cobra.Command {
	var file string
	settings := serverSettings()
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a server",
		Long: `Run a server. Each setting may stand in a file (--config), in the environment
or in a flag; a flag wins over the environment, the environment over the file.
"muster config print" shows them all.`,
		Example: `  muster server --config /etc/muster/server.yaml
  muster server --server-id a --data-dir ./a --bootstrap --insecure`,
		Args: noArgs,
	}
	settingFlags(cmd, settings, &file)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		values, err := a.resolve(cmd, settings, file)
		if err != nil {
			return err
		}
		cfg, err := a.serverConfig(values)
		if err != nil {
			return err
		}
		srv, err := server.New(cfg)
		if err != nil {
			return &failure{err: err, code: exitInvalid, try: "muster config print --resolved"}
		}
		a.say("Server %s: admin on %s, xDS on %s. Ctrl-C stops it.", cfg.ServerID, srv.AdminAddr(), srv.XDSAddr())
		if err := srv.Run(cmd.Context()); err != nil {
			return &failure{err: err, code: exitUnavailable}
		}
		return nil
	}
	return cmd
}

// serverConfig turns resolved settings, which are checked, into a configuration.
func (a *app) serverConfig(values []resolved) (server.Config, error) {
	v := make(map[string]string, len(values))
	for _, r := range values {
		v[r.Key] = r.Value
	}
	if v["data_dir"] == "" || v["server_id"] == "" {
		return server.Config{}, &usageError{err: fmt.Errorf("data_dir and server_id are required"), try: "muster config print"}
	}
	logger, err := newLogger(a.env.Stderr, v["log_level"], v["log_format"])
	if err != nil {
		return server.Config{}, err
	}
	// The values were checked when they were resolved.
	duration := func(key string) time.Duration { d, _ := time.ParseDuration(v[key]); return d }
	threshold, _ := strconv.ParseUint(v["snapshot_threshold"], 10, 32)
	v["data_dir"] = a.env.path(v["data_dir"])
	if err := os.MkdirAll(v["data_dir"], 0o700); err != nil {
		return server.Config{}, fmt.Errorf("data directory: %w", err)
	}
	keysFile := v["api_keys_file"]
	if keysFile == "" {
		keysFile = filepath.Join(v["data_dir"], "api-keys.json")
	}
	keysFile = a.env.path(keysFile)
	keys, secret, err := auth.LoadOrCreateKeys(keysFile)
	if err != nil {
		return server.Config{}, err
	}
	if secret != "" {
		a.say("The first API key, shown once and kept only as a hash in %s:\n  %s", keysFile, secret)
	}
	return server.Config{
		ServerID:      v["server_id"],
		DataDir:       v["data_dir"],
		Version:       readBuildVersion().Version,
		AdminAddr:     v["admin_addr"],
		XDSAddr:       v["xds_addr"],
		RaftAddr:      v["raft_addr"],
		RaftAdvertise: v["raft_advertise"],
		Join:          splitList(v["join"]),
		OpsAddr:       v["ops_addr"],
		Bootstrap:     v["bootstrap"] == "true",
		Keys:          keys,
		KeysFile:      keysFile,
		AdminTLS:      auth.TLSFiles{CertFile: v["admin_tls_cert_file"], KeyFile: v["admin_tls_key_file"], ClientCAFile: v["admin_tls_client_ca_file"]},
		XDSTLS:        auth.TLSFiles{CertFile: v["xds_tls_cert_file"], KeyFile: v["xds_tls_key_file"], ClientCAFile: v["xds_tls_client_ca_file"]},
		RaftTLS:       raftstore.TLSFiles{CertFile: v["raft_tls_cert_file"], KeyFile: v["raft_tls_key_file"], CAFile: v["raft_tls_ca_file"]},
		TrustDomain:   v["trust_domain"],
		Insecure:      v["insecure"] == "true",
		ShutdownGrace: duration("shutdown_grace"),
		Autopilot:     raftstore.Autopilot{Stabilize: duration("promote_after")},
		DiskTimeout:   duration("disk_timeout"),

		SnapshotThreshold: threshold,
		SnapshotInterval:  duration("snapshot_interval"),

		Logger: logger,
	}, nil
}

// splitList reads values separated by commas.
func splitList(s string) []string {
	return strings.FieldsFunc(s, func(r rune) bool { return r == ',' || r == ' ' })
}

// newLogger makes the logger of a long-running command.
func newLogger(w io.Writer, level, format string) (*slog.Logger, error) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		return nil, usagef("log level %q is not one of debug, info, warn, error", level)
	}
	opts := &slog.HandlerOptions{Level: l}
	switch strings.ToLower(format) {
	case "text":
		return slog.New(slog.NewTextHandler(w, opts)), nil
	case "json":
		return slog.New(slog.NewJSONHandler(w, opts)), nil
	}
	return nil, usagef("log format %q is not one of text, json", format)
}
