package cli

import (
	"fmt"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/spf13/cobra"
)

func (a *app) rollbackCommand() *cobra.Command {
	var to string
	var yes bool
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "rollback --to rN",
		Short: "Restore a kept revision's content, as a new revision",
		Long: `Restore what the group held at a kept revision. The result is a new revision:
history is never rewritten. It shows what changes and asks first.`,
		Example: `  muster rollback --to r41 -g edge
  muster rollback --to r41 --dry-run
  muster rollback --to r41 --yes -m "r42 broke checkout" --wait`,
		Args: noArgs,
	}
	cmd.Flags().StringVar(&to, "to", "", "the revision to restore")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	w.add(cmd)
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		if to == "" {
			return &usageError{err: fmt.Errorf("--to is missing"), try: "muster history, then muster rollback --to rN"}
		}
		n, err := parseRev(to)
		if err != nil {
			return err
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
		req := &musterv1.RollbackRequest{Group: c.group, ToRevision: n, ExpectedRevision: expected, DryRun: true, Message: w.message, RequestId: requestID()}
		preview, err := c.Rollback(ctx, req)
		if err != nil {
			return c.conflict(ctx, c.noRevision(err), expected)
		}
		if w.dryRun {
			return a.printChanges(c.group, rolledBack(preview), true)
		}
		if err := different(nil, preview.GetChanges()); err == nil {
			a.say("Group %s already holds what it held at %s.", c.group, rev(n))
			return a.printChanges(c.group, rolledBack(preview), false)
		}
		if !yes {
			t := &table{colour: a.env.colour()}
			printDiff(t, preview.GetChanges())
			if err := t.flush(a.env.Stderr); err != nil {
				return err
			}
		}
		deed := fmt.Sprintf("take group %s back to %s (%s)", c.group, rev(n), summary(preview.GetChanges()))
		if err := a.confirm(yes, deed, c.group, fmt.Sprintf("muster rollback --to %s -g %s", rev(n), shellQuote(c.group))); err != nil {
			return err
		}
		req.DryRun, req.RequestId = false, requestID()
		resp, err := c.Rollback(ctx, req)
		if err != nil {
			return c.conflict(ctx, c.noRevision(err), expected)
		}
		if err := a.printChanges(c.group, rolledBack(resp), false); err != nil {
			return err
		}
		return w.waitFor(ctx, c, rolledBack(resp))
	}
	return cmd
}

// rolledBack reads a rollback as the commit that it is.
func rolledBack(r *musterv1.RollbackResponse) *musterv1.CommitResponse {
	return &musterv1.CommitResponse{Revision: r.GetRevision(), Epoch: r.GetEpoch(), Changes: r.GetChanges()}
}
