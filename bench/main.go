package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"math/big"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"
)

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt)
	defer cancel()
	if len(args) == 0 {
		args = []string{"run"}
	}
	var err error
	switch args[0] {
	case "run":
		err = runCommand(ctx, args[1:])
	case "commit":
		err = commitCommand(ctx, args[1:])
	case "commit-arm":
		err = commitArmProcess(ctx, args[1:])
	case "node":
		err = nodeProcess(ctx, args[1:])
	case "planes":
		err = planesProcess(ctx, args[1:])
	case "serve", "load", "memory", "core", "relay":
		err = processCommand(ctx, args[0], args[1:])
	default:
		err = fmt.Errorf("unknown command %q: want run or commit", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		return 1
	}
	return 0
}

func runCommand(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("run", flag.ContinueOnError)
	only := fs.String("only", "", "run these scenarios only, for example B1,B4; other rows stay in the file of -out")
	smoke := fs.Bool("smoke", false, "small sizes; exit 1 when a ratio is off by more than the slack")
	samples := fs.Int("samples", 9, "samples of each measurement")
	out := fs.String("out", "", "also write the table to this file")
	envoy := fs.String("envoy", "", "an Envoy 1.40 binary, for B16; without it B16 is left out")
	tlsModes := fs.String("tls", "plain", "plain, mtls or both")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var names []string
	if *only != "" {
		names = strings.Split(*only, ",")
	}
	if err := setTestCertificate(); err != nil {
		return err
	}
	var text strings.Builder
	var all error
	measured := map[string][]string{}
	for i, mode := range []string{"plain", "mtls"} {
		if *tlsModes != "both" && *tlsModes != mode {
			continue
		}
		r := &runner{smoke: *smoke, tls: mode == "mtls", samples: *samples, envoy: *envoy, report: &report{}}
		all = errors.Join(all, r.run(ctx, names))
		measured[modeNames[i]] = r.report.ids()
		r.report.write(&text, fmt.Sprintf("%s, %d samples", modeNames[i], *samples))
		text.WriteString("\n")
		if *smoke {
			for _, g := range r.report.failed(1.5) {
				all = errors.Join(all, fmt.Errorf("%s is %s, limit %s (with a slack of 1.5)", g.what, number(g.got), number(g.limit)))
			}
		}
	}
	fmt.Print(preface + text.String())
	if *out != "" {
		before := ""
		if len(names) > 0 { // the other rows stay
			page, err := pageBefore(*out)
			if err != nil {
				return errors.Join(all, err)
			}
			before = earlier(page, measured)
		}
		all = errors.Join(all, os.WriteFile(*out, []byte(preface+before+text.String()), 0o644))
	}
	return all
}

// modeNames are how connections are measured.
var modeNames = []string{"plaintext loopback", "mutual TLS 1.3 on loopback"}

const preface = `# Benchmarks

Written by "make bench". Each arm is a server and a client process; the arms of a row are
alive together and their samples interleave, so ratios hold where absolute times do not.
The floor is bare grpc-go that streams the same bytes, encoded beforehand, and does nothing
else; the peer is go-control-plane, the better of LinearCache and SnapshotCache in B1 and
B3, else LinearCache. Cells are medians with the range. At the end of each scenario every
stream must hold exactly what its server holds. B16 and the memory of a group have nothing
to do with TLS and are measured once. Not measured here: B11, which is "go test -bench ."
in server/compile.

B12 and B13 run whole muster servers and relays, each a process, in plaintext only. The
added latency of B12 is the difference of two medians of one run: edges below relays less as
many on a server of their own, from before the commit to the change's arrival. It holds the
hop (received, verified, made durable, served) and what four processes gain or lose against
one in the fan-out on the same CPUs; with one edge to a relay it is the hop alone. All relays
share one disk here and wait for each other on it. "One message" is what the same change
takes of a data plane of muster's own at the server, which also follows whole revisions, on
as compressed a connection. B13's five deltas are what those changes took a relay that
stayed.

B8, B9 and B15 run clusters of three, on one disk; "make bench-cluster" measures them alone.
In B8 each arm is a process with its three servers and its writers (etcd's servers are its
children); where a row has go-control-plane, etcd stands in its place. Its API rows do what
the others do not: judge each write, compile it for trial and, on every server, to be served.
B9 is from before the call, at any of the servers, to the moment when the last of the data
planes, a third of them at each server, has acknowledged. In B15 the writers go to another
server when one fails and repeat what has no answer by its request id; the data planes come
back with what they hold. At the end every data plane and a linearizable read must show
exactly what was acknowledged, each write must have made exactly one revision, and no data
plane may ever have been sent an older version, or one version with two contents.

tree, which "make bench-tree" measures, is such a server, ten relays and 20,000 data planes.
The data planes are simulated: each is a stream on a TCP connection of its own that takes in
what comes, keeps a hash of it and acknowledges, 5,000 to a process. All processes share the
machine, so the times are those of its CPUs, not of a tree in which each has its own.

Three rows come close to their limits, or pass them, with mutual TLS, and in each the floor
does the same. B4: crypto/tls holds about 30 KB for a connection, of muster and of bare
grpc-go alike (B4's ratio is that of the two). B7: a handshake with a client's certificate
and the decryption of 800 KB of versions cost about 0.6 ms on top of the plaintext row; a
profile puts a quarter of the time into handshakes. Fewer connections are the remedy for
both: below a relay a thousand data planes cost the core one. B14 is a ratio of two p99 of
nine samples, which differ by more than a tenth between runs.

`

func processCommand(ctx context.Context, what string, args []string) error {
	fs := flag.NewFlagSet(what, flag.ContinueOnError)
	armName := fs.String("arm", "", "")
	addr := fs.String("addr", "", "")
	streams := fs.Int("streams", 1, "")
	resources := fs.Int("resources", 1, "")
	revisions := fs.Int("revisions", 0, "")
	withTLS := fs.Bool("tls", false, "")
	agent := fs.String("agent", "envoy", "")
	id, upstream, dir := fs.String("id", "node", ""), fs.String("upstream", "", ""), fs.String("dir", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	var server, client *tls.Config
	if *withTLS {
		var err error
		if server, client, err = testTLS(); err != nil {
			return err
		}
	}
	if what == "memory" {
		return answer(func(request) (reply, error) { return memoryProcess(*resources, *revisions) })
	}
	if what == "core" {
		return coreProcess(ctx, *resources)
	}
	if what == "relay" {
		return relayProcess(ctx, *id, *upstream, *addr, *dir)
	}
	if what == "serve" {
		return serveProcess(*armName, *resources, server)
	}
	return loadProcess(ctx, *id, *agent, *addr, *streams, *resources, client)
}

const certEnv, keyEnv = "MUSTER_BENCH_CERT", "MUSTER_BENCH_KEY"

// setTestCertificate makes one self-signed certificate that both sides of a run
// present and trust; the child processes inherit it through the environment.
func setTestCertificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return err
	}
	keyDER, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return errors.Join(os.Setenv(certEnv, hex.EncodeToString(der)), os.Setenv(keyEnv, hex.EncodeToString(keyDER)))
}

func testTLS() (server, client *tls.Config, err error) {
	der, err1 := hex.DecodeString(os.Getenv(certEnv))
	keyDER, err2 := hex.DecodeString(os.Getenv(keyEnv))
	if err := errors.Join(err1, err2); err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, nil, err
	}
	key, err := x509.ParseECPrivateKey(keyDER)
	if err != nil {
		return nil, nil, err
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	pair := []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
	server = &tls.Config{Certificates: pair, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, NextProtos: []string{"h2"}}
	client = &tls.Config{Certificates: pair, RootCAs: pool, ServerName: "localhost", MinVersion: tls.VersionTLS13}
	return server, client, nil
}
