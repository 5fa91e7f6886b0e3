package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
)

// app is one invocation of the command line.
type app struct {
	env Env

	// Flags that many commands share.
	addr           string
	apiKeyFile     string
	caFile         string
	certFile       string
	keyFile        string
	insecure       bool
	contextName    string
	group          string
	output         string
	requestTimeout time.Duration
}

// Run runs muster with args (without the program's name) and returns the exit
// code. It returns when everything that the command started has ended.
func Run(ctx context.Context, args []string, env Env) int {
	a := &app{env: env}
	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(env.Stdin)
	root.SetOut(env.Stdout)
	root.SetErr(env.Stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	return a.report(ctx, err)
}

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "muster",
		Short: "A control plane for fleets of API gateways",
		Long: `muster keeps the configuration of groups of API gateways, replicates it,
compiles it to xDS and pushes what changed to every data plane of the group.

Start here:  muster dev`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &usageError{err: err, try: cmd.CommandPath() + " --help"}
	})
	pf := root.PersistentFlags()
	pf.StringVar(&a.addr, "addr", "", "admin address: URL or host:port, several separated by commas (env MUSTER_ADDR)")
	pf.StringVar(&a.apiKeyFile, "api-key-file", "", "file that holds the API key, - for stdin (env MUSTER_API_KEY holds the key itself)")
	pf.StringVar(&a.caFile, "ca-file", "", "PEM certificates to trust for https addresses (default: the system's)")
	pf.StringVar(&a.certFile, "cert-file", "", "PEM certificate for servers that demand one of their callers (env MUSTER_CERT_FILE)")
	pf.StringVar(&a.keyFile, "key-file", "", "PEM key of --cert-file (env MUSTER_KEY_FILE)")
	pf.BoolVar(&a.insecure, "insecure", false, "allow plaintext to an address that is not loopback")
	pf.StringVar(&a.contextName, "context", "", "context to use instead of the current one")
	pf.DurationVar(&a.requestTimeout, "request-timeout", 60*time.Second, "time that one request may take, retries included")

	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "config", Title: "Change a group:"},
		&cobra.Group{ID: "fleet", Title: "Watch the fleet:"},
		&cobra.Group{ID: "cluster", Title: "Keep the cluster:"},
		&cobra.Group{ID: "local", Title: "On this machine:"},
	)
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	add("run", a.devCommand(), a.serverCommand(), a.relayCommand(), a.agentCommand(), a.gatewayCommand(), a.configCommand())
	add("config", a.groupCommand(), a.applyCommand(), a.syncCommand(), a.diffCommand(), a.getCommand(), a.dumpCommand(), a.deleteCommand(), a.historyCommand(), a.rollbackCommand())
	add("fleet", a.dpCommand(), a.waitCommand(), a.bootstrapCommand())
	add("cluster", a.clusterCommand(), a.snapshotCommand(), a.secondHomeCommand())
	add("local", a.lintCommand(), a.contextCommand(), a.versionCommand())
	root.SetHelpCommandGroupID("local")
	root.SetCompletionCommandGroupID("local")
	return root
}

// groupFlag adds --group to a command that works on one group.
func (a *app) groupFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.group, "group", "g", "", `group id or name (default: the context's, else "default")`)
}

// outputFlag adds --output to a command that prints data.
func (a *app) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&a.output, "output", "o", "table", "table, json or yaml")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	prev := cmd.PreRunE
	cmd.PreRunE = func(cmd *cobra.Command, args []string) error {
		switch a.output {
		case "table", "json", "yaml":
		default:
			return usagef("--output %q is not one of table, json, yaml", a.output)
		}
		if prev != nil {
			return prev(cmd, args)
		}
		return nil
	}
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		err := fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
		if cmd.SuggestionsMinimumDistance <= 0 {
			cmd.SuggestionsMinimumDistance = 2
		}
		try := cmd.CommandPath() + " --help"
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			err = fmt.Errorf("%w (did you mean %q?)", err, near[0])
		}
		return &usageError{err: err, try: try}
	}
	return &usageError{err: fmt.Errorf("unexpected argument %q", args[0]), try: cmd.CommandPath() + " --help"}
}

// exactArgs demands n arguments, named in the message.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		switch {
		case len(args) < len(names):
			return &usageError{err: fmt.Errorf("%s is missing", names[len(args)]), try: cmd.CommandPath() + " --help"}
		case len(args) > len(names):
			return &usageError{err: fmt.Errorf("unexpected argument %q", args[len(names)]), try: cmd.CommandPath() + " --help"}
		}
		return nil
	}
}

// usageError is a mistake in how muster was called.
type usageError struct {
	err error
	try string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// errDifferent makes Run return exitDifferent without a message.
var errDifferent = errors.New("different")
