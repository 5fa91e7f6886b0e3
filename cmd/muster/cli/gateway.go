package cli

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"

	"github.com/musterhq/muster/cmd/muster/bootstrap"
	"github.com/musterhq/muster/dataplane/gateway"
	"github.com/spf13/cobra"
)

func (a *app) gatewayCommand() *cobra.Command {
	var cfg gateway.Config
	var files bootstrap.TLS
	var keyFile, manifestFile, level, format string
	var home homeFlags
	cmd := &cobra.Command{
		Use:   "gateway",
		Short: "Run the embedded gateway as a data plane of a group",
		Long: `Run muster's embedded gateway, a data plane in Go for development and tests. It
subscribes to the group at --servers, and with --cache-dir starts from the last
good configuration when no server answers.`,
		Example: `  muster gateway -g default --servers 127.0.0.1:7943
  muster gateway -g edge --servers a:7943,b:7943 --cache-dir /var/lib/muster-gateway \
      --xds-ca-file ca.pem --xds-cert-file dp.pem --xds-key-file dp.key`,
		Args: noArgs,
	}
	fl := cmd.Flags()
	fl.StringSliceVar(&cfg.Servers, "servers", []string{"127.0.0.1:7943"}, "host:port of the servers' xDS ports, separated by commas")
	fl.StringVar(&cfg.NodeID, "node-id", "", "the data plane's id (default gateway-HOSTNAME)")
	fl.StringVar(&cfg.HTTPAddr, "http-addr", "0.0.0.0:9080", "where to serve HTTP; empty serves none")
	fl.StringVar(&cfg.HTTPSAddr, "https-addr", "0.0.0.0:9443", "where to serve HTTPS; empty serves none")
	fl.StringVar(&cfg.StatusAddr, "status-addr", "127.0.0.1:7085", "where to serve /status; empty serves none")
	fl.StringVar(&cfg.CacheDir, "cache-dir", "", "directory for the last good configuration; empty keeps none")
	fl.StringVar(&keyFile, "cache-key-file", "", "file of a key that encrypts what is in --cache-dir (or the key itself in MUSTER_CACHE_KEY)")
	fl.StringVar(&files.CAFile, "xds-ca-file", "", "PEM file that verifies the servers")
	fl.StringVar(&files.CertFile, "xds-cert-file", "", "PEM file of the data plane's certificate")
	fl.StringVar(&files.KeyFile, "xds-key-file", "", "PEM file of the data plane's key")
	fl.StringVar(&level, "log-level", "info", "debug, info, warn or error")
	fl.StringVar(&format, "log-format", "text", "text or json")
	home.register(fl)
	fl.StringVar(&manifestFile, "second-home-manifest-key-file", "", "PEM file of the public keys of which one must have signed what is read from the second home")
	fl.BoolVar(&cfg.KeepInSecondHome, "second-home-write", false, "write what is in service to the second home: this is a backup gateway")
	a.groupFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		t, err := a.target()
		if err != nil {
			return err
		}
		cfg.Group, cfg.Version = t.group, readBuildVersion().Version
		if cfg.CacheDir != "" {
			cfg.CacheDir = a.env.path(cfg.CacheDir)
		}
		if cfg.NodeID == "" {
			if cfg.NodeID, err = defaultNodeID("gateway", 0); err != nil {
				return err
			}
		}
		if cfg.Logger, err = newLogger(a.env.Stderr, level, format); err != nil {
			return err
		}
		if cfg.TLS, cfg.Insecure, err = a.upstreamTLS(files, "xds", cfg.Servers, a.insecure); err != nil {
			return err
		}
		if cfg.CacheKey, err = a.cacheKey(keyFile); err != nil {
			return err
		}
		keys, err := a.manifestKeys(manifestFile)
		if err != nil {
			return err
		}
		if cfg.SecondHome, err = a.secondHome(home, keys, cfg.KeepInSecondHome, a.insecure); err != nil {
			return err
		}
		if cfg.KeepInSecondHome && cfg.SecondHome == nil {
			return usagef("--second-home-write needs --second-home")
		}
		g, err := gateway.New(cfg)
		if err != nil {
			return usagef("%s", err)
		}
		a.say("Gateway %s of group %s. Ctrl-C stops it.", cfg.NodeID, cfg.Group)
		if err := g.Run(cmd.Context()); err != nil && cmd.Context().Err() == nil {
			return &failure{err: err, code: exitUnavailable}
		}
		return nil
	}
	return cmd
}

// dataPlaneTLSFor reads a data plane's or relay's certificate; nil when no file is
// named. prefix begins the names of the flags.
func (a *app) dataPlaneTLSFor(f bootstrap.TLS, prefix string) (*tls.Config, error) {
	if f == (bootstrap.TLS{}) {
		return nil, nil
	}
	if f.CAFile == "" || f.CertFile == "" || f.KeyFile == "" {
		return nil, usagef("--%s-ca-file, --%[1]s-cert-file and --%[1]s-key-file belong together", prefix)
	}
	certFile, keyFile := a.env.path(f.CertFile), a.env.path(f.KeyFile)
	pem, err := os.ReadFile(a.env.path(f.CAFile))
	if err != nil {
		return nil, fmt.Errorf("read --%s-ca-file: %w", prefix, err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, usagef("%s holds no PEM certificate", f.CAFile)
	}
	if _, err := tls.LoadX509KeyPair(certFile, keyFile); err != nil {
		return nil, fmt.Errorf("read the data plane's certificate: %w", err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		RootCAs:    roots,
		// Read anew for each connection, so that a renewed certificate is used.
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(certFile, keyFile)
			return &cert, err
		},
	}, nil
}
