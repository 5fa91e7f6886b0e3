package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/spf13/cobra"
)

// contexts is the file in which the user keeps servers and groups.
type contexts struct {
	Current  string         `yaml:"current,omitempty"`
	Contexts []savedContext `yaml:"contexts,omitempty"`
}

// savedContext is one named way to reach a server. It may hold a secret, so the
// file is readable by its owner only.
type savedContext struct {
	Name       string `yaml:"name"`
	Addr       string `yaml:"addr"`
	APIKey     string `yaml:"api_key,omitempty"`
	APIKeyFile string `yaml:"api_key_file,omitempty"`
	CAFile     string `yaml:"ca_file,omitempty"`
	Group      string `yaml:"group,omitempty"`
}

// contextInfo is a context as commands show it: without its key.
type contextInfo struct {
	Name    string `json:"name"`
	Current bool   `json:"current"`
	Addr    string `json:"addr"`
	Group   string `json:"group"`
	HasKey  bool   `json:"has_api_key"`
}

func (a *app) contextsPath() (string, error) {
	dir := a.env.getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := a.env.getenv("HOME")
		if home == "" {
			return "", usagef("neither XDG_CONFIG_HOME nor HOME is set")
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "muster", "contexts.yaml"), nil
}

// loadContexts reads the file; one that does not exist holds no contexts.
func (a *app) loadContexts() (*contexts, error) {
	path, err := a.contextsPath()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return &contexts{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read contexts: %w", err)
	}
	var c contexts
	if err := yaml.UnmarshalWithOptions(data, &c, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &c, nil
}

func (a *app) saveContexts(c *contexts) error {
	path, err := a.contextsPath()
	if err != nil {
		return err
	}
	data, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	// Written beside and renamed, so that a crash leaves the old file or the new one.
	tmp, err := os.CreateTemp(filepath.Dir(path), ".contexts-*")
	if err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = tmp.Write(data)
	if err = errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		return fmt.Errorf("write contexts: %w", err)
	}
	return nil
}

func (c *contexts) find(name string) *savedContext {
	i := slices.IndexFunc(c.Contexts, func(s savedContext) bool { return s.Name == name })
	if i < 0 {
		return nil
	}
	return &c.Contexts[i]
}

// savedContext returns the context that --context, MUSTER_CONTEXT or the file's
// current selects; the zero one when none does.
func (a *app) savedContext() (savedContext, error) {
	name := a.contextName
	if name == "" {
		name = a.env.getenv("MUSTER_CONTEXT")
	}
	if name == "" && a.env.getenv("HOME") == "" && a.env.getenv("XDG_CONFIG_HOME") == "" {
		return savedContext{}, nil // no home, no contexts; flags and environment do
	}
	c, err := a.loadContexts()
	if err != nil {
		return savedContext{}, err
	}
	if name == "" {
		name = c.Current
	}
	if name == "" {
		return savedContext{}, nil
	}
	s := c.find(name)
	if s == nil {
		return savedContext{}, noContext(name, c)
	}
	return *s, nil
}

func noContext(name string, c *contexts) error {
	names := make([]string, len(c.Contexts))
	for i, s := range c.Contexts {
		names[i] = s.Name
	}
	try := "muster context set " + name + " --addr HOST:PORT"
	if len(names) > 0 {
		try = "one of " + strings.Join(names, ", ") + "; or " + try
	}
	return &failure{err: fmt.Errorf("context %q does not exist", name), code: exitNotFound, try: try}
}

func (a *app) contextCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "context",
		Short: "Keep servers, keys and groups under names",
		Long: `A context is a name for an admin address, an API key and a group. Contexts are
kept in $XDG_CONFIG_HOME/muster/contexts.yaml, which only its owner can read.
Flags win over the environment, the environment over the context.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.contextSetCommand(), a.contextUseCommand(), a.contextListCommand())
	return cmd
}

func (a *app) contextSetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Create a context or change one",
		Example: `  muster context set prod --addr https://a:7443,https://b:7443 --group prod --api-key-file key.txt
  pass show muster | muster context set prod --api-key-file -
  muster context set prod --group edge`,
		Args: exactArgs("NAME"),
	}
	a.groupFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.loadContexts()
		if err != nil {
			return err
		}
		s := c.find(args[0])
		if s == nil {
			if a.addr == "" {
				return usagef("a new context needs --addr")
			}
			c.Contexts = append(c.Contexts, savedContext{Name: args[0]})
			s = &c.Contexts[len(c.Contexts)-1]
		}
		if a.addr != "" {
			if _, err := parseAddrs(a.addr); err != nil {
				return err
			}
			s.Addr = a.addr
		}
		if a.group != "" {
			s.Group = a.group
		}
		if a.caFile != "" {
			if s.CAFile, err = filepath.Abs(a.env.path(a.caFile)); err != nil {
				return err
			}
		}
		if a.apiKeyFile != "" {
			if s.APIKey, err = a.readKey(a.apiKeyFile); err != nil {
				return err
			}
			s.APIKeyFile = ""
		}
		if c.Current == "" {
			c.Current = args[0]
		}
		if err := a.saveContexts(c); err != nil {
			return err
		}
		a.say("Context %q saved.", args[0])
		if c.Current != args[0] {
			a.say("Try: muster context use %s", args[0])
		}
		return nil
	}
	return cmd
}

func (a *app) contextUseCommand() *cobra.Command {
	return &cobra.Command{
		Use:               "use NAME",
		Short:             "Make a context the current one",
		Example:           "  muster context use prod",
		Args:              exactArgs("NAME"),
		ValidArgsFunction: a.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := a.loadContexts()
			if err != nil {
				return err
			}
			if c.find(args[0]) == nil {
				return noContext(args[0], c)
			}
			c.Current = args[0]
			if err := a.saveContexts(c); err != nil {
				return err
			}
			a.say("Now using context %q.", args[0])
			return nil
		},
	}
}

func (a *app) contextListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the contexts",
		Example: "  muster context list\n  muster context list -o json",
		Args:    noArgs,
	}
	a.outputFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		c, err := a.loadContexts()
		if err != nil {
			return err
		}
		infos := make([]contextInfo, len(c.Contexts))
		for i, s := range c.Contexts {
			infos[i] = contextInfo{
				Name: s.Name, Current: s.Name == c.Current, Addr: s.Addr, Group: s.Group,
				HasKey: s.APIKey != "" || s.APIKeyFile != "",
			}
		}
		return a.print(infos, func(t *table) {
			t.header("CURRENT", "NAME", "ADDR", "GROUP", "KEY")
			for _, i := range infos {
				t.row(mark(i.Current, "*"), i.Name, i.Addr, i.Group, mark(i.HasKey, "yes"))
			}
		})
	}
	return cmd
}

func (a *app) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	c, err := a.loadContexts()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	names := make([]string, len(c.Contexts))
	for i, s := range c.Contexts {
		names[i] = s.Name
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// readKey reads an API key from a file, or from stdin when path is "-".
func (a *app) readKey(path string) (string, error) {
	var data []byte
	var err error
	if path == "-" {
		data, err = io.ReadAll(io.LimitReader(a.env.Stdin, 64<<10))
	} else {
		data, err = os.ReadFile(a.env.path(path))
	}
	if err != nil {
		return "", fmt.Errorf("read the API key: %w", err)
	}
	key := strings.TrimSpace(string(data))
	if key == "" {
		return "", usagef("the API key in %s is empty", path)
	}
	return key, nil
}

func mark(on bool, s string) string {
	if on {
		return s
	}
	return ""
}
