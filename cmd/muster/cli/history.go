package cli

import (
	"errors"
	"fmt"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
)

func (a *app) historyCommand() *cobra.Command {
	var limit uint32
	cmd := &cobra.Command{
		Use:     "history",
		Short:   "List a group's revisions, newest first",
		Example: "  muster history -g edge\n  muster history --limit 5 -o json",
		Args:    noArgs,
	}
	cmd.Flags().Uint32Var(&limit, "limit", 0, "at most so many (default: all that are kept)")
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		resp, err := c.ListRevisions(cmd.Context(), &musterv1.ListRevisionsRequest{Group: c.group, Limit: limit})
		if err != nil {
			return c.noGroup(err)
		}
		return a.print(messages(resp.GetRevisions()), func(t *table) {
			t.header("REVISION", "WHEN", "AUTHOR", "CHANGES", "MESSAGE")
			for _, r := range resp.GetRevisions() {
				msg := r.GetMessage()
				if r.GetRollbackTo() != 0 {
					msg = fmt.Sprintf("(rollback to %s) %s", rev(r.GetRollbackTo()), msg)
				}
				t.row(rev(r.GetRevision()), a.ago(r.GetCommittedAt()), orDash(r.GetAuthor()), summary(r.GetChanges()), msg)
			}
		})
	}
	return cmd
}

// ago writes a time by its distance from now.
func (a *app) ago(ts *timestamppb.Timestamp) string {
	if ts == nil {
		return "-"
	}
	d := a.env.Now().Sub(ts.AsTime())
	if d < time.Second {
		return "now"
	}
	return shortDuration(d) + " ago"
}

// noRevision adds to an error about a revision that is not there, or no longer,
// how to see those that are kept.
func (c *client) noRevision(err error) error {
	missing := false
	switch status.Code(err) {
	case codes.NotFound:
		return c.noGroup(err)
	case codes.OutOfRange:
		missing = true
	case codes.InvalidArgument:
		bad, _ := detail[*errdetails.BadRequest](err)
		for _, v := range bad.GetFieldViolations() {
			switch v.GetField() {
			case "revision", "from", "to", "to_revision", "rollback_to":
				missing = true
			}
		}
	}
	if !missing {
		return err
	}
	return &failure{err: errors.New(message(err)), code: exitNotFound, try: "muster history -g " + shellQuote(c.group)}
}
