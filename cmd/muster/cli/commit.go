package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// revisionOf returns the group's current revision.
func (c *client) revisionOf(ctx context.Context) (uint64, error) {
	resp, err := c.GetGroup(ctx, &musterv1.GetGroupRequest{Group: c.group})
	if err != nil {
		return 0, c.noGroup(err)
	}
	return resp.GetGroup().GetRevision(), nil
}

// commit sends one transaction; src, when not nil, is where its changes came
// from and where problems are shown.
func (c *client) commit(ctx context.Context, req *musterv1.CommitRequest, src *source) (*musterv1.CommitResponse, error) {
	req.Group = c.group
	req.RequestId = requestID()
	resp, err := c.Commit(ctx, req)
	if err == nil {
		return resp, nil
	}
	if src != nil {
		err = src.explain(err, req.GetChanges())
	}
	return nil, c.conflict(ctx, err, req.ExpectedRevision)
}

// noGroup adds to "not found" what may help: another group, or a new one.
func (c *client) noGroup(err error) error {
	if status.Code(err) != codes.NotFound {
		return err
	}
	return &failure{err: errors.New(message(err)), code: exitNotFound, try: "muster group list; muster get -g " + shellQuote(c.group)}
}

// conflict tells who came first, when a transaction was refused for that.
func (c *client) conflict(ctx context.Context, err error, expected *uint64) error {
	if status.Code(err) != codes.Aborted || expected == nil {
		return err
	}
	lines := []string{fmt.Sprintf("group %s is no longer at %s; nothing was changed", c.group, rev(*expected))}
	if resp, lerr := c.ListRevisions(ctx, &musterv1.ListRevisionsRequest{Group: c.group, Limit: 10}); lerr == nil {
		for _, r := range resp.GetRevisions() {
			if r.GetRevision() > *expected {
				lines = append(lines, "  "+c.app.revisionLine(r))
			}
		}
	}
	return &failure{
		err:  errors.New(strings.Join(lines, "\n")),
		code: exitConflict,
		try:  "muster diff " + rev(*expected) + " -g " + shellQuote(c.group) + " to see what changed, then again",
	}
}

// revisionLine says on one line what a revision did.
func (a *app) revisionLine(r *musterv1.Revision) string {
	line := fmt.Sprintf("%s by %s, %s: %s", rev(r.GetRevision()), orDash(r.GetAuthor()), a.ago(r.GetCommittedAt()), summary(r.GetChanges()))
	if r.GetMessage() != "" {
		line += fmt.Sprintf(" %q", r.GetMessage())
	}
	return line
}

// summary counts changes by what they did: `2 created, 1 deleted`.
func summary(changes []*musterv1.ResourceChange) string {
	var counts [5]int
	for _, ch := range changes {
		if r := int(ch.GetResult()); r < len(counts) {
			counts[r]++
		}
	}
	var parts []string
	for _, r := range []musterv1.ChangeResult{
		musterv1.ChangeResult_CHANGE_RESULT_CREATED,
		musterv1.ChangeResult_CHANGE_RESULT_UPDATED,
		musterv1.ChangeResult_CHANGE_RESULT_DELETED,
		musterv1.ChangeResult_CHANGE_RESULT_UNCHANGED,
	} {
		if n := counts[r]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, strings.ToLower(short(r))))
		}
	}
	if len(parts) == 0 {
		return "no change"
	}
	return strings.Join(parts, ", ")
}

// printChanges prints `route/foo created` for each change, then where the group is.
func (a *app) printChanges(group string, resp *musterv1.CommitResponse, dryRun bool) error {
	return a.print(resp, func(t *table) {
		for _, ch := range resp.GetChanges() {
			result := strings.ToLower(short(ch.GetResult()))
			t.text("%s %s", resource.KeyFromProto(ch.GetKey()), t.paint(changeColour(ch.GetResult()), result))
		}
		if dryRun {
			t.text("group %s stays at %s (dry run)", group, rev(resp.GetRevision()))
			return
		}
		t.text("group %s → %s", group, rev(resp.GetRevision()))
	})
}

func changeColour(r musterv1.ChangeResult) string {
	switch r {
	case musterv1.ChangeResult_CHANGE_RESULT_CREATED:
		return green
	case musterv1.ChangeResult_CHANGE_RESULT_UPDATED:
		return yellow
	case musterv1.ChangeResult_CHANGE_RESULT_DELETED:
		return red
	}
	return plain
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
