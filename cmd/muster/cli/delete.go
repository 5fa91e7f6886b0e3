package cli

import (
	"fmt"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/spf13/cobra"
)

func (a *app) deleteCommand() *cobra.Command {
	var yes bool
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "delete KIND ID | KIND/ID ...",
		Short: "Delete resources of a group, as one transaction",
		Long: `Delete resources, as one transaction. A service goes with its routes, a consumer
with its credentials. It shows what goes and asks first.`,
		Example: `  muster delete route orders
  muster delete route/orders service/shop -g edge --yes
  muster delete service/shop --dry-run`,
		ValidArgsFunction: a.completeResources,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{err: fmt.Errorf("KIND/ID is missing"), try: cmd.CommandPath() + " --help"}
			}
			return nil
		},
	}
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	w.add(cmd)
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		ctx := cmd.Context()
		keys, err := deleteArgs(args)
		if err != nil {
			return err
		}
		changes := make([]*musterv1.Change, len(keys))
		for i, k := range keys {
			changes[i] = &musterv1.Change{Action: &musterv1.Change_Delete{Delete: k.Proto()}}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		seen, err := c.revisionOf(ctx)
		if err != nil {
			return err
		}
		expected, err := w.base(seen)
		if err != nil {
			return err
		}
		// A dry run tells what goes along with what was named.
		preview, err := c.commit(ctx, &musterv1.CommitRequest{Changes: changes, ExpectedRevision: expected, DryRun: true}, nil)
		if err != nil {
			return (&source{}).explain(c.noResource(err, keys[0]), changes)
		}
		if w.dryRun {
			return a.printChanges(c.group, preview, true)
		}
		gone := 0
		for _, ch := range preview.GetChanges() {
			if ch.GetResult() == musterv1.ChangeResult_CHANGE_RESULT_DELETED {
				a.say("  %s", resource.KeyFromProto(ch.GetKey()))
				gone++
			}
		}
		try := "muster delete"
		for _, arg := range args {
			try += " " + shellQuote(arg)
		}
		deed := fmt.Sprintf("delete %s from group %s", plural(gone, "resource"), c.group)
		if err := a.confirm(yes, deed, c.group, try+" -g "+shellQuote(c.group)); err != nil {
			return err
		}
		resp, err := c.commit(ctx, &musterv1.CommitRequest{Changes: changes, ExpectedRevision: expected, Message: w.message}, nil)
		if err != nil {
			return (&source{}).explain(err, changes)
		}
		if err := a.printChanges(c.group, resp, false); err != nil {
			return err
		}
		return w.waitFor(ctx, c, resp)
	}
	return cmd
}

// deleteArgs reads `route orders` or any number of `route/orders`.
func deleteArgs(args []string) ([]resource.Key, error) {
	if key, one, err := keyArgs(args[:min(len(args), 2)]); err == nil && one && len(args) == 2 {
		if _, kindErr := resource.ParseKind(args[0]); kindErr == nil {
			return []resource.Key{key}, nil
		}
	}
	keys := make([]resource.Key, len(args))
	for i, arg := range args {
		key, err := parseKey(arg)
		if err != nil {
			return nil, err
		}
		keys[i] = key
	}
	return keys, nil
}
