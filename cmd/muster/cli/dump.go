package cli

import (
	"fmt"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	_ "github.com/musterhq/muster/resource/xdstypes" // what an xds_resource may hold
	"github.com/spf13/cobra"
)

func (a *app) dumpCommand() *cobra.Command {
	var revision string
	var reveal bool
	cmd := &cobra.Command{
		Use:   "dump",
		Short: "Write a group as a file that apply and sync take",
		Long: `Write all resources of a group to standard output as one declarative file.

Secrets read ***. Applied to the same group, *** keeps the secret that is stored;
to bring the file to another group or cluster, ask for the secrets too, and keep
the file where only you can read it.`,
		Example: `  muster dump -g edge > edge.yaml
  muster dump -g edge --revision r41 | muster diff -g edge -f -
  (umask 077; muster dump -g edge --reveal-secrets > edge.yaml) && muster sync -g staging -f edge.yaml`,
		Args: noArgs,
	}
	cmd.Flags().StringVar(&revision, "revision", "", "as of this revision instead of the current one")
	cmd.Flags().BoolVar(&reveal, "reveal-secrets", false, "write private keys and credentials in clear; needs the right to write")
	a.groupFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		var at uint64
		var err error
		if revision != "" {
			if at, err = parseRev(revision); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		stored, seen, err := c.list(cmd.Context(), at, reveal)
		if err != nil {
			return err
		}
		rs := make([]*musterv1.Resource, len(stored))
		for i, sr := range stored {
			rs[i] = sr.GetResource()
		}
		data, err := resource.EncodeFile(rs)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.env.Stdout, "# Group %s at %s, written by muster dump.\n%s", c.group, rev(seen), data)
		return err
	}
	return cmd
}
