package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// defaultWait is how long a wait lasts unless told otherwise.
const defaultWait = 30 * time.Second

func (a *app) waitCommand() *cobra.Command {
	var condition, revision string
	var minimum uint32
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "wait",
		Short: "Wait until data planes have acknowledged a revision",
		Long: `Wait until the share of connected data planes that --for names has acknowledged
a revision. Exit code 7 means that the time ran out; the data planes that are
missing are named.`,
		Example: `  muster wait --for acked=100% --revision 42 --timeout 30s
  muster wait -g edge --for acked=95% --min-data-planes 10`,
		Args: noArgs,
	}
	fl := cmd.Flags()
	fl.StringVar(&condition, "for", "acked=100%", "condition: acked=PERCENT%")
	fl.StringVar(&revision, "revision", "", "revision to wait for (default: the current one)")
	fl.Uint32Var(&minimum, "min-data-planes", 1, "data planes that must be connected")
	fl.DurationVar(&timeout, "timeout", defaultWait, "how long to wait")
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		percent, err := parseCondition(condition)
		if err != nil {
			return err
		}
		var n uint64
		if revision != "" {
			if n, err = parseRev(revision); err != nil {
				return err
			}
		}
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		req := &musterv1.WaitRequest{Group: c.group, Revision: n, AckedPercent: percent, MinDataPlanes: &minimum}
		last, err := c.wait(cmd.Context(), req, timeout)
		if last != nil {
			err = errors.Join(err, a.print(last, func(t *table) {
				if last.GetDone() {
					t.text("group %s: %d of %s acknowledged %s", c.group, last.GetAcked(), plural(int(last.GetConnected()), "data plane"), rev(last.GetRevision()))
				}
			}))
		}
		return err
	}
	return cmd
}

// parseCondition reads acked=95%.
func parseCondition(s string) (uint32, error) {
	kind, share, ok := strings.Cut(s, "=")
	if !ok || kind != "acked" {
		return 0, usagef("--for %q is not of the form acked=PERCENT%%", s)
	}
	n, err := strconv.ParseUint(strings.TrimSuffix(share, "%"), 10, 32)
	if err != nil || n < 1 || n > 100 {
		return 0, usagef("--for %q: the percentage must be 1 to 100", s)
	}
	return uint32(n), nil
}

// wait follows a wait to its end and returns its last message, also when the
// time runs out. The stream is asked for again when a server goes away.
func (c *client) wait(ctx context.Context, req *musterv1.WaitRequest, timeout time.Duration) (*musterv1.WaitResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var last *musterv1.WaitResponse
	err := c.servers.retry(ctx, func() error {
		stream, err := c.fleet.Wait(ctx, req)
		if err != nil {
			return err
		}
		for {
			resp, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			last = resp
			// A wait for "the current revision" means the one at its beginning.
			req.Revision = resp.GetRevision()
			if c.app.env.StderrTTY && !resp.GetDone() {
				c.app.say("%d of %d acknowledged %s", resp.GetAcked(), resp.GetConnected(), rev(resp.GetRevision()))
			}
		}
	})
	if err == nil {
		return last, nil
	}
	if status.Code(err) == codes.DeadlineExceeded || errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return last, c.timedOut(last, req, timeout)
	}
	return last, c.noGroup(err)
}

func (c *client) timedOut(last *musterv1.WaitResponse, req *musterv1.WaitRequest, timeout time.Duration) error {
	if last == nil {
		return &failure{err: fmt.Errorf("no answer within %s", timeout), code: exitTimeout}
	}
	lines := []string{fmt.Sprintf("after %s %d of %d connected data planes have acknowledged %s", timeout, last.GetAcked(), last.GetConnected(), rev(last.GetRevision()))}
	if last.GetConnected() < req.GetMinDataPlanes() {
		lines = append(lines, fmt.Sprintf("  at least %d must be connected", req.GetMinDataPlanes()))
	}
	for _, dp := range last.GetMissing() {
		lines = append(lines, fmt.Sprintf("  %s %s at %s", dp.GetId(), short(dp.GetState()), rev(dp.GetRevision())))
		for _, r := range dp.GetRefusals() {
			lines = append(lines, "    refused "+refusalLine(r))
		}
	}
	return &failure{err: errors.New(strings.Join(lines, "\n")), code: exitTimeout, try: "muster dp status -g " + shellQuote(c.group)}
}

// waitFor waits, when --wait asks for it, for what a transaction made.
func (w *writeFlags) waitFor(ctx context.Context, c *client, resp *musterv1.CommitResponse) error {
	if !w.wait || w.dryRun {
		return nil
	}
	one := uint32(1)
	last, err := c.wait(ctx, &musterv1.WaitRequest{Group: c.group, Revision: resp.GetRevision(), AckedPercent: 100, MinDataPlanes: &one}, w.timeout)
	if err != nil {
		return err
	}
	c.app.say("%s acknowledged %s.", plural(int(last.GetAcked()), "data plane"), rev(last.GetRevision()))
	return nil
}
