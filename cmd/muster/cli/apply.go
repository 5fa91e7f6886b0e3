package cli

import (
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/spf13/cobra"
)

// writeFlags are the flags of the commands that commit a transaction.
type writeFlags struct {
	expected string
	message  string
	dryRun   bool
	wait     bool
	timeout  time.Duration
}

func (w *writeFlags) add(cmd *cobra.Command) {
	fl := cmd.Flags()
	fl.StringVar(&w.expected, "expected-revision", "", "refuse unless the group is at this revision (default: the one seen at the start)")
	fl.StringVarP(&w.message, "message", "m", "", "note to keep with the revision")
	fl.BoolVar(&w.dryRun, "dry-run", false, "check everything and show the result, but change nothing")
	fl.BoolVar(&w.wait, "wait", false, "wait until every connected data plane has acknowledged")
	fl.DurationVar(&w.timeout, "timeout", defaultWait, "how long --wait waits")
}

// base returns the revision that the transaction is meant for.
func (w *writeFlags) base(seen uint64) (*uint64, error) {
	if w.expected == "" {
		return &seen, nil
	}
	n, err := parseRev(w.expected)
	if err != nil {
		return nil, err
	}
	return &n, nil
}

func (a *app) applyCommand() *cobra.Command {
	var files []string
	var w writeFlags
	cmd := &cobra.Command{
		Use:   "apply -f FILE|DIR|-",
		Short: "Create and update what files declare; never deletes",
		Long: `Create and update the resources that files declare, in the shape of API7's
adc, as one transaction: all of it becomes one new revision, or nothing does.
What the files do not mention stays. A directory stands for every .yaml, .yml
and .json file in it.`,
		Example: `  muster apply -f shop.yaml
  muster apply -f config/ -g edge -m "release 12" --wait
  cat shop.yaml | muster apply -f - --dry-run`,
		Args: noArgs,
	}
	filesFlag(cmd, &files)
	w.add(cmd)
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		src, err := a.readSource(files)
		if err != nil {
			return err
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		seen, err := c.revisionOf(cmd.Context())
		if err != nil {
			return err
		}
		expected, err := w.base(seen)
		if err != nil {
			return err
		}
		resp, err := c.commit(cmd.Context(), &musterv1.CommitRequest{
			Changes: src.puts(), ExpectedRevision: expected, DryRun: w.dryRun, Message: w.message,
		}, src)
		if err != nil {
			return err
		}
		if err := a.printChanges(c.group, resp, w.dryRun); err != nil {
			return err
		}
		return w.waitFor(cmd.Context(), c, resp)
	}
	return cmd
}

func filesFlag(cmd *cobra.Command, files *[]string) {
	cmd.Flags().StringSliceVarP(files, "file", "f", nil, "file, directory, or - for stdin; may be repeated")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml", "json")
}
