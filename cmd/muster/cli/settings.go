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
	"github.com/spf13/cobra"
)

// setting is one thing that can be said about a server: in a file under its
// key, in the environment as MUSTER_<KEY>, or by the flag --<key>, with dashes.
// A flag wins over the environment, the environment over the file.
type setting struct {
	key, help, fallback string
	kind                settingKind
	// signed lets a number or duration be negative.
	signed bool
}

type settingKind int

const (
	textSetting settingKind = iota
	boolSetting
	durationSetting
	numberSetting
)

func (s setting) flag() string { return strings.ReplaceAll(s.key, "_", "-") }
func (s setting) env() string  { return "MUSTER_" + strings.ToUpper(s.key) }

// check refuses a value that does not fit the setting's kind.
func (s setting) check(value string) error {
	var err error
	negative := false
	switch s.kind {
	case boolSetting:
		_, err = strconv.ParseBool(value)
	case durationSetting:
		var d time.Duration
		d, err = time.ParseDuration(value)
		negative = d < 0
	case numberSetting:
		var n int64
		n, err = strconv.ParseInt(value, 10, 64)
		negative = n < 0
	}
	if err != nil {
		return fmt.Errorf("%s: %q is not valid: want %s", s.key, value, s.kind)
	}
	if negative && !s.signed {
		return fmt.Errorf("%s: %q is not valid: it is negative", s.key, value)
	}
	return nil
}

func (k settingKind) String() string {
	switch k {
	case boolSetting:
		return "true or false"
	case durationSetting:
		return "a duration such as 5s"
	case numberSetting:
		return "a whole number"
	}
	return "text"
}

// resolved is a setting's value and where it came from.
type resolved struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Source string `json:"source"`
}

// settingValues are resolved settings by key. They were checked, so reading one
// as its kind cannot fail.
type settingValues map[string]string

func valuesOf(all []resolved) settingValues {
	v := make(settingValues, len(all))
	for _, r := range all {
		v[r.Key] = r.Value
	}
	return v
}

func (v settingValues) bool(key string) bool {
	b, _ := strconv.ParseBool(v[key])
	return b
}

func (v settingValues) duration(key string) time.Duration {
	d, _ := time.ParseDuration(v[key])
	return d
}

func (v settingValues) number(key string) int64 {
	n, _ := strconv.ParseInt(v[key], 10, 64)
	return n
}

// list reads values separated by commas.
func (v settingValues) list(key string) []string {
	return strings.FieldsFunc(v[key], func(r rune) bool { return r == ',' || r == ' ' })
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
		case []any:
			items := make([]string, len(v))
			for i, item := range v {
				items[i] = fmt.Sprint(item)
			}
			values[key] = strings.Join(items, ",")
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
give together, and where each comes from. No setting is a secret: keys and
certificates are files that settings name.`,
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
