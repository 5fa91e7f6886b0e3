package cli

import (
	"fmt"
	"regexp"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/spf13/cobra"
)

var revisionArg = regexp.MustCompile(`^r[0-9]+$`)

func (a *app) diffCommand() *cobra.Command {
	var files []string
	var del bool
	cmd := &cobra.Command{
		Use:   "diff -f FILE|DIR|- | diff FILE|DIR|- ... | diff rN [rM]",
		Short: "Show what apply would change, or what changed between revisions",
		Long: `With files, show what apply would change (with --delete: what sync would) and
end with the command that does exactly this. With one revision, show what
changed since; with two, what changed between them. r0 is the empty group.

Exit code 0 means no difference, 1 a difference, more than 1 an error.`,
		Example: `  muster diff -f shop.yaml
  muster diff --delete config/ -g edge
  muster diff r41 r42 -g edge`,
		Args: cobra.ArbitraryArgs,
	}
	filesFlag(cmd, &files)
	cmd.Flags().BoolVar(&del, "delete", false, "include the deletions that sync would make")
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		revisions := len(args) > 0 && revisionArg.MatchString(args[0])
		switch {
		case revisions && (len(files) > 0 || del):
			return usagef("give either files or revisions")
		case revisions && len(args) > 2:
			return usagef("unexpected argument %q", args[2])
		case revisions:
			return a.diffRevisions(cmd, args)
		}
		return a.diffFiles(cmd, append(files, args...), del)
	}
	return cmd
}

func (a *app) diffRevisions(cmd *cobra.Command, args []string) error {
	from, err := parseRev(args[0])
	if err != nil {
		return err
	}
	var to uint64
	if len(args) > 1 {
		if to, err = parseRev(args[1]); err != nil {
			return err
		}
		if to == 0 {
			return usagef("the second revision must be at least r1; swap the two")
		}
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.close()
	resp, err := c.DiffRevisions(cmd.Context(), &musterv1.DiffRevisionsRequest{Group: c.group, From: from, To: to})
	if err != nil {
		return c.noRevision(err)
	}
	err = a.print(resp, func(t *table) {
		printDiff(t, resp.GetChanges())
		t.text("%s from %s to %s in group %s", summary(resp.GetChanges()), rev(resp.GetFrom()), rev(resp.GetTo()), c.group)
	})
	return different(err, resp.GetChanges())
}

func (a *app) diffFiles(cmd *cobra.Command, files []string, del bool) error {
	src, err := a.readSource(files)
	if err != nil {
		return err
	}
	c, err := a.connect()
	if err != nil {
		return err
	}
	defer c.close()
	ctx := cmd.Context()
	changes := src.puts()
	var seen uint64
	if del {
		var stored []*musterv1.StoredResource
		if stored, seen, err = c.list(ctx, 0, false); err != nil {
			return err
		}
		changes = append(changes, src.deletions(stored)...)
	} else if seen, err = c.revisionOf(ctx); err != nil {
		return err
	}
	resp, err := c.commit(ctx, &musterv1.CommitRequest{Changes: changes, ExpectedRevision: &seen, DryRun: true}, src)
	if err != nil {
		return err
	}
	err = a.print(resp, func(t *table) {
		printDiff(t, resp.GetChanges())
		t.text("%s in group %s at %s", summary(resp.GetChanges()), c.group, rev(seen))
	})
	if err = different(err, resp.GetChanges()); err == errDifferent {
		verb := "apply"
		if del {
			verb = "sync"
		}
		a.say("To make exactly this change:\n  muster %s %s -g %s --expected-revision %d", verb, src.flags(), shellQuote(c.group), seen)
	}
	return err
}

// different is errDifferent when anything would change.
func different(err error, changes []*musterv1.ResourceChange) error {
	if err != nil {
		return err
	}
	for _, ch := range changes {
		if ch.GetResult() != musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED {
			return errDifferent
		}
	}
	return nil
}

// printDiff prints each changed object with the fields that differ. Secrets
// come masked from the server, with a mark where they changed.
func printDiff(t *table, changes []*musterv1.ResourceChange) {
	for _, ch := range changes {
		sign, colour := "~", yellow
		switch ch.GetResult() {
		case musterv1.ChangeResult_CHANGE_RESULT_CREATED:
			sign, colour = "+", green
		case musterv1.ChangeResult_CHANGE_RESULT_DELETED:
			sign, colour = "-", red
		case musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED:
			continue
		}
		t.text("%s", t.paint(colour, sign+" "+resource.KeyFromProto(ch.GetKey()).String()))
		for _, f := range resource.DiffFields(ch.GetBefore(), ch.GetAfter()) {
			switch {
			case f.Before == f.After: // a secret: both are masked
				t.text("%s", t.paint(yellow, fmt.Sprintf("    ~ %s: changed (secret)", f.Path)))
			case f.Before == "":
				t.text("%s", t.paint(green, fmt.Sprintf("    + %s: %s", f.Path, oneLine(f.After))))
			case f.After == "":
				t.text("%s", t.paint(red, fmt.Sprintf("    - %s: %s", f.Path, oneLine(f.Before))))
			default:
				t.text("%s", t.paint(yellow, fmt.Sprintf("    ~ %s: %s → %s", f.Path, oneLine(f.Before), oneLine(f.After))))
			}
		}
	}
}

// oneLine bounds a value in a diff, a certificate for example.
func oneLine(s string) string {
	const most = 160
	s = strings.ReplaceAll(s, "\n", `\n`)
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + fmt.Sprintf("... (%d characters)", len(r))
	}
	return s
}
