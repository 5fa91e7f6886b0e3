package grpcclient

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Variable names what `make e2e` sets: name=path pairs, separated by spaces. The
// path is that of a Python interpreter, of a directory that npm installed
// test/grpcclients/node in, or of one that Maven built test/grpcclients/java in.
// The Go client is built anew and always there.
const Variable = "MUSTER_E2E_GRPC"

// Client is a client that is there to be run.
type Client struct {
	// Name is its language: go, python, node or java.
	Name string
	argv []string
}

// Clients builds the Go programs into dir and reads Variable. The server is the
// path of test/grpcclients/healthserver.
func Clients(ctx context.Context, dir string) (all []Client, server string, err error) {
	const programs = "github.com/musterhq/muster/test/grpcclients/"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", dir+"/", programs+"healthclient", programs+"healthserver")
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, "", fmt.Errorf("build the Go clients: %w\n%s", err, out)
	}
	all = []Client{{"go", []string{filepath.Join(dir, "healthclient")}}}
	for pair := range strings.FieldsSeq(os.Getenv(Variable)) {
		name, path, ok := strings.Cut(pair, "=")
		if !ok {
			return nil, "", fmt.Errorf("%s: %q is not name=path", Variable, pair)
		}
		if _, err := os.Stat(path); err != nil {
			return nil, "", fmt.Errorf("gRPC client %s: %w", name, err)
		}
		c := Client{Name: name}
		switch name {
		case "python":
			source, err := filepath.Abs("../grpcclients/python/healthclient.py")
			if err != nil {
				return nil, "", err
			}
			c.argv = []string{path, source}
		case "node":
			c.argv = []string{"node", filepath.Join(path, "healthclient.js")}
		case "java":
			c.argv = []string{"java", "-XX:+UseSerialGC", "-cp", path + "/target/classes:" + path + "/target/lib/*", "example.HealthClient"}
		default:
			return nil, "", fmt.Errorf("%s: no client %q", Variable, name)
		}
		all = append(all, c)
	}
	return all, filepath.Join(dir, "healthserver"), nil
}
