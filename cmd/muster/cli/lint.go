package cli

import (
	"errors"
	"strings"

	"github.com/musterhq/muster/resource"
	"github.com/spf13/cobra"
)

func (a *app) lintCommand() *cobra.Command {
	var files []string
	cmd := &cobra.Command{
		Use:   "lint FILE|DIR|- ...",
		Short: "Check files without a server",
		Long: `Check files as apply would, without a server: unknown fields and plugins, wrong
values, broken certificates, references between the files' own objects. Every
problem is listed with its place. Exit code 2 when there is one.`,
		Example: `  muster lint shop.yaml
  muster lint config/ -o json`,
		Args: cobra.ArbitraryArgs,
	}
	filesFlag(cmd, &files)
	a.outputFlag(cmd)
	cmd.RunE = func(_ *cobra.Command, args []string) error {
		args = append(files, args...)
		src, err := a.readSource(args)
		var inv *invalidError
		if err != nil && !errors.As(err, &inv) {
			return err
		}
		var problems resource.Problems
		if inv != nil {
			problems = inv.problems
		}
		err = a.print(problemsJSON(problems), func(t *table) {
			if len(problems) > 0 {
				var b strings.Builder
				a.printProblems(&b, problems)
				t.text("%s", strings.TrimSuffix(b.String(), "\n"))
				return
			}
			t.text("%s: %s, no problem", strings.Join(args, ", "), plural(len(src.resources), "resource"))
		})
		if err == nil && len(problems) > 0 {
			return &failure{err: errors.New(plural(len(problems), "problem")), code: exitInvalid}
		}
		return err
	}
	return cmd
}
