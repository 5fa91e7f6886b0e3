package cli

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"

	"github.com/musterhq/muster/cmd/muster/bootstrap"
	"github.com/spf13/cobra"
)

func (a *app) bootstrapCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bootstrap",
		Short: "Print the configuration with which a data plane starts",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(a.bootstrapEnvoyCommand(), a.bootstrapGRPCCommand())
	return cmd
}

// xdsPortDistance is how far the xDS port lies above the admin port, by default
// and in `muster dev` at any --listen-offset.
const xdsPortDistance = 7943 - 7443

func (a *app) bootstrapEnvoyCommand() *cobra.Command {
	var e bootstrap.Envoy
	var tls bootstrap.TLS
	cmd := &cobra.Command{
		Use:   "envoy",
		Short: "Print an Envoy bootstrap (Envoy 1.37 to 1.40)",
		Long: `Print the bootstrap of an Envoy of the group. Nothing is asked of a server: the
xDS address is the admin address's host and the port 500 above, unless
--xds-address says otherwise.

Envoy reads the files of a certificate that a bootstrap names once. With --sds-dir
two more files are written there, for the bootstrap to name, by which Envoy follows
the certificate and the CA: it reads them again when new ones are renamed into place.
Run it on Envoy's machine, or copy the directory there.`,
		Example: `  muster bootstrap envoy -g edge > envoy.yaml && envoy -c envoy.yaml
  muster bootstrap envoy -g edge --sotw --http-port 9081 --https-port 9444 --admin-port 9902
  muster bootstrap envoy -g edge --xds-address a.example.com:7943,b.example.com:7943 \
      --xds-ca-file /tls/ca.pem --xds-cert-file /tls/dp.pem --xds-key-file /tls/dp.key \
      --sds-dir /etc/envoy/muster > /etc/envoy/envoy.yaml`,
		Args: noArgs,
	}
	fl := cmd.Flags()
	fl.StringVar(&e.NodeID, "node-id", "", "the data plane's id (default envoy-HOSTNAME, with the port when --http-port is given)")
	fl.BoolVar(&e.SotW, "sotw", false, "state of the world instead of delta")
	fl.BoolVar(&e.PerType, "per-type", false, "a stream for each type instead of one for all (ADS); nothing is ordered then")
	fl.IntVar(&e.HTTPPort, "http-port", 0, "HTTP port (default 9080)")
	fl.IntVar(&e.HTTPSPort, "https-port", 0, "HTTPS port (default 9443)")
	fl.StringVar(&e.ListenAddress, "listen-address", "", "address to serve on (default 0.0.0.0)")
	fl.StringVar(&tls.SDSDir, "sds-dir", "", "directory, as Envoy sees it, for the files by which it follows a renewed certificate")
	fl.IntVar(&e.AdminPort, "admin-port", 9901, "port of Envoy's admin interface, on 127.0.0.1; 0 picks one")
	serverFlags(cmd, &e.Servers, &tls)
	a.groupFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		t, err := a.target()
		if err != nil {
			return err
		}
		e.Group = t.group
		for _, p := range []int{e.HTTPPort, e.HTTPSPort, e.AdminPort} {
			if p < 0 || p > 65535 {
				return usagef("port %d is not between 0 and 65535", p)
			}
		}
		if e.NodeID == "" {
			if e.NodeID, err = defaultNodeID("envoy", e.HTTPPort); err != nil {
				return err
			}
		}
		if e.Servers, err = xdsServers(t, e.Servers); err != nil {
			return err
		}
		if tls != (bootstrap.TLS{}) {
			e.TLS = &tls
		}
		out, err := e.YAML()
		if err != nil {
			return usagef("%s", err)
		}
		files, err := e.SDSFiles()
		if err != nil {
			return usagef("%s", err)
		}
		if err := a.writeFiles(tls.SDSDir, files); err != nil {
			return err
		}
		if e.TLS != nil && len(files) == 0 {
			a.say("Envoy reads this certificate once, when it starts; with --sds-dir it follows renewed ones.")
		}
		_, err = a.env.Stdout.Write(out)
		return err
	}
	return cmd
}

// writeFiles puts files into a directory, each whole or not at all.
func (a *app) writeFiles(dir string, files map[string][]byte) error {
	if len(files) == 0 {
		return nil
	}
	dir = a.env.path(dir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path+".new", text, 0o644); err != nil {
			return err
		}
		if err := os.Rename(path+".new", path); err != nil {
			return err
		}
	}
	return nil
}

func (a *app) bootstrapGRPCCommand() *cobra.Command {
	var g bootstrap.GRPC
	var tls bootstrap.TLS
	cmd := &cobra.Command{
		Use:   "grpc",
		Short: "Print the bootstrap of proxyless gRPC clients and servers",
		Long: `Print the bootstrap of a process with gRPC clients that call xds:///SERVICE, or
with xDS-enabled gRPC servers. The process finds it by GRPC_XDS_BOOTSTRAP, the
name of a file. Nothing is asked of a server: the xDS address is the admin
address's host and the port 500 above, unless --xds-address says otherwise.

Of several addresses a client uses the first that it reaches; grpc-js uses the
first only, and grpc-go hears of no changes after it went back to an earlier one.
A DNS name of all servers has neither fault.`,
		Example: `  muster bootstrap grpc -g edge > xds.json && GRPC_XDS_BOOTSTRAP=xds.json ./client
  muster bootstrap grpc -g edge --node-id checkout-1 --zone eu-1a
  muster bootstrap grpc -g edge --xds-address muster.example.com:7943 \
      --xds-ca-file ca.pem --xds-cert-file dp.pem --xds-key-file dp.key`,
		Args: noArgs,
	}
	fl := cmd.Flags()
	fl.StringVar(&g.NodeID, "node-id", "", "the process's id (default grpc-HOSTNAME)")
	fl.StringVar(&g.Region, "region", "", "region that the process runs in")
	fl.StringVar(&g.Zone, "zone", "", "zone that the process runs in")
	fl.StringVar(&g.SubZone, "sub-zone", "", "part of the zone that the process runs in")
	serverFlags(cmd, &g.Servers, &tls)
	a.groupFlag(cmd)
	cmd.RunE = func(*cobra.Command, []string) error {
		t, err := a.target()
		if err != nil {
			return err
		}
		g.Group = t.group
		if g.NodeID == "" {
			if g.NodeID, err = defaultNodeID("grpc", 0); err != nil {
				return err
			}
		}
		if g.Servers, err = xdsServers(t, g.Servers); err != nil {
			return err
		}
		if tls != (bootstrap.TLS{}) {
			g.TLS = &tls
		}
		out, err := g.JSON()
		if err != nil {
			return usagef("%s", err)
		}
		_, err = a.env.Stdout.Write(out)
		return err
	}
	return cmd
}

// serverFlags are the flags that say how a data plane reaches its servers.
func serverFlags(cmd *cobra.Command, servers *[]string, tls *bootstrap.TLS) {
	fl := cmd.Flags()
	fl.StringSliceVar(servers, "xds-address", nil, "host:port of the servers' xDS ports, separated by commas")
	fl.StringVar(&tls.CAFile, "xds-ca-file", "", "PEM file that verifies the servers")
	fl.StringVar(&tls.CertFile, "xds-cert-file", "", "PEM file of the data plane's certificate")
	fl.StringVar(&tls.KeyFile, "xds-key-file", "", "PEM file of the data plane's key")
}

// xdsServers returns the servers that were given, or those beside the admin
// addresses.
func xdsServers(t target, given []string) ([]string, error) {
	if len(given) > 0 {
		return given, nil
	}
	var servers []string
	for _, ep := range t.endpoints {
		host, port, _ := net.SplitHostPort(ep.hostport)
		n, err := strconv.Atoi(port)
		if err != nil {
			return nil, usagef("admin address %q has no numeric port; give --xds-address", ep.hostport)
		}
		servers = append(servers, net.JoinHostPort(host, strconv.Itoa(n+xdsPortDistance)))
	}
	return servers, nil
}

// defaultNodeID names a data plane by its machine, and by its port where several
// may run on one.
func defaultNodeID(kind string, port int) (string, error) {
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("no host name for --node-id: %w", err)
	}
	id := kind + "-" + host
	if port != 0 {
		id += "-" + strconv.Itoa(port)
	}
	return id, nil
}
