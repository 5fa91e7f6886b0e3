package cli

import (
	"context"
	"flag"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata/script")

// noon is when every script happens.
var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestScripts runs testdata/script/*.txtar, each a conversation with a server of
// its own. The commands besides testscript's:
//
//	muster ARGS...          must exit with 0
//	code N muster ARGS...   must exit with N
//	answer TEXT             the next command has a terminal, on which TEXT is typed
//	input FILE              the next command reads FILE from stdin
//	fleet SCENE             what data planes are connected (see fakeFleet)
//	server OPTION           how the server behaves (see fakeServer)
//	bucket DIR              an S3 server whose bucket holds testdata/DIR; $S3 is its URL
//	damage NAME             the object of that bucket gets another byte in its middle
func TestScripts(t *testing.T) {
	testdata, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir:                "testdata/script",
		UpdateScripts:      *update,
		RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			srv, err := startFakeServer()
			if err != nil {
				return err
			}
			e.Defer(srv.stop)
			e.Values[sceneKey{}] = &scene{server: srv}
			e.Setenv("MUSTER_ADDR", srv.addr)
			e.Setenv("MUSTER_API_KEY", "alice-key")
			e.Setenv("XDG_CONFIG_HOME", e.WorkDir+"/.config")
			e.Setenv("NO_COLOR", "1")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"muster": func(ts *testscript.TestScript, neg bool, args []string) {
				if neg {
					ts.Fatalf("say with which code: code N muster ARGS...")
				}
				runCLI(ts, 0, args)
			},
			"code": func(ts *testscript.TestScript, _ bool, args []string) {
				if len(args) < 2 || args[1] != "muster" {
					ts.Fatalf("usage: code N muster ARGS...")
				}
				want, err := strconv.Atoi(args[0])
				ts.Check(err)
				runCLI(ts, want, args[2:])
			},
			"answer": func(ts *testscript.TestScript, _ bool, args []string) {
				s := sceneOf(ts)
				s.stdin, s.terminal = strings.Join(args, " ")+"\n", true
			},
			"input": func(ts *testscript.TestScript, _ bool, args []string) {
				sceneOf(ts).stdin = ts.ReadFile(args[0])
			},
			"fleet": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(sceneOf(ts).server.fleet.set(args[0]))
			},
			"server": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(sceneOf(ts).server.option(args[0]))
			},
			"bucket": func(ts *testscript.TestScript, _ bool, args []string) {
				s3, err := fakeS3()
				ts.Check(err)
				ts.Defer(s3.Close)
				ts.Check(fillFakeS3(context.Background(), s3.URL, filepath.Join(testdata, args[0])))
				ts.Setenv("S3", s3.URL)
			},
			"damage": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(damageFakeS3(context.Background(), ts.Getenv("S3"), args[0]))
			},
		},
	})
}

// scene is what a script has set up.
type scene struct {
	server   *fakeServer
	stdin    string // of the next command
	terminal bool   // the next command's stdin is a terminal
}

type sceneKey struct{}

func sceneOf(ts *testscript.TestScript) *scene { return ts.Value(sceneKey{}).(*scene) }

func runCLI(ts *testscript.TestScript, want int, args []string) {
	s := sceneOf(ts)
	env := Env{
		Stdin:  strings.NewReader(s.stdin),
		Stdout: ts.Stdout(),
		Stderr: ts.Stderr(),
		LookupEnv: func(key string) (string, bool) {
			v := ts.Getenv(key)
			return v, v != ""
		},
		Dir:      ts.MkAbs("."),
		Now:      func() time.Time { return noon },
		StdinTTY: s.terminal,
	}
	s.stdin, s.terminal = "", false
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if got := Run(ctx, args, env); got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}
