package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	musterv1 "github.com/musterhq/muster/proto/muster/v1"
	"github.com/musterhq/muster/resource"
	"github.com/spf13/cobra"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

func (a *app) getCommand() *cobra.Command {
	var revision string
	var reveal bool
	cmd := &cobra.Command{
		Use:   "get [KIND [ID] | KIND/ID]",
		Short: "Show resources of a group",
		Long: `Show all resources of a group, those of one kind, or one. A credential's id is
USERNAME/ID. Secrets read *** unless they are asked for.`,
		Example: `  muster get -g edge
  muster get routes
  muster get service shop -o yaml
  muster get route/orders --revision r41`,
		Args:              cobra.MaximumNArgs(2),
		ValidArgsFunction: a.completeResources,
	}
	cmd.Flags().StringVar(&revision, "revision", "", "as of this revision instead of the current one")
	cmd.Flags().BoolVar(&reveal, "reveal-secrets", false, "show private keys and credentials; needs the right to write")
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
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
		if key, one, err := keyArgs(args); err != nil {
			return err
		} else if one {
			return a.getOne(cmd.Context(), c, key, at, reveal)
		}
		var kinds []musterv1.Kind
		if len(args) == 1 {
			kind, err := parseKind(args[0])
			if err != nil {
				return err
			}
			kinds = []musterv1.Kind{kind}
		}
		stored, _, err := c.list(cmd.Context(), at, reveal, kinds...)
		if err != nil {
			return err
		}
		if len(stored) == 0 {
			what := "no resources"
			if len(kinds) == 1 {
				what = "no " + resource.KindPlural(kinds[0])
			}
			a.say("Group %s has %s.", c.group, what)
		}
		return a.print(messages(stored), func(t *table) { resourceTable(t, stored) })
	}
	return cmd
}

func (a *app) getOne(ctx context.Context, c *client, key resource.Key, revision uint64, reveal bool) error {
	resp, err := c.GetResource(ctx, &musterv1.GetResourceRequest{Group: c.group, Key: key.Proto(), Revision: revision, RevealSecrets: reveal})
	if err != nil {
		return c.noResource(err, key)
	}
	return a.print(resp.GetResource(), func(t *table) {
		resourceTable(t, []*musterv1.StoredResource{resp.GetResource()})
	})
}

// noResource adds to "not found" how to see what there is.
func (c *client) noResource(err error, key resource.Key) error {
	if status.Code(err) != codes.NotFound {
		return c.noRevision(err)
	}
	if info, ok := detail[*errdetails.ErrorInfo](err); ok && info.GetMetadata()["key"] == "" {
		return c.noGroup(err)
	}
	return &failure{
		err: errors.New(message(err)), code: exitNotFound,
		try: fmt.Sprintf("muster get %s -g %s", resource.KindPlural(key.Kind), shellQuote(c.group)),
	}
}

func resourceTable(t *table, stored []*musterv1.StoredResource) {
	t.header("RESOURCE", "NAME", "REVISION", "AUTHOR", "SUMMARY")
	for _, sr := range stored {
		t.row(resource.KeyOf(sr.GetResource()).String(), resourceName(sr.GetResource()), rev(sr.GetRevision()), orDash(sr.GetAuthor()), resourceSummary(sr.GetResource()))
	}
}

// resourceName is what people call the resource, where that is not its id.
func resourceName(r *musterv1.Resource) string {
	switch {
	case r.GetService() != nil:
		return orDash(r.GetService().GetName())
	case r.GetRoute() != nil:
		return orDash(r.GetRoute().GetName())
	case r.GetStreamRoute() != nil:
		return orDash(r.GetStreamRoute().GetName())
	case r.GetCredential() != nil:
		return orDash(r.GetCredential().GetName())
	case r.GetXdsResource() != nil:
		return orDash(r.GetXdsResource().GetName())
	}
	return "-"
}

// resourceSummary tells the few things by which one recognises a resource.
func resourceSummary(r *musterv1.Resource) string {
	var parts []string
	add := func(values ...string) {
		for _, v := range values {
			if v != "" {
				parts = append(parts, v)
			}
		}
	}
	switch {
	case r.GetService() != nil:
		s := r.GetService()
		add(few(s.GetHosts()), s.GetPathPrefix(), upstreamSummary(s.GetUpstream()), pluginNames(s.GetPlugins()))
	case r.GetRoute() != nil:
		rt := r.GetRoute()
		add(strings.Join(rt.GetMethods(), ","), few(rt.GetHosts()), few(rt.GetUris()))
		if rt.GetServiceId() != "" {
			add("→ service/" + rt.GetServiceId())
		}
		add(upstreamSummary(rt.GetUpstream()), pluginNames(rt.GetPlugins()))
		if rt.Status != nil && rt.GetStatus() == 0 {
			add("disabled")
		}
	case r.GetStreamRoute() != nil:
		sr := r.GetStreamRoute()
		add(fmt.Sprintf("port %d", sr.GetServerPort()), sr.GetSni(), upstreamSummary(sr.GetUpstream()))
	case r.GetConsumer() != nil:
		add(r.GetConsumer().GetDesc(), pluginNames(r.GetConsumer().GetPlugins()))
	case r.GetCredential() != nil:
		add(pluginNames(r.GetCredential().GetPlugins()))
	case r.GetSsl() != nil:
		add(r.GetSsl().GetType(), few(r.GetSsl().GetSnis()))
		if r.GetSsl().GetClient() != nil {
			add("client certificates")
		}
	case r.GetGlobalRule() != nil:
		add(pluginNames(r.GetGlobalRule().GetPlugins()))
	case r.GetXdsResource() != nil:
		add(strings.TrimPrefix(r.GetXdsResource().GetResource().GetTypeUrl(), "type.googleapis.com/"))
	}
	return strings.Join(parts, " ")
}

func few(values []string) string {
	const most = 3
	if len(values) > most {
		return strings.Join(values[:most], ",") + fmt.Sprintf(",+%d", len(values)-most)
	}
	return strings.Join(values, ",")
}

func upstreamSummary(u *musterv1.Upstream) string {
	if u == nil {
		return ""
	}
	nodes := make([]string, len(u.GetNodes()))
	for i, n := range u.GetNodes() {
		nodes[i] = n.GetHost()
		if n.GetPort() != 0 {
			nodes[i] = fmt.Sprintf("%s:%d", n.GetHost(), n.GetPort())
		}
	}
	if len(nodes) == 0 {
		return "→ no nodes"
	}
	return "→ " + few(nodes)
}

// pluginNames lists what a resource switches on.
func pluginNames(plugins map[string]*structpb.Struct) string {
	if len(plugins) == 0 {
		return ""
	}
	return "[" + strings.Join(slices.Sorted(maps.Keys(plugins)), ",") + "]"
}

// keyArgs reads KIND ID or KIND/ID; one is false when the arguments name a kind
// or nothing.
func keyArgs(args []string) (key resource.Key, one bool, err error) {
	switch {
	case len(args) == 0, len(args) == 1 && !strings.Contains(args[0], "/"):
		return resource.Key{}, false, nil
	case len(args) == 1:
		key, err = parseKey(args[0])
	default:
		key, err = parseKey(args[0] + "/" + args[1])
	}
	return key, err == nil, err
}

func parseKey(s string) (resource.Key, error) {
	key, err := resource.ParseKey(s)
	if err != nil {
		return key, usagef("%s", strings.TrimPrefix(err.Error(), "resource: "))
	}
	return key, nil
}

func parseKind(s string) (musterv1.Kind, error) {
	kind, err := resource.ParseKind(s)
	if err != nil {
		return kind, usagef("%s", strings.TrimPrefix(err.Error(), "resource: "))
	}
	return kind, nil
}

// completeResources completes kinds, then the live ids of the kind.
func (a *app) completeResources(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 && !strings.Contains(toComplete, "/") {
		kinds := make([]string, 0, len(resource.Kinds()))
		for _, k := range resource.Kinds() {
			kinds = append(kinds, resource.KindName(k))
		}
		return kinds, cobra.ShellCompDirectiveNoFileComp
	}
	name, withKind := toComplete, true
	if len(args) > 0 {
		name, withKind = args[0], false
	}
	name, _, _ = strings.Cut(name, "/")
	kind, err := resource.ParseKind(name)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c, err := a.connect()
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	defer c.close()
	stored, _, err := c.list(cmd.Context(), 0, false, kind)
	if err != nil {
		return nil, cobra.ShellCompDirectiveError
	}
	ids := make([]string, len(stored))
	for i, sr := range stored {
		ids[i] = resource.KeyOf(sr.GetResource()).ID
		if withKind {
			ids[i] = name + "/" + ids[i]
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}
