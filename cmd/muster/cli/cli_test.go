package cli

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

var update = flag.Bool("update", false, "rewrite the expectations in testdata/script")

// noon is when every script happens.
var noon = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){
		"muster": func() {
			env := OSEnv()
			env.Now = func() time.Time { return noon }
			os.Exit(Run(context.Background(), os.Args[1:], env))
		},
	})
}

// leakChecked fails a run that leaves goroutines behind; testscript.Main takes
// the place of goleak.VerifyTestMain.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
	}
	return code
}

// TestScripts runs testdata/script/*.txtar, each a conversation with a server of
// its own. Besides testscript's commands there are:
//
//	code N muster ARGS...   the command must exit with N
//	fleet SCENE             what data planes are connected (see fakeFleet)
//	server OPTION           how the server behaves (see fakeServer)
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireUniqueNames:  true,
		RequireExplicitExec: false,
		Setup: func(e *testscript.Env) error {
			srv, err := startFakeServer()
			if err != nil {
				return err
			}
			e.Defer(srv.stop)
			e.Values[serverKey{}] = srv
			e.Setenv("MUSTER_ADDR", srv.addr)
			e.Setenv("MUSTER_API_KEY", "alice-key")
			e.Setenv("XDG_CONFIG_HOME", e.WorkDir+"/.config")
			e.Setenv("XDG_CACHE_HOME", e.WorkDir+"/.cache")
			e.Setenv("NO_COLOR", "1")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"code":   cmdCode,
			"fleet":  cmdFleet,
			"server": cmdServer,
		},
	})
}

type serverKey struct{}

func cmdCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code N muster ARGS...")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	err = ts.Exec(args[1], args[2:]...)
	got := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if got != want {
		ts.Fatalf("exit code %d, want %d", got, want)
	}
}

func cmdFleet(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: fleet SCENE")
	}
	ts.Check(ts.Value(serverKey{}).(*fakeServer).fleet.set(args[0]))
}

func cmdServer(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: server OPTION")
	}
	ts.Check(ts.Value(serverKey{}).(*fakeServer).option(args[0]))
}
