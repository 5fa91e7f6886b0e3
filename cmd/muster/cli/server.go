package cli

import (
	"io"
	"log/slog"
	"strings"

	"github.com/musterhq/muster/server"
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
		cfg, err := a.serverConfig(valuesOf(values))
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
