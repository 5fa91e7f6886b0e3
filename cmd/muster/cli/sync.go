package cli

import (
	"context"
	"fmt"
	"slices"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/spf13/cobra"
)

// listPage is how many resources one request of a listing asks for.
const listPage = 1000

// list returns the group's resources of some kinds (none: all) at one revision
// (0: the current one), page by page.
func (c *client) list(ctx context.Context, revision uint64, reveal bool, kinds ...musterv1.Kind) ([]*musterv1.StoredResource, uint64, error) {
	var all []*musterv1.StoredResource
	req := &musterv1.ListResourcesRequest{Group: c.group, Kinds: kinds, Revision: revision, PageSize: listPage, RevealSecrets: reveal}
	for {
		resp, err := c.ListResources(ctx, req)
		if err != nil {
			return nil, 0, c.noRevision(err)
		}
		all = append(all, resp.GetResources()...)
		if resp.GetNextPageToken() == "" {
			return all, resp.GetRevision(), nil
		}
		// The rest of the same revision, whatever is committed meanwhile.
		req.Revision, req.PageToken = resp.GetRevision(), resp.GetNextPageToken()
	}
}

// deletions are the resources of the group that the files lack, children first,
// so that each is named rather than swept away with its parent.
func (s *source) deletions(stored []*musterv1.StoredResource) []*musterv1.Change {
	var keys []resource.Key
	for _, sr := range stored {
		key := resource.KeyOf(sr.GetResource())
		if _, declared := s.places[key]; !declared {
			keys = append(keys, key)
		}
	}
	order := map[musterv1.Kind]int{}
	for i, k := range resource.Kinds() {
		order[k] = -i // what refers to others goes before what it refers to
	}
	slices.SortFunc(keys, func(x, y resource.Key) int {
		if d := order[x.Kind] - order[y.Kind]; d != 0 {
			return d
		}
		if x.Less(y) {
			return -1
		}
		return 1
	})
	changes := make([]*musterv1.Change, len(keys))
	for i, k := range keys {
		changes[i] = &musterv1.Change{Action: &musterv1.Change_Delete{Delete: k.Proto()}}
	}
	return changes
}

func (a *app) syncCommand() *cobra.Command {
	var files []string
	var yes bool
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "sync -f FILE|DIR|-",
		Short: "Make a group hold exactly what files declare; deletes the rest",
		Long: `Make the group hold exactly what the files declare: create, update, and delete
what the files lack, as one transaction. It shows what it will delete and asks
first.`,
		Example: `  muster sync -f config/ -g edge
  muster sync -f config/ -g edge --dry-run
  muster sync -f config/ -g edge --yes --wait`,
		Args: noArgs,
	}
	filesFlag(cmd, &files)
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask before deleting")
	w.add(cmd)
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		src, err := a.readSource(files)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		stored, seen, err := c.list(ctx, 0, false)
		if err != nil {
			return err
		}
		expected, err := w.base(seen)
		if err != nil {
			return err
		}
		deletions := src.deletions(stored)
		if len(deletions) > 0 && !w.dryRun {
			a.say("%s in group %s that the files lack:", plural(len(deletions), "resource"), c.group)
			for i, d := range deletions {
				if i == 20 {
					a.say("  ... and %d more", len(deletions)-i)
					break
				}
				a.say("  %s", changeKey(d))
			}
			deed := fmt.Sprintf("delete %s from group %s", plural(len(deletions), "resource"), c.group)
			if err := a.confirm(yes, deed, c.group, "muster sync "+src.flags()+" -g "+shellQuote(c.group)); err != nil {
				return err
			}
		}
		resp, err := c.commit(ctx, &musterv1.CommitRequest{
			Changes: append(src.puts(), deletions...), ExpectedRevision: expected, DryRun: w.dryRun, Message: w.message,
		}, src)
		if err != nil {
			return err
		}
		if err := a.printChanges(c.group, resp, w.dryRun); err != nil {
			return err
		}
		return w.waitFor(ctx, c, resp)
	}
	return cmd
}
