package cli

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/musterhq/muster/server"
	"github.com/spf13/cobra"
)

// setting is one thing that can be said about a server: in a file under its
// key, in the environment as MUSTER_<KEY>, or by the flag --<key>, with dashes.
// A flag wins over the environment, the environment over the file.
type setting struct {
	key, help, fallback string
	kind                settingKind
}

type settingKind int

const (
	textSetting settingKind = iota
	boolSetting
	durationSetting
	countSetting
)

func (s setting) flag() string { return strings.ReplaceAll(s.key, "_", "-") }
func (s setting) env() string  { return "MUSTER_" + strings.ToUpper(s.key) }

// check refuses a value that does not fit the setting's kind.
func (s setting) check(value string) error {
	var err error
	switch s.kind {
	case boolSetting:
		_, err = strconv.ParseBool(value)
	case durationSetting:
		_, err = time.ParseDuration(value)
	case countSetting:
		_, err = strconv.ParseUint(value, 10, 32)
	}
	if err != nil {
		return fmt.Errorf("%s: %q is not valid: want %s", s.key, value, s.kind)
	}
	return nil
}

func (k settingKind) String() string {
	switch k {
	case boolSetting:
		return "true or false"
	case durationSetting:
		return "a duration such as 5s"
	case countSetting:
		return "a whole number"
	}
	return "text"
}

// serverSettings lists what `muster server` understands.
func serverSettings() []setting {
	return []setting{
		{key: "server_id", help: "the server's stable name in the cluster (required)"},
		{key: "data_dir", help: "directory for everything the server keeps (required)"},
		{key: "bootstrap", help: "make this the first server of a new cluster, when data_dir holds none", fallback: "false", kind: boolSetting},
		{key: "admin_addr", help: "host:port of the admin API", fallback: server.DefaultAdminAddr},
		{key: "xds_addr", help: "host:port for data planes", fallback: server.DefaultXDSAddr},
		{key: "raft_addr", help: "host:port for the other servers; empty runs a single server without a raft port"},
		{key: "raft_advertise", help: "address that the other servers are told, when it is not raft_addr"},
		{key: "join", help: "raft addresses of servers of the cluster that a new data_dir is to become part of, separated by commas"},
		{key: "ops_addr", help: "host:port for metrics and health without a key; empty serves none"},
		{key: "api_keys_file", help: "file of hashed API keys, mode 0600 (default: api-keys.json in data_dir, made with one key when there is none)"},
		{key: "admin_tls_cert_file", help: "PEM certificate of the admin port"},
		{key: "admin_tls_key_file", help: "PEM key of the admin port"},
		{key: "admin_tls_client_ca_file", help: "PEM CAs that callers' certificates must chain to; empty asks for none"},
		{key: "xds_tls_cert_file", help: "PEM certificate of the xDS port"},
		{key: "xds_tls_key_file", help: "PEM key of the xDS port"},
		{key: "xds_tls_client_ca_file", help: "PEM CAs that data planes' certificates must chain to"},
		{key: "raft_tls_cert_file", help: "PEM certificate of this server among the others"},
		{key: "raft_tls_key_file", help: "PEM key of this server among the others"},
		{key: "raft_tls_ca_file", help: "PEM CAs that the other servers' certificates must chain to"},
		{key: "trust_domain", help: "SPIFFE trust domain of data planes' certificates"},
		{key: "insecure", help: "allow plaintext, on loopback addresses", fallback: "false", kind: boolSetting},
		{key: "promote_after", help: "how long a server that joined must keep up before it gets a vote", fallback: "5s", kind: durationSetting},
		{key: "disk_timeout", help: "how long one write to disk may take before the server ends, so that another can lead", fallback: "8s", kind: durationSetting},
		{key: "snapshot_threshold", help: "how many log entries make a snapshot worthwhile", fallback: "8192", kind: countSetting},
		{key: "snapshot_interval", help: "how often that is looked at", fallback: "1m", kind: durationSetting},
		{key: "shutdown_grace", help: "how long a stop waits for calls under way", fallback: "5s", kind: durationSetting},
		{key: "log_level", help: "debug, info, warn or error", fallback: "info"},
		{key: "log_format", help: "text or json", fallback: "text"},
	}
}

// resolved is a setting's value and where it came from.
type resolved struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// settingFlags adds --config and a flag for each setting.
func settingFlags(cmd *cobra.Command, settings []setting, file *string) {
	cmd.Flags().StringVar(file, "config", "", "configuration file, YAML (env MUSTER_CONFIG)")
	_ = cmd.MarkFlagFilename("config", "yaml", "yml")
	for _, s := range settings {
		help := s.help + " (env " + s.env() + ")"
		if s.kind == boolSetting {
			cmd.Flags().Bool(s.flag(), s.fallback == "true", help)
			continue
		}
		cmd.Flags().String(s.flag(), s.fallback, help)
	}
}

// resolve merges file, environment and flags.
func (a *app) resolve(cmd *cobra.Command, settings []setting, file string) ([]resolved, error) {
	if file == "" {
		file = a.env.getenv("MUSTER_CONFIG")
	}
	fromFile, err := a.readSettings(file, settings)
	if err != nil {
		return nil, err
	}
	out := make([]resolved, 0, len(settings))
	for _, s := range settings {
		r := resolved{Key: s.key, Value: s.fallback, Source: "default"}
		if v, ok := fromFile[s.key]; ok {
			r.Value, r.Source = v, file
		}
		if v, ok := a.env.LookupEnv(s.env()); ok {
			r.Value, r.Source = v, s.env()
		}
		if f := cmd.Flags().Lookup(s.flag()); f != nil && f.Changed {
			r.Value, r.Source = f.Value.String(), "--"+s.flag()
		}
		if err := s.check(r.Value); err != nil {
			return nil, usagef("%s (from %s)", err, r.Source)
		}
		out = append(out, r)
	}
	return out, nil
}

// readSettings reads a file strictly: an unknown key is an error with its place.
func (a *app) readSettings(file string, settings []setting) (map[string]string, error) {
	if file == "" {
		return nil, nil
	}
	f, err := os.Open(a.env.path(file))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	var raw yaml.MapSlice
	if err := yaml.Unmarshal(data, &raw); err != nil {
		return nil, usagef("%s: %s", file, yaml.FormatError(err, false, true))
	}
	values := make(map[string]string, len(raw))
	for _, item := range raw {
		key := fmt.Sprint(item.Key)
		if !slices.ContainsFunc(settings, func(s setting) bool { return s.key == key }) {
			return nil, &usageError{err: fmt.Errorf("%s: unknown setting %q", file, key), try: "muster config print"}
		}
		switch v := item.Value.(type) {
		case nil:
		case string, bool, int64, uint64, float64:
			values[key] = fmt.Sprint(v)
		default:
			return nil, usagef("%s: %s must be a single value", file, key)
		}
	}
	return values, nil
}

func (a *app) configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Show the configuration of a server",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.configPrintCommand())
	return cmd
}

func (a *app) configPrintCommand() *cobra.Command {
	var file string
	var merged bool
	settings := serverSettings()
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Print a configuration file with every setting, or the resolved one",
		Long: `Print a configuration file with every setting of "muster server" and what it
means; with --resolved, the values that the file, the environment and the flags
give together, and where each comes from.`,
		Example: `  muster config print > muster.yaml
  muster config print --resolved --config muster.yaml
  muster config print --resolved -o json`,
		Args: noArgs,
	}
	settingFlags(cmd, settings, &file)
	cmd.Flags().BoolVar(&merged, "resolved", false, "print the values in effect and their sources")
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if !merged {
			for _, s := range settings {
				fmt.Fprintf(a.env.Stdout, "# %s\n# env %s, flag --%s\n#%s: %s\n\n", s.help, s.env(), s.flag(), s.key, yamlScalar(s.fallback))
			}
			return nil
		}
		values, err := a.resolve(cmd, settings, file)
		if err != nil {
			return err
		}
		return a.print(values, func(t *table) {
			t.header("SETTING", "VALUE", "FROM")
			for _, v := range values {
				t.row(v.Key, orDash(v.Value), v.Source)
			}
		})
	}
	return cmd
}

func yamlScalar(s string) string {
	if s == "" {
		return `""`
	}
	return s
}
