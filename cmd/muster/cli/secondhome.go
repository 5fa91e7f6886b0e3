package cli

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/musterhq/muster/cmd/muster/drill"
	"github.com/musterhq/muster/dataplane"
	"github.com/musterhq/muster/dataplane/bucket"
)

// homeFlags say where the second home is. None is a secret.
type homeFlags struct {
	where, endpoint, region, caFile, credentialsFile, keyFile string
}

const (
	homeHelp            = "s3://BUCKET/PREFIX of the second home of last known good configurations; empty is none"
	homeEndpointHelp    = "URL of the S3 endpoint"
	homeRegionHelp      = "region of the bucket (default: the endpoint is asked)"
	homeCAHelp          = "PEM file that verifies the endpoint (default: the system's)"
	homeCredentialsHelp = "file of credentials in AWS's shared format, its section default (or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN)"
	homeKeyHelp         = "file of a key, 16 bytes or more, that encrypts what is in the second home (or the key itself in MUSTER_SECOND_HOME_KEY)"
)

func (h *homeFlags) register(fl *pflag.FlagSet) {
	fl.StringVar(&h.where, "second-home", "", homeHelp)
	fl.StringVar(&h.endpoint, "second-home-endpoint", bucket.DefaultEndpoint, homeEndpointHelp)
	fl.StringVar(&h.region, "second-home-region", "", homeRegionHelp)
	fl.StringVar(&h.caFile, "second-home-ca-file", "", homeCAHelp)
	fl.StringVar(&h.credentialsFile, "second-home-credentials-file", "", homeCredentialsHelp)
	fl.StringVar(&h.keyFile, "second-home-key-file", "", homeKeyHelp)
}

// homeSettings are the same for a relay.
func homeSettings() []setting {
	return []setting{
		{key: "second_home", help: homeHelp + ". What is served is written there, and read when no upstream answers"},
		{key: "second_home_endpoint", help: homeEndpointHelp, fallback: bucket.DefaultEndpoint},
		{key: "second_home_region", help: homeRegionHelp},
		{key: "second_home_ca_file", help: homeCAHelp},
		{key: "second_home_credentials_file", help: homeCredentialsHelp},
		{key: "second_home_key_file", help: homeKeyHelp},
	}
}

func homeOf(v settingValues) homeFlags {
	return homeFlags{
		where: v["second_home"], endpoint: v["second_home_endpoint"], region: v["second_home_region"], caFile: v["second_home_ca_file"],
		credentialsFile: v["second_home_credentials_file"], keyFile: v["second_home_key_file"],
	}
}

// homeKeyEnv holds the key of the second home, where no file does.
const homeKeyEnv = "MUSTER_SECOND_HOME_KEY"

// secondHome returns the second home that the flags name; nil when they name none.
func (a *app) secondHome(h homeFlags, keys []ed25519.PublicKey, writes, insecure bool) (*dataplane.SecondHome, error) {
	if h.where == "" {
		return nil, nil
	}
	name, prefix, err := bucket.Parse(h.where)
	if err != nil {
		return nil, usagef("second home: %s", err)
	}
	cfg := bucket.Config{
		Name: name, Prefix: prefix, Endpoint: h.endpoint, Region: h.region, Insecure: insecure,
		AccessKeyID: a.env.getenv("AWS_ACCESS_KEY_ID"), SecretAccessKey: a.env.getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: a.env.getenv("AWS_SESSION_TOKEN"),
	}
	if h.credentialsFile != "" {
		cfg.CredentialsFile = a.env.path(h.credentialsFile)
	}
	if h.caFile != "" {
		pem, err := os.ReadFile(a.env.path(h.caFile))
		if err != nil {
			return nil, fmt.Errorf("read --second-home-ca-file: %w", err)
		}
		if cfg.RootCAs = x509.NewCertPool(); !cfg.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usagef("%s holds no PEM certificate", h.caFile)
		}
	}
	at, err := bucket.New(cfg)
	if err != nil {
		return nil, &usageError{err: fmt.Errorf("second home: %w", err), try: "muster second-home --help"}
	}
	key, err := a.keyOf(h.keyFile, homeKeyEnv, "the second home")
	if err != nil {
		return nil, err
	}
	if writes && len(key) == 0 {
		a.say("Warning: the second home is not encrypted; whoever can read the bucket has the private keys in it. Set second-home-key-file.")
	}
	return dataplane.NewSecondHome(dataplane.SecondHomeConfig{Store: at, Key: key, ManifestKeys: keys})
}

func (a *app) secondHomeCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "second-home",
		Short: "Look at the last known good configurations in a bucket, and try them",
		Long: `Relays (--second-home) and backup gateways (--second-home-write) keep the last
revisions of their groups in an S3-compatible bucket, for relays, agents and
gateways that find neither a server nor a file of their own. These commands need
no server, only the bucket: credentials in AWS_ACCESS_KEY_ID and
AWS_SECRET_ACCESS_KEY or a file, the key in MUSTER_SECOND_HOME_KEY or a file.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.secondHomeListCommand(), a.secondHomeDrillCommand())
	return cmd
}

// requireHome is secondHome where one must be named.
func (a *app) requireHome(h homeFlags, manifestFile string) (*dataplane.SecondHome, error) {
	if h.where == "" {
		return nil, usagef("--second-home s3://BUCKET/PREFIX is required")
	}
	keys, err := a.manifestKeys(manifestFile)
	if err != nil {
		return nil, err
	}
	return a.secondHome(h, keys, false, a.insecure)
}

// keptSnapshot is a snapshot as it is printed.
type keptSnapshot struct {
	Object   string    `json:"object"`
	Group    string    `json:"group"`
	Epoch    uint64    `json:"epoch"`
	Revision uint64    `json:"revision"`
	Writer   string    `json:"writer"`
	Bytes    int64     `json:"bytes"`
	Written  time.Time `json:"written"`
}

func writerOf(relay bool) string {
	if relay {
		return "relay"
	}
	return "gateway"
}

func (a *app) secondHomeListCommand() *cobra.Command {
	var h homeFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List what the second home has of a group, the newest first",
		Example: "  muster second-home list -g edge --second-home s3://edge-config/prod",
		Args:    noArgs,
	}
	h.register(cmd.Flags())
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t, err := a.target()
		if err != nil {
			return err
		}
		home, err := a.requireHome(h, "")
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), a.requestTimeout)
		defer cancel()
		kept, err := home.Snapshots(ctx, t.group)
		if err != nil {
			return bucketFailure(err)
		}
		if len(kept) == 0 {
			return &failure{err: fmt.Errorf("%w %q", drill.ErrNothing, t.group), code: exitNotFound}
		}
		out := make([]keptSnapshot, len(kept))
		for i, k := range kept {
			out[i] = keptSnapshot{k.Name, k.Group, k.Epoch, k.Revision, writerOf(k.Relay), k.Size, k.Modified.UTC()}
		}
		return a.print(out, func(t *table) {
			t.header("GROUP", "EPOCH", "REVISION", "WRITER", "SIZE", "WRITTEN")
			for _, k := range out {
				t.row(k.Group, fmt.Sprint(k.Epoch), fmt.Sprint(k.Revision), k.Writer, byteSize(uint64(k.Bytes)), ago(a.env.Now().Sub(k.Written)))
			}
		})
	}
	return cmd
}

// ago is how long something has been.
func ago(d time.Duration) string { return max(d, 0).Round(time.Second).String() + " ago" }

func bucketFailure(err error) error {
	return &failure{err: err, code: exitUnavailable, try: "the endpoint, the bucket's name and the credentials"}
}

func (a *app) secondHomeDrillCommand() *cobra.Command {
	var h homeFlags
	var manifestFile, as, level string
	var timeout time.Duration
	var atLeast uint64
	cmd := &cobra.Command{
		Use:   "drill",
		Short: "Prove that a site without a control plane starts from the second home",
		Long: `Take the newest snapshot of a group from the second home, check its checksums, its
version and its signature, and start from it alone, on loopback: the embedded
gateway, and an agent with a data plane below it. No server is asked, and no
request goes to an upstream (but for the active checks of upstreams that have
them, and names that are resolved).

The exit code is 0 when all of it serves; 2 when the newest is refused, too old,
or does not serve; 3 when there is none; 6 when the bucket cannot be read; 7 when
it does not serve in time.`,
		Example: `  muster second-home drill -g edge --second-home s3://edge-config/prod
  muster second-home drill -g edge --second-home s3://edge-config/prod --manifest-key-file manifest.pub \
      --min-epoch 3 -o json`,
		Args: noArgs,
	}
	fl := cmd.Flags()
	h.register(fl)
	fl.StringVar(&manifestFile, "manifest-key-file", "", "PEM file of the public keys of which one must have signed it")
	fl.StringVar(&as, "as", "", "gateway or agent; default both, or the gateway where no relay wrote it")
	fl.Uint64Var(&atLeast, "min-epoch", 0, "refuse one of a lower epoch, such as the fleet has (muster cluster status)")
	fl.DurationVar(&timeout, "timeout", 30*time.Second, "time for each start")
	fl.StringVar(&level, "log-level", "error", "debug, info, warn or error")
	a.groupFlag(cmd)
	a.outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t, err := a.target()
		if err != nil {
			return err
		}
		if as != "" && as != "gateway" && as != "agent" {
			return usagef("--as %q is not one of gateway, agent", as)
		}
		var log *slog.Logger
		if log, err = newLogger(a.env.Stderr, level, "text"); err != nil {
			return err
		}
		home, err := a.requireHome(h, manifestFile)
		if err != nil {
			return err
		}
		report, err := drill.Run(cmd.Context(), drill.Config{
			Home: home, Group: t.group, As: drill.As(as), MinEpoch: atLeast, Timeout: timeout, Logger: log,
		})
		if err != nil {
			return drillFailure(err)
		}
		return a.print(report, func(t *table) { a.fillDrill(t, report, len(manifestFile) > 0) })
	}
	return cmd
}

func (a *app) fillDrill(t *table, r *drill.Report, signed bool) {
	t.row("group", r.Group)
	t.row("epoch, revision", fmt.Sprintf("%d, %d", r.Epoch, r.Revision))
	t.row("object", fmt.Sprintf("%s, %s, written %s by a %s", r.Object, byteSize(uint64(r.Bytes)), ago(a.env.Now().Sub(r.Written)), writerOf(r.Relay)))
	checks := "checksums, group, version"
	if r.Relay {
		checks += ", manifest"
	}
	if signed {
		checks += ", signature"
	}
	t.row("checked", checks)
	t.row("resources", fmt.Sprint(r.Resources))
	if s := r.Gateway; s != nil {
		what := "no listener"
		if len(s.Listeners) > 0 {
			what = strings.Join(s.Listeners, " and ")
		}
		t.row("gateway", fmt.Sprintf("serves %s after %.2f s", what, s.Seconds))
	}
	if s := r.Agent; s != nil {
		t.row("agent", fmt.Sprintf("serves %s after %.2f s", plural(s.Resources, "resource"), s.Seconds))
	}
}

func drillFailure(err error) error {
	switch {
	case errors.Is(err, drill.ErrNothing):
		return &failure{err: err, code: exitNotFound, try: "muster second-home list; is a relay or a backup gateway writing there?"}
	case errors.Is(err, drill.ErrTimeout):
		return &failure{err: err, code: exitTimeout, try: "muster second-home drill --log-level info"}
	case errors.Is(err, drill.ErrRefused), errors.Is(err, drill.ErrServes):
		return &failure{err: err, code: exitInvalid, try: "muster second-home drill --log-level info"}
	}
	return bucketFailure(err)
}
