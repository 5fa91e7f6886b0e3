package cli

import (
	"errors"
	"fmt"
	"strconv"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"
)

func (a *app) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "cluster",
		Short: "See and change which servers make up the cluster",
		Long: `See and change which servers make up the cluster. Any server answers; what only
the leader can do is passed on to it. All but peers and status need a key of the
role admin.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.clusterPeersCommand(), a.clusterStatusCommand(), a.clusterJoinCommand(), a.clusterRemoveCommand(), a.clusterTransferCommand())
	return cmd
}

func (a *app) clusterPeersCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "peers",
		Aliases: []string{"list"},
		Short:   "List the servers of the cluster",
		Long: `List the servers of the cluster as the server that answers knows them. Each is
asked how it is doing; one that does not answer within a second is unreachable.`,
		Example: "  muster cluster peers\n  muster cluster peers -o json",
		Args:    noArgs,
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		resp, err := c.cluster.ListPeers(cmd.Context(), &musterv1.ListPeersRequest{})
		if err != nil {
			return err
		}
		if len(resp.GetPeers()) == 0 {
			a.say("This server belongs to no cluster yet.\nTry: muster cluster join ADDRESS")
		}
		return a.print(messages(resp.GetPeers()), func(t *table) {
			t.header("ID", "ADDRESS", "ROLE", "VOTE", "STATE", "APPLIED", "CONTACT", "VERSION", "ADMIN")
			for _, p := range resp.GetPeers() {
				t.row(p.GetId(), p.GetAddress(), peerRole(p), peerVote(p), t.peerState(p),
					peerApplied(p), contact(p.GetLastContact()), orDash(p.GetVersion()), orDash(p.GetAdminAddress()))
			}
		})
	}
	return cmd
}

func peerRole(p *musterv1.Peer) string {
	if p.GetLeader() {
		return "leader"
	}
	return orDash(p.GetRole())
}

func peerVote(p *musterv1.Peer) string {
	if p.GetVoter() {
		return "yes"
	}
	return "no"
}

func (t *table) peerState(p *musterv1.Peer) string {
	switch {
	case !p.GetReachable():
		return t.paint(red, "UNREACHABLE")
	case !p.GetReady():
		return t.paint(yellow, "CATCHING UP")
	}
	return t.paint(green, "READY")
}

func peerApplied(p *musterv1.Peer) string {
	if !p.GetReachable() {
		return "-"
	}
	return strconv.FormatUint(p.GetAppliedIndex(), 10)
}

// contact is how long ago a server heard of its leader.
func contact(d *durationpb.Duration) string {
	if d == nil {
		return "-"
	}
	return shortDuration(d.AsDuration())
}

func (a *app) clusterStatusCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show how the server that answers and its cluster are doing",
		Example: `  muster cluster status
  muster cluster status --addr https://b.example.com:7443
  muster cluster status -o json`,
		Args: noArgs,
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		st, err := c.cluster.GetClusterStatus(cmd.Context(), &musterv1.GetClusterStatusRequest{})
		if err != nil {
			return err
		}
		return a.print(st, func(t *table) {
			t.row("server", fmt.Sprintf("%s (%s, %s)", st.GetServerId(), st.GetRole(), st.GetVersion()))
			leader := "none"
			if st.GetLeaderId() != "" {
				leader = fmt.Sprintf("%s at %s, heard of %s ago", st.GetLeaderId(), st.GetLeaderAddress(), contact(st.GetLastContact()))
				if st.GetLeaderId() == st.GetServerId() {
					leader = "this server"
				}
			}
			t.row("leader", leader)
			ready := "yes"
			if !st.GetReady() {
				ready = "no: " + st.GetNotReadyReason()
			}
			t.row("ready", ready)
			servers := plural(int(st.GetVoters()), "voter")
			if n := int(st.GetNonVoters()); n > 0 {
				servers += fmt.Sprintf(" and %d without a vote", n)
			}
			t.row("cluster", fmt.Sprintf("%s; %d may fail", servers, st.GetFaultTolerance()))
			t.row("epoch", strconv.FormatUint(st.GetEpoch(), 10))
			t.row("log", fmt.Sprintf("term %d, committed %d, applied %d, snapshot at %d", st.GetTerm(), st.GetCommitIndex(), st.GetAppliedIndex(), st.GetSnapshotIndex()))
			disk := fmt.Sprintf("log %s, %s free", byteSize(st.GetLogBytes()), byteSize(st.GetFreeBytes()))
			if st.GetDiskFull() {
				disk += "; FULL: writes are refused"
			}
			t.row("disk", disk)
			t.row("serves", fmt.Sprintf("%s, %s connected here", plural(int(st.GetGroups()), "group"), plural(int(st.GetDataPlanes()), "data plane")))
		})
	}
	return cmd
}

// byteSize writes a number of bytes as people say it.
func byteSize(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB"}
	f, i := float64(n), 0
	for f >= 1024 && i < len(units)-1 {
		f, i = f/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", f, units[i])
}

func (a *app) clusterJoinCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "join ADDRESS...",
		Short: "Make the server at --addr, whose data directory is new, part of a cluster",
		Long: `Make the server at --addr, whose data directory is new, part of a cluster.
ADDRESS is the raft address (host:port) of a server of that cluster; several may
be named, and the first that answers is asked. The new server gets a vote once it
has kept up for a while. "muster server --join ADDRESS" does the same at its start.`,
		Example: "  muster cluster join a.example.com:7100 --addr https://d.example.com:7443",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return &usageError{err: errors.New("ADDRESS is missing"), try: cmd.CommandPath() + " --help"}
			}
			return nil
		},
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		if len(c.target.endpoints) > 1 {
			return &usageError{err: fmt.Errorf("%s: it must be clear which server is to join", c.target), try: "--addr with one address"}
		}
		if _, err := c.cluster.JoinCluster(cmd.Context(), &musterv1.JoinClusterRequest{Addresses: args}); err != nil {
			return err
		}
		fmt.Fprintln(a.env.Stdout, "joined; it gets a vote once it has kept up for a while")
		a.say("See: muster cluster peers")
		return nil
	}
	return cmd
}

func (a *app) clusterRemoveCommand() *cobra.Command {
	var force, yes bool
	cmd := &cobra.Command{
		Use:   "remove ID",
		Short: "Take a server out of the cluster",
		Long: `Take a server out of the cluster. It is refused when too few of the remaining
voters answer to go on; --force does it nevertheless. A leader hands over first.
The server's process goes on, serves nobody any more, and can be stopped. To use
it again, move its data directory away and let it join.`,
		Example:           "  muster cluster remove c\n  muster cluster remove c --yes",
		Args:              exactArgs("ID"),
		ValidArgsFunction: a.completePeers,
	}
	cmd.Flags().BoolVar(&force, "force", false, "also when too few of the remaining voters answer")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		id := args[0]
		try := "muster cluster remove " + shellQuote(id)
		if force {
			try += " --force"
		}
		resp, err := c.cluster.ListPeers(cmd.Context(), &musterv1.ListPeersRequest{})
		if err != nil {
			return err
		}
		left, found := 0, false
		for _, p := range resp.GetPeers() {
			if p.GetId() == id {
				found = true
			} else if p.GetVoter() {
				left++
			}
		}
		if !found {
			return noPeer(id)
		}
		if err := a.confirm(yes, fmt.Sprintf("remove server %s; %s remain", id, plural(left, "voter")), id, try); err != nil {
			return err
		}
		_, err = c.cluster.RemovePeer(cmd.Context(), &musterv1.RemovePeerRequest{Id: id, Force: force})
		switch status.Code(err) {
		case codes.OK, codes.NotFound: // it was there a moment ago, and a call may be repeated
		case codes.FailedPrecondition:
			if !force {
				try += " --force"
			}
			return &failure{err: err, code: exitConflict, try: try}
		default:
			return err
		}
		fmt.Fprintf(a.env.Stdout, "server/%s removed\n", id)
		return nil
	}
	return cmd
}

func noPeer(id string) error {
	return &failure{err: fmt.Errorf("server %q is not a member of the cluster", id), code: exitNotFound, try: "muster cluster peers"}
}

func (a *app) clusterTransferCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "transfer-leader [ID]",
		Short: "Hand leadership to another server",
		Long: `Hand leadership to the server ID, or without ID to the one that is most up to
date. Writes wait for the few milliseconds that it takes.`,
		Example:           "  muster cluster transfer-leader\n  muster cluster transfer-leader b",
		ValidArgsFunction: a.completePeers,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 1 {
				return &usageError{err: fmt.Errorf("unexpected argument %q", args[1]), try: cmd.CommandPath() + " --help"}
			}
			return nil
		},
	}
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.close()
		req := &musterv1.TransferLeaderRequest{}
		if len(args) == 1 {
			req.Id = args[0]
		}
		resp, err := c.cluster.TransferLeader(cmd.Context(), req)
		if status.Code(err) == codes.NotFound {
			return noPeer(req.GetId())
		}
		if err != nil {
			return err
		}
		return a.print(resp, func(t *table) { t.text("server/%s leads", resp.GetLeaderId()) })
	}
	return cmd
}

func (a *app) completePeers(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer c.close()
	resp, err := c.cluster.ListPeers(cmd.Context(), &musterv1.ListPeersRequest{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ids := make([]string, len(resp.GetPeers()))
	for i, p := range resp.GetPeers() {
		ids[i] = p.GetId()
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
