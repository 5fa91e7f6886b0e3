package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"
)

func (a *app) dpCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "dp",
		Short: "Watch the data planes of a group",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.dpStatusCommand())
	return cmd
}

func (a *app) dpStatusCommand() *cobra.Command {
	var types bool
	cmd := &cobra.Command{
		Use:   "status [ID ...]",
		Short: "Show what each data plane has acknowledged, and what it refused",
		Long: `Show the data planes of a group: SYNCED (acknowledged everything), STALE
(connected, behind), NACKED (refused something), OFFLINE (not connected). Below
the table stands, for each refusal, the object, its author and revision, and
what the data plane said.`,
		Example: `  muster dp status -g edge
  muster dp status envoy-1 --types
  muster dp status -o json`,
		Args:              cobra.ArbitraryArgs,
		ValidArgsFunction: a.completeDataPlanes,
	}
	cmd.Flags().BoolVar(&types, "types", false, "show each xDS type")
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		resp, err := c.fleet.ListDataPlanes(cmd.Context(), &musterv1.ListDataPlanesRequest{Group: c.group, Types: types, Ids: args})
		if err != nil {
			return c.noGroup(err)
		}
		dps := resp.GetDataPlanes()
		if len(args) > 0 && len(dps) == 0 {
			return &failure{err: fmt.Errorf("group %s has no data plane %s", c.group, strings.Join(args, ", ")), code: exitNotFound, try: "muster dp status -g " + shellQuote(c.group)}
		}
		if len(dps) == 0 {
			a.say("No data plane has connected to group %s yet.\nTry: muster bootstrap envoy -g %s > envoy.yaml && envoy -c envoy.yaml", c.group, shellQuote(c.group))
		}
		return a.print(messages(dps), func(t *table) {
			a.dataPlaneTable(t, dps)
			if len(args) == 0 {
				a.relayTable(t, resp.GetRelays(), resp.GetGroupRevision())
			}
			for _, dp := range dps {
				a.dataPlaneDetails(t, dp, types)
			}
		})
	}
	return cmd
}

func (a *app) dataPlaneTable(t *table, dps []*musterv1.DataPlane) {
	// Where nothing hangs on a relay there is no column for it.
	via := slices.ContainsFunc(dps, func(dp *musterv1.DataPlane) bool { return dp.GetRelay() != "" })
	header := []string{"ID", t.paint(plain, "STATE"), "REVISION", "LAG", "AGENT", "PROTOCOL", "ADDRESS", "LAST SEEN"}
	if via {
		header = append(header, "RELAY")
	}
	t.header(header...)
	for _, dp := range dps {
		lag := lagOf(dp.GetLag())
		revision := rev(dp.GetRevision())
		if dp.GetRevision() != dp.GetGroupRevision() {
			revision += "/" + strconv.FormatUint(dp.GetGroupRevision(), 10)
		}
		seen := a.ago(dp.GetLastSeen())
		if dp.GetState() != musterv1.DataPlaneState_DATA_PLANE_STATE_OFFLINE {
			seen = "now"
		}
		row := []string{dp.GetId(), t.paint(stateColour(dp.GetState()), short(dp.GetState())), revision, lag,
			orDash(dp.GetUserAgent()), orDash(dp.GetProtocol()), orDash(dp.GetAddress()), seen}
		if via {
			row = append(row, orDash(wayOf(dp)))
		}
		t.row(row...)
	}
}

func lagOf(d *durationpb.Duration) string {
	if d == nil || d.AsDuration() <= 0 {
		return "-"
	}
	return shortDuration(d.AsDuration())
}

// wayOf names the relays between the server and the data plane.
func wayOf(dp *musterv1.DataPlane) string {
	var way []string
	for _, h := range dp.GetHops() {
		way = append(way, h.GetRelay())
	}
	return strings.Join(way, " > ")
}

// relayTable shows the relays that carry the group, where there are any.
func (a *app) relayTable(t *table, relays []*musterv1.Relay, current uint64) {
	if len(relays) == 0 {
		return
	}
	t.text("")
	t.header("RELAY", t.paint(plain, "STATE"), "REVISION", "LAG", "BELOW", "DATA PLANES", "VERSION", "ADDRESS", "LAST SEEN")
	for _, r := range relays {
		state, colour, seen := "CONNECTED", green, "now"
		if !r.GetConnected() {
			state, colour, seen = "OFFLINE", plain, a.ago(r.GetLastSeen())
		} else if r.GetServedRevision() != current {
			state, colour = "STALE", yellow
		}
		revision := rev(r.GetServedRevision())
		if r.GetServedRevision() != current {
			revision += "/" + strconv.FormatUint(current, 10)
		}
		below := r.GetRelay()
		if below == "" {
			below = r.GetServer()
		}
		t.row(r.GetId(), t.paint(colour, state), revision, lagOf(r.GetLag()), orDash(below),
			strconv.FormatUint(uint64(r.GetDataPlanes()), 10), orDash(r.GetVersion()), orDash(r.GetAddress()), seen)
	}
}

func (a *app) dataPlaneDetails(t *table, dp *musterv1.DataPlane, types bool) {
	if types && len(dp.GetTypes()) > 0 {
		t.text("\n%s by type:", dp.GetId())
		t.header("  TYPE", t.paint(plain, "STATE"), "ACKED", "SENT", "SUBSCRIBED")
		for _, ty := range dp.GetTypes() {
			subs := strconv.FormatUint(uint64(ty.GetSubscriptions()), 10)
			if ty.GetWildcard() {
				subs = "all"
			}
			t.row("  "+shortType(ty.GetTypeUrl()), t.paint(stateColour(ty.GetState()), short(ty.GetState())), rev(ty.GetAckedRevision()), rev(ty.GetSentRevision()), subs)
		}
	}
	for _, r := range dp.GetRefusals() {
		t.text("\n%s refused %s", dp.GetId(), refusalLine(r))
		if r.GetServingVersion() != "" {
			t.text("  it keeps serving version %s of it", r.GetServingVersion())
		}
	}
	for _, w := range dp.GetWarnings() {
		t.text("\n%s: %s", dp.GetId(), w)
	}
}

// refusalLine names the object behind a NACK before the xDS resource.
func refusalLine(r *musterv1.Refusal) string {
	var b strings.Builder
	if objects := r.GetObjects(); len(objects) > 0 {
		b.WriteString(resource.KeyFromProto(objects[0]).String())
		if r.GetField() != "" {
			fmt.Fprintf(&b, " field %s", r.GetField())
		}
		fmt.Fprintf(&b, " (%s", rev(r.GetRevision()))
		if r.GetAuthor() != "" {
			fmt.Fprintf(&b, " by %s", r.GetAuthor())
		}
		fmt.Fprintf(&b, ", as %s %s)", shortType(r.GetTypeUrl()), r.GetResourceName())
	} else {
		fmt.Fprintf(&b, "%s %s (%s)", shortType(r.GetTypeUrl()), r.GetResourceName(), rev(r.GetRevision()))
	}
	fmt.Fprintf(&b, ": %s", r.GetDetail())
	return b.String()
}

// shortType returns Cluster for type.googleapis.com/envoy.config.cluster.v3.Cluster.
func shortType(url string) string { return url[strings.LastIndexAny(url, "./")+1:] }

func stateColour(s musterv1.DataPlaneState) string {
	switch s {
	case musterv1.DataPlaneState_DATA_PLANE_STATE_SYNCED:
		return green
	case musterv1.DataPlaneState_DATA_PLANE_STATE_STALE:
		return yellow
	case musterv1.DataPlaneState_DATA_PLANE_STATE_NACKED:
		return red
	}
	return plain
}

func (a *app) completeDataPlanes(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
	c, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer c.close()
	resp, err := c.fleet.ListDataPlanes(cmd.Context(), &musterv1.ListDataPlanesRequest{Group: c.group})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ids := make([]string, len(resp.GetDataPlanes()))
	for i, dp := range resp.GetDataPlanes() {
		ids[i] = dp.GetId()
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
