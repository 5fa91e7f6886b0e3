package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func (a *app) groupCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "group",
		Aliases: []string{"groups"},
		Short:   "Create, read, change and delete gateway groups",
		Long:    "A group is a set of data planes that share one configuration.",
		Args:    noArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.groupCreateCommand(), a.groupGetCommand(), a.groupListCommand(), a.groupUpdateCommand(), a.groupDeleteCommand())
	return cmd
}

// groupFields are the flags that describe a group.
type groupFields struct {
	name, description, imageTag string
	labels                      []string
	historyLimit                uint32
}

func (f *groupFields) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&f.name, "name", "", "name, unique (default: the id)")
	fl.StringVar(&f.description, "description", "", "what the group is for")
	fl.StringSliceVarP(&f.labels, "label", "l", nil, "label key=value; may be repeated")
	fl.StringVar(&f.imageTag, "image-tag", "", "data-plane version that the group should run")
	fl.Uint32Var(&f.historyLimit, "history-limit", 0, "revisions kept for diff and rollback (default 200)")
}

func parseLabels(pairs []string) (map[string]string, error) {
	if len(pairs) == 0 {
		return nil, nil
	}
	labels := make(map[string]string, len(pairs))
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usagef("label %q is not of the form key=value", p)
		}
		labels[k] = v
	}
	return labels, nil
}

func (a *app) groupCreateCommand() *cobra.Command {
	var f groupFields
	var typ, prefix string
	cmd := &cobra.Command{
		Use:   "create ID",
		Short: "Create a group without resources",
		Example: `  muster group create edge
  muster group create edge --name "Edge gateways" --label env=prod
  muster group create ingress --type api7_ingress_controller`,
		Args: exactArgs("ID"),
	}
	f.add(cmd)
	cmd.Flags().StringVar(&typ, "type", "", "api7_gateway (default) or api7_ingress_controller")
	cmd.Flags().StringVar(&prefix, "control-plane-key-prefix", "", "where the group lies in the store; unique, fixed (default /gateway_groups/ID)")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions([]string{"api7_gateway", "api7_ingress_controller"}, cobra.ShellCompDirectiveNoFileComp))
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		labels, err := parseLabels(f.labels)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		resp, err := c.CreateGroup(cmd.Context(), &musterv1.CreateGroupRequest{
			Group: &musterv1.Group{
				Id: args[0], Name: f.name, Description: f.description, Labels: labels, Type: typ,
				ControlPlaneKeyPrefix: prefix, ImageTag: f.imageTag, HistoryLimit: f.historyLimit,
			},
			RequestId: requestID(),
		})
		if err != nil {
			if status.Code(err) == codes.AlreadyExists {
				return &failure{err: err, code: exitConflict, try: "muster group get " + shellQuote(args[0])}
			}
			return fieldProblems(err)
		}
		return a.print(resp.GetGroup(), func(t *table) {
			t.text("group/%s created", resp.GetGroup().GetId())
		})
	}
	return cmd
}

func (a *app) groupGetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:               "get GROUP",
		Short:             "Show one group, by id or name",
		Example:           "  muster group get edge\n  muster group get edge -o json",
		Args:              exactArgs("GROUP"),
		ValidArgsFunction: a.completeGroups,
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		resp, err := c.GetGroup(cmd.Context(), &musterv1.GetGroupRequest{Group: args[0]})
		if err != nil {
			return noGroup(err)
		}
		g := resp.GetGroup()
		return a.print(g, func(t *table) {
			t.row("id", g.GetId())
			t.row("name", g.GetName())
			if g.GetDescription() != "" {
				t.row("description", g.GetDescription())
			}
			t.row("type", g.GetType())
			if len(g.GetLabels()) > 0 {
				t.row("labels", joinLabels(g.GetLabels()))
			}
			t.row("prefix", g.GetControlPlaneKeyPrefix())
			if g.GetImageTag() != "" {
				t.row("image tag", g.GetImageTag())
			}
			t.row("revision", rev(g.GetRevision()))
			t.row("resources", strconv.FormatUint(g.GetResources(), 10))
			t.row("history", fmt.Sprintf("%d revisions", g.GetHistoryLimit()))
			t.row("created", a.ago(g.GetCreatedAt()))
			t.row("updated", a.ago(g.GetUpdatedAt()))
		})
	}
	return cmd
}

func (a *app) groupListCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List the groups",
		Example: "  muster group list\n  muster group list -o json",
		Args:    noArgs,
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		resp, err := c.ListGroups(cmd.Context(), &musterv1.ListGroupsRequest{})
		if err != nil {
			return err
		}
		if len(resp.GetGroups()) == 0 {
			a.say("There is no group yet.\nTry: muster group create default")
		}
		return a.print(messages(resp.GetGroups()), func(t *table) {
			t.header("ID", "NAME", "TYPE", "REVISION", "RESOURCES", "LABELS", "UPDATED")
			for _, g := range resp.GetGroups() {
				t.row(g.GetId(), g.GetName(), g.GetType(), rev(g.GetRevision()), strconv.FormatUint(g.GetResources(), 10), joinLabels(g.GetLabels()), a.ago(g.GetUpdatedAt()))
			}
		})
	}
	return cmd
}

func (a *app) groupUpdateCommand() *cobra.Command {
	var f groupFields
	cmd := &cobra.Command{
		Use:   "update GROUP",
		Short: "Change what describes a group; only the flags given change",
		Example: `  muster group update edge --description "Edge, all regions"
  muster group update edge --image-tag 1.40.0 --label env=prod`,
		Args:              exactArgs("GROUP"),
		ValidArgsFunction: a.completeGroups,
	}
	f.add(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		labels, err := parseLabels(f.labels)
		if err != nil {
			return err
		}
		var mask []string
		for _, m := range []struct{ flag, field string }{
			{"name", "name"}, {"description", "description"}, {"label", "labels"}, {"image-tag", "image_tag"}, {"history-limit", "history_limit"},
		} {
			if cmd.Flags().Changed(m.flag) {
				mask = append(mask, m.field)
			}
		}
		if len(mask) == 0 {
			return &usageError{err: errors.New("nothing to change: give at least one of --name, --description, --label, --image-tag, --history-limit"), try: cmd.CommandPath() + " --help"}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		// The group may be named by its name; updates go by id.
		got, err := c.GetGroup(cmd.Context(), &musterv1.GetGroupRequest{Group: args[0]})
		if err != nil {
			return noGroup(err)
		}
		resp, err := c.UpdateGroup(cmd.Context(), &musterv1.UpdateGroupRequest{
			Group: &musterv1.Group{
				Id: got.GetGroup().GetId(), Name: f.name, Description: f.description, Labels: labels,
				ImageTag: f.imageTag, HistoryLimit: f.historyLimit,
			},
			UpdateMask: mask,
			RequestId:  requestID(),
		})
		if err != nil {
			return fieldProblems(noGroup(err))
		}
		return a.print(resp.GetGroup(), func(t *table) {
			t.text("group/%s updated", resp.GetGroup().GetId())
		})
	}
	return cmd
}

func (a *app) groupDeleteCommand() *cobra.Command {
	var force, yes bool
	cmd := &cobra.Command{
		Use:   "delete GROUP",
		Short: "Delete a group; one with resources or connected data planes needs --force",
		Example: `  muster group delete edge
  muster group delete edge --force --yes`,
		Args:              exactArgs("GROUP"),
		ValidArgsFunction: a.completeGroups,
	}
	cmd.Flags().BoolVar(&force, "force", false, "delete it with its resources and although data planes are connected")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		got, err := c.GetGroup(cmd.Context(), &musterv1.GetGroupRequest{Group: args[0]})
		if err != nil {
			return noGroup(err)
		}
		id := got.GetGroup().GetId()
		deed := fmt.Sprintf("delete group %s with %s", id, plural(int(got.GetGroup().GetResources()), "resource"))
		try := "muster group delete " + shellQuote(id)
		if force {
			try += " --force"
		}
		if err := a.confirm(yes, deed, id, try); err != nil {
			return err
		}
		if _, err := c.DeleteGroup(cmd.Context(), &musterv1.DeleteGroupRequest{Group: id, Force: force, RequestId: requestID()}); err != nil {
			if status.Code(err) == codes.FailedPrecondition {
				return &failure{err: err, code: exitConflict, try: try + " --force"}
			}
			return noGroup(err)
		}
		fmt.Fprintf(a.env.Stdout, "group/%s deleted\n", id)
		return nil
	}
	return cmd
}

// noGroup adds to "not found" how to see what there is.
func noGroup(err error) error {
	if status.Code(err) == codes.NotFound {
		return &failure{err: errors.New(message(err)), code: exitNotFound, try: "muster group list"}
	}
	return err
}

func (a *app) completeGroups(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer c.close()
	resp, err := c.ListGroups(cmd.Context(), &musterv1.ListGroupsRequest{Stale: true})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ids := make([]string, len(resp.GetGroups()))
	for i, g := range resp.GetGroups() {
		ids[i] = g.GetId()
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

func joinLabels(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

// rev writes a revision as people name it: r42.
func rev(n uint64) string { return "r" + strconv.FormatUint(n, 10) }

// parseRev reads r42 or 42.
func parseRev(s string) (uint64, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(s, "r"), 10, 64)
	if err != nil {
		return 0, usagef("%q is not a revision; write it as r42", s)
	}
	return n, nil
}
